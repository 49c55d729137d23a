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

#include "attention.h"
#include "norms.h"
#include "numbers.h"

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

void attend_row(const layer_t *at, const float *row, const int32_t *table, int length,
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
        mix_row(at, table, length, query, mixed, weights);
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
    mix_row_half(at, table, length, query, mixed, weights);
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
 *   scratch      float64 [threads, heads * (width * page + 2 size) + SPARE]
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
        double *own = scratch + part * (heads * ((size_t)width * page + 2 * size) + SPARE);
        int first = (int)((int64_t)rows * part / threads);
        int last = (int)((int64_t)rows * (part + 1) / threads);
        for (int b = first; b < last; b++)
            attend_row(&at, x + b * inputs, tables + (size_t)b * width, lens[b], own,
                       out + (size_t)b * heads * size);
    }
}

void layer_norm_row(const float *x, const float *weight, const float *offset, float epsilon,
                    int width, float *out)
{
    double sum = 0.0, squares = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < width; i++)
        sum += x[i];
    const float mean = (float)(sum / width);
#pragma omp simd reduction(+ : squares)
    for (int i = 0; i < width; i++)
        squares += (double)(x[i] - mean) * (x[i] - mean);
    float scale = (float)(1.0 / sqrt(squares / width + epsilon));
    for (int i = 0; i < width; i++)
        out[i] = (x[i] - mean) * scale * weight[i];
    if (offset)
        for (int i = 0; i < width; i++)
            out[i] += offset[i];
}

void rms_norm_row(const float *x, const float *weight, float epsilon, int width, float *out)
{
    double squares = 0.0;
#pragma omp simd reduction(+ : squares)
    for (int i = 0; i < width; i++)
        squares += (double)x[i] * x[i];
    float scale = (float)(1.0 / sqrt(squares / width + epsilon));
    for (int i = 0; i < width; i++)
        out[i] = x[i] * scale * weight[i];
}

void layer_norm(const float *x, const float *weight, const float *offset, float epsilon, int rows,
                int width, float *out, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 64)
    for (int b = 0; b < rows; b++)
        layer_norm_row(x + (size_t)b * width, weight, offset, epsilon, width,
                       out + (size_t)b * width);
}

void rms_norm(const float *x, const float *weight, float epsilon, int rows, int width, float *out,
              int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 64)
    for (int b = 0; b < rows; b++)
        rms_norm_row(x + (size_t)b * width, weight, epsilon, width, out + (size_t)b * width);
}
