/* A library of number formats and nothing else; FAULT says what is wrong with them. */
#include "qfw_plugin.h"

#include <string.h>

#define RISING 0
#define FALLING 1
#define OTHER_ID 2
#define TOO_MANY 3
#define ONE_SIDE 4

static const float LEVELS[][4] = {
    {-1.0f, -0.25f, 0.0f, 1.0f}, {1.0f, 0.0f, -0.25f, -1.0f}, {-1.0f, -0.25f, 0.0f, 1.0f}, {-1.0f, -0.25f, 0.0f, 1.0f}, {1.0f, 2.0f, 3.0f, 4.0f},
};

static const qfw_format_desc FORMAT = {
    sizeof(qfw_format_desc), 0, FAULT == OTHER_ID ? "five" : "four", "four values",
    {sizeof(qfw_grid), QFW_GRID_LEVELS, 0, 3, 2, QFW_ZERO_NONE, 0, 0, 0, 0, LEVELS[FAULT], 4},
};

static uint32_t format_count(void) {
    return FAULT == TOO_MANY ? 4000000000u : 1;
}

static const qfw_format_desc *format_describe(uint32_t index) {
    (void)index;
    return &FORMAT;
}

static const qfw_formats FORMATS = {sizeof(qfw_formats), 0, format_count, format_describe};

static const void *extension(const char *id) {
    return strcmp(id, "qfw.format/1") == 0 ? &FORMATS : NULL;
}

static uint32_t count(void) {
    return 0;
}

static const qfw_algo_desc *describe(uint32_t index) {
    (void)index;
    return NULL;
}

static const qfw_plugin PLUGIN = {
    sizeof(qfw_plugin), {QFW_ABI_MAJOR, QFW_ABI_MINOR}, 0, "org.qfw.formats", "1.0.0", count, describe, NULL, extension,
};

const qfw_plugin *qfw_plugin_entry_v1(void) {
    return &PLUGIN;
}
