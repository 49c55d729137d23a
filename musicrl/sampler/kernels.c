/* Attention over a paged cache, and norms: one row per sample.
 *
 * Plain C. Loops are written so that a compiler vectorises them for whatever machine it targets;
 * rows are independent, so that the number of threads changes no result. All arrays are dense and
 * row-major; reals are float32 unless said otherwise.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#if defined(__GNUC__)
#define INLINED static inline __attribute__((always_inline))
#else
#define INLINED static inline
#endif

/* Call `mix` with a head's size as a constant where it is a common one: its loops unroll. */
#define FOR_SIZE(mix, ...)                                                                         \
    switch (size) {                                                                                \
    case 32: mix(at, table, length, 32, __VA_ARGS__); break;                                       \
    case 48: mix(at, table, length, 48, __VA_ARGS__); break;                                       \
    case 64: mix(at, table, length, 64, __VA_ARGS__); break;                                       \
    default: mix(at, table, length, size, __VA_ARGS__);                                            \
    }

enum { AHEAD = 4096 };

/* Turn each pair (x[2i], x[2i + 1]) by rotation[i] = (cosine, sine). */
static inline void rotate(const float *x, const float *rotation, float *out, int size)
{
    if (!rotation) {
        memcpy(out, x, size * sizeof(float));
        return;
    }
    for (int i = 0; i < size; i += 2) {
        float cosine = rotation[i], sine = rotation[i + 1];
        out[i] = x[i] * cosine - x[i + 1] * sine;
        out[i + 1] = x[i] * sine + x[i + 1] * cosine;
    }
}

/* Two neighbours of a bfloat16 cache lie in one word, the first in its lower half: its numbers are
 * the word moved up and the word without its lower half. Little-endian machines only. */
static inline float lower(uint32_t pair)
{
    float x;
    pair <<= 16;
    memcpy(&x, &pair, sizeof x);
    return x;
}

static inline float upper(uint32_t pair)
{
    float x;
    pair &= 0xffff0000u;
    memcpy(&x, &pair, sizeof x);
    return x;
}

/* What the rows of a layer share. */
typedef struct {
    const float *rotation;
    void *keys, *values;
    int heads, kv_heads, size, page, appends, is_half;
} layer_t;

/* Keep numbers in a cache from number `first` on: float32, or bfloat16. */
static inline void keep(const layer_t *at, void *cache, size_t first, const float *x)
{
    if (!at->is_half) {
        memcpy((float *)cache + first, x, at->size * sizeof(float));
        return;
    }
    for (int i = 0; i < at->size; i++)
        ((uint16_t *)cache)[first + i] = rounded(x[i]);
}

/* Scores of `count` keys, at most 4: a load of the query serves all. */
INLINED void dots(const double *query, const float *keys, int count, int size, double *scores)
{
    if (count == 4) {
        const float *k0 = keys, *k1 = k0 + size, *k2 = k1 + size, *k3 = k2 + size;
        double a = 0.0, b = 0.0, c = 0.0, d = 0.0;
#pragma omp simd reduction(+ : a, b, c, d)
        for (int i = 0; i < size; i++) {
            a += query[i] * k0[i];
            b += query[i] * k1[i];
            c += query[i] * k2[i];
            d += query[i] * k3[i];
        }
        scores[0] = a, scores[1] = b, scores[2] = c, scores[3] = d;
        return;
    }
    for (int t = 0; t < count; t++, keys += size) {
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < size; i++)
            sum += query[i] * keys[i];
        scores[t] = sum;
    }
}

INLINED void mixes(const double *weights, const float *values, int count, int size, double *out)
{
    if (count == 4) {
        const float *v0 = values, *v1 = v0 + size, *v2 = v1 + size, *v3 = v2 + size;
        double a = weights[0], b = weights[1], c = weights[2], d = weights[3];
#pragma omp simd
        for (int i = 0; i < size; i++)
            out[i] += (a * v0[i] + b * v1[i]) + (c * v2[i] + d * v3[i]);
        return;
    }
    for (int t = 0; t < count; t++, values += size)
#pragma omp simd
        for (int i = 0; i < size; i++)
            out[i] += weights[t] * values[i];
}

/* The same on bfloat16, in float32: first the query's even numbers, then its odd ones. */
INLINED void dots_half(const float *query, const uint32_t *keys, int count, int pairs,
                       float *scores)
{
    const float *even = query, *odd = query + pairs;
    if (count == 4) {
        const uint32_t *k0 = keys, *k1 = k0 + pairs, *k2 = k1 + pairs, *k3 = k2 + pairs;
        float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
#pragma omp simd reduction(+ : a, b, c, d)
        for (int i = 0; i < pairs; i++) {
            a += even[i] * lower(k0[i]) + odd[i] * upper(k0[i]);
            b += even[i] * lower(k1[i]) + odd[i] * upper(k1[i]);
            c += even[i] * lower(k2[i]) + odd[i] * upper(k2[i]);
            d += even[i] * lower(k3[i]) + odd[i] * upper(k3[i]);
        }
        scores[0] = a, scores[1] = b, scores[2] = c, scores[3] = d;
        return;
    }
    for (int t = 0; t < count; t++, keys += pairs) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < pairs; i++)
            sum += even[i] * lower(keys[i]) + odd[i] * upper(keys[i]);
        scores[t] = sum;
    }
}

INLINED void mixes_half(const float *weights, const uint32_t *values, int count, int pairs,
                        float *out)
{
    float *even = out, *odd = out + pairs;
    if (count == 4) {
        const uint32_t *v0 = values, *v1 = v0 + pairs, *v2 = v1 + pairs, *v3 = v2 + pairs;
        float a = weights[0], b = weights[1], c = weights[2], d = weights[3];
#pragma omp simd
        for (int i = 0; i < pairs; i++) {
            even[i] += (a * lower(v0[i]) + b * lower(v1[i])) + (c * lower(v2[i]) + d * lower(v3[i]));
            odd[i] += (a * upper(v0[i]) + b * upper(v1[i])) + (c * upper(v2[i]) + d * upper(v3[i]));
        }
        return;
    }
    for (int t = 0; t < count; t++, values += pairs) {
        float weight = weights[t];
#pragma omp simd
        for (int i = 0; i < pairs; i++) {
            even[i] += weight * lower(values[i]);
            odd[i] += weight * upper(values[i]);
        }
    }
}

/* Scores of one head's positions to weights that sum to 1. */
static inline void weigh(double *scores, int count)
{
    double highest = scores[0], sum = 0.0;
#pragma omp simd reduction(max : highest)
    for (int t = 1; t < count; t++)
        highest = scores[t] > highest ? scores[t] : highest;
#pragma omp simd reduction(+ : sum)
    for (int t = 0; t < count; t++) {
        scores[t] = exp_of_negative(scores[t] - highest);
        sum += scores[t];
    }
    for (int t = 0; t < count; t++)
        scores[t] /= sum;
}

static inline void weigh_half(float *scores, int count)
{
    float highest = scores[0], sum = 0.0f;
#pragma omp simd reduction(max : highest)
    for (int t = 1; t < count; t++)
        highest = scores[t] > highest ? scores[t] : highest;
#pragma omp simd reduction(+ : sum)
    for (int t = 0; t < count; t++) {
        scores[t] = short_exp_of_negative(scores[t] - highest);
        sum += scores[t];
    }
    float share = 1.0f / sum;
    for (int t = 0; t < count; t++)
        scores[t] *= share;
}

/* Where a head's numbers begin in a row's page of position t. */
static inline size_t page_of(const layer_t *at, const int32_t *table, int t, int kv_head)
{
    return ((size_t)table[t / at->page] * at->kv_heads + kv_head) * at->page * at->size;
}

/* The row's new key and value to its last position. */
static void append(const layer_t *at, const float *row, const float *rotation, const int32_t *table,
                   int position, float *scratch)
{
    for (int j = 0; j < at->kv_heads; j++) {
        size_t to = page_of(at, table, position, j) + (size_t)(position % at->page) * at->size;
        rotate(row + (size_t)(at->heads + j) * at->size, rotation, scratch, at->size);
        keep(at, at->keys, to, scratch);
        keep(at, at->values, to, row + (size_t)(at->heads + at->kv_heads + j) * at->size);
    }
}

/* Ask memory for what comes AHEAD bytes after these: processors do so by themselves only within
 * 4 kB, and a page of the cache is read in one run. Past the end of the cache it does nothing. */
static inline void fetch_ahead(const void *from, size_t bytes)
{
#if defined(__GNUC__)
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)from + AHEAD + i);
#endif
}

/* One row on a float32 cache: score, weigh, mix. `query` [heads, size] is scaled; `mixed` of the same
 * size receives the result, and `weights` holds heads * length numbers. */
INLINED void mix_row(const layer_t *at, const int32_t *table, int length, int size,
                     const double *query, double *mixed, double *weights)
{
    const int heads = at->heads, page = at->page, shared = heads / at->kv_heads;
    for (int start = 0; start < length; start += page) {
        int end = length < start + page ? length : start + page;
        for (int h = 0; h < heads; h++) {
            const float *keys = (const float *)at->keys + page_of(at, table, start, h / shared);
            double *scores = weights + (size_t)h * length;
            for (int t = start; t < end; t += 4, keys += 4 * size) {
                fetch_ahead(keys, 4 * size * sizeof *keys);
                dots(query + h * size, keys, end - t < 4 ? end - t : 4, size, scores + t);
            }
        }
    }
    for (int h = 0; h < heads; h++)
        weigh(weights + (size_t)h * length, length);
    memset(mixed, 0, heads * size * sizeof *mixed);
    for (int start = 0; start < length; start += page) {
        int end = length < start + page ? length : start + page;
        for (int h = 0; h < heads; h++) {
            const float *values = (const float *)at->values + page_of(at, table, start, h / shared);
            const double *own = weights + (size_t)h * length;
            for (int t = start; t < end; t += 4, values += 4 * size) {
                fetch_ahead(values, 4 * size * sizeof *values);
                mixes(own + t, values, end - t < 4 ? end - t : 4, size, mixed + h * size);
            }
        }
    }
}

/* The same on bfloat16, in float32; heads have their even numbers first. */
INLINED void mix_row_half(const layer_t *at, const int32_t *table, int length, int size,
                          const float *query, float *mixed, float *weights)
{
    const int heads = at->heads, page = at->page, shared = heads / at->kv_heads, pairs = size / 2;
    for (int start = 0; start < length; start += page) {
        int end = length < start + page ? length : start + page;
        for (int h = 0; h < heads; h++) {
            const uint32_t *keys =
                (const uint32_t *)at->keys + page_of(at, table, start, h / shared) / 2;
            float *scores = weights + (size_t)h * length;
            for (int t = start; t < end; t += 4, keys += 4 * pairs) {
                fetch_ahead(keys, 4 * pairs * sizeof *keys);
                dots_half(query + h * size, keys, end - t < 4 ? end - t : 4, pairs, scores + t);
            }
        }
    }
    for (int h = 0; h < heads; h++)
        weigh_half(weights + (size_t)h * length, length);
    memset(mixed, 0, heads * size * sizeof *mixed);
    for (int start = 0; start < length; start += page) {
        int end = length < start + page ? length : start + page;
        for (int h = 0; h < heads; h++) {
            const uint32_t *values =
                (const uint32_t *)at->values + page_of(at, table, start, h / shared) / 2;
            const float *own = weights + (size_t)h * length;
            for (int t = start; t < end; t += 4, values += 4 * pairs) {
                fetch_ahead(values, 4 * pairs * sizeof *values);
                mixes_half(own + t, values, end - t < 4 ? end - t : 4, pairs, mixed + h * size);
            }
        }
    }
}

/* One row: append, turn and scale its query, mix. `scratch` holds heads * (length + 2 size) float64. */
static void attend_row(const layer_t *at, const float *row, const int32_t *table, int length,
                       double *scratch, float *out)
{
    const int size = at->size, pairs = size / 2, count = at->heads * size;
    const float *rotation = at->rotation ? at->rotation + (size_t)(length - 1) * size : NULL;
    const double scale = 1.0 / sqrt((double)size);
    if (at->appends)
        append(at, row, rotation, table, length - 1, out);
    for (int h = 0; h < at->heads; h++)
        rotate(row + (size_t)h * size, rotation, out + (size_t)h * size, size);
    if (!at->is_half) {
        double *query = scratch, *mixed = query + count, *weights = mixed + count;
        for (int i = 0; i < count; i++)
            query[i] = out[i] * scale;
        FOR_SIZE(mix_row, query, mixed, weights)
        for (int i = 0; i < count; i++)
            out[i] = (float)mixed[i];
        return;
    }
    float *query = (float *)scratch, *mixed = query + count, *weights = mixed + count;
    for (int h = 0; h < count; h += size)
        for (int i = 0; i < pairs; i++) {
            query[h + i] = out[h + 2 * i] * (float)scale;
            query[h + pairs + i] = out[h + 2 * i + 1] * (float)scale;
        }
    FOR_SIZE(mix_row_half, query, mixed, weights)
    for (int h = 0; h < count; h += size)
        for (int i = 0; i < pairs; i++) {
            out[h + 2 * i] = mixed[h + i];
            out[h + 2 * i + 1] = mixed[h + pairs + i];
        }
}

/* Each row's query over its positions in the cache, with a new one appended first if asked. On a
 * float32 cache sums are float64, as the learner's are: results rounded to float32 are then the
 * same bits.
 *
 *   x            [rows, heads + 2 kv_heads, size], or [rows, heads, size] without appending
 *   rotation     [positions, size / 2, 2], or NULL for none
 *   keys, values [blocks, kv_heads, page, size], float32 or bfloat16
 *   tables       int32 [rows, width]: the blocks of each row
 *   lens         int32 [rows]: positions of each row; position lens - 1 is written
 *   scratch      float64 [threads, heads * (width * page + 2 size)]
 *   out          [rows, heads, size]
 *
 * A head's positions of a page lie together: interleaving the heads, as flash-attn does, halves the
 * rate at which memory is read. `size` is even. */
void attend(const float *x, const float *rotation, void *keys, void *values, const int32_t *tables,
            const int32_t *lens, double *scratch, float *out, int rows, int heads, int kv_heads,
            int size, int page, int width, int appends, int is_half, int threads)
{
    const layer_t at = {rotation, keys, values, heads, kv_heads, size, page, appends, is_half};
    const size_t inputs = (size_t)(heads + (appends ? 2 * kv_heads : 0)) * size;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        double *own = scratch + (size_t)part * heads * ((size_t)width * page + 2 * size);
        int first = (int)((int64_t)rows * part / threads);
        int last = (int)((int64_t)rows * (part + 1) / threads);
        for (int b = first; b < last; b++)
            attend_row(&at, x + b * inputs, tables + (size_t)b * width, lens[b], own,
                       out + (size_t)b * heads * size);
    }
}

/* Rows over the root of their mean square, by weight: x, out [rows, width]. */
void rms_norm(const float *x, const float *weight, float epsilon, int rows, int width, float *out,
              int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 16)
    for (int b = 0; b < rows; b++) {
        const float *row = x + (size_t)b * width;
        double squares = 0.0;
#pragma omp simd reduction(+ : squares)
        for (int i = 0; i < width; i++)
            squares += (double)row[i] * row[i];
        float scale = (float)(1.0 / sqrt(squares / width + epsilon));
        for (int i = 0; i < width; i++)
            out[(size_t)b * width + i] = row[i] * scale * weight[i];
    }
}
