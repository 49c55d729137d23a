/* What the rows of a layer of attention share, and how one row is mixed. */

#ifndef MUSICRL_ATTENTION_H
#define MUSICRL_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

/* Room for weights past a row's last position, so that they fill whole vectors. */
enum { SPARE = 16 };

typedef struct {
    const float *rotation;
    void *keys, *values;
    int heads, kv_heads, size, page, appends, is_half;
} layer_t;

/* Where a head's numbers begin in a row's page of position t. */
static inline size_t page_of(const layer_t *at, const int32_t *table, int t, int kv_head)
{
    return ((size_t)table[t / at->page] * at->kv_heads + kv_head) * at->page * at->size;
}

/* One row on a float32 cache: score, weigh, mix. `query` [heads, size] is scaled; `mixed` of the same
 * size receives the result, and `weights` holds heads * length + SPARE numbers. */
void mix_row(const layer_t *at, const int32_t *table, int length, const double *query,
             double *mixed, double *weights);

/* The same on bfloat16, in float32; heads have their even numbers first. */
void mix_row_half(const layer_t *at, const int32_t *table, int length, const float *query,
                  float *mixed, float *weights);

/* One row: append if asked, turn and scale its query, mix to `out` [heads, size]. `scratch` holds
 * heads * (length + 2 size) + SPARE float64. */
void attend_row(const layer_t *at, const float *row, const int32_t *table, int length,
                double *scratch, float *out);

#endif
