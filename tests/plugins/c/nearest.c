/* Rounding to nearest in C, over the host's numerics, and GPTQ over them: two algorithms of one library. */
#include "qfw_plugin.h"

#include <stdlib.h>
#include <string.h>

static qfw_str text(const char *s) {
    qfw_str t = {s, strlen(s)};
    return t;
}

static int32_t fail(const qfw_host *host, int32_t status, const char *why) {
    host->set_error(host, text(why), text(""));
    return status;
}

static int32_t nearest_round(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out) {
    const qfw_numeric *numeric = (const qfw_numeric *)host->extension(host, "qfw.numeric/1");
    const float *weight = (const float *)site->weight->dl_tensor.data, *ranged = (const float *)site->ranged->dl_tensor.data;
    float *scale = (float *)out->scale->dl_tensor.data, *zero = (float *)out->zero->dl_tensor.data;
    int32_t status;
    (void)algo;
    if (!numeric)
        return fail(host, QFW_ERR_UNSUPPORTED, "the host has no qfw.numeric/1");
    status = numeric->fit(host, site, ranged, scale, zero);
    return status == QFW_OK ? numeric->nearest(host, site, weight, scale, zero, out->codes) : status;
}

static int32_t gptq_round(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out) {
    const qfw_numeric *numeric = (const qfw_numeric *)host->extension(host, "qfw.numeric/1");
    const float *weight = (const float *)site->weight->dl_tensor.data, *ranged = (const float *)site->ranged->dl_tensor.data;
    float *scale = (float *)out->scale->dl_tensor.data, *zero = (float *)out->zero->dl_tensor.data;
    const qfw_factor *factor = NULL;
    int32_t status;
    (void)algo;
    if (!numeric)
        return fail(host, QFW_ERR_UNSUPPORTED, "the host has no qfw.numeric/1");
    if (site->n_stats != 1 || site->stats[0]->kind != QFW_STAT_GRAM)
        return fail(host, QFW_ERR_INTERNAL, "the Gram matrix is missing");
    if (host->cancelled(host))
        return QFW_ERR_CANCELLED;
    status = numeric->factor(host, site->stats[0]->tensor, 0.01, 1, &factor);
    if (status == QFW_OK)
        status = numeric->fit(host, site, ranged, scale, zero);
    if (status == QFW_OK)
        status = numeric->sweep(host, site, weight, factor, scale, zero, 128, out->codes);
    return status;
}

static const qfw_round NEAREST_ROUND = {sizeof(qfw_round), 0, nearest_round};
static const qfw_round GPTQ_ROUND = {sizeof(qfw_round), 0, gptq_round};

static const void *nearest_extension(const qfw_algo *algo, const char *id) {
    (void)algo;
    return strcmp(id, "qfw.round/1") == 0 ? &NEAREST_ROUND : NULL;
}

static const void *gptq_extension(const qfw_algo *algo, const char *id) {
    (void)algo;
    return strcmp(id, "qfw.round/1") == 0 ? &GPTQ_ROUND : NULL;
}

static const qfw_algo_desc ALGORITHMS[] = {
    {sizeof(qfw_algo_desc), QFW_ROUND, "c.nearest", "round to nearest, in C", "{\"type\":\"object\",\"properties\":{}}", 0,
     QFW_REENTRANT | QFW_WEIGHT_ONLY, 0},
    {sizeof(qfw_algo_desc), QFW_ROUND, "c.gptq", "GPTQ, in C", "{\"type\":\"object\",\"properties\":{}}", QFW_NEED(QFW_STAT_GRAM),
     QFW_FEEDS_BACK, 0},
};

static uint32_t count(void) {
    return 2;
}

static int32_t describe(const qfw_host *host, uint32_t index, const qfw_algo_desc **out) {
    (void)host;
    *out = &ALGORITHMS[index];
    return QFW_OK;
}

static void destroy(qfw_algo *algo, const qfw_host *host) {
    (void)host;
    free(algo);
}

static int32_t create(const qfw_host *host, const char *id, qfw_str options, uint64_t seed, qfw_algo **out) {
    qfw_algo *algo = (qfw_algo *)calloc(1, sizeof *algo);
    (void)options;
    (void)seed;
    if (!algo)
        return fail(host, QFW_ERR_INTERNAL, "there is no memory");
    algo->size = sizeof *algo;
    algo->destroy = destroy;
    algo->extension = strcmp(id, "c.gptq") == 0 ? gptq_extension : nearest_extension;
    *out = algo;
    return QFW_OK;
}

/* A format: seven values, denser around zero. */
static const float LEVELS[] = {-1.0f, -0.5f, -0.2f, 0.0f, 0.2f, 0.5f, 1.0f};
static const qfw_grid GRID = {sizeof(qfw_grid), QFW_GRID_LEVELS, 0, 6, 3, QFW_ZERO_NONE, 0, 0, 0, 0, LEVELS, 7};
static const qfw_format_desc FORMAT = {sizeof(qfw_format_desc), 0, "seven", "seven values, denser around zero", &GRID};

static uint32_t format_count(void) {
    return 1;
}

static int32_t format_describe(const qfw_host *host, uint32_t index, const qfw_format_desc **out) {
    (void)host;
    (void)index;
    *out = &FORMAT;
    return QFW_OK;
}

static const qfw_formats FORMATS = {sizeof(qfw_formats), 0, format_count, format_describe};

static const void *extension(const char *id) {
    return strcmp(id, "qfw.format/1") == 0 ? &FORMATS : NULL;
}

static const qfw_plugin PLUGIN = {
    sizeof(qfw_plugin), {QFW_ABI_MAJOR, QFW_ABI_MINOR}, 0, "org.qfw.in-c", "1.2.3", count, describe, create, extension,
};

const qfw_plugin *qfw_plugin_entry_v1(void) {
    return &PLUGIN;
}
