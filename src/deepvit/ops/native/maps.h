/* What happens to maps between the products: softmax and its gradient, mixing over heads.
 *
 * Maps of a block are [H, rows, ld]: ld is the number of tokens and zeros up to whole vectors. */

#pragma once

#include "tiles.h"

/* 2^x for x <= 0, to the last digit (the polynomial to 2e-9); less than 2^-126 becomes 2^-126. NaN stays NaN. */
INLINE vec exp2_of(vec x) {
    x = x < all(-126.f) ? all(-126.f) : x;
    const vec shift = all(12582912.f); /* 1.5 * 2^23: a sum with it is an integer, found in its low bits */
    const vec moved = x + shift;
    const vec f = x - (moved - shift);
    vec p = all(1.534577413e-4f);
    p = p * f + 1.339993091e-3f;
    p = p * f + 9.618489098e-3f;
    p = p * f + 5.550328778e-2f;
    p = p * f + 2.402264689e-1f;
    p = p * f + 6.931472057e-1f;
    p = p * f + 1.f;
    const bits power = ((bits)moved + 127) << 23; /* what the shift set in the high bits leaves at the top */
    return p * (vec)power;
}

/* Scores in powers of two -> softmax less 1 / tokens, in place.
 *
 * `exact`: take away the mean that rounding leaves as well. All entries of a row share it; where maps are nearly
 * uniform it is as large as a thousandth of what they differ by. Without statistics a centred v does the same. */
template <bool exact>
static void softmax_row(float *row, i64 tokens, i64 ld) {
    const i64 end = up(tokens, LANES), full = end - LANES;
    static constexpr uint32_t lane[16] __attribute__((aligned(64))) = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const auto behind = *(const bits *)lane >= (uint32_t)(tokens - full); /* lanes of the last vector with no token */
    store(row + full, behind ? all(-INFINITY) : load(row + full));
    vec top = load(row);
    for (i64 n = LANES; n < end; n += LANES) {
        const vec x = load(row + n);
        top = x > top ? x : top;
    }
    const float most = most_of(top);
    vec total = {};
    for (i64 n = 0; n < end; n += LANES) {
        const vec x = exp2_of(load(row + n) - most);
        total += x;
        store(row + n, x);
    }
    const float over = 1 / sum_of(total), centre = 1 / (float)tokens;
    vec rest = {};
    for (i64 n = 0; n < end; n += LANES) {
        const vec x = load(row + n) * over - centre;
        if (exact) rest += x;
        store(row + n, x);
    }
    if (exact) {
        const float mean = (sum_of(rest) + (float)(end - tokens) * centre) * centre;
        for (i64 n = 0; n < end; n += LANES) store(row + n, load(row + n) - mean);
    }
    store(row + full, behind ? vec{} : load(row + full));
    for (i64 n = end; n < ld; n += LANES) store(row + n, vec{});
}

/* The gradient of a row of maps -> the gradient of its scores, in place; `map` is less 1 / tokens. */
static inline void softmax_backward_row(float *grad, const float *map, i64 tokens) {
    const float centre = 1 / (float)tokens;
    vec dot = {};
    for (i64 n = 0; n < tokens; n += LANES) dot += load(grad + n) * (load(map + n) + centre);
    const float mean = sum_of(dot);
    for (i64 n = 0; n < tokens; n += LANES)
        store(grad + n, (load(grad + n) - mean) * (load(map + n) + centre));
}

/* to[h] = sum over g of theta[h, g] from[g], of `count` entries each; `to` may be `from`.
 *
 * `squares` [H, LANES], if given: the squares of `to` are added to it. */
static void mix(float *to, const float *from, Left theta, i64 heads, i64 count, float *squares) {
    float some[heads * TILE_COLUMNS] __attribute__((aligned(64)));
    for (i64 n = 0; n < count; n += TILE_COLUMNS) {
        const int vectors = count - n > LANES ? 2 : 1;
        for (i64 g = 0; g < heads; g++)
            for (int j = 0; j < vectors; j++)
                store(some + g * TILE_COLUMNS + j * LANES, load(from + g * count + n + j * LANES));
        product(heads, vectors * LANES, heads, theta, {some, TILE_COLUMNS, 0}, to + n, count, 0);
        if (squares)
            for (i64 h = 0; h < heads; h++) {
                vec total = load(squares + h * LANES);
                for (int j = 0; j < vectors; j++) {
                    const vec x = load(to + h * count + n + j * LANES);
                    total += x * x;
                }
                store(squares + h * LANES, total);
            }
    }
}

/* dtheta[h, g] += <grad[h], map[g]>, over `count` entries each. */
static void mix_backward(double *dtheta, const float *grad, const float *map, i64 heads, i64 count) {
    constexpr int ROWS = 4, COLUMNS = LANES == 16 ? 6 : 2; /* sums in registers */
    for (i64 h = 0; h < heads; h += ROWS)
        for (i64 g = 0; g < heads; g += COLUMNS) {
            const float *x[ROWS], *y[COLUMNS];
            for (int i = 0; i < ROWS; i++) x[i] = grad + least(h + i, heads - 1) * count;
            for (int j = 0; j < COLUMNS; j++) y[j] = map + least(g + j, heads - 1) * count;
            vec sum[ROWS][COLUMNS] = {};
            for (i64 n = 0; n < count; n += LANES) {
                vec left[ROWS];
                UNROLL for (int i = 0; i < ROWS; i++) left[i] = load(x[i] + n);
                UNROLL for (int j = 0; j < COLUMNS; j++) {
                    const vec right = load(y[j] + n);
                    UNROLL for (int i = 0; i < ROWS; i++) sum[i][j] += left[i] * right;
                }
            }
            for (int i = 0; i < ROWS && h + i < heads; i++)
                for (int j = 0; j < COLUMNS && g + j < heads; j++)
                    for (int l = 0; l < LANES; l++) dtheta[(h + i) * heads + g + j] += sum[i][j][l];
        }
}
