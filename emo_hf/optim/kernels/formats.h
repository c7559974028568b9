/* How elements lie in memory, and their way to float32 and back.

   8 bits, in blocks of BLOCK elements that share a size s, the largest |x| among them, companded as telephones do it
   (µ-law): of y = K·|x|/s, the code is the exponent and three bits of the mantissa of y + d, less those of d.

       signed      d = 2⁻¹⁶, codes 0 … 127 and a sign     a momentum: from s/2¹⁹ on it is not 0
       unsigned    d = 2⁻³², codes 0 … 255                an average of squares; what is not 0 does not become 0

   K = 15/16 − d, so that the largest code is s. Steps are d/8 around 0, and between 6 and 12 % of large values.

   24 bits, for a bfloat16 that has 8 more: the float32 whose upper 16 bits, rounded to the nearest, are the bfloat16,
   and whose next 8 are a signed correction.

   Both are rounded up or down at random, so that what is too small to be seen in one step is not lost over many. The
   chance comes from the gradient, the element's place and the step: the same run is the same to the last bit. The
   same formulas in torch are in precision/eight_bits.py. */

#ifndef EMO_FORMATS_H
#define EMO_FORMATS_H

#include "common.h"

#include <math.h>
#include <string.h>

enum format { NONE, FLOAT32, BFLOAT16, FLOAT16, SIGNED_8BIT, UNSIGNED_8BIT };

#define BLOCK 256

#ifdef __FLT16_MANT_DIG__
#define HAS_FLOAT16 1
__extension__ typedef _Float16 float16;
#else
#define HAS_FLOAT16 0
#endif

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* To the nearest bfloat16, ties to even. */
static inline uint16_t to_bfloat16(float x) {
    uint32_t bits = bits_of(x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

static inline float from_bfloat16(uint16_t x) { return from_bits((uint32_t)x << 16); }

static inline int64_t bytes_of(int64_t format) {
    return format == FLOAT32 ? 4 : format == BFLOAT16 || format == FLOAT16 ? 2 : 1;
}

/* Elements of a format without blocks. */
static inline void read_elements(int64_t n, int64_t format, const void *from, float *restrict to) {
    if (format == BFLOAT16) {
        const uint16_t *x = from;
        for (int64_t i = 0; i < n; i++) to[i] = from_bfloat16(x[i]);
    } else if (format == FLOAT16) {
#if HAS_FLOAT16
        const float16 *x = from;
        for (int64_t i = 0; i < n; i++) to[i] = (float)x[i];
#endif
    } else {
        memcpy(to, from, (size_t)n * sizeof(float));
    }
}

/* The elements in float32: where they lie, or in `buffer`. */
static inline const float *in_float32(int64_t n, int64_t format, const char *from, float *buffer) {
    if (format == FLOAT32) return (const float *)from;
    read_elements(n, format, from, buffer);
    return buffer;
}

static inline void write_elements(int64_t n, int64_t format, const float *restrict from, void *to) {
    if (format == BFLOAT16) {
        uint16_t *x = to;
        for (int64_t i = 0; i < n; i++) x[i] = to_bfloat16(from[i]);
    } else if (format == FLOAT16) {
#if HAS_FLOAT16
        float16 *x = to;
        for (int64_t i = 0; i < n; i++) x[i] = (float16)from[i];
#endif
    } else {
        memcpy(to, from, (size_t)n * sizeof(float));
    }
}

/* 32 bits, all of which depend on all of x. */
static inline uint32_t scattered(uint32_t x) {
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return x ^ x >> 16;
}

/* Chance for n elements, of which the first has this place in its tensor: 32 bits each, the upper ones the better. */
static inline void draw(int64_t n, const float *restrict g, int64_t place, uint32_t seed, uint32_t *restrict chance) {
    uint32_t of_place = scattered(seed * 0x632be5abu) + (uint32_t)place * 0xc2b2ae35u;
    for (int64_t i = 0; i < n; i++, of_place += 0xc2b2ae35u) {
        uint32_t x = bits_of(g[i]) * 0x9e3779b1u + of_place;
        chance[i] = (x ^ x >> 15) * 0x846ca68bu;
    }
}

/* The largest |x|; NaN is larger than all. */
static inline float largest(int64_t n, const float *restrict x) {
    uint32_t size = 0;
    for (int64_t i = 0; i < n; i++) size = (bits_of(x[i]) & 0x7fffffff) > size ? bits_of(x[i]) & 0x7fffffff : size;
    return from_bits(size);
}

#define KEPT_BITS 20 /* of a float32 that are not kept: all but sign, exponent and three of the mantissa */
#define SIGNED_D 0x1p-16f
#define UNSIGNED_D 0x1p-32f

/* Code, at most `most`, of y ≥ 0; the upper 20 bits of chance decide between the two next to it. */
static inline int32_t code_of(float y, float d, uint32_t chance, int32_t most) {
    uint32_t bits = bits_of(y + d) + (chance >> (32 - KEPT_BITS));
    int32_t code = (int32_t)(bits >> KEPT_BITS) - (int32_t)(bits_of(d) >> KEPT_BITS);
    return code < most ? code : most;
}

static inline float value_of(int32_t code, float d) {
    return from_bits(((uint32_t)code + (bits_of(d) >> KEPT_BITS)) << KEPT_BITS) - d;
}

/* What turns values of a block into y; a size below that of any gradient counts as none. */
static inline float to_y(float size, float d) { return size > 1e-30f ? (0.9375f - d) / size : 0; }

/* One block. */
static inline void read_signed(int64_t n, const int8_t *restrict q, float size, float *restrict x) {
    const float unit = size / (0.9375f - SIGNED_D);
    for (int64_t i = 0; i < n; i++) {
        int32_t code = q[i];
        uint32_t sign = (uint32_t)code & 0x80000000u;
        x[i] = from_bits(bits_of(value_of(code < 0 ? -code : code, SIGNED_D) * unit) | sign);
    }
}

static inline float write_signed(int64_t n, const float *restrict x, const uint32_t *restrict chance,
                                 int8_t *restrict q) {
    const float size = largest(n, x), by = to_y(size, SIGNED_D);
    for (int64_t i = 0; i < n; i++) {
        int32_t code = code_of(fabsf(x[i]) * by, SIGNED_D, chance[i], 127);
        q[i] = (int8_t)(x[i] < 0 ? -code : code);
    }
    return size;
}

static inline void read_unsigned(int64_t n, const uint8_t *restrict q, float size, float *restrict x) {
    const float unit = size / (0.9375f - UNSIGNED_D);
    for (int64_t i = 0; i < n; i++) x[i] = value_of(q[i], UNSIGNED_D) * unit;
}

static inline float write_unsigned(int64_t n, const float *restrict x, const uint32_t *restrict chance,
                                   uint8_t *restrict q) {
    const float size = largest(n, x), by = to_y(size, UNSIGNED_D);
    for (int64_t i = 0; i < n; i++) {
        float y = fabsf(x[i]) * by;
        int32_t code = code_of(y, UNSIGNED_D, chance[i], 255);
        q[i] = (uint8_t)(code < 1 && y > 0 ? 1 : code);
    }
    return size;
}

/* bfloat16 with 8 more bits. */
static inline void read_24(int64_t n, const uint16_t *restrict p, const int8_t *restrict c, float *restrict x) {
    for (int64_t i = 0; i < n; i++) x[i] = from_bits((((uint32_t)p[i] << 8) + (uint32_t)(int32_t)c[i]) << 8);
}

static inline void write_24(int64_t n, const float *restrict x, const uint32_t *restrict chance, uint16_t *restrict p,
                            int8_t *restrict c) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = bits_of(x[i]);
        uint32_t chosen = (bits & 0x7fffffff) >= 0x7f800000 ? (bits & 0xffc00000) : bits + (chance[i] >> 24);
        uint32_t kept = chosen >> 8;
        int32_t low = (int32_t)(kept & 0xff), correction = low > 127 ? low - 256 : low;
        c[i] = (int8_t)correction;
        p[i] = (uint16_t)((kept - (uint32_t)correction) >> 8);
    }
}

/* Up to CHUNK elements of a parameter with its compensation: none, the format of p for what rounding took from it, or
   SIGNED_8BIT. */
static inline void read_parameter(int64_t n, int64_t format, int64_t compensation, const char *p, const char *c,
                                  float *restrict x) {
    if (compensation == SIGNED_8BIT) {
        read_24(n, (const uint16_t *)p, (const int8_t *)c, x);
        return;
    }
    read_elements(n, format, p, x);
    if (compensation) {
        float taken[CHUNK];
        read_elements(n, compensation, c, taken);
        for (int64_t i = 0; i < n; i++) x[i] += taken[i];
    }
}

static inline void write_parameter(int64_t n, int64_t format, int64_t compensation, const float *restrict x,
                                   const uint32_t *chance, char *p, char *c) {
    if (compensation == SIGNED_8BIT) {
        write_24(n, x, chance, (uint16_t *)p, (int8_t *)c);
        return;
    }
    write_elements(n, format, x, p);
    if (compensation) {
        float taken[CHUNK];
        read_elements(n, format, p, taken);
        for (int64_t i = 0; i < n; i++) taken[i] = x[i] - taken[i];
        write_elements(n, compensation, taken, c);
    }
}

#endif
