/* Products of few rows, which read every weight once and do nothing else.
 *
 * Numbers are GNU C's vectors, as long as the machine's own; which instructions they become is the
 * compiler's affair. Weights lie in panels of 2 * LANES outputs (packing.c packs them):
 *
 *   bfloat16  [outputs / (2 LANES), inputs, LANES] words, each of two outputs' weights
 *   float32   [outputs / (2 LANES), inputs, 2 LANES]
 *
 * Sums are float32, over the inputs in order, so that a row's results do not depend on the others.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#else
#pragma STDC FP_CONTRACT ON
#endif

#include "numbers.h"
#include "vectors.h"

/* Rows of a tile: as many sums as registers hold. */
#if LANES == 16
enum { TILE = 8 };
#elif LANES == 8
enum { TILE = 6 };
#else
enum { TILE = 4 };
#endif
enum { AHEAD = 4096 };

/* What is done with a sum: kept, added to what is there, or halves joined as silu(first) * second. */
enum { KEEP, ADD, SWIGLU };

/* What the rows of a product share. */
typedef struct {
    const float *x;
    const uint32_t *panels;
    const float *residual;
    float *out;
    int inputs, outputs, after;
} product_t;

int product_lanes(void) { return LANES; }

/* Store the first `count` of a vector of sums. */
INLINED void store(const product_t *at, reals sums, size_t place, int count)
{
    float out[LANES];
    memcpy(out, &sums, sizeof out);
    if (at->after == ADD)
        for (int l = 0; l < count; l++)
            out[l] += at->residual[place + l];
    memcpy(at->out + place, out, count * sizeof *out);
}

/* `rows` rows, at most TILE, of one panel. */
INLINED void tile(const product_t *at, int first, int panel, int rows)
{
    const int inputs = at->inputs;
    const float *x = at->x + (size_t)first * inputs;
    const uint32_t *pairs = at->panels + (size_t)panel * inputs * LANES;
    reals low[TILE], high[TILE];
    for (int r = 0; r < rows; r++)
        low[r] = high[r] = (reals){0};
    for (int i = 0; i < inputs; i++, pairs += LANES) {
        words pair;
        __builtin_prefetch((const char *)pairs + AHEAD);
        memcpy(&pair, pairs, sizeof pair);
        reals even = (reals)(pair << 16), odd = (reals)(pair & 0xffff0000u);
        for (int r = 0; r < rows; r++) {
            float factor = x[(size_t)r * inputs + i];
            low[r] += factor * even;
            high[r] += factor * odd;
        }
    }
    const int width = at->after == SWIGLU ? LANES : 2 * LANES, start = panel * width;
    const int left = at->outputs - start, both = left < width ? left : width;
    for (int r = 0; r < rows; r++) {
        size_t place = (size_t)(first + r) * at->outputs + start;
        if (at->after == SWIGLU) {
            for (int l = 0; l < LANES; l++)
                low[r][l] = silu(low[r][l]) * high[r][l];
            store(at, low[r], place, both);
            continue;
        }
        store(at, low[r], place, both < LANES ? both : LANES);
        if (both > LANES)
            store(at, high[r], place + LANES, both - LANES);
    }
}

/* The same by float32 weights: chains of so many inputs, each from zero, added one after the other. */
INLINED void exact_tile(const product_t *at, int first, int panel, int rows, const int *chains,
                        int num_chains)
{
    const int inputs = at->inputs, start = panel * 2 * LANES;
    const float *x = at->x + (size_t)first * inputs;
    const float *weights = (const float *)at->panels + (size_t)start * inputs;
    reals low[TILE], high[TILE];
    for (int c = 0, begin = 0, end; c < num_chains; c++, begin = end) {
        end = begin + chains[c];
        reals one[TILE], other[TILE];
        for (int r = 0; r < rows; r++)
            one[r] = other[r] = (reals){0};
        for (int i = begin; i < end; i++) {
            const float *pair = weights + (size_t)i * 2 * LANES;
            reals left, right;
            __builtin_prefetch((const char *)pair + AHEAD);
            __builtin_prefetch((const char *)(pair + LANES) + AHEAD);
            memcpy(&left, pair, sizeof left);
            memcpy(&right, pair + LANES, sizeof right);
            for (int r = 0; r < rows; r++) {
                float factor = x[(size_t)r * inputs + i];
                one[r] += factor * left;
                other[r] += factor * right;
            }
        }
        for (int r = 0; r < rows; r++) {
            low[r] = begin ? low[r] + one[r] : one[r];
            high[r] = begin ? high[r] + other[r] : other[r];
        }
    }
    const int left = at->outputs - start, both = left < 2 * LANES ? left : 2 * LANES;
    for (int r = 0; r < rows; r++) {
        size_t place = (size_t)(first + r) * at->outputs + start;
        store(at, low[r], place, both < LANES ? both : LANES);
        if (both > LANES)
            store(at, high[r], place + LANES, both - LANES);
    }
}

/* x [rows, inputs] by weights to out [rows, outputs]; `residual` of the same shape is added with
 * ADD. With SWIGLU a panel holds LANES outputs of either half, and `outputs` counts a half. */
void product(const float *x, const uint32_t *panels, const float *residual, float *out, int rows,
             int inputs, int outputs, int after, int threads)
{
    const product_t at = {x, panels, residual, out, inputs, outputs, after};
    const int width = after == SWIGLU ? LANES : 2 * LANES, count = (outputs + width - 1) / width;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int panel = 0; panel < count; panel++) {
        int b = 0;
        for (; b + TILE <= rows; b += TILE)
            tile(&at, b, panel, TILE);
        for (; b + 4 <= rows; b += 4)
            tile(&at, b, panel, 4);
        for (; b + 2 <= rows; b += 2)
            tile(&at, b, panel, 2);
        if (b < rows)
            tile(&at, b, panel, 1);
    }
}

/* x [rows, inputs] by float32 weights to out [rows, outputs]: the sums of libraries that add in
 * chains of so many inputs, which are `inputs` together, and the same bits. Then + residual of the
 * same shape, if there is one. */
void exact_product(const float *x, const float *panels, const float *residual, float *out,
                   int rows, int inputs, int outputs, const int *chains, int num_chains,
                   int threads)
{
    const product_t at = {x,   (const uint32_t *)panels, residual,
                          out, inputs,                   outputs,
                          residual ? ADD : KEEP};
    const int count = (outputs + 2 * LANES - 1) / (2 * LANES);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int panel = 0; panel < count; panel++) {
        int b = 0;
        for (; b + TILE <= rows; b += TILE)
            exact_tile(&at, b, panel, TILE, chains, num_chains);
        for (; b + 2 <= rows; b += 2)
            exact_tile(&at, b, panel, 2, chains, num_chains);
        if (b < rows)
            exact_tile(&at, b, panel, 1, chains, num_chains);
    }
}

/* silu of the first half of each row times its second half: bfloat16 x [rows, 2 * width] to out
 * [rows, width], rounded to even; what is not finite stays so. */
void swiglu(const uint16_t *x, uint16_t *out, int rows, int width, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int b = 0; b < rows; b++) {
        const uint16_t *gate = x + (size_t)b * 2 * width, *up = gate + width;
        uint16_t *to = out + (size_t)b * width;
        for (int i = 0; i < width; i++)
            to[i] = rounded(silu(wide(gate[i])) * wide(up[i]));
    }
}

/* The same in float32, rounded once: x [rows, 2 * width] to out [rows, width]. */
void exact_swiglu(const float *x, float *out, int rows, int width, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int b = 0; b < rows; b++) {
        const float *gate = x + (size_t)b * 2 * width, *up = gate + width;
        for (int i = 0; i < width; i++) {
            double z = gate[i], small = exp_of_negative(z < 0.0 ? z : -z);
            float share = (float)((z < 0.0 ? z * small : z) / (1.0 + small));
            out[(size_t)b * width + i] = share * up[i];
        }
    }
}
