/* The inner operator (core.py) on a processor: one sweep over blocks of rows forward, one backward; one thread.
 *
 * A block is some query rows of one image with the maps of all heads. Up to some 500 tokens they stay in the
 * second-level cache from the product that makes them to the one that uses them. Everything is float32 inside;
 * bfloat16 is widened when read and narrowed when written. The steps are those of ../sweeps.py. */

#include "maps.h"
#include "tensors.h"

/* H heads, N tokens, D head width; the images and rows that this call is to do, `block` rows at once. */
struct Sweep {
    Tensor q, k, v, o, d_o, dq, dk, dv;
    const float *theta;   /* [H, H] */
    const float *twice;   /* backward: [H], twice the gradient of the sums of squares; null: zeros */
    double *squares;      /* forward: [H], sums of squares of the mixed maps are added; null: not wanted */
    double *dtheta;       /* backward: [H, H], added to */
    char *scratch;        /* deepvit_scratch() bytes, aligned to 64 */
    i64 heads, tokens, width, images, first_row, last_row, block;
    float scale;
};

/* Where everything lies in the scratch memory. */
struct Room {
    i64 ld, padded, columns, rows, bytes = 0;
    float *maps, *mixed, *k_columns, *v_columns, *k_rows, *v_rows, *dk, *dv, *some, *squares, *mean;

    Room(i64 H, i64 N, i64 D, i64 block, bool backward, char *base) {
        ld = up(N, LANES);
        if (ld % 256 == 0) ld += LANES; /* rows a multiple of 1 KiB apart share few lines of a cache */
        padded = up(D, LANES);
        columns = up(N, TILE_COLUMNS) * D;  /* entries of a head's right side with tokens as columns */
        rows = up(N, LANES) * padded;       /* and with tokens as rows */
        const auto take = [&](float *&part, i64 floats) {
            part = (float *)(base + bytes);
            bytes += up(4 * floats, 64);
        };
        take(maps, H * block * ld);
        take(k_columns, H * columns);
        take(some, block * padded);
        take(squares, H * LANES);
        take(mean, D);
        if (!backward) {
            take(v_rows, H * rows);
            return;
        }
        take(mixed, H * block * ld);
        take(v_columns, H * columns);
        take(k_rows, H * rows);
        take(dk, H * rows);
        take(dv, H * rows);
    }
};

extern "C" i64 deepvit_scratch(i64 heads, i64 tokens, i64 width, i64 block, int backward) {
    return Room(heads, tokens, width, block, backward, nullptr).bytes;
}

/* The maps of all heads, less 1 / N, of some rows of an image. */
template <bool exact>
static void make_maps(const Sweep &s, const Room &r, i64 image, i64 first, i64 rows) {
    for (i64 h = 0; h < s.heads; h++) {
        float *maps = r.maps + h * rows * r.ld;
        read_rows(r.some, s.q, image, h, first, rows, s.width, r.padded, s.scale * (float)M_LOG2E, nullptr);
        const Right k = {r.k_columns + h * r.columns, TILE_COLUMNS, TILE_COLUMNS * s.width};
        product(rows, up(s.tokens, LANES), s.width, left_of_rows(r.some, r.padded, rows), k, maps, r.ld, 0);
        for (i64 m = 0; m < rows; m++) softmax_row<exact>(maps + m * r.ld, s.tokens, r.ld);
    }
}

extern "C" void deepvit_forward(const Sweep *sweep) {
    const Sweep &s = *sweep;
    const i64 H = s.heads, N = s.tokens, D = s.width;
    const Room r(H, N, D, s.block, false, s.scratch);
    const Left theta = left_of_rows(s.theta, H, H);
    for (i64 image = 0; image < s.images; image++) {
        for (i64 h = 0; h < H; h++) {
            read_columns(r.k_columns + h * r.columns, s.k, image, h, N, D, nullptr);
            read_mean(r.mean, s.v, image, h, N, D);
            read_tokens(r.v_rows + h * r.rows, s.v, image, h, N, D, r.padded, r.mean);
        }
        for (i64 first = s.first_row; first < s.last_row; first += s.block) {
            const i64 rows = least(s.block, s.last_row - first), count = rows * r.ld;
            if (s.squares) {
                make_maps<true>(s, r, image, first, rows);
                memset(r.squares, 0, 4 * H * LANES);
                mix(r.maps, r.maps, theta, H, count, r.squares);
                for (i64 i = 0; i < H * LANES; i++) s.squares[i / LANES] += r.squares[i];
            } else {
                make_maps<false>(s, r, image, first, rows);
                mix(r.maps, r.maps, theta, H, count, nullptr);
            }
            for (i64 h = 0; h < H; h++) {
                product(rows, r.padded, up(N, LANES), left_of_rows(r.maps + h * count, r.ld, rows),
                        {r.v_rows + h * r.rows, r.padded, TILE_COLUMNS}, r.some, r.padded, 0);
                for (i64 m = 0; m < rows; m++) write_row(s.o, image, h, first + m, r.some + m * r.padded, D, 1);
            }
        }
    }
}

extern "C" void deepvit_backward(const Sweep *sweep) {
    const Sweep &s = *sweep;
    const i64 H = s.heads, N = s.tokens, D = s.width;
    const Room r(H, N, D, s.block, true, s.scratch);
    const Left theta = left_of_rows(s.theta, H, H), theta_t = left_of_columns(s.theta, H, H);
    for (i64 image = 0; image < s.images; image++) {
        for (i64 h = 0; h < H; h++) {
            read_columns(r.k_columns + h * r.columns, s.k, image, h, N, D, nullptr);
            /* a centred v adds a constant to each row of dM, which changes no gradient, but whose rounding would */
            read_mean(r.mean, s.v, image, h, N, D);
            read_columns(r.v_columns + h * r.columns, s.v, image, h, N, D, r.mean);
            read_tokens(r.k_rows + h * r.rows, s.k, image, h, N, D, r.padded, nullptr);
        }
        float keep = 0; /* the first block of rows begins dk and dv */
        for (i64 first = s.first_row; first < s.last_row; first += s.block) {
            const i64 rows = least(s.block, s.last_row - first), count = rows * r.ld;
            make_maps<true>(s, r, image, first, rows);
            mix(r.mixed, r.maps, theta, H, count, nullptr);
            for (i64 h = 0; h < H; h++) {
                float *M = r.mixed + h * count;
                read_rows(r.some, s.d_o, image, h, first, rows, D, r.padded, 1, nullptr);
                product(N, r.padded, rows, left_of_columns(M, r.ld, N), {r.some, r.padded, TILE_COLUMNS},
                        r.dv + h * r.rows, r.padded, keep);
                /* the mixed maps' gradient, in their place */
                const Right v = {r.v_columns + h * r.columns, TILE_COLUMNS, TILE_COLUMNS * D};
                product(rows, up(N, LANES), D, left_of_rows(r.some, r.padded, rows), v, M, r.ld,
                        s.twice ? s.twice[h] : 0);
            }
            mix_backward(s.dtheta, r.mixed, r.maps, H, count);
            mix(r.mixed, r.mixed, theta_t, H, count, nullptr);
            for (i64 h = 0; h < H; h++) {
                float *dS = r.mixed + h * count;
                for (i64 m = 0; m < rows; m++)
                    softmax_backward_row(dS + m * r.ld, r.maps + h * count + m * r.ld, N);
                product(rows, r.padded, up(N, LANES), left_of_rows(dS, r.ld, rows),
                        {r.k_rows + h * r.rows, r.padded, TILE_COLUMNS}, r.some, r.padded, 0);
                for (i64 m = 0; m < rows; m++)
                    write_row(s.dq, image, h, first + m, r.some + m * r.padded, D, s.scale);
                read_rows(r.some, s.q, image, h, first, rows, D, r.padded, 1, nullptr);
                product(N, r.padded, rows, left_of_columns(dS, r.ld, N), {r.some, r.padded, TILE_COLUMNS},
                        r.dk + h * r.rows, r.padded, keep);
            }
            keep = 1;
        }
        for (i64 h = 0; h < H; h++)
            for (i64 n = 0; n < N; n++) {
                const i64 at = h * r.rows + n * r.padded;
                write_row(s.dk, image, h, n, r.dk + at, D, s.scale);
                write_row(s.dv, image, h, n, r.dv + at, D, 1);
            }
    }
}
