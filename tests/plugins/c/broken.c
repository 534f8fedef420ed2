/* A library that breaks the contract before anything is called; FAULT says how. */
#include "qfw_plugin.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <threads.h>
#include <time.h>

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
#define GROWN 14
#define ASKS 15
#define NO_PLAN 16
#define NO_FUNCTION 17
#define OVERRUN_ASKED 18
#define OVERRUN_FAILS 19
#define IDLE 20
#define LIES 21
#define STRANGE_INDEX 22
#define HANGS_OPENING 23
#define HANGS_ENDING 24
#define LAST 25

static void hang(void) {
    struct timespec hour = {3600, 0};
    fputs("hanging\n", stderr);
    for (;;)
        thrd_sleep(&hour, NULL);
}

/* Before anything is asked of the library, and after everything. */
__attribute__((constructor)) static void opened(void) {
    if (FAULT == HANGS_OPENING)
        hang();
}

__attribute__((destructor)) static void ended(void) {
    if (FAULT == HANGS_ENDING)
        hang();
}

static int32_t overrun(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out) {
    float *scale = (float *)out->scale->dl_tensor.data;
    int64_t tiles = out->scale->dl_tensor.shape[0] * out->scale->dl_tensor.shape[1];
    (void)algo;
    (void)host;
    (void)site;
    for (int64_t i = 0; i <= tiles; i++)
        scale[i] = 1.0f;
    return FAULT == OVERRUN_FAILS ? QFW_ERR_NUMERIC : QFW_OK;
}

/* Writes behind the end of what it has asked for. */
static int32_t overrun_asked(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out) {
    int64_t shape[] = {3, 5};
    qfw_tensor *asked = NULL;
    (void)algo;
    (void)site;
    (void)out;
    if (host->alloc(host, 2, 32, 2, shape, &asked) != QFW_OK)
        return QFW_ERR_INTERNAL;
    ((float *)asked->dl_tensor.data)[15] = 1.0f;
    return QFW_ERR_NUMERIC;
}

static int32_t hangs(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out) {
    (void)algo;
    (void)host;
    (void)site;
    (void)out;
    hang();
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
    if (FAULT == STRANGE_INDEX)
        out->group_index = out->scale;
    if (FAULT == LAST) {
        size_t n = (size_t)(out->scale->dl_tensor.shape[0] * out->scale->dl_tensor.shape[1]);
        status = numeric->fit(host, site, weight, scale, zero);
        status = status == QFW_OK ? numeric->nearest(host, site, weight, scale, zero, &other) : status;
        memset(scale + n - 1, 0xff, sizeof *scale);
        return status;
    }
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
    sizeof(qfw_round),
    0,
    FAULT == WRITES                              ? writes
    : FAULT == OVERRUN || FAULT == OVERRUN_FAILS ? overrun
    : FAULT == OVERRUN_ASKED                     ? overrun_asked
    : FAULT == HANGS_ENDING                      ? hangs
    : FAULT == NO_FUNCTION                       ? NULL
                                                 : misfit,
};

static int32_t split(qfw_algo *algo, const qfw_host *host, const qfw_site *const *sites, size_t n_sites, qfw_split_out *out) {
    (void)algo;
    (void)host;
    (void)sites;
    (void)n_sites;
    (void)out;
    return QFW_OK;
}

static const qfw_split SPLIT = {sizeof(qfw_split), 0, NULL, split};

static const void *extension(const qfw_algo *algo, const char *id) {
    (void)algo;
    if (FAULT == NO_PLAN)
        return strcmp(id, "qfw.split/1") == 0 ? &SPLIT : NULL;
    return strcmp(id, "qfw.round/1") == 0 ? &ROUND : NULL;
}

static qfw_algo ALGO = {sizeof(qfw_algo), 0, NULL, {NULL, 0}, NULL, extension};

static const qfw_algo_desc DESC = {
    sizeof(qfw_algo_desc),
    FAULT == NO_PLAN ? QFW_SPLIT : QFW_ROUND,
    "broken",
    "breaks",
    "{}",
    FAULT == LIES ? QFW_NEED(QFW_STAT_GRAM) : 0,
    QFW_REENTRANT | (FAULT == IDLE ? 0 : QFW_WEIGHT_ONLY),
    0,
};

static uint32_t count(void) {
    return FAULT == TWICE ? 2 : 1;
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
    *out = FAULT == NO_INSTANCE ? NULL : &ALGO;
    return QFW_OK;
}

/* The table as a later version may have it. */
typedef struct {
    qfw_plugin now;
    uint64_t later;
} grown_plugin;

static const grown_plugin PLUGIN = {
    {
        FAULT == SMALL_TABLE ? 24 : FAULT == GROWN || FAULT == ASKS ? sizeof(grown_plugin) : sizeof(qfw_plugin),
        {FAULT == NEWER_MAJOR ? 2 : QFW_ABI_MAJOR, FAULT == NEWER_MINOR ? 9 : QFW_ABI_MINOR},
        0,
        FAULT == OTHER_ID ? "org.qfw.other" : "org.qfw.broken",
        "1.0.0",
        count,
        describe,
        create,
        NULL,
    },
    FAULT == ASKS,
};

const qfw_plugin *qfw_plugin_entry_v1(void) {
    return FAULT == NULL_TABLE ? NULL : &PLUGIN.now;
}
