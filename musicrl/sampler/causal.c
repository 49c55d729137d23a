/* Causal attention over whole sequences for the learner: float32 in and out, sums in float64.
 *
 * A few queries are taken through all of their keys at once. Keys lie turned, so that a vector holds
 * one number of several keys, and both halves of the work are one product of small matrices. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#else
#pragma STDC FP_CONTRACT ON
#endif

#include "numbers.h"
#include "vectors.h"

enum { QUERIES = 4, WIDE = 4 };

/* Whole vectors that hold `count` numbers. */
static inline int filled(int count)
{
    return (count + LONG_LANES - 1) / LONG_LANES * LONG_LANES;
}

/* out [QUERIES, ..] = a [QUERIES, inner] by b [inner, vectors * LONG_LANES], a few columns of rows
 * that lie `step_..` apart. */
INLINED void columns(const double *a, int step_a, const double *b, int step_b, double *out,
                     int step_out, int inner, int vectors)
{
    longs sums[QUERIES][WIDE];
    for (int r = 0; r < QUERIES; r++)
        for (int v = 0; v < vectors; v++)
            sums[r][v] = (longs){0};
    for (int i = 0; i < inner; i++, b += step_b) {
        longs row[WIDE];
        for (int v = 0; v < vectors; v++)
            memcpy(&row[v], b + v * LONG_LANES, sizeof row[v]);
        for (int r = 0; r < QUERIES; r++)
            for (int v = 0; v < vectors; v++)
                sums[r][v] += a[(size_t)r * step_a + i] * row[v];
    }
    for (int r = 0; r < QUERIES; r++)
        for (int v = 0; v < vectors; v++)
            memcpy(out + (size_t)r * step_out + v * LONG_LANES, &sums[r][v], sizeof sums[r][v]);
}

/* The same for `count` columns, whole vectors. */
static void multiply(const double *a, int step_a, const double *b, int step_b, double *out,
                     int step_out, int inner, int count)
{
    int c = 0;
    for (; c + WIDE * LONG_LANES <= count; c += WIDE * LONG_LANES)
        columns(a, step_a, b + c, step_b, out + c, step_out, inner, WIDE);
    for (; c < count; c += LONG_LANES)
        columns(a, step_a, b + c, step_b, out + c, step_out, inner, 1);
}

/* Scores of `count` keys to shares that sum to 1, and 0 up to `whole`; the logarithm of their sum
 * before. */
static float share(double *scores, int count, int whole)
{
    double highest = scores[0], sum = 0.0;
    for (int t = count; t < whole; t++)
        scores[t] = -INFINITY;
#pragma omp simd reduction(max : highest)
    for (int t = 0; t < whole; t++)
        highest = scores[t] > highest ? scores[t] : highest;
#pragma omp simd reduction(+ : sum)
    for (int t = 0; t < whole; t++) {
        scores[t] = exp_of_negative(scores[t] - highest);
        sum += scores[t];
    }
    const double part = 1.0 / sum;
    for (int t = 0; t < whole; t++)
        scores[t] *= part;
    return (float)(highest + log(sum));
}

/* A vector of keys at a time, row i of `out` their numbers i; zeros past those that are `left`. */
static void turn(const float *k, int64_t apart, int left, double *out, int whole, int size)
{
    const int count = left < LONG_LANES ? left : LONG_LANES;
    for (int i = 0; i < size; i++) {
        double line[LONG_LANES] = {0};
        for (int l = 0; l < count; l++)
            line[l] = k[l * apart + i];
        memcpy(out + (size_t)i * whole, line, sizeof line);
    }
}

/* One head of one sequence; rows of q, k and v lie so many numbers apart. `room` holds
 * (2 size + QUERIES) * filled(steps) + 2 QUERIES * size numbers. */
static void attend_head(const float *q, const float *k, const float *v, const int64_t *apart,
                        double *room, float *out, float *sums, int steps, int size)
{
    const int whole = filled(steps);
    const double scale = 1.0 / sqrt((double)size);
    double *keys = room, *values = keys + (size_t)size * whole;
    double *scores = values + (size_t)size * whole, *queries = scores + QUERIES * whole;
    double *mixed = queries + QUERIES * size;
    for (int t = 0; t < whole; t += LONG_LANES)
        turn(k + t * apart[1], apart[1], steps - t, keys + t, whole, size);
    for (int t = 0; t < steps; t++)
        for (int i = 0; i < size; i++)
            values[(size_t)t * size + i] = v[t * apart[2] + i];
    for (int first = 0; first < steps; first += QUERIES) {
        const int left = steps - first < QUERIES ? steps - first : QUERIES;
        const int seen = filled(first + left);
        memset(queries, 0, QUERIES * size * sizeof *queries);
        for (int r = 0; r < left; r++) {
            const float *row = q + (first + r) * apart[0];
            for (int i = 0; i < size; i++)
                queries[r * size + i] = row[i] * scale;
        }
        multiply(queries, size, keys, whole, scores, whole, size, seen);
        for (int r = 0; r < left; r++)
            sums[first + r] = share(scores + (size_t)r * whole, first + r + 1, seen);
        multiply(scores, whole, values, size, mixed, size, first + left, size);
        for (int r = 0; r < left; r++)
            for (int i = 0; i < size; i++)
                out[(size_t)(first + r) * size + i] = (float)mixed[r * size + i];
    }
}

/* Every step of each sequence over itself and the steps before it.
 *
 *   q, k, v  [sequences, steps, heads, size]; `apart`, for each of the three: how many numbers lie
 *            between sequences, heads and steps
 *   room     float64 [threads, (2 size + QUERIES) * filled(steps) + 2 QUERIES * size]
 *   out      [sequences, heads, steps, size]
 *   sums     [sequences, heads, steps]: logarithms of the sums of exponentials
 *
 * `size` is a multiple of LONG_LANES. */
void attend_causally(const float *q, const float *k, const float *v, const int64_t *apart,
                     double *room, float *out, float *sums, int sequences, int heads, int steps,
                     int size, int threads)
{
    const size_t own = (size_t)(2 * size + QUERIES) * filled(steps) + 2 * QUERIES * size;
    const int count = sequences * heads;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++)
        for (int p = part; p < count; p += threads) {
            const int64_t b = p / heads, h = p % heads;
            attend_head(q + b * apart[0] + h * apart[3], k + b * apart[1] + h * apart[4],
                        v + b * apart[2] + h * apart[5], apart + 6, room + part * own,
                        out + (size_t)p * steps * size, sums + (size_t)p * steps, steps, size);
        }
}
