/* Weights in the orders in which products.c and tiles.c read them: panels of a few outputs, turned so
 * that a word of each output lies side by side. Rounded to even where words are bfloat16. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "numbers.h"
#include "tiles.h"
#include "vectors.h"

/* What a word holds: one float32 (COLUMNS); the bfloat16 of two outputs, LANES apart (PAIRS) or of
 * either half of all (HALVES); that of two neighbouring inputs (TILES), each panel of the first half
 * followed by one of the second (GATED_TILES). */
enum { COLUMNS, PAIRS, HALVES, TILES, GATED_TILES };
/* Inputs that are turned at once; TILES end with whole ones. */
enum { CHUNK = PANEL };

typedef struct {
    const float *weight;
    int inputs, order;
    int half;    /* Outputs of a half, or all. */
    int rows;    /* Outputs of a half in a panel. */
    int columns; /* Words side by side. */
    int depth;   /* Words of a column. */
    int panels;
} packing_t;

static packing_t packing_of(const float *weight, int outputs, int inputs, int order)
{
    const int is_split = order == HALVES || order == GATED_TILES;
    packing_t at = {weight, inputs, order, is_split ? outputs / 2 : outputs, 0, 0, inputs, 0};
    at.rows = order == HALVES ? LANES : order < HALVES ? 2 * LANES : PANEL;
    at.columns = order == PAIRS ? LANES : order == GATED_TILES ? 2 * PANEL : at.rows;
    if (order >= TILES)
        at.depth = filled(inputs, CHUNK) / 2;
    at.panels = filled(at.half, at.rows) / at.rows;
    return at;
}

/* Numbers of one output from input `place` on; zeros past the last output and the last input. */
static inline void take(const packing_t *at, int output, int half, int place, float *numbers)
{
    const int left = at->inputs - place;
    if (output >= at->half || left < CHUNK)
        memset(numbers, 0, CHUNK * sizeof *numbers);
    if (output >= at->half)
        return;
    const float *from = at->weight + ((size_t)half * at->half + output) * at->inputs + place;
    if (left < CHUNK) {
        memcpy(numbers, from, left * sizeof *numbers);
        return;
    }
    for (int i = 0; i < CHUNK; i += 16)
        __builtin_prefetch(from + CHUNK + i);
    memcpy(numbers, from, CHUNK * sizeof *numbers);
}

/* The words of a column that inputs from `place` on fill. */
static inline void fill(const packing_t *at, int panel, int column, int place, uint32_t *words)
{
    const int first = panel * at->rows;
    float one[CHUNK], other[CHUNK];
    uint16_t pairs[CHUNK];
    if (at->order == COLUMNS) {
        take(at, first + column, 0, place, one);
        memcpy(words, one, sizeof one);
    } else if (at->order < TILES) {
        const int is_split = at->order == HALVES;
        take(at, first + column, 0, place, one);
        take(at, first + column + (is_split ? 0 : LANES), is_split, place, other);
        for (int i = 0; i < CHUNK; i++)
            words[i] = rounded(one[i]) | (uint32_t)rounded(other[i]) << 16;
    } else {
        take(at, first + column % PANEL, column / PANEL, place, one);
        for (int i = 0; i < CHUNK; i++)
            pairs[i] = rounded(one[i]);
        memcpy(words, pairs, sizeof pairs);
    }
}

/* Words of a packed weight. */
int64_t packed_words(int outputs, int inputs, int order)
{
    const packing_t at = packing_of(NULL, outputs, inputs, order);
    return (int64_t)at.panels * at.depth * at.columns;
}

/* The float32 weight [outputs, inputs] to `out` [panels, depth, columns] words: inputs by 2 LANES
 * (COLUMNS) or LANES (PAIRS, HALVES), or half of the inputs, filled up to whole panels, by PANEL or
 * 2 PANEL (TILES, GATED_TILES). */
void pack_weight(const float *weight, uint32_t *out, int outputs, int inputs, int order, int threads)
{
    const packing_t at = packing_of(weight, outputs, inputs, order);
    const int most = order < TILES ? CHUNK : CHUNK / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int p = 0; p < at.panels; p++) {
        uint32_t *panel = out + (size_t)p * at.depth * at.columns;
        for (int d = 0, place = 0; d < at.depth; d += most, place += CHUNK) {
            const int count = at.depth - d < most ? at.depth - d : most;
            for (int c = 0; c < at.columns; c++) {
                uint32_t words[CHUNK];
                fill(&at, p, c, place, words);
                for (int i = 0; i < count; i++)
                    panel[(size_t)(d + i) * at.columns + c] = words[i];
            }
        }
    }
}
