/* Products in whole tiles of bfloat16, for several threads at once: see tiles.c. */

#ifndef MUSICRL_TILES_H
#define MUSICRL_TILES_H

#include <stddef.h>
#include <stdint.h>

/* What is done with the sums: kept, added to what is there, halves joined as silu(first) * second,
 * GELU, or kept when both halves of the numbers that enter are multiplied. The first three as in
 * products.c. */
enum { KEEP, ADD, SWIGLU, GELU, BOTH };
enum { PANEL = 64, TILE_ROWS = 16 };

/* c [m, n] = a [m, k] by b, float32 of bfloat16; rows of c lie ldc apart, those of a lda. b has two
 * rows of a panel's ldb columns side by side, which `is_paired` says. */
typedef void multiply_t(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc,
                        _Bool adds, const uint16_t *a, const uint16_t *b, float *c,
                        _Bool is_paired);
/* What a thread that has multiplied must say before others use its tiles. */
typedef void release_t(_Bool is_paired);

typedef struct {
    multiply_t *multiply;
    release_t *release;
    float *scratch; /* [threads, 2 * rows, 2 * PANEL] of whole rows */
    int rows, threads;
} tiles_t;

static inline int filled(int count, int part) { return (count + part - 1) / part * part; }

/* Called by all threads together: a norm, if there is one, and rows as bfloat16, in rows of whole
 * panels that end in zeros; what was lost follows behind all rows if asked. */
void enter_tiles(const tiles_t *at, const float *x, const float *norm, const float *offset,
                 float epsilon, float *normed, uint16_t *halves, int inputs, int is_split);

/* Called by all threads together: halves by the panels of a weight and what comes after, to out
 * [rows, outputs], or rounded to `narrow`, whose rows are whole panels. `out` may be `residual`. */
void multiply_tiles(const tiles_t *at, const uint16_t *halves, const uint16_t *weight,
                    const float *residual, float *out, uint16_t *narrow, int inputs, int outputs,
                    int after);

#endif
