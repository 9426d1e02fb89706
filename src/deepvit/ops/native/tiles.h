/* Vectors of this processor, and the one matrix product that both sweeps are made of.
 *
 * Written with the vector types of GCC and Clang: one text for AVX-512, AVX2, SSE2 and NEON. */

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

using i64 = int64_t;

/* A tile of a product has TILE_ROWS x TILE_VECTORS vectors of sums in registers, of which there are 32 or 16. */
#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 12;
#elif defined(__AVX2__)
constexpr int LANES = 8, TILE_ROWS = 6;
#elif defined(__aarch64__)
constexpr int LANES = 4, TILE_ROWS = 12;
#else
constexpr int LANES = 4, TILE_ROWS = 6;
#endif
constexpr int TILE_VECTORS = 2, TILE_COLUMNS = TILE_VECTORS * LANES;

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * LANES), may_alias));

INLINE vec load(const float *at) { return *(const vec *)at; }
INLINE void store(float *at, vec x) { *(vec *)at = x; }
INLINE vec all(float x) { return x - vec{}; }
INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 up(i64 n, i64 to) { return (n + to - 1) / to * to; }

/* One number of all lanes: halves by halves, since the sum of one lane after the other waits for each. */
template <class Pair>
INLINE float fold(vec x, Pair pair) {
    float part[LANES];
    memcpy(part, &x, sizeof x);
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        UNROLL for (int i = 0; i < half; i++) part[i] = pair(part[i], part[i + half]);
    return part[0];
}

INLINE float sum_of(vec x) {
    return fold(x, [](float a, float b) { return a + b; });
}

INLINE float most_of(vec x) {
    return fold(x, [](float a, float b) { return b > a ? b : a; });
}

/* The left side of a product, in tiles of `rows` rows: entry (m, k) of tile t at t * tile + m * row + k * step, where
 * row or step is 1. */
struct Left {
    const float *at;
    i64 row, step, tile, rows;
};

/* The right side, in tiles of TILE_COLUMNS columns: row k of tile t from t * tile + k * step on. */
struct Right {
    const float *at;
    i64 step, tile;
};

/* Rows of a tile, so that all tiles of `rows` rows have nearly the same number. */
INLINE i64 tile_rows(i64 rows) {
    const i64 tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    return (rows + tiles - 1) / tiles;
}

/* c = a b + keep c for one tile. `across`: neighbours of `a` are rows (a_row is 1), else columns (a_step is 1). */
template <int rows, int vectors, bool across>
static void tile(i64 depth, const float *a, i64 a_row, i64 a_step, const float *b, i64 b_step, float *c, i64 c_row,
                 float keep) {
    vec sum[rows][vectors] = {};
    const float *part[(rows + 2) / 3]; /* few pointers: an address holds twice a register, not three times */
    UNROLL for (int m = 0; m < (rows + 2) / 3; m++) part[m] = a + 3 * m * a_row;
    for (i64 k = 0; k < depth; k++) {
        vec x[vectors];
        UNROLL for (int j = 0; j < vectors; j++) x[j] = load(b + k * b_step + j * LANES);
        UNROLL for (int m = 0; m < rows; m++) {
            const vec y = all(across ? a[m + k * a_step] : part[m / 3][m % 3 * a_row + k]);
            UNROLL for (int j = 0; j < vectors; j++) sum[m][j] += y * x[j];
        }
    }
    UNROLL for (int m = 0; m < rows; m++) UNROLL for (int j = 0; j < vectors; j++) {
        float *at = c + m * c_row + j * LANES;
        store(at, keep == 0 ? sum[m][j] : sum[m][j] + keep * load(at));
    }
}

using Tile = void (*)(i64, const float *, i64, i64, const float *, i64, float *, i64, float);

template <bool across, int rows = 1>
static Tile tile_for(i64 wanted, int vectors) {
    if (wanted == rows) return vectors == 2 ? tile<rows, 2, across> : tile<rows, 1, across>;
    if constexpr (rows < TILE_ROWS) return tile_for<across, rows + 1>(wanted, vectors);
    return nullptr;
}

/* c = a b + keep c for c of rows x columns whose rows are c_row apart; columns is a multiple of LANES. */
static inline void product(i64 rows, i64 columns, i64 depth, Left a, Right b, float *c, i64 c_row, float keep) {
    for (i64 n = 0; n < columns; n += TILE_COLUMNS, b.at += b.tile) {
        const int vectors = columns - n > LANES ? 2 : 1;
        const float *left = a.at;
        for (i64 m = 0; m < rows; m += a.rows, left += a.tile) {
            const i64 some = least(a.rows, rows - m);
            const Tile make = a.row == 1 ? tile_for<true>(some, vectors) : tile_for<false>(some, vectors);
            make(depth, left, a.row, a.step, b.at, b.step, c + m * c_row + n, c_row, keep);
        }
    }
}

/* A left side whose rows are `row` apart, and one whose columns are `step` apart: rows of it are neighbours. */
INLINE Left left_of_rows(const float *at, i64 row, i64 rows) {
    const i64 each = tile_rows(rows);
    return {at, row, 1, each * row, each};
}

INLINE Left left_of_columns(const float *at, i64 step, i64 rows) {
    const i64 each = tile_rows(rows);
    return {at, 1, step, each, each};
}
