/* The rest of a library of one algorithm that rounds: it needs nothing and keeps nothing. Before this file comes
 * `static int32_t do_round(qfw_algo *, const qfw_host *, const qfw_site *, qfw_round_out *)`; ALGO and PLUGIN are its ids. */
#include "qfw_plugin.h"

#include <string.h>

static const qfw_round ROUND = {sizeof(qfw_round), 0, do_round};

static const void *extension(const qfw_algo *algo, const char *id) {
    (void)algo;
    return strcmp(id, "qfw.round/1") == 0 ? &ROUND : NULL;
}

static qfw_algo INSTANCE = {sizeof(qfw_algo), 0, NULL, {NULL, 0}, NULL, extension};

static const qfw_algo_desc DESC = {
    sizeof(qfw_algo_desc), QFW_ROUND, ALGO, "one algorithm", "{}", 0, QFW_REENTRANT | QFW_WEIGHT_ONLY, 0,
};

static uint32_t count(void) {
    return 1;
}

static int32_t describe(const qfw_host *host, uint32_t index, const qfw_algo_desc **out) {
    (void)host;
    (void)index;
    *out = &DESC;
    return QFW_OK;
}

static int32_t create(const qfw_host *host, const char *id, qfw_str options, uint64_t seed, qfw_algo **out) {
    (void)host;
    (void)id;
    (void)options;
    (void)seed;
    *out = &INSTANCE;
    return QFW_OK;
}

static const qfw_plugin TABLE = {
    sizeof(qfw_plugin), {QFW_ABI_MAJOR, QFW_ABI_MINOR}, 0, PLUGIN, "1.0.0", count, describe, create, NULL,
};

const qfw_plugin *qfw_plugin_entry_v1(void) {
    return &TABLE;
}
