/* A library that breaks the contract before anything is called; FAULT says how. */
#include "qfw_plugin.h"

#include <stddef.h>
#include <string.h>

#define NEWER_MAJOR 1
#define NEWER_MINOR 2
#define TWICE 3
#define NULL_TABLE 4
#define SMALL_TABLE 5
#define OTHER_ID 6
#define NO_INSTANCE 7
#define OVERRUN 8
#define OTHER_TYPE 9
#define OTHER_SHAPE 10
#define ONE_DIMENSION 11
#define OFFSET 12
#define WRITES 13

static int32_t overrun(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out) {
    float *scale = (float *)out->scale->dl_tensor.data;
    int64_t tiles = out->scale->dl_tensor.shape[0] * out->scale->dl_tensor.shape[1];
    (void)algo;
    (void)host;
    (void)site;
    for (int64_t i = 0; i <= tiles; i++)
        scale[i] = 1.0f;
    return QFW_OK;
}

/* Hands the host another tensor where that of the codes belongs. */
static int32_t misfit(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out) {
    const qfw_numeric *numeric = (const qfw_numeric *)host->extension(host, "qfw.numeric/1");
    const float *weight = (const float *)site->weight->dl_tensor.data;
    float *scale = (float *)out->scale->dl_tensor.data, *zero = (float *)out->zero->dl_tensor.data;
    int64_t shape[2] = {out->codes->dl_tensor.shape[0], out->codes->dl_tensor.shape[1]};
    qfw_tensor other = *out->codes;
    int32_t status;
    (void)algo;
    other.dl_tensor.shape = shape;
    if (FAULT == OTHER_TYPE)
        other.dl_tensor.dtype = out->scale->dl_tensor.dtype;
    if (FAULT == OTHER_SHAPE)
        shape[0] += 1;
    if (FAULT == ONE_DIMENSION)
        other.dl_tensor.ndim = 1;
    if (FAULT == OFFSET)
        other.dl_tensor.byte_offset = 64;
    status = numeric->fit(host, site, weight, scale, zero);
    return status == QFW_OK ? numeric->nearest(host, site, weight, scale, zero, &other) : status;
}

/* Writes to what it was lent. */
static int32_t writes(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out) {
    (void)algo;
    (void)host;
    (void)out;
    *(float *)site->weight->dl_tensor.data = 1.0f;
    return QFW_ERR_NUMERIC;
}

static const qfw_round ROUND = {
    sizeof(qfw_round), 0, FAULT == WRITES ? writes : FAULT >= OTHER_TYPE ? misfit : overrun,
};

static const void *extension(const qfw_algo *algo, const char *id) {
    (void)algo;
    return strcmp(id, "qfw.round/1") == 0 ? &ROUND : NULL;
}

static qfw_algo ALGO = {sizeof(qfw_algo), 0, NULL, {NULL, 0}, NULL, extension};

static const qfw_algo_desc DESC = {
    sizeof(qfw_algo_desc), QFW_ROUND, "broken", "breaks", "{}", 0, QFW_REENTRANT | QFW_WEIGHT_ONLY, 0,
};

static uint32_t count(void) {
    return FAULT == TWICE ? 2 : 1;
}

static const qfw_algo_desc *describe(uint32_t index) {
    (void)index;
    return &DESC;
}

static int32_t create(const qfw_host *host, const char *id, qfw_str options, uint64_t seed, qfw_algo **out) {
    (void)host;
    (void)id;
    (void)options;
    (void)seed;
    *out = FAULT == NO_INSTANCE ? NULL : &ALGO;
    return QFW_OK;
}

static const qfw_plugin PLUGIN = {
    FAULT == SMALL_TABLE ? 24 : sizeof(qfw_plugin),
    {FAULT == NEWER_MAJOR ? 2 : QFW_ABI_MAJOR, FAULT == NEWER_MINOR ? 9 : QFW_ABI_MINOR},
    0,
    FAULT == OTHER_ID ? "org.qfw.other" : "org.qfw.broken",
    "1.0.0",
    count,
    describe,
    create,
    NULL,
};

const qfw_plugin *qfw_plugin_entry_v1(void) {
    return FAULT == NULL_TABLE ? NULL : &PLUGIN;
}
