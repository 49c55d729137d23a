/* Products in bfloat16 by a library's own routine, with what comes before and after in one call.
 *
 * The routine is torch's (tile_routine.py finds it); it multiplies a few columns of weights, which lie
 * as it reads them, by all rows, and adds in float32: the numbers that enter are rounded and those
 * that leave are not. */

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
#include "tiles.h"

void enter_tiles(const tiles_t *at, const float *x, const float *norm, const float *offset,
                 float epsilon, float *normed, uint16_t *halves, int inputs, int is_split)
{
    const int width = filled(inputs, PANEL);
    const size_t count = (size_t)filled(at->rows, TILE_ROWS) * width;
#pragma omp for schedule(static)
    for (int b = 0; b < at->rows; b++) {
        const float *from = x + (size_t)b * inputs;
        float *to = normed + (size_t)b * inputs;
        uint16_t *high = halves + (size_t)b * width, *low = high + count;
        if (norm && offset)
            layer_norm_row(from, norm, offset, epsilon, inputs, to);
        else if (norm)
            rms_norm_row(from, norm, epsilon, inputs, to);
        from = norm ? to : from;
        for (int i = 0; i < inputs; i++)
            high[i] = rounded(from[i]);
        memset(high + inputs, 0, (width - inputs) * sizeof *high);
        if (is_split) {
            for (int i = 0; i < inputs; i++)
                low[i] = rounded(from[i] - wide(high[i]));
            memset(low + inputs, 0, (width - inputs) * sizeof *low);
        }
    }
}

/* What comes after, for a panel's part of one row. */
static inline void follow(const float *sums, const float *lost, const float *residual, float *line,
                          int count, int after)
{
    if (after == SWIGLU)
        for (int i = 0; i < PANEL; i++)
            line[i] = silu(sums[i]) * sums[PANEL + i];
    else if (after == GELU)
        for (int i = 0; i < PANEL; i++)
            line[i] = gelu(sums[i]);
    else if (after == BOTH)
        for (int i = 0; i < PANEL; i++)
            line[i] = sums[i] + lost[i];
    else
        memcpy(line, sums, PANEL * sizeof *line);
    if (after == ADD)
        for (int i = 0; i < count; i++)
            line[i] += residual[i];
}

void multiply_tiles(const tiles_t *at, const uint16_t *halves, const uint16_t *weight,
                    const float *residual, float *out, uint16_t *narrow, int inputs, int outputs,
                    int after)
{
    const int whole = filled(at->rows, TILE_ROWS), rows = after == BOTH ? 2 * whole : whole;
    const int width = after == SWIGLU ? 2 * PANEL : PANEL, count = filled(outputs, PANEL) / PANEL;
    const int64_t depth = filled(inputs, PANEL);
#pragma omp for schedule(static, 1)
    for (int part = 0; part < at->threads; part++) {
        float *sums = at->scratch + (size_t)part * 4 * whole * PANEL;
        const int last = (int)((int64_t)count * (part + 1) / at->threads);
        for (int p = (int)((int64_t)count * part / at->threads); p < last; p++) {
            const int first = p * PANEL, left = outputs - first < PANEL ? outputs - first : PANEL;
            at->multiply(rows, width, depth, depth, width, width, 0, halves,
                         weight + (size_t)p * width * depth, sums, 1);
            for (int b = 0; b < at->rows; b++) {
                float line[PANEL];
                const float *own = sums + (size_t)b * width;
                const size_t place = (size_t)b * outputs + first;
                follow(own, own + whole * PANEL, residual + place, line, left, after);
                if (!narrow)
                    memcpy(out + place, line, left * sizeof *line);
                else
                    for (int i = 0; i < PANEL; i++)
                        narrow[(size_t)b * filled(outputs, PANEL) + first + i] = rounded(line[i]);
            }
        }
        at->release(1);
    }
}

/* x [rows, inputs] by bfloat16 weights to out [rows, outputs], float32.
 *
 *   norm, offset  [inputs]: x is normed first, without an offset by root mean square; NULL: it is not
 *   weight        [panels, inputs / 2, columns, 2] of whole panels; with SWIGLU a panel is followed by
 *                 that of the other half
 *   residual      [rows, outputs], with ADD
 *   normed        room for rows * inputs float32
 *   halves        room for 2 * rows * inputs bfloat16, whole rows and panels
 *
 * x is rounded; with BOTH what was lost is multiplied too, as rows of their own. */
void tile_product(multiply_t *by, release_t *release, const float *x, const float *norm,
                  const float *offset, float epsilon, const uint16_t *weight,
                  const float *residual, float *out, float *normed, uint16_t *halves,
                  float *scratch, int rows, int inputs, int outputs, int after, int threads)
{
    const tiles_t at = {by, release, scratch, rows, threads};
#pragma omp parallel num_threads(threads)
    {
        enter_tiles(&at, x, norm, offset, epsilon, normed, halves, inputs, after == BOTH);
        multiply_tiles(&at, halves, weight, residual, out, NULL, inputs, outputs, after);
    }
}

/* x [rows, width] and what a perceptron makes of its norm: `up` with GELU or SWIGLU to `hidden`, down
 * to width. `narrow` has room for rows * hidden bfloat16, whole rows and panels. */
void feed_forward(multiply_t *by, release_t *release, const float *x, const float *norm,
                  const float *offset, float epsilon, const uint16_t *up, const uint16_t *down,
                  float *out, float *normed, uint16_t *halves, uint16_t *narrow, float *scratch,
                  int rows, int width, int hidden, int after, int threads)
{
    const tiles_t at = {by, release, scratch, rows, threads};
#pragma omp parallel num_threads(threads)
    {
        enter_tiles(&at, x, norm, offset, epsilon, normed, halves, width, 0);
        multiply_tiles(&at, halves, up, NULL, NULL, narrow, width, hidden, after);
        multiply_tiles(&at, narrow, down, x, out, NULL, hidden, width, ADD);
    }
}
