/* The caller's tensors, and copies of their rows in the layouts that products want. */

#pragma once

#include "tiles.h"

/* [B, H, N, D] of float32, or of bfloat16 if `half`. Strides count entries; the last is 1. */
struct Tensor {
    void *at;
    i64 image, head, token, half;
};

INLINE float widen(uint16_t x) {
    const uint32_t whole = (uint32_t)x << 16;
    float y;
    memcpy(&y, &whole, 4);
    return y;
}

/* Round to nearest, ties to even. */
INLINE uint16_t narrow(float x) {
    uint32_t whole;
    memcpy(&whole, &x, 4);
    return x != x ? 0x7fc0 : (uint16_t)((whole + 0x7fff + (whole >> 16 & 1)) >> 16);
}

INLINE char *row_of(const Tensor &t, i64 image, i64 head, i64 token) {
    return (char *)t.at + (image * t.image + head * t.head + token * t.token) * (t.half ? 2 : 4);
}

static inline void read_row(float *to, const Tensor &t, i64 image, i64 head, i64 token, i64 width) {
    const char *from = row_of(t, image, head, token);
    if (t.half)
        for (i64 d = 0; d < width; d++) to[d] = widen(((const uint16_t *)from)[d]);
    else
        memcpy(to, from, 4 * width);
}

static inline void write_row(const Tensor &t, i64 image, i64 head, i64 token, const float *from, i64 width,
                             float factor) {
    char *to = row_of(t, image, head, token);
    if (t.half)
        for (i64 d = 0; d < width; d++) ((uint16_t *)to)[d] = narrow(from[d] * factor);
    else
        for (i64 d = 0; d < width; d++) ((float *)to)[d] = from[d] * factor;
}

/* [rows, padded], zeros behind `width`. */
static inline void read_rows(float *to, const Tensor &t, i64 image, i64 head, i64 first, i64 rows, i64 width,
                             i64 padded) {
    for (i64 n = 0; n < rows; n++, to += padded) {
        read_row(to, t, image, head, first + n, width);
        for (i64 d = width; d < padded; d++) to[d] = 0;
    }
}

/* The mean over tokens [width]. */
static inline void read_mean(float *mean, const Tensor &t, i64 image, i64 head, i64 tokens, i64 width) {
    float row[width];
    memset(mean, 0, 4 * width);
    for (i64 n = 0; n < tokens; n++) {
        read_row(row, t, image, head, n, width);
        for (i64 d = 0; d < width; d++) mean[d] += row[d];
    }
    for (i64 d = 0; d < width; d++) mean[d] /= (float)tokens;
}

/* Tokens as the columns of a product's right side: panels [width, TILE_COLUMNS], zeros behind the last token;
 * less `mean` [width], if given. */
static inline Right read_columns(float *to, const Tensor &t, i64 image, i64 head, i64 tokens, i64 width,
                                 const float *mean) {
    float row[width];
    const i64 panel = width * TILE_COLUMNS, last = up(tokens, TILE_COLUMNS);
    for (i64 n = 0; n < last; n++) {
        float *column = to + n / TILE_COLUMNS * panel + n % TILE_COLUMNS;
        if (n < tokens)
            read_row(row, t, image, head, n, width);
        else
            memset(row, 0, 4 * width);
        const bool centre = mean && n < tokens;
        for (i64 d = 0; d < width; d++) column[d * TILE_COLUMNS] = centre ? row[d] - mean[d] : row[d];
    }
    return {to, TILE_COLUMNS, panel};
}

/* Entry (m, k) of the left side at m * row + k * step of `from`, copied into tiles [k, rows], times factor. */
static inline Left pack_left(float *to, const float *from, i64 rows, i64 depth, i64 row, i64 step, float factor) {
    const i64 each = tile_rows(rows);
    for (i64 m = 0; m < rows; m++) {
        float *tile = to + m / each * each * depth + m % each;
        for (i64 k = 0; k < depth; k++) tile[k * each] = from[m * row + k * step] * factor;
    }
    return {to, 1, each, each * depth, each};
}
