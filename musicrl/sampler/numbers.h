/* Functions of one number, for loops that a compiler vectorises: exponentials (Cody and Waite's
 * reduction to |r| <= ln 2 / 2, then Taylor's polynomial), activations, bfloat16. */

#ifndef MUSICRL_NUMBERS_H
#define MUSICRL_NUMBERS_H

#include <math.h>

#include <stdint.h>
#include <string.h>

/* e^x for x <= 0: relative error below 1e-12; 0 below -700, NaN for NaN. */
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

/* The same in float32, relative error below 1e-6; 0 below -87. */
static inline float short_exp_of_negative(float x)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23 */
    float clamped = x < -87.0f ? -87.0f : x;
    float n = (clamped * 1.44269504f + shift) - shift;
    float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t bits = ((int32_t)n + 127) * (1 << 23);
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < -87.0f ? 0.0f : p * scale;
}

/* x / (1 + e^-x), relative error below 1e-6. */
static inline float silu(float x)
{
    float y = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    float small = short_exp_of_negative(y < 0.0f ? y : -y);
    return (y < 0.0f ? x * small : x) / (1.0f + small);
}

/* x * P(Z <= x) of a normal Z: the error function by Abramowitz and Stegun's 7.1.26, absolute error
 * of the probability below 1e-6. */
static inline float gelu(float x)
{
    float z = x < 0.0f ? x * -0.707106781f : x * 0.707106781f;
    float t = 1.0f / (1.0f + 0.3275911f * z);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    float tail = 0.5f * p * t * short_exp_of_negative(-z * z);
    return x < 0.0f ? x * tail : x == x ? x * (1.0f - tail) : x;
}

/* Rounded to even to bfloat16: the upper half of its bits; what is not finite stays so. */
static inline uint16_t rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x == x ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0;
}

/* The number whose upper half it is. */
static inline float wide(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

#endif
