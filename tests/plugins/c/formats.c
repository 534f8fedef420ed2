/* A library of number formats and nothing else; FAULT says what is wrong with them. */
#include "qfw_plugin.h"

#include <string.h>

#define RISING 0
#define FALLING 1
#define OTHER_ID 2
#define TOO_MANY 3
#define ONE_SIDE 4
#define NO_GRID 5
#define NO_LEVELS 6

static const float LEVELS[][4] = {
    {-1.0f, -0.25f, 0.0f, 1.0f}, {1.0f, 0.0f, -0.25f, -1.0f}, {-1.0f, -0.25f, 0.0f, 1.0f}, {-1.0f, -0.25f, 0.0f, 1.0f}, {1.0f, 2.0f, 3.0f, 4.0f},
    {-1.0f, -0.25f, 0.0f, 1.0f}, {-1.0f, -0.25f, 0.0f, 1.0f},
};

static const qfw_grid GRID = {
    sizeof(qfw_grid), QFW_GRID_LEVELS, 0, 3, 2, QFW_ZERO_NONE, 0, 0, 0, 0, FAULT == NO_LEVELS ? NULL : LEVELS[FAULT], 4,
};

static const qfw_format_desc FORMAT = {
    sizeof(qfw_format_desc), 0, FAULT == OTHER_ID ? "five" : "four", "four values", FAULT == NO_GRID ? NULL : &GRID,
};

static uint32_t format_count(void) {
    return FAULT == TOO_MANY ? 4000000000u : 1;
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

static uint32_t count(void) {
    return 0;
}

static int32_t describe(const qfw_host *host, uint32_t index, const qfw_algo_desc **out) {
    (void)host;
    (void)index;
    (void)out;
    return QFW_ERR_INTERNAL;
}

static const qfw_plugin PLUGIN = {
    sizeof(qfw_plugin), {QFW_ABI_MAJOR, QFW_ABI_MINOR}, 0, "org.qfw.formats", "1.0.0", count, describe, NULL, extension,
};

const qfw_plugin *qfw_plugin_entry_v1(void) {
    return &PLUGIN;
}
