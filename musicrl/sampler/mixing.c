/* How a query mixes the positions of a paged cache: score, weigh, add up.
 *
 * A head's keys of a page lie together, so that LANES of them are scored side by side and their sums
 * are folded at once; heads whose size is no multiple of the vectors' go number by number. On a
 * float32 cache sums are float64. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#else
#pragma STDC FP_CONTRACT ON
#endif

#include "attention.h"
#include "numbers.h"
#include "vectors.h"

enum { AHEAD = 4096, PARTS = 16 };

/* Call `mix` with a head's size as a constant where it is a common one: its loops unroll. */
#define FOR_SIZE(mix, ...)                                                                         \
    switch (at->size) {                                                                            \
    case 32: mix(at, table, length, 32, __VA_ARGS__); break;                                       \
    case 48: mix(at, table, length, 48, __VA_ARGS__); break;                                       \
    case 64: mix(at, table, length, 64, __VA_ARGS__); break;                                       \
    default: mix(at, table, length, at->size, __VA_ARGS__);                                        \
    }

/* Two neighbours of a bfloat16 cache lie in one word, the first in its lower half: its numbers are
 * the word moved up and the word without its lower half. Little-endian machines only. */
static inline float lower(uint32_t pair) { return wide((uint16_t)pair); }
static inline float upper(uint32_t pair) { return wide((uint16_t)(pair >> 16)); }

#define LOAD(kind, from)                                                                           \
    ({                                                                                             \
        kind loaded;                                                                               \
        memcpy(&loaded, from, sizeof loaded);                                                      \
        loaded;                                                                                    \
    })

/* Ask memory for what comes AHEAD bytes after these: processors do so by themselves only within
 * 4 kB, and a page of the cache is read in one run. Past the end of the cache it does nothing. */
INLINED void fetch_ahead(const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)from + AHEAD + i);
}

/* Scores of `count` keys, at most LONG_LANES. */
INLINED void dots(const double *query, const float *keys, int count, int size, double *scores)
{
    if (size % LONG_LANES) {
        for (int t = 0; t < count; t++, keys += size) {
            double sum = 0.0;
#pragma omp simd reduction(+ : sum)
            for (int i = 0; i < size; i++)
                sum += query[i] * keys[i];
            scores[t] = sum;
        }
        return;
    }
    longs part[LONG_LANES];
    for (int j = 0; j < LONG_LANES; j++) {
        part[j] = (longs){0};
        if (j >= count)
            continue;
        fetch_ahead(keys + j * size, size * sizeof *keys);
        for (int i = 0; i < size; i += LONG_LANES)
            part[j] += LOAD(longs, query + i) *
                       __builtin_convertvector(LOAD(short_reals, keys + j * size + i), longs);
    }
    longs sums = long_sums_of(part);
    memcpy(scores, &sums, count * sizeof *scores);
}

/* The same of at most LANES keys in bfloat16, in float32: first the query's even numbers, then its
 * odd ones. */
INLINED void dots_half(const float *query, const uint32_t *keys, int count, int pairs,
                       float *scores)
{
    if (pairs % LANES) {
        for (int t = 0; t < count; t++, keys += pairs) {
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int i = 0; i < pairs; i++)
                sum += query[i] * lower(keys[i]) + query[pairs + i] * upper(keys[i]);
            scores[t] = sum;
        }
        return;
    }
    reals part[LANES];
    for (int j = 0; j < LANES; j++) {
        part[j] = (reals){0};
        if (j >= count)
            continue;
        fetch_ahead(keys + j * pairs, pairs * sizeof *keys);
        for (int i = 0; i < pairs; i += LANES) {
            words pair = LOAD(words, keys + j * pairs + i);
            part[j] += LOAD(reals, query + i) * (reals)(pair << 16);
            part[j] += LOAD(reals, query + pairs + i) * (reals)(pair & 0xffff0000u);
        }
    }
    reals sums = sums_of(part);
    memcpy(scores, &sums, count * sizeof *scores);
}

/* Add `count` values by their weights to `out`. */
INLINED void mixes(const double *weights, const float *values, int count, int size, double *out)
{
    if (size % LONG_LANES || size > PARTS * LONG_LANES) {
        for (int t = 0; t < count; t++, values += size)
#pragma omp simd
            for (int i = 0; i < size; i++)
                out[i] += weights[t] * values[i];
        return;
    }
    const int parts = size / LONG_LANES;
    longs sums[PARTS];
    memcpy(sums, out, parts * sizeof *sums);
    for (int t = 0; t < count; t++, values += size) {
        fetch_ahead(values, size * sizeof *values);
        for (int i = 0; i < parts; i++)
            sums[i] += weights[t] *
                       __builtin_convertvector(LOAD(short_reals, values + i * LONG_LANES), longs);
    }
    memcpy(out, sums, parts * sizeof *sums);
}

INLINED void mixes_half(const float *weights, const uint32_t *values, int count, int pairs,
                        float *out)
{
    if (pairs % LANES || 2 * pairs > PARTS * LANES) {
        for (int t = 0; t < count; t++, values += pairs)
#pragma omp simd
            for (int i = 0; i < pairs; i++) {
                out[i] += weights[t] * lower(values[i]);
                out[pairs + i] += weights[t] * upper(values[i]);
            }
        return;
    }
    const int parts = pairs / LANES;
    reals sums[PARTS];
    memcpy(sums, out, 2 * parts * sizeof *sums);
    for (int t = 0; t < count; t++, values += pairs) {
        fetch_ahead(values, pairs * sizeof *values);
        for (int i = 0; i < parts; i++) {
            words pair = LOAD(words, values + i * LANES);
            sums[i] += weights[t] * (reals)(pair << 16);
            sums[parts + i] += weights[t] * (reals)(pair & 0xffff0000u);
        }
    }
    memcpy(out, sums, 2 * parts * sizeof *sums);
}

/* Scores of one head's positions to weights that sum to 1. Whole vectors are weighed: what lies past
 * `count` is put aside meanwhile. */
static inline void weigh(double *scores, int count)
{
    const int whole = (count + SPARE - 1) / SPARE * SPARE;
    double aside[SPARE], highest = scores[0], sum = 0.0;
    memcpy(aside, scores + count, (whole - count) * sizeof *scores);
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
    for (int t = 0; t < whole; t++)
        scores[t] /= sum;
    memcpy(scores + count, aside, (whole - count) * sizeof *scores);
}

static inline void weigh_half(float *scores, int count)
{
    const int whole = (count + SPARE - 1) / SPARE * SPARE;
    float aside[SPARE], highest = scores[0], sum = 0.0f;
    memcpy(aside, scores + count, (whole - count) * sizeof *scores);
    for (int t = count; t < whole; t++)
        scores[t] = -INFINITY;
#pragma omp simd reduction(max : highest)
    for (int t = 0; t < whole; t++)
        highest = scores[t] > highest ? scores[t] : highest;
#pragma omp simd reduction(+ : sum)
    for (int t = 0; t < whole; t++) {
        scores[t] = short_exp_of_negative(scores[t] - highest);
        sum += scores[t];
    }
    float share = 1.0f / sum;
    for (int t = 0; t < whole; t++)
        scores[t] *= share;
    memcpy(scores + count, aside, (whole - count) * sizeof *scores);
}

#define FEWER(a, b) ((a) < (b) ? (a) : (b))

INLINED void mix_exact(const layer_t *at, const int32_t *table, int length, int size,
                       const double *query, double *mixed, double *weights)
{
    const int heads = at->heads, page = at->page, shared = heads / at->kv_heads;
    for (int start = 0; start < length; start += page) {
        const int end = FEWER(length, start + page);
        for (int h = 0; h < heads; h++) {
            const float *keys = (const float *)at->keys + page_of(at, table, start, h / shared);
            double *scores = weights + (size_t)h * length;
            int t = start;
            for (; t + LONG_LANES <= end; t += LONG_LANES, keys += LONG_LANES * size) {
                dots(query + h * size, keys, LONG_LANES, size, scores + t);
            }
            if (t < end)
                dots(query + h * size, keys, end - t, size, scores + t);
        }
    }
    for (int h = 0; h < heads; h++)
        weigh(weights + (size_t)h * length, length);
    memset(mixed, 0, heads * size * sizeof *mixed);
    for (int start = 0; start < length; start += page) {
        const int count = FEWER(length - start, page);
        for (int h = 0; h < heads; h++) {
            const float *values = (const float *)at->values + page_of(at, table, start, h / shared);
            mixes(weights + (size_t)h * length + start, values, count, size, mixed + h * size);
        }
    }
}

INLINED void mix_half(const layer_t *at, const int32_t *table, int length, int size,
                      const float *query, float *mixed, float *weights)
{
    const int heads = at->heads, page = at->page, shared = heads / at->kv_heads, pairs = size / 2;
    for (int start = 0; start < length; start += page) {
        const int end = FEWER(length, start + page);
        for (int h = 0; h < heads; h++) {
            const uint32_t *keys =
                (const uint32_t *)at->keys + page_of(at, table, start, h / shared) / 2;
            float *scores = weights + (size_t)h * length;
            int t = start;
            for (; t + LANES <= end; t += LANES, keys += LANES * pairs) {
                dots_half(query + h * size, keys, LANES, pairs, scores + t);
            }
            if (t < end)
                dots_half(query + h * size, keys, end - t, pairs, scores + t);
        }
    }
    for (int h = 0; h < heads; h++)
        weigh_half(weights + (size_t)h * length, length);
    memset(mixed, 0, heads * size * sizeof *mixed);
    for (int start = 0; start < length; start += page) {
        const int count = FEWER(length - start, page);
        for (int h = 0; h < heads; h++) {
            const uint32_t *values =
                (const uint32_t *)at->values + page_of(at, table, start, h / shared) / 2;
            mixes_half(weights + (size_t)h * length + start, values, count, pairs,
                       mixed + h * size);
        }
    }
}

void mix_row(const layer_t *at, const int32_t *table, int length, const double *query,
             double *mixed, double *weights)
{
    FOR_SIZE(mix_exact, query, mixed, weights)
}

void mix_row_half(const layer_t *at, const int32_t *table, int length, const float *query,
                  float *mixed, float *weights)
{
    FOR_SIZE(mix_half, query, mixed, weights)
}
