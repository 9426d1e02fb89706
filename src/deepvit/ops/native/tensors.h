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

/* factor * (row - less), where `less` [width] may be null. */
static inline void read_row(float *__restrict to, const Tensor &t, i64 image, i64 head, i64 token, i64 width,
                            float factor, const float *__restrict less) {
    const float *__restrict from = (const float *)row_of(t, image, head, token);
    const uint16_t *__restrict half = (const uint16_t *)from;
    if (t.half)
        for (i64 d = 0; d < width; d++) to[d] = widen(half[d]) * factor;
    else
        for (i64 d = 0; d < width; d++) to[d] = from[d] * factor;
    if (less)
        for (i64 d = 0; d < width; d++) to[d] -= less[d] * factor;
}

static inline void write_row(const Tensor &t, i64 image, i64 head, i64 token, const float *__restrict from, i64 width,
                             float factor) {
    float *__restrict to = (float *)row_of(t, image, head, token);
    uint16_t *__restrict half = (uint16_t *)to;
    if (t.half)
        for (i64 d = 0; d < width; d++) half[d] = narrow(from[d] * factor);
    else
        for (i64 d = 0; d < width; d++) to[d] = from[d] * factor;
}

/* [rows, padded], zeros behind `width`. */
static inline void read_rows(float *to, const Tensor &t, i64 image, i64 head, i64 first, i64 rows, i64 width,
                             i64 padded, float factor, const float *less) {
    for (i64 n = 0; n < rows; n++, to += padded) {
        read_row(to, t, image, head, first + n, width, factor, less);
        for (i64 d = width; d < padded; d++) to[d] = 0;
    }
}

/* All tokens of a head as the rows of a product's right side, zeros behind the last. */
static inline void read_tokens(float *to, const Tensor &t, i64 image, i64 head, i64 tokens, i64 width, i64 padded,
                               const float *less) {
    read_rows(to, t, image, head, 0, tokens, width, padded, 1, less);
    memset(to + tokens * padded, 0, 4 * (up(tokens, LANES) - tokens) * padded);
}

/* The mean over tokens [width]. */
static inline void read_mean(float *__restrict mean, const Tensor &t, i64 image, i64 head, i64 tokens, i64 width) {
    float row[width];
    memset(mean, 0, 4 * width);
    for (i64 n = 0; n < tokens; n++) {
        read_row(row, t, image, head, n, width, 1, nullptr);
        for (i64 d = 0; d < width; d++) mean[d] += row[d];
    }
    for (i64 d = 0; d < width; d++) mean[d] /= (float)tokens;
}

/* to[d * to_step + m] = from[m * from_step + d] for four m and every d of `width`. */
static inline void transpose_four(float *__restrict to, i64 to_step, const float *__restrict from, i64 from_step,
                                  i64 width) {
    typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
    typedef int32_t pick __attribute__((vector_size(16)));
    const auto shuffle = [](four x, four y, pick i) {
#if defined(__clang__)
        float z[8];
        memcpy(z, &x, 16), memcpy(z + 4, &y, 16);
        return four{z[i[0]], z[i[1]], z[i[2]], z[i[3]]};
#else
        return __builtin_shuffle(x, y, i);
#endif
    };
    i64 d = 0;
    for (; d + 4 <= width; d += 4) {
        four x[4];
        UNROLL for (int m = 0; m < 4; m++) x[m] = *(const four *)(from + m * from_step + d);
        const four a = shuffle(x[0], x[1], pick{0, 4, 1, 5}), b = shuffle(x[2], x[3], pick{0, 4, 1, 5});
        const four e = shuffle(x[0], x[1], pick{2, 6, 3, 7}), f = shuffle(x[2], x[3], pick{2, 6, 3, 7});
        *(four *)(to + d * to_step) = shuffle(a, b, pick{0, 1, 4, 5});
        *(four *)(to + (d + 1) * to_step) = shuffle(a, b, pick{2, 3, 6, 7});
        *(four *)(to + (d + 2) * to_step) = shuffle(e, f, pick{0, 1, 4, 5});
        *(four *)(to + (d + 3) * to_step) = shuffle(e, f, pick{2, 3, 6, 7});
    }
    for (; d < width; d++)
        for (int m = 0; m < 4; m++) to[d * to_step + m] = from[m * from_step + d];
}

/* All tokens of a head as the columns of a product's right side: panels [width, TILE_COLUMNS], zeros behind the
 * last token. */
static inline void read_columns(float *to, const Tensor &t, i64 image, i64 head, i64 tokens, i64 width,
                                const float *less) {
    float rows[4 * width];
    const i64 last = up(tokens, TILE_COLUMNS);
    for (i64 n = 0; n < last; n += 4) {
        for (i64 m = 0; m < 4; m++)
            if (n + m < tokens)
                read_row(rows + m * width, t, image, head, n + m, width, 1, less);
            else
                memset(rows + m * width, 0, 4 * width);
        transpose_four(to + n / TILE_COLUMNS * TILE_COLUMNS * width + n % TILE_COLUMNS, TILE_COLUMNS, rows, width,
                       width);
    }
}
