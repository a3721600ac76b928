/* Moments of eight columns of floats at once: what `observe.c` feeds with pieces of activations.
 *
 * Of every column the deviations d from one of its own elements are summed, and their squares, in double. Then, with n elements,
 * m2 = sum(d^2) - sum(d)^2 / n loses at most a factor of n of double's digits, because the element's own deviation from the mean is
 * part of m2: exact for mean 1e4 with std 1, and no square of a float32 leaves the range. One visit of memory is enough.
 */
#ifndef NORMSCOPE_LANES_H
#define NORMSCOPE_LANES_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define LANES 8

typedef struct {
    double origin[LANES], sum[LANES], squares[LANES];
    float low[LANES], high[LANES];
    int32_t zeros[LANES];
} Lanes;

/* What an add or an affine map makes of two pieces: y = scale * x + shift, and y + identity. */
typedef struct {
    float scale[LANES], shift[LANES];
    double dot[LANES];    /* sum of y * identity */
    int32_t zeros[LANES]; /* of y */
} Pair;

/* Of up to eight groups of one size; a field of all of them lies in one piece. */
typedef struct {
    double mean[LANES], m2[LANES], minimum[LANES], maximum[LANES], zeros[LANES], nonfinite[LANES];
} Groups;

typedef struct {
    double count, mean, m2, minimum, maximum, zeros, nonfinite;
} Moments;

#define LISTED 6 /* fields of a channel: those of Groups, with the standard deviation for m2, as float */

/* Step i takes x[i * stride] to x[i * stride + 7]. */
typedef struct {
    /* origins: eight numbers to begin with, or NULL to go on */
    void (*take)(Lanes *, const float *x, int64_t steps, int64_t stride, const float *origins);
    void (*count_zeros)(Pair *, const float *x, int64_t steps, int64_t stride);
    /* sums: (steps, 8) */
    void (*add)(Pair *, const float *x, const float *identity, int64_t steps, int64_t stride, float *sums);
    void (*group)(const Lanes *, double count, Groups *);
    void (*pool)(const Groups *, double count, Moments *);
    /* out: (6, columns), its first element that of the first of eight groups */
    void (*list)(const Groups *, double count, int64_t columns, float *out);
} Kernels;

static void begin_one(Lanes *lanes, int l, float origin) {
    lanes->origin[l] = isfinite(origin) ? origin : 0;
    lanes->sum[l] = lanes->squares[l] = 0;
    lanes->zeros[l] = 0;
    lanes->low[l] = INFINITY;
    lanes->high[l] = -INFINITY;
}

static void take_one(Lanes *lanes, int l, float a) {
    const double d = a - lanes->origin[l];
    lanes->sum[l] += d;
    lanes->squares[l] += d * d;
    lanes->low[l] = a < lanes->low[l] ? a : lanes->low[l];
    lanes->high[l] = a > lanes->high[l] ? a : lanes->high[l];
    lanes->zeros[l] += a == 0;
}

static float add_one(Pair *pair, int l, float x, float identity) {
    const float y = fmaf(pair->scale[l], x, pair->shift[l]);
    pair->zeros[l] += y == 0;
    pair->dot[l] += (double)y * identity;
    return y + identity;
}

static void take_plain(Lanes *lanes, const float *x, int64_t steps, int64_t stride, const float *origins) {
    for (int l = 0; origins && l < LANES; l++) begin_one(lanes, l, origins[l]);
    for (int64_t i = 0; i < steps; i++)
        for (int l = 0; l < LANES; l++) take_one(lanes, l, x[i * stride + l]);
}

static void count_zeros_plain(Pair *pair, const float *x, int64_t steps, int64_t stride) {
    for (int64_t i = 0; i < steps; i++)
        for (int l = 0; l < LANES; l++) pair->zeros[l] += fmaf(pair->scale[l], x[i * stride + l], pair->shift[l]) == 0;
}

static void add_plain(Pair *pair, const float *x, const float *identity, int64_t steps, int64_t stride, float *sums) {
    for (int64_t i = 0; i < steps; i++)
        for (int l = 0; l < LANES; l++) sums[i * LANES + l] = add_one(pair, l, x[i * stride + l], identity[i * stride + l]);
}

static void list_some(const Groups *groups, int number, double count, int64_t columns, float *out) {
    const double part = count > 0 ? 1 / count : 0;
    for (int l = 0; l < number; l++) {
        out[l] = (float)groups->mean[l];
        out[l + columns] = (float)sqrt(groups->m2[l] * part);
        out[l + columns * 2] = (float)groups->minimum[l];
        out[l + columns * 3] = (float)groups->maximum[l];
        out[l + columns * 4] = (float)groups->zeros[l];
        out[l + columns * 5] = (float)groups->nonfinite[l];
    }
}

static void list_plain(const Groups *groups, double count, int64_t columns, float *out) {
    list_some(groups, LANES, count, columns, out);
}

static void group_plain(const Lanes *lanes, double count, Groups *groups) {
    const double part = 1 / count;
    for (int l = 0; l < LANES; l++) {
        const double mean = lanes->sum[l] * part, m2 = lanes->squares[l] - mean * lanes->sum[l];
        groups->mean[l] = lanes->origin[l] + mean;
        groups->m2[l] = m2 > 0 ? m2 : 0;
        groups->minimum[l] = lanes->low[l];
        groups->maximum[l] = lanes->high[l];
        groups->zeros[l] = lanes->zeros[l];
        groups->nonfinite[l] = 0;
    }
}

/* Chan, Golub & LeVeque 1979, equation 2.1, of groups of one size. */
static void pool_some(const Groups *groups, int number, double count, Moments *all) {
    Moments pooled = {.count = count * number, .minimum = INFINITY, .maximum = -INFINITY};
    for (int l = 0; l < number; l++) {
        pooled.mean += groups->mean[l] / number;
        pooled.minimum = groups->minimum[l] < pooled.minimum ? groups->minimum[l] : pooled.minimum;
        pooled.maximum = groups->maximum[l] > pooled.maximum ? groups->maximum[l] : pooled.maximum;
        pooled.zeros += groups->zeros[l];
    }
    for (int l = 0; l < number; l++) {
        const double between = groups->mean[l] - pooled.mean;
        pooled.m2 += groups->m2[l] + count * between * between;
    }
    *all = pooled;
}

static void pool_plain(const Groups *groups, double count, Moments *all) { pool_some(groups, LANES, count, all); }

static const Kernels PLAIN = {take_plain, count_zeros_plain, add_plain, group_plain, pool_plain, list_plain};

/* The same in vector instructions, by hand: the compiler's own attempt at the loops above takes five times as long. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(NORMSCOPE_PLAIN)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))

/* counts + 1 where a is 0 */
#define COUNT_ZEROS(counts, a) \
    _mm256_sub_epi32(counts, _mm256_castps_si256(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_EQ_OQ)))
#define LOWER(a) _mm256_cvtps_pd(_mm256_castps256_ps128(a))
#define UPPER(a) _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1))

AVX2 static void take_avx2(Lanes *lanes, const float *x, int64_t steps, int64_t stride, const float *origins) {
    __m256d origin0, origin1, sum0, sum1, squares0, squares1;
    __m256 low, high;
    __m256i zeros;
    if (origins) {
        const __m256 a = _mm256_loadu_ps(origins), finite = _mm256_cmp_ps(_mm256_sub_ps(a, a), _mm256_setzero_ps(), _CMP_EQ_OQ);
        const __m256 origin = _mm256_and_ps(a, finite);
        origin0 = LOWER(origin), origin1 = UPPER(origin);
        _mm256_storeu_pd(lanes->origin, origin0);
        _mm256_storeu_pd(lanes->origin + 4, origin1);
        sum0 = sum1 = squares0 = squares1 = _mm256_setzero_pd();
        low = _mm256_set1_ps(INFINITY), high = _mm256_set1_ps(-INFINITY);
        zeros = _mm256_setzero_si256();
    } else {
        origin0 = _mm256_loadu_pd(lanes->origin), origin1 = _mm256_loadu_pd(lanes->origin + 4);
        sum0 = _mm256_loadu_pd(lanes->sum), sum1 = _mm256_loadu_pd(lanes->sum + 4);
        squares0 = _mm256_loadu_pd(lanes->squares), squares1 = _mm256_loadu_pd(lanes->squares + 4);
        low = _mm256_loadu_ps(lanes->low), high = _mm256_loadu_ps(lanes->high);
        zeros = _mm256_loadu_si256((const __m256i *)lanes->zeros);
    }
    for (int64_t i = 0; i < steps; i++, x += stride) {
        const __m256d d0 = _mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(x)), origin0);
        const __m256d d1 = _mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(x + 4)), origin1);
        const __m256 a = _mm256_loadu_ps(x);
        sum0 = _mm256_add_pd(sum0, d0);
        sum1 = _mm256_add_pd(sum1, d1);
        squares0 = _mm256_fmadd_pd(d0, d0, squares0);
        squares1 = _mm256_fmadd_pd(d1, d1, squares1);
        low = _mm256_min_ps(a, low); /* the second operand where one is NaN */
        high = _mm256_max_ps(a, high);
        zeros = COUNT_ZEROS(zeros, a);
    }
    _mm256_storeu_pd(lanes->sum, sum0);
    _mm256_storeu_pd(lanes->sum + 4, sum1);
    _mm256_storeu_pd(lanes->squares, squares0);
    _mm256_storeu_pd(lanes->squares + 4, squares1);
    _mm256_storeu_ps(lanes->low, low);
    _mm256_storeu_ps(lanes->high, high);
    _mm256_storeu_si256((__m256i *)lanes->zeros, zeros);
}

AVX2 static void count_zeros_avx2(Pair *pair, const float *x, int64_t steps, int64_t stride) {
    const __m256 scale = _mm256_loadu_ps(pair->scale), shift = _mm256_loadu_ps(pair->shift);
    __m256i zeros = _mm256_loadu_si256((const __m256i *)pair->zeros);
    for (int64_t i = 0; i < steps; i++, x += stride)
        zeros = COUNT_ZEROS(zeros, _mm256_fmadd_ps(scale, _mm256_loadu_ps(x), shift));
    _mm256_storeu_si256((__m256i *)pair->zeros, zeros);
}

AVX2 static void add_avx2(Pair *pair, const float *x, const float *identity, int64_t steps, int64_t stride, float *sums) {
    const __m256 scale = _mm256_loadu_ps(pair->scale), shift = _mm256_loadu_ps(pair->shift);
    __m256d dot0 = _mm256_loadu_pd(pair->dot), dot1 = _mm256_loadu_pd(pair->dot + 4);
    __m256i zeros = _mm256_loadu_si256((const __m256i *)pair->zeros);
    for (int64_t i = 0; i < steps; i++, x += stride, identity += stride, sums += LANES) {
        const __m256 y = _mm256_fmadd_ps(scale, _mm256_loadu_ps(x), shift), other = _mm256_loadu_ps(identity);
        zeros = COUNT_ZEROS(zeros, y);
        dot0 = _mm256_fmadd_pd(LOWER(y), LOWER(other), dot0);
        dot1 = _mm256_fmadd_pd(UPPER(y), UPPER(other), dot1);
        _mm256_storeu_ps(sums, _mm256_add_ps(y, other));
    }
    _mm256_storeu_pd(pair->dot, dot0);
    _mm256_storeu_pd(pair->dot + 4, dot1);
    _mm256_storeu_si256((__m256i *)pair->zeros, zeros);
}

AVX2 static void group_avx2(const Lanes *lanes, double count, Groups *groups) {
    const __m256d part = _mm256_set1_pd(1 / count), nothing = _mm256_setzero_pd();
    for (int l = 0; l < LANES; l += 4) {
        const __m256d sum = _mm256_loadu_pd(lanes->sum + l), mean = _mm256_mul_pd(sum, part);
        const __m256d m2 = _mm256_fnmadd_pd(mean, sum, _mm256_loadu_pd(lanes->squares + l));
        _mm256_storeu_pd(groups->mean + l, _mm256_add_pd(_mm256_loadu_pd(lanes->origin + l), mean));
        _mm256_storeu_pd(groups->m2 + l, _mm256_max_pd(m2, nothing));
        _mm256_storeu_pd(groups->minimum + l, _mm256_cvtps_pd(_mm_loadu_ps(lanes->low + l)));
        _mm256_storeu_pd(groups->maximum + l, _mm256_cvtps_pd(_mm_loadu_ps(lanes->high + l)));
        _mm256_storeu_pd(groups->zeros + l, _mm256_cvtepi32_pd(_mm_loadu_si128((const __m128i *)(lanes->zeros + l))));
        _mm256_storeu_pd(groups->nonfinite + l, nothing);
    }
}

#define HALVES(of, a) of(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1))
#define ACROSS(of, a) _mm_cvtsd_f64(of(a, _mm_unpackhi_pd(a, a)))
/* `of` two operands, of all eight */
#define REDUCE(of, field) \
    ACROSS(_mm_##of, HALVES(_mm_##of, _mm256_##of(_mm256_loadu_pd(field), _mm256_loadu_pd((field) + 4))))

AVX2 static void pool_avx2(const Groups *groups, double count, Moments *all) {
    const double mean = REDUCE(add_pd, groups->mean) / LANES;
    const __m256d middle = _mm256_set1_pd(mean), weight = _mm256_set1_pd(count);
    const __m256d between0 = _mm256_sub_pd(_mm256_loadu_pd(groups->mean), middle);
    const __m256d between1 = _mm256_sub_pd(_mm256_loadu_pd(groups->mean + 4), middle);
    const __m256d spread0 = _mm256_fmadd_pd(_mm256_mul_pd(weight, between0), between0, _mm256_loadu_pd(groups->m2));
    const __m256d spread1 = _mm256_fmadd_pd(_mm256_mul_pd(weight, between1), between1, _mm256_loadu_pd(groups->m2 + 4));
    all->count = count * LANES;
    all->mean = mean;
    all->m2 = ACROSS(_mm_add_pd, HALVES(_mm_add_pd, _mm256_add_pd(spread0, spread1)));
    all->minimum = REDUCE(min_pd, groups->minimum);
    all->maximum = REDUCE(max_pd, groups->maximum);
    all->zeros = REDUCE(add_pd, groups->zeros);
    all->nonfinite = 0;
}

AVX2 static void store_avx2(float *out, __m256d lower, __m256d upper) {
    _mm_storeu_ps(out, _mm256_cvtpd_ps(lower));
    _mm_storeu_ps(out + 4, _mm256_cvtpd_ps(upper));
}

AVX2 static void list_avx2(const Groups *groups, double count, int64_t columns, float *out) {
    const __m256d part = _mm256_set1_pd(count > 0 ? 1 / count : 0);
    const double *fields[LISTED] = {groups->mean, NULL, groups->minimum, groups->maximum, groups->zeros, groups->nonfinite};
    const __m256d var0 = _mm256_mul_pd(_mm256_loadu_pd(groups->m2), part);
    const __m256d var1 = _mm256_mul_pd(_mm256_loadu_pd(groups->m2 + 4), part);
    store_avx2(out + columns, _mm256_sqrt_pd(var0), _mm256_sqrt_pd(var1));
    for (int i = 0; i < LISTED; i++)
        if (fields[i]) store_avx2(out + i * columns, _mm256_loadu_pd(fields[i]), _mm256_loadu_pd(fields[i] + 4));
}

static const Kernels WITH_AVX2 = {take_avx2, count_zeros_avx2, add_avx2, group_avx2, pool_avx2, list_avx2};

static const Kernels *best_kernels(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &WITH_AVX2 : &PLAIN;
}
#else
static const Kernels *best_kernels(void) { return &PLAIN; }
#endif

#endif
