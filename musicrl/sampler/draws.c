/* Draws of tokens by inverse CDF, as sampling.draw_cells defines them: one cell of a grid at a time.
 *
 * Plain C; cells are independent, so that the number of threads changes no result. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "numbers.h"

/* What the cells of a step share. */
typedef struct {
    float guidance, temperature;
    int top_k, vocab, num_bytes;
} settings_t;

/* Whole numbers in the order of the floats, 0 and -0 alike; NaN is the greatest. */
static inline uint32_t ordered(float x)
{
    float positive_zero = x + 0.0f;
    uint32_t bits;
    memcpy(&bits, &positive_zero, sizeof bits);
    return x == x ? bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u) : UINT32_MAX;
}

/* How many of the numbers reach a bound. */
static inline int count_16(const uint16_t *numbers, int count, uint16_t bound)
{
    int reached = 0;
    while (count > 0) { /* in parts that a short counter holds, so that lanes stay narrow */
        int part = count < 16384 ? count : 16384;
        uint16_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < part; i++)
            sum += numbers[i] >= bound;
        reached += sum;
        numbers += part;
        count -= part;
    }
    return reached;
}

/* The k-th largest key: the greatest number that at least k of them reach, bit by bit; its upper
 * half by the upper halves of all, its lower half by the keys that share the upper one. `halves`
 * receives `count` numbers. */
static uint32_t kth_key(const uint32_t *keys, int count, int k, uint16_t *halves)
{
    uint16_t upper = 0, lower = 0;
    for (int i = 0; i < count; i++)
        halves[i] = (uint16_t)(keys[i] >> 16);
    for (int bit = 15; bit >= 0; bit--) {
        uint16_t tried = (uint16_t)(upper | 1u << bit);
        upper = count_16(halves, count, tried) >= k ? tried : upper;
    }
    int left = k - (upper == UINT16_MAX ? 0 : count_16(halves, count, (uint16_t)(upper + 1)));
    int alike = 0;
    for (int i = 0; i < count; i++) { /* alike <= i: no half is lost before it is read */
        int is_alike = halves[i] == upper;
        halves[alike] = (uint16_t)keys[i];
        alike += is_alike;
    }
    for (int bit = 15; bit >= 0; bit--) {
        uint16_t tried = (uint16_t)(lower | 1u << bit);
        lower = count_16(halves, alike, tried) >= left ? tried : lower;
    }
    return (uint32_t)upper << 16 | lower;
}

/* The numbers of those that top-k keeps, in order, into `chosen`; how many. */
static int choose(const float *x, int count, int k, uint32_t *chosen, uint16_t *halves)
{
    int kept = 0;
    if (k <= 0 || k >= count) {
        for (int i = 0; i < count; i++)
            chosen[i] = (uint32_t)i;
        return count;
    }
    for (int i = 0; i < count; i++)
        chosen[i] = ordered(x[i]);
    uint32_t least = kth_key(chosen, count, k, halves);
    for (int i = 0; i < count; i++) { /* kept <= i: no key is lost before it is read */
        int is_kept = chosen[i] >= least;
        chosen[kept] = (uint32_t)i;
        kept += is_kept;
    }
    return kept;
}

/* Set a bit, the lowest first, for each chosen number that is possible. */
static void mark(const float *x, const uint32_t *chosen, int kept, int num_bytes, uint8_t *bits)
{
    memset(bits, 0, num_bytes);
    for (int j = 0; j < kept; j++)
        bits[chosen[j] / 8] |= (uint8_t)((x[chosen[j]] > -INFINITY) << chosen[j] % 8);
}

/* Logits of a cell as they are drawn from: guided away from `null` if there is one, by temperature. */
static float scale(const settings_t *at, const float *logits, const float *null, float *scaled)
{
    float highest = -INFINITY;
    if (null)
        for (int i = 0; i < at->vocab; i++) {
            float guided = null[i] + at->guidance * (logits[i] - null[i]);
            scaled[i] = (logits[i] == -INFINITY ? -INFINITY : guided) / at->temperature;
        }
    else
        for (int i = 0; i < at->vocab; i++)
            scaled[i] = logits[i] / at->temperature;
#pragma omp simd reduction(max : highest)
    for (int i = 0; i < at->vocab; i++)
        highest = scaled[i] > highest ? scaled[i] : highest;
    return highest;
}

/* One cell. `scratch` holds 3 * vocab float64; `kept` is NULL or a byte for 8 tokens. */
static void draw_cell(const settings_t *at, const float *logits, const float *null, double uniform,
                      double *scratch, int64_t *drawn, float *logprob, uint8_t *kept)
{
    double *weights = scratch;
    float *scaled = (float *)(weights + at->vocab);
    uint32_t *chosen = (uint32_t *)(scaled + at->vocab);
    uint16_t *halves = (uint16_t *)(chosen + at->vocab);
    float highest = scale(at, logits, null, scaled);
    int count = choose(scaled, at->vocab, at->top_k, chosen, halves);
    if (kept)
        mark(scaled, chosen, count, at->num_bytes, kept);
    for (int j = 0; j < count; j++)
        weights[j] = exp_of_negative((double)scaled[chosen[j]] - highest);
    double total = 0.0, reached = 0.0;
    for (int j = 0; j < count; j++)
        total += weights[j];
    double target = uniform * total;
    int token = -1, possible = at->vocab - 1;
    for (int j = 0; j < count && token < 0; j++) {
        reached += weights[j];
        possible = weights[j] > 0.0 ? (int)chosen[j] : possible;
        token = reached > target && weights[j] > 0.0 ? (int)chosen[j] : -1;
    }
    token = token < 0 ? possible : token;
    *drawn = token;
    *logprob = (float)((double)scaled[token] - highest - log(total));
}

/* Draw one token for each of the streams of each row.
 *
 *   logits   [rows, streams, vocab]
 *   nulls    the same of the null prompt, or NULL without guidance
 *   empty    bool [rows, streams]: cells that get the special token `vocab`; NULL where there is no
 *            such token
 *   uniforms float64 [streams, rows] in (0, 1)
 *   scratch  float64 [threads, 3 * vocab]
 *   tokens   int64 [rows, streams]
 *   logprobs [rows, streams]: NaN where the logits are not finite
 *   kept     bytes [rows, streams, (tokens of the vocabulary, with a special one, + 7) / 8]: a bit for
 *            each token that top-k keeps, or NULL
 *
 * top_k 0 keeps all tokens; ties with the k-th are kept. */
void draw_cells(const float *logits, const float *nulls, const uint8_t *empty,
                const double *uniforms, float guidance, float temperature, int top_k, int rows,
                int streams, int vocab, double *scratch, int64_t *tokens, float *logprobs,
                uint8_t *kept, int threads)
{
    const int num_bytes = (vocab + (empty != NULL) + 7) / 8, cells = rows * streams;
    const settings_t at = {guidance, temperature, top_k, vocab, num_bytes};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        double *own = scratch + (size_t)part * 3 * vocab;
        int first = (int)((int64_t)cells * part / threads);
        int last = (int)((int64_t)cells * (part + 1) / threads);
        for (int c = first; c < last; c++) {
            uint8_t *bits = kept ? kept + (size_t)c * num_bytes : NULL;
            if (empty && empty[c]) {
                tokens[c] = vocab;
                logprobs[c] = 0.0f;
                if (bits) {
                    memset(bits, 0, num_bytes);
                    bits[vocab / 8] = (uint8_t)(1 << vocab % 8);
                }
                continue;
            }
            size_t place = (size_t)c * vocab;
            double uniform = uniforms[(size_t)(c % streams) * rows + c / streams];
            draw_cell(&at, logits + place, nulls ? nulls + place : NULL, uniform, own, tokens + c,
                      logprobs + c, bits);
        }
    }
}
