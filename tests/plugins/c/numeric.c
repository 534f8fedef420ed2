/* Asks the host for each function of qfw.numeric/1 and compares the answer with numbers that were worked out by hand. */
#include "qfw_plugin.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

static qfw_str text(const char *s) {
    qfw_str t = {s, strlen(s)};
    return t;
}

/* The first claim that does not hold is the error. */
#define HOLDS(claim)                                                      \
    do {                                                                  \
        if (!(claim)) {                                                   \
            host->set_error(host, text("not so: " #claim), text(""));     \
            return QFW_ERR_INTERNAL;                                      \
        }                                                                 \
    } while (0)

static int equal(const float *a, const float *b, size_t n) {
    return memcmp(a, b, n * sizeof *a) == 0;
}

/* A [2, 3], B [3, 2]: whole numbers, so that every order of summation gives the same. */
static int32_t gemm(const qfw_host *host, const qfw_numeric *numeric) {
    static const float A[] = {1, 2, 3, 4, 5, 6}, A_T[] = {1, 4, 2, 5, 3, 6};
    static const float B[] = {7, 8, 9, 10, 11, 12}, B_T[] = {7, 9, 11, 8, 10, 12};
    static const float AB[] = {58, 64, 139, 154};
    static const float WIDE[] = {1, 2, 3, -1, 4, 5, 6, -1}; /* rows of four, of which three count */
    float c[4], wide[6] = {0, 0, 5, 0, 0, 5};
    HOLDS(numeric->gemm(host, 2, 2, 3, 0, c, 2, A, 0, 3, B, 0, 2) == QFW_OK && equal(c, AB, 4));
    HOLDS(numeric->gemm(host, 2, 2, 3, 0, c, 2, A_T, 1, 2, B, 0, 2) == QFW_OK && equal(c, AB, 4));
    HOLDS(numeric->gemm(host, 2, 2, 3, 0, c, 2, A, 0, 3, B_T, 1, 3) == QFW_OK && equal(c, AB, 4));
    HOLDS(numeric->gemm(host, 2, 2, 3, 0, c, 2, A_T, 1, 2, B_T, 1, 3) == QFW_OK && equal(c, AB, 4));
    HOLDS(numeric->gemm(host, 2, 2, 3, 0, wide, 3, WIDE, 0, 4, B, 0, 2) == QFW_OK);
    HOLDS(wide[0] == 58 && wide[1] == 64 && wide[2] == 5 && wide[3] == 139 && wide[4] == 154 && wide[5] == 5);
    HOLDS(numeric->gemm(host, 2, 2, 3, 1, c, 2, A, 0, 3, B, 0, 2) == QFW_OK && c[0] == 116 && c[3] == 308);
    /* Rows that overlap are none; nor is what cannot be read, or is written while it is read. */
    HOLDS(numeric->gemm(host, 2, 2, 3, 0, c, 1, A, 0, 3, B, 0, 2) != QFW_OK);
    HOLDS(numeric->gemm(host, 2, 2, 3, 0, c, 2, NULL, 0, 3, B, 0, 2) != QFW_OK);
    HOLDS(numeric->gemm(host, 2, 2, 3, 0, c, 2, A, 0, 3, (const float *)((const char *)B + 2), 0, 2) != QFW_OK);
    HOLDS(numeric->gemm(host, 2, 2, 2, 0, c, 2, c, 0, 2, B, 0, 2) != QFW_OK);
    HOLDS(numeric->gemm(host, SIZE_MAX, 2, 3, 0, c, 2, A, 0, 3, B, 0, 2) != QFW_OK);
    HOLDS(numeric->gemm(host, 2, 2, 3, 0, c, SIZE_MAX, A, 0, 3, B, 0, 2) != QFW_OK);
    HOLDS(numeric->gemm(host, SIZE_MAX / 8, 2, 3, 0, c, 2, A, 0, 3, B, 0, 2) != QFW_OK);
    return QFW_OK;
}

/* The mixing step is that of SplitMix64; the values were computed from the formula in the documentation of the host's
 * `uniform_u64`, in another language. */
static int32_t random_bits(const qfw_host *host, const qfw_numeric *numeric) {
    static const uint64_t KEY[] = {7, 1}, OTHER[] = {1, 7};
    HOLDS(numeric->random(KEY, 1) == UINT64_C(0x54ef52c880369a88));
    HOLDS(numeric->random(KEY, 2) == UINT64_C(0xf6fbcbbdcb64ff8));
    HOLDS(numeric->random(OTHER, 2) == UINT64_C(0xf3bef05877b150c0));
    return QFW_OK;
}

typedef struct {
    _Atomic uint64_t sum;
    _Atomic uint32_t calls;
} tally;

static int32_t add(void *state, size_t i) {
    atomic_fetch_add(&((tally *)state)->sum, (uint64_t)i * i);
    atomic_fetch_add(&((tally *)state)->calls, 1);
    return QFW_OK;
}

static int32_t stop_at_three(void *state, size_t i) {
    (void)state;
    return i == 3 ? QFW_ERR_NUMERIC : QFW_OK;
}

/* 0 + 1 + 4 + ... + 999^2 = 999 * 1000 * 1999 / 6. */
static int32_t parallel(const qfw_host *host, const qfw_numeric *numeric) {
    tally all = {0, 0};
    HOLDS(numeric->parallel_for(host, 1000, &all, add) == QFW_OK);
    HOLDS(all.sum == UINT64_C(332833500) && all.calls == 1000);
    HOLDS(numeric->parallel_for(host, 0, &all, add) == QFW_OK && all.calls == 1000);
    HOLDS(numeric->parallel_for(host, 100, NULL, stop_at_three) == QFW_ERR_NUMERIC);
    return QFW_OK;
}

/* What is no Gram matrix, in one way each. */
static int32_t no_factor(const qfw_host *host, const qfw_numeric *numeric, const qfw_tensor gram) {
    const qfw_factor *found = NULL;
    int64_t strides[] = {2, 1}, oblong[] = {2, 1}, negative[] = {-2, -2}, huge[] = {INT64_MAX, INT64_MAX};
    qfw_tensor other = gram;
    HOLDS(numeric->factor(host, NULL, 0.0, 0, &found) != QFW_OK);
    HOLDS(numeric->factor(host, &gram, 0.0, 0, NULL) != QFW_OK);
    HOLDS(numeric->factor(host, &gram, -1.0, 0, &found) != QFW_OK && numeric->factor(host, &gram, NAN, 0, &found) != QFW_OK);
#define REFUSED(change)                                                   \
    other = gram;                                                         \
    change;                                                               \
    HOLDS(numeric->factor(host, &other, 0.0, 0, &found) != QFW_OK)
    REFUSED(other.dl_tensor.dtype.bits = 64);
    REFUSED(other.dl_tensor.dtype.code = 0);
    REFUSED(other.dl_tensor.dtype.lanes = 2);
    REFUSED(other.dl_tensor.ndim = 1);
    REFUSED(other.dl_tensor.ndim = -2);
    REFUSED(other.dl_tensor.byte_offset = 4);
    REFUSED(other.dl_tensor.device.device_type = 2);
    REFUSED(other.dl_tensor.strides = strides);
    REFUSED(other.dl_tensor.shape = NULL);
    REFUSED(other.dl_tensor.shape = oblong);
    REFUSED(other.dl_tensor.shape = negative);
    REFUSED(other.dl_tensor.shape = huge);
    REFUSED(other.dl_tensor.data = NULL);
    REFUSED(other.dl_tensor.data = (char *)gram.dl_tensor.data + 1);
    return QFW_OK;
}

/* H = [[4, 2], [2, 5]], det 16: H^-1 = [[5, -2], [-2, 4]] / 16 = U'U with U = [[sqrt 5, -2 / sqrt 5], [0, 4 / sqrt 5]] / 4. */
static int32_t factor(const qfw_host *host, const qfw_numeric *numeric) {
    float lower[] = {4, 0, 2, 5};
    int64_t shape[] = {2, 2};
    qfw_tensor gram = {{1, 1}, NULL, NULL, 1, {lower, {1, 0}, 2, {2, 32, 1}, shape, NULL, 0}};
    const qfw_factor *found = NULL;
    float root = sqrtf(5.0f);
    HOLDS(numeric->factor(host, &gram, 0.0, 0, &found) == QFW_OK && found && found->n == 2 && found->n_dead == 0 && !found->order);
    HOLDS(fabsf(found->u[0] - root / 4) < 1e-6f && fabsf(found->u[1] + 2 / root / 4) < 1e-6f);
    HOLDS(found->u[2] == 0.0f && fabsf(found->u[3] - 4 / root / 4) < 1e-6f);
    /* The largest diagonal entry comes first. */
    HOLDS(numeric->factor(host, &gram, 0.0, 1, &found) == QFW_OK && found->order && found->order[0] == 1 && found->order[1] == 0);
    HOLDS(no_factor(host, numeric, gram) == QFW_OK);
    return QFW_OK;
}

/* What is wrong with the site's own. */
static int32_t refusals(const qfw_host *host, const qfw_numeric *numeric, const qfw_site *site, qfw_round_out *out, const float *weight,
                        float *scale, float *zero) {
    qfw_tensor codes = *out->codes;
    qfw_site other = *site;
    qfw_factor mine = {sizeof(qfw_factor), 0, 8, weight, NULL, NULL, 0, 0.0};
    HOLDS(numeric->fit(host, site, weight, scale, scale) != QFW_OK);
    HOLDS(numeric->fit(host, site, weight, scale, NULL) != QFW_OK);
    HOLDS(numeric->fit(host, site, NULL, scale, zero) != QFW_OK);
    HOLDS(numeric->fit(host, NULL, weight, scale, zero) != QFW_OK);
    other.token = 1;
    HOLDS(numeric->fit(host, &other, weight, scale, zero) != QFW_OK);
    HOLDS(numeric->nearest(host, site, weight, scale, zero, NULL) != QFW_OK);
    HOLDS(numeric->sweep(host, site, weight, &mine, scale, zero, 8, out->codes) != QFW_OK);
    HOLDS(numeric->sweep(host, site, weight, NULL, scale, zero, 8, out->codes) != QFW_OK);
    codes.dl_tensor.data = scale;
    HOLDS(numeric->nearest(host, site, weight, scale, zero, &codes) != QFW_OK);
    codes.dl_tensor.data = NULL;
    HOLDS(numeric->expand(host, site, &codes, scale, zero, scale) != QFW_OK);
    return QFW_OK;
}

static int32_t do_round(qfw_algo *algo, const qfw_host *host, const qfw_site *site, qfw_round_out *out) {
    const qfw_numeric *numeric = (const qfw_numeric *)host->extension(host, "qfw.numeric/1");
    const float *weight = (const float *)site->weight->dl_tensor.data;
    float *scale = (float *)out->scale->dl_tensor.data, *zero = (float *)out->zero->dl_tensor.data, values[24];
    int32_t status;
    (void)algo;
    HOLDS(numeric && !host->extension(host, "qfw.no-such-extension/1"));
    if ((status = gemm(host, numeric)) || (status = random_bits(host, numeric)) || (status = parallel(host, numeric)) ||
        (status = factor(host, numeric)))
        return status;
    if ((status = refusals(host, numeric, site, out, weight, scale, zero)))
        return status;
    HOLDS(numeric->fit(host, site, weight, scale, zero) == QFW_OK);
    HOLDS(numeric->nearest(host, site, weight, scale, zero, out->codes) == QFW_OK);
    HOLDS(numeric->expand(host, site, out->codes, scale, zero, values) == QFW_OK);
    /* int4, one scale for each of the three rows of eight: code - lo is stored, values are scale * code, and none is farther away than
     * half a step but where the scheme clips. */
    for (size_t i = 0; i < 24; i++) {
        float step = scale[i / 8], code = (float)((const uint8_t *)out->codes->dl_tensor.data)[i] - 8.0f;
        HOLDS(values[i] == step * code);
        HOLDS(fabsf(values[i] - weight[i]) <= 0.5f * step * 1.00001f || code == 7.0f);
    }
    return QFW_OK;
}

#define ALGO "numeric"
#define PLUGIN "org.qfw.numeric"
#include "one_algorithm.h"
