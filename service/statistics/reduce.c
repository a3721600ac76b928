/* Moments of float32 activations in one visit of memory: the compiled form of `moments.py`, called by `reduction.py`.
 *
 * Both functions write six planes of `groups` doubles each, one behind the other: mean, m2 = sum((a - mean)^2), minimum, maximum,
 * the number of zeros, and the number of NaN and infinities. A group is small enough to stay in the cache between its two passes;
 * all sums are double, so that no square of a float32 overflows and a mean large against the deviation costs no digits.
 * Where a group holds NaN or infinities, all but the last two planes are meaningless.
 *
 * Sums run in several independent parts (lanes): the compiler turns them into vector instructions without leave to reorder arithmetic,
 * so that every machine and every instruction set gives the same result.
 */
#include <math.h>
#include <stdint.h>

#define MOST_LANES 16

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_CPU
#endif
#if defined(__GNUC__)
#define INLINED static inline __attribute__((always_inline)) /* so that `lanes` is a constant in the loops */
#else
#define INLINED static inline
#endif

/* One row x (m) -> out[0], out[groups], ... out[5 * groups]. */
INLINED void reduce_row(const float *restrict x, int64_t m, const int lanes, int64_t groups, double *restrict out) {
    double sum[MOST_LANES] = {0}, square[MOST_LANES] = {0}, shift[MOST_LANES] = {0};
    float low[MOST_LANES], high[MOST_LANES];
    int32_t zero[MOST_LANES] = {0}, finite[MOST_LANES] = {0};
    const int64_t whole = m - m % lanes;
    for (int l = 0; l < lanes; l++) low[l] = INFINITY, high[l] = -INFINITY;
    for (int64_t i = 0; i < whole; i += lanes)
        for (int l = 0; l < lanes; l++) {
            const float a = x[i + l];
            sum[l] += a;
            low[l] = a < low[l] ? a : low[l];
            high[l] = a > high[l] ? a : high[l];
            zero[l] += a == 0;
            finite[l] += fabsf(a) < INFINITY;
        }
    for (int64_t i = whole; i < m; i++) {
        const float a = x[i];
        sum[0] += a;
        low[0] = a < low[0] ? a : low[0];
        high[0] = a > high[0] ? a : high[0];
        zero[0] += a == 0;
        finite[0] += fabsf(a) < INFINITY;
    }
    double mean = 0, m2 = 0, left = 0;
    float minimum = INFINITY, maximum = -INFINITY;
    int64_t zeros = 0, finites = 0;
    for (int l = 0; l < lanes; l++) {
        mean += sum[l];
        minimum = low[l] < minimum ? low[l] : minimum;
        maximum = high[l] > maximum ? high[l] : maximum;
        zeros += zero[l];
        finites += finite[l];
    }
    mean = m ? mean / (double)m : 0;
    for (int64_t i = 0; i < whole; i += lanes)
        for (int l = 0; l < lanes; l++) {
            const double d = x[i + l] - mean;
            square[l] += d * d;
            shift[l] += d;
        }
    for (int64_t i = whole; i < m; i++) {
        const double d = x[i] - mean;
        square[0] += d * d;
        shift[0] += d;
    }
    for (int l = 0; l < lanes; l++) {
        m2 += square[l];
        left += shift[l];
    }
    left = m ? left / (double)m : 0; /* what rounding left in the mean */
    m2 -= (double)m * left * left;
    out[0] = mean + left;
    out[groups] = m2 > 0 ? m2 : 0;
    out[2 * groups] = minimum;
    out[3 * groups] = maximum;
    out[4 * groups] = (double)zeros;
    out[5 * groups] = (double)(m - finites);
}

/* x (groups, m) -> out (6, groups): every group lies in one piece, as the channels of an image do. */
EVERY_CPU void reduce_rows(const float *restrict x, int64_t groups, int64_t m, double *restrict out) {
    for (int64_t g = 0; g < groups; g++, x += m) {
        if (m >= 8 * MOST_LANES)
            reduce_row(x, m, MOST_LANES, groups, out + g);
        else /* folding many lanes costs more than a short row */
            reduce_row(x, m, 4, groups, out + g);
    }
}

/* x (n, m, c), mask (n, m) or NULL -> out (6, n * c): the elements of a group lie c apart, as the channels of tokens do.
 * A token whose mask is 0 does not exist. */
EVERY_CPU void reduce_tokens(const float *restrict x, const uint8_t *restrict mask, int64_t n, int64_t m, int64_t c,
                             double *restrict out) {
    const int64_t groups = n * c;
    for (int64_t s = 0; s < n; s++, x += m * c, mask = mask ? mask + m : mask) {
        double *restrict mean = out + s * c, *restrict m2 = mean + groups, *restrict low = m2 + groups;
        double *restrict high = low + groups, *restrict zeros = high + groups, *restrict bad = zeros + groups;
        int64_t count = 0;
        for (int64_t j = 0; j < c; j++) mean[j] = m2[j] = zeros[j] = bad[j] = 0, low[j] = INFINITY, high[j] = -INFINITY;
        for (int64_t i = 0; i < m; i++) {
            if (mask && !mask[i]) continue;
            const float *restrict row = x + i * c;
            count++;
            for (int64_t j = 0; j < c; j++) {
                const double a = row[j];
                mean[j] += a;
                low[j] = a < low[j] ? a : low[j];
                high[j] = a > high[j] ? a : high[j];
                zeros[j] += a == 0 ? 1.0 : 0.0;
                bad[j] += fabs(a) < INFINITY ? 0.0 : 1.0;
            }
        }
        const double part = count ? 1.0 / (double)count : 0;
        for (int64_t j = 0; j < c; j++) mean[j] *= part;
        for (int64_t i = 0; i < m; i++) {
            if (mask && !mask[i]) continue;
            const float *restrict row = x + i * c;
            for (int64_t j = 0; j < c; j++) {
                const double d = row[j] - mean[j];
                m2[j] += d * d;
            }
        }
    }
}
