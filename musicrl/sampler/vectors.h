/* GNU C's vectors, as long as the machine's own: which instructions they become is the compiler's
 * affair. */

#ifndef MUSICRL_VECTORS_H
#define MUSICRL_VECTORS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BIGGEST_ALIGNMENT__ >= 64
#define LANES 16
#define EACH(f, s)                                                                                 \
    f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s), f(8, s), f(9, s),      \
        f(10, s), f(11, s), f(12, s), f(13, s), f(14, s), f(15, s)
#define EACH_LONG(f, s) f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s)
#elif __BIGGEST_ALIGNMENT__ >= 32
#define LANES 8
#define EACH(f, s) f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s)
#define EACH_LONG(f, s) f(0, s), f(1, s), f(2, s), f(3, s)
#else
#define LANES 4
#define EACH(f, s) f(0, s), f(1, s), f(2, s), f(3, s)
#define EACH_LONG(f, s) f(0, s), f(1, s)
#endif
#define LONG_LANES (LANES / 2)

#define INLINED static inline __attribute__((always_inline))

typedef float reals __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef double longs __attribute__((vector_size(4 * LANES)));
typedef uint64_t long_words __attribute__((vector_size(4 * LANES)));
typedef float short_reals __attribute__((vector_size(2 * LANES)));

/* Lanes of two vectors by number, those of the second after those of the first. */
#if defined(__clang__)
#define SHUFFLE(kind, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(kind, a, b, ...) __builtin_shuffle(a, b, (kind){__VA_ARGS__})
#endif

/* Lane l of `paired` below: of the first vector where bit s of l is clear, else of the second. */
#define LEFT(l, s) ((l) & (s) ? ((l) ^ (s)) + LANES : (l))
#define RIGHT(l, s) ((l) & (s) ? (l) + LANES : (l) ^ (s))
#define LONG_LEFT(l, s) ((l) & (s) ? ((l) ^ (s)) + LONG_LANES : (l))
#define LONG_RIGHT(l, s) ((l) & (s) ? (l) + LONG_LANES : (l) ^ (s))

/* Sums of lanes that differ in bit s, of two vectors side by side. */
#define PAIRED(kind, each, left, right, a, b, s)                                                   \
    (SHUFFLE(kind, a, b, each(left, s)) + SHUFFLE(kind, a, b, each(right, s)))
#define HALVE(part, kind, each, left, right, s)                                                    \
    for (int j = 0; j < (s); j++)                                                                  \
        part[j] = PAIRED(kind, each, left, right, part[j], part[j + (s)], s);

/* Lane l of the result is the sum of the lanes of part[l]. */
INLINED reals sums_of(reals part[LANES])
{
#if LANES >= 16
    HALVE(part, words, EACH, LEFT, RIGHT, 8)
#endif
#if LANES >= 8
    HALVE(part, words, EACH, LEFT, RIGHT, 4)
#endif
    HALVE(part, words, EACH, LEFT, RIGHT, 2)
    HALVE(part, words, EACH, LEFT, RIGHT, 1)
    return part[0];
}

INLINED longs long_sums_of(longs part[LONG_LANES])
{
#if LONG_LANES >= 8
    HALVE(part, long_words, EACH_LONG, LONG_LEFT, LONG_RIGHT, 4)
#endif
#if LONG_LANES >= 4
    HALVE(part, long_words, EACH_LONG, LONG_LEFT, LONG_RIGHT, 2)
#endif
    HALVE(part, long_words, EACH_LONG, LONG_LEFT, LONG_RIGHT, 1)
    return part[0];
}

#endif
