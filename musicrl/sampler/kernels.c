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

static inline void dot_all(const double *query, const float *keys, int count, int size,
                           double *scores)
{
    for (int t = 0; t < count; t++) {
        const float *key = keys + (size_t)t * size;
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < size; i++)
            sum += query[i] * key[i];
        scores[t] = sum;
    }
}

static inline void add_all(const double *weights, const float *values, int count, int size,
                           double *out)
{
    for (int t = 0; t < count; t++) {
        const float *value = values + (size_t)t * size;
        double weight = weights[t];
#pragma omp simd
        for (int i = 0; i < size; i++)
            out[i] += weight * value[i];
    }
}

/* One new position of every sample: rotate its query and key, append key and value, attend. Sums
 * are float64, as the learner's are: results rounded to float32 are then the same bits.
 *
 *   qkv          [prompts * samples, heads + 2 kv_heads, size]
 *   rotation     [size / 2, 2], or NULL for none
 *   prompt_*     [prompts, kv_heads, prompt_len, size]
 *   own_*        [prompts * samples, kv_heads, capacity, size]; position length - 1 is written
 *   scratch      float64 [threads, prompt_len + length + 2 size]
 *   out          [prompts * samples, heads, size] */
void attend(const float *qkv, const float *rotation, const float *prompt_keys,
            const float *prompt_values, float *own_keys, float *own_values, double *scratch,
            float *out, int prompts, int samples, int heads, int kv_heads, int size, int prompt_len,
            int capacity, int length, int threads)
{
    double scale = 1.0 / sqrt((double)size);
    int total = prompt_len + length, shared = heads / kv_heads, rows = prompts * samples;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        double *weights = scratch + (size_t)part * (total + 2 * size);
        double *query = weights + total, *mixed = query + size;
        int first = (int)((int64_t)rows * part / threads);
        int last = (int)((int64_t)rows * (part + 1) / threads);
        for (int b = first; b < last; b++) {
            const float *row = qkv + (size_t)b * (heads + 2 * kv_heads) * size;
            for (int h = 0; h < heads; h++) {
                int j = h / shared;
                size_t own = ((size_t)b * kv_heads + j) * capacity * size;
                size_t asked = ((size_t)(b / samples) * kv_heads + j) * prompt_len * size;
                size_t opened = own + (size_t)(length - 1) * size;
                float *to = out + ((size_t)b * heads + h) * size;
                if (h % shared == 0) {
                    rotate(row + (size_t)(heads + j) * size, rotation, own_keys + opened, size);
                    memcpy(own_values + opened, row + (size_t)(heads + kv_heads + j) * size,
                           size * sizeof(float));
                }
                rotate(row + (size_t)h * size, rotation, to, size);
                for (int i = 0; i < size; i++) {
                    query[i] = to[i] * scale;
                    mixed[i] = 0.0;
                }
                dot_all(query, prompt_keys + asked, prompt_len, size, weights);
                dot_all(query, own_keys + own, length, size, weights + prompt_len);
                double highest = weights[0], sum = 0.0;
                for (int t = 1; t < total; t++)
                    highest = weights[t] > highest ? weights[t] : highest;
#pragma omp simd reduction(+ : sum)
                for (int t = 0; t < total; t++) {
                    weights[t] = exp_of_negative(weights[t] - highest);
                    sum += weights[t];
                }
                add_all(weights, prompt_values + asked, prompt_len, size, mixed);
                add_all(weights + prompt_len, own_values + own, length, size, mixed);
                for (int i = 0; i < size; i++)
                    to[i] = (float)(mixed[i] / sum);
            }
        }
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

/* Draw one token of each row by inverse CDF, as sampling.draw defines it.
 *
 *   logits   [rows, vocab]      uniforms float64 [rows] in (0, 1)
 *   scratch  float64 [threads, 2 * vocab]
 *   tokens   int64 [rows]       logprobs [rows]: NaN where the logits are not finite
 *
 * top_k 0 keeps all tokens; ties with the k-th are kept. */
void draw(const float *logits, const double *uniforms, float temperature, int top_k, int rows,
          int vocab, double *scratch, int64_t *tokens, float *logprobs, int threads)
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
            if (top_k > 0 && top_k < vocab) {
                uint32_t least = kth_key(scaled, vocab, top_k);
                for (int i = 0; i < vocab; i++)
                    weights[i] = ordered(scaled[i]) >= least ? weights[i] : 0.0;
            }
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
