/* Products in bfloat16 by a library's own routine, with what comes before and after in one call.
 *
 * The routine is the linear algebra library's (blas.py finds it); it multiplies bfloat16 and adds in
 * float32, so that the numbers that enter are rounded and those that leave are not. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#else
#pragma STDC FP_CONTRACT ON
#endif

#include "norms.h"
#include "numbers.h"

/* What is done with the sums: kept, added to what is there, halves joined as silu(first) * second,
 * GELU, or kept when both halves of the numbers that enter are multiplied. The first three as in
 * products.c. */
enum { KEEP, ADD, SWIGLU, GELU, BOTH };
enum { FEW = 8192 };

/* C = alpha A B + beta C of column-major matrices, as FORTRAN calls it: A and B bfloat16, C float32.
 * Whole numbers are read through pointers to 32 or 64 bits: the latter serve both. */
typedef void gemm_t(const char *trans_a, const char *trans_b, const int64_t *m, const int64_t *n,
                    const int64_t *k, const float *alpha, const uint16_t *a, const int64_t *lda,
                    const uint16_t *b, const int64_t *ldb, const float *beta, float *c,
                    const int64_t *ldc);

static void swiglu_row(const float *both, float *out, int width)
{
    for (int i = 0; i < width; i++)
        out[i] = silu(both[i]) * both[width + i];
}

static void gelu_row(const float *x, float *out, int width)
{
    for (int i = 0; i < width; i++)
        out[i] = gelu(x[i]);
}

static void join_row(const float *high, const float *low, float *out, int width)
{
    for (int i = 0; i < width; i++)
        out[i] = high[i] + low[i];
}

/* `rows` rows as bfloat16; as many rows of what was lost follow if asked. */
static void round_rows(const float *x, uint16_t *halves, int rows, int inputs, int is_split,
                       int threads)
{
    const size_t count = (size_t)rows * inputs;
#pragma omp parallel for num_threads(threads) schedule(static) if (count > FEW)
    for (int b = 0; b < rows; b++) {
        const float *from = x + (size_t)b * inputs;
        uint16_t *high = halves + (size_t)b * inputs, *low = high + count;
        for (int i = 0; i < inputs; i++)
            high[i] = rounded(from[i]);
        if (is_split)
            for (int i = 0; i < inputs; i++)
                low[i] = rounded(from[i] - wide(high[i]));
    }
}

/* x [rows, inputs] by bfloat16 weights [outputs, inputs] to out [rows, outputs], float32.
 *
 *   residual  [rows, outputs], with ADD
 *   halves    room for 2 * rows * inputs bfloat16
 *   sums      room for 2 * rows * outputs float32
 *
 * With SWIGLU `outputs` counts both halves, and out is [rows, outputs / 2]. x is rounded; with BOTH
 * what was lost is multiplied too, as rows of their own. */
void tile_product(gemm_t *gemm, const float *x, const uint16_t *weight, const float *residual,
                  float *out, uint16_t *halves, float *sums, int rows, int inputs, int outputs,
                  int after, int threads)
{
    const int is_split = after == BOTH, is_done = after == KEEP || after == ADD;
    const int width = after == SWIGLU ? outputs / 2 : outputs;
    const int64_t m = outputs, n = is_split ? 2 * rows : rows, k = inputs;
    const size_t count = (size_t)rows * outputs;
    const float one = 1.0f, beta = after == ADD ? 1.0f : 0.0f;
    round_rows(x, halves, rows, inputs, is_split, threads);
    if (after == ADD)
        memcpy(out, residual, count * sizeof *out);
    gemm("T", "N", &m, &n, &k, &one, weight, &k, halves, &k, &beta, is_done ? out : sums, &m);
    if (is_done)
        return;
#pragma omp parallel for num_threads(threads) schedule(static) if (count > FEW)
    for (int b = 0; b < rows; b++) {
        const float *own = sums + (size_t)b * outputs;
        float *to = out + (size_t)b * width;
        if (after == BOTH)
            join_row(own, own + count, to, width);
        else if (after == GELU)
            gelu_row(own, to, width);
        else
            swiglu_row(own, to, width);
    }
}

/* The same of x's norm, in `normed` [rows, inputs]; without an offset by root mean square. */
void norm_product(gemm_t *gemm, const float *x, const float *norm, const float *offset,
                  float epsilon, const uint16_t *weight, float *out, float *normed,
                  uint16_t *halves, float *sums, int rows, int inputs, int outputs, int after,
                  int threads)
{
    if (offset)
        layer_norm(x, norm, offset, epsilon, rows, inputs, normed, threads);
    else
        rms_norm(x, norm, epsilon, rows, inputs, normed, threads);
    tile_product(gemm, normed, weight, NULL, out, halves, sums, rows, inputs, outputs, after,
                 threads);
}

/* x [rows, width] and what a perceptron makes of its norm: up to `outputs`, GELU or SWIGLU to
 * `hidden`, down to width. `normed` and `wide` have room for rows of the wider of both. */
void feed_forward(gemm_t *gemm, const float *x, const float *norm, const float *offset,
                  float epsilon, const uint16_t *up, const uint16_t *down, float *out,
                  float *normed, float *wide, uint16_t *halves, float *sums, int rows, int width,
                  int outputs, int hidden, int after, int threads)
{
    norm_product(gemm, x, norm, offset, epsilon, up, wide, normed, halves, sums, rows, width,
                 outputs, after, threads);
    tile_product(gemm, wide, down, x, out, halves, sums, rows, hidden, width, ADD, threads);
}
