/* A rounding algorithm that does no work: what is left of a call is the hand-over. */
#include "qfw_plugin.h"

static int32_t do_round(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out) {
    (void)algo;
    (void)host;
    (void)site;
    (void)out;
    return QFW_ERR_NUMERIC;
}

#define ALGO "declines"
#define PLUGIN "org.qfw.declines"
#include "one_algorithm.h"
