/* What a decoding step does besides matrix products and norms: one row per sample.
 *
 * Plain C. Loops are written so that a compiler vectorises them for whatever machine it targets;
 * rows are independent, so that the number of threads changes no result. All arrays are dense and
 * row-major; reals are float32 unless said otherwise.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* e^x for x <= 0, relative error below 1e-12; 0 below -700, NaN for NaN. The caller's loop
 * vectorises: Cody and Waite's reduction to |r| <= ln 2 / 2, Taylor's polynomial of degree 10. */
static inline double exp_of_negative(double x)
{
    const double shift = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to a whole number */
    double clamped = x < -700.0 ? -700.0 : x;
    double n = (clamped * 1.4426950408889634 + shift) - shift;
    double r = (clamped - n * 0.69314718036912382) - n * 1.9082149292705877e-10;
    double p = 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    int64_t bits = ((int64_t)n + 1023) * ((int64_t)1 << 52);
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < -700.0 ? 0.0 : p * scale;
}

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

/* What the rows of a layer share. */
typedef struct {
    const float *rotation;
    void *keys, *values;
    int heads, kv_heads, size, page, appends, is_half;
} layer_t;

/* Keep numbers in a cache from number `first` on: float32, or rounded to even to its upper half
 * (bfloat16); what is not finite stays so. */
static inline void keep(const layer_t *at, void *cache, size_t first, const float *x)
{
    if (!at->is_half) {
        memcpy((float *)cache + first, x, at->size * sizeof(float));
        return;
    }
    for (int i = 0; i < at->size; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        ((uint16_t *)cache)[first + i] = x[i] == x[i] ? (uint16_t)rounded : 0x7fc0;
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

/* Scores of `count` keys, at most 4: a load of the query serves all. */
static inline void dots(const double *query, const float *keys, int count, int size, double *scores)
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

static inline void mixes(const double *weights, const float *values, int count, int size,
                         double *out)
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
static inline void dots_half(const float *query, const uint32_t *keys, int count, int pairs,
                             double *scores)
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

static inline void mixes_half(const double *weights, const uint32_t *values, int count, int pairs,
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

/* One row: append, score, weigh, mix. `query` and `mixed` hold heads * size numbers, float64 or for
 * bfloat16 float32. */
static void attend_row(const layer_t *at, const float *row, const int32_t *table, int length,
                       double *scratch, float *out)
{
    const int heads = at->heads, size = at->size, page = at->page, half = at->is_half;
    const int shared = heads / at->kv_heads, pairs = size / 2;
    double *query = scratch, *mixed = query + heads * size, *weights = mixed + heads * size;
    float *query_half = (float *)query, *mixed_half = (float *)mixed;
    const float *rotation = at->rotation ? at->rotation + (size_t)(length - 1) * size : NULL;
    const double scale = 1.0 / sqrt((double)size);
    if (at->appends)
        append(at, row, rotation, table, length - 1, out);
    for (int h = 0; h < heads; h++) {
        float *turned = out + (size_t)h * size;
        rotate(row + (size_t)h * size, rotation, turned, size);
        if (half)
            for (int i = 0; i < pairs; i++) {
                query_half[h * size + i] = turned[2 * i] * (float)scale;
                query_half[h * size + pairs + i] = turned[2 * i + 1] * (float)scale;
            }
        else
            for (int i = 0; i < size; i++)
                query[h * size + i] = turned[i] * scale;
    }
    memset(mixed, 0, heads * size * sizeof(double));
    for (int start = 0; start < length; start += page) {
        int end = length < start + page ? length : start + page;
        for (int h = 0; h < heads; h++) {
            size_t key = page_of(at, table, start, h / shared);
            double *scores = weights + (size_t)h * length;
            for (int t = start; t < end; t += 4, key += 4 * size) {
                int count = end - t < 4 ? end - t : 4;
                if (half)
                    dots_half(query_half + h * size, (const uint32_t *)at->keys + key / 2, count,
                              pairs, scores + t);
                else
                    dots(query + h * size, (const float *)at->keys + key, count, size, scores + t);
            }
        }
    }
    for (int h = 0; h < heads; h++)
        weigh(weights + (size_t)h * length, length);
    for (int start = 0; start < length; start += page) {
        int end = length < start + page ? length : start + page;
        for (int h = 0; h < heads; h++) {
            size_t value = page_of(at, table, start, h / shared);
            const double *own = weights + (size_t)h * length;
            for (int t = start; t < end; t += 4, value += 4 * size) {
                int count = end - t < 4 ? end - t : 4;
                if (half)
                    mixes_half(own + t, (const uint32_t *)at->values + value / 2, count, pairs,
                               mixed_half + h * size);
                else
                    mixes(own + t, (const float *)at->values + value, count, size,
                          mixed + h * size);
            }
        }
    }
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < size; i++)
            out[h * size + i] = half ? mixed_half[h * size + (i % 2) * pairs + i / 2]
                                     : (float)mixed[h * size + i];
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

/* Whole numbers in the order of the floats, 0 and -0 alike. */
static inline uint32_t ordered(float x)
{
    float positive_zero = x + 0.0f;
    uint32_t bits;
    memcpy(&bits, &positive_zero, sizeof bits);
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

/* The k-th largest of x: the greatest key that at least k of them reach. */
static uint32_t kth_key(const float *x, int count, int k)
{
    uint64_t low = 0, high = 0x100000000u;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        int reached = 0;
        for (int i = 0; i < count; i++)
            reached += ordered(x[i]) >= middle;
        if (reached >= k)
            low = middle;
        else
            high = middle;
    }
    return (uint32_t)low;
}

/* Set a bit, the lowest first, for each number that is possible and reaches `least`. */
static void mark(const float *x, int count, uint32_t least, uint8_t *bits)
{
    memset(bits, 0, ((size_t)count + 7) / 8);
    for (int i = 0; i < count; i++)
        bits[i / 8] |= (uint8_t)((ordered(x[i]) >= least && x[i] > -INFINITY) << i % 8);
}

/* Draw one token of each row by inverse CDF, as sampling.draw defines it.
 *
 *   logits   [rows, vocab]      uniforms float64 [rows] in (0, 1)
 *   scratch  float64 [threads, 2 * vocab]
 *   tokens   int64 [rows]       logprobs [rows]: NaN where the logits are not finite
 *   kept     bytes [rows, (vocab + 7) / 8]: a bit for each token that top-k keeps, or NULL
 *
 * top_k 0 keeps all tokens; ties with the k-th are kept. */
void draw(const float *logits, const double *uniforms, float temperature, int top_k, int rows,
          int vocab, double *scratch, int64_t *tokens, float *logprobs, uint8_t *kept, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        double *weights = scratch + (size_t)part * 2 * vocab;
        float *scaled = (float *)(weights + vocab);
        int first = (int)((int64_t)rows * part / threads);
        int last = (int)((int64_t)rows * (part + 1) / threads);
        for (int b = first; b < last; b++) {
            const float *row = logits + (size_t)b * vocab;
            float highest = -INFINITY;
            for (int i = 0; i < vocab; i++)
                scaled[i] = row[i] / temperature;
#pragma omp simd reduction(max : highest)
            for (int i = 0; i < vocab; i++)
                highest = scaled[i] > highest ? scaled[i] : highest;
            for (int i = 0; i < vocab; i++)
                weights[i] = exp_of_negative((double)scaled[i] - highest);
            uint32_t least = 0;
            if (top_k > 0 && top_k < vocab) {
                least = kth_key(scaled, vocab, top_k);
                for (int i = 0; i < vocab; i++)
                    weights[i] = ordered(scaled[i]) >= least ? weights[i] : 0.0;
            }
            if (kept)
                mark(scaled, vocab, least, kept + (size_t)b * ((vocab + 7) / 8));
            double total = 0.0, reached = 0.0;
            for (int i = 0; i < vocab; i++)
                total += weights[i];
            double target = uniforms[b] * total;
            int token = -1, possible = vocab - 1;
            for (int i = 0; i < vocab; i++) {
                reached += weights[i];
                possible = weights[i] > 0.0 ? i : possible;
                if (reached > target && weights[i] > 0.0) {
                    token = i;
                    break;
                }
            }
            token = token < 0 ? possible : token;
            tokens[b] = token;
            logprobs[b] = (float)((double)scaled[token] - highest - log(total));
        }
    }
}
