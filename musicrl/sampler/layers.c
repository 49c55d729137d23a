/* All layers of a decoding step in one call: what tiles.c and kernels.c do one after the other, by
 * threads that meet between them in place of starting anew. */

#include <stddef.h>
#include <stdint.h>

#include "attention.h"
#include "tiles.h"

/* A layer's norms, weights as tiles.c reads them, and pages of the cache; what concerns prompts is
 * NULL without cross-attention, an offset without one. */
typedef struct {
    const float *norm, *offset;
    const uint16_t *qkv, *out;
    const float *cross_norm, *cross_offset;
    const uint16_t *cross_query, *cross_out;
    const float *mlp_norm, *mlp_offset;
    const uint16_t *up, *down;
    void *keys, *values, *prompt_keys, *prompt_values;
} weights_t;

/* The sizes of a step; `query_after` and `cross_after` say what is done with projections' sums. */
typedef struct {
    int layers, rows, width, heads, kv_heads, size, page, table, prompt_page, hidden;
    int query_after, cross_after, mlp_after, threads;
} form_t;

/* Where the rows' positions are: `table` blocks each, or the block of a prompt. */
typedef struct {
    const int32_t *tables, *lens;
    int width;
} rows_t;

/* What lies between a layer's parts. */
typedef struct {
    float *normed, *wide, *mixed;
    uint16_t *halves, *narrow;
    double *weights; /* [threads, heads * (table * page + 2 size) + SPARE], of the longer table */
    size_t own;
} room_t;

static void attend_part(const form_t *form, const layer_t *at, const rows_t *rows,
                        const room_t *room)
{
    const size_t inputs = (size_t)(form->heads + (at->appends ? 2 * form->kv_heads : 0)) * form->size;
#pragma omp for schedule(static, 1)
    for (int part = 0; part < form->threads; part++) {
        const int last = (int)((int64_t)form->rows * (part + 1) / form->threads);
        for (int b = (int)((int64_t)form->rows * part / form->threads); b < last; b++)
            attend_row(at, room->wide + b * inputs, rows->tables + (size_t)b * rows->width,
                       rows->lens[b], room->weights + part * room->own,
                       room->mixed + (size_t)b * form->heads * form->size);
    }
}

static void decode_layer(const tiles_t *at, const form_t *form, const weights_t *own,
                         float epsilon, const float *rotation, const rows_t *steps,
                         const rows_t *prompts, const room_t *room, float *x)
{
    const int width = form->width, inner = form->heads * form->size;
    const layer_t self = {rotation,       own->keys,  own->values, form->heads, form->kv_heads,
                          form->size, form->page, 1,           1};
    const layer_t cross = {NULL,       own->prompt_keys,  own->prompt_values, form->heads,
                           form->kv_heads, form->size, form->prompt_page, 0,  1};
    enter_tiles(at, x, own->norm, own->offset, epsilon, room->normed, room->halves, width,
                form->query_after == BOTH);
    multiply_tiles(at, room->halves, own->qkv, NULL, room->wide, NULL, width,
                   inner + 2 * form->kv_heads * form->size, form->query_after);
    attend_part(form, &self, steps, room);
    enter_tiles(at, room->mixed, NULL, NULL, epsilon, NULL, room->halves, inner, 0);
    multiply_tiles(at, room->halves, own->out, x, x, NULL, inner, width, ADD);
    if (own->cross_query) {
        enter_tiles(at, x, own->cross_norm, own->cross_offset, epsilon, room->normed, room->halves,
                    width, form->cross_after == BOTH);
        multiply_tiles(at, room->halves, own->cross_query, NULL, room->wide, NULL, width, inner,
                       form->cross_after);
        attend_part(form, &cross, prompts, room);
        enter_tiles(at, room->mixed, NULL, NULL, epsilon, NULL, room->halves, inner, 0);
        multiply_tiles(at, room->halves, own->cross_out, x, x, NULL, inner, width, ADD);
    }
    enter_tiles(at, x, own->mlp_norm, own->mlp_offset, epsilon, room->normed, room->halves, width,
                0);
    multiply_tiles(at, room->halves, own->up, NULL, NULL, room->narrow, width, form->hidden,
                   form->mlp_after);
    multiply_tiles(at, room->narrow, own->down, x, x, NULL, form->hidden, width, ADD);
}

/* x [rows, width] through all layers, in place, on a bfloat16 cache.
 *
 *   rotation  [positions, size / 2, 2], or NULL for none
 *   tables    int32 [rows, table], lens int32 [rows]: each row's blocks, and its positions; the last
 *             one is written
 *   prompts   int32 [rows], prompt_lens int32 [rows]: the block of each row's prompt, and how much of
 *             it counts; NULL without cross-attention
 *   parts     six addresses: float32 [rows, width], [rows, qkv or inner] and [rows, inner]; bfloat16
 *             [2 rows, width or inner] and [rows, hidden] of whole rows and panels; float64
 *             [threads, own]
 *   sums      as in tiles.c */
void decode(multiply_t *by, release_t *release, const weights_t *layers, const form_t *form,
            float epsilon, const float *rotation, const int32_t *tables, const int32_t *lens,
            const int32_t *prompts, const int32_t *prompt_lens, void *const *parts, float *sums,
            float *x)
{
    const tiles_t at = {by, release, sums, form->rows, form->threads};
    const rows_t steps = {tables, lens, form->table}, asked = {prompts, prompt_lens, 1};
    const int steps_long = form->table * form->page;
    const int longest = steps_long > form->prompt_page ? steps_long : form->prompt_page;
    const room_t room = {parts[0], parts[1], parts[2], parts[3], parts[4], parts[5],
                         (size_t)form->heads * (longest + 2 * form->size) + SPARE};
#pragma omp parallel num_threads(form->threads)
    for (int l = 0; l < form->layers; l++)
        decode_layer(&at, form, layers + l, epsilon, rotation, &steps, &asked, &room, x);
}
