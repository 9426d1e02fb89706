# mypy: ignore-errors
# The bodies are Triton's language, not Python's: no type checker knows it.
"""Triton kernels of the inner Re-attention operator (``core.py``), forward and backward.

Letters: B images, H heads, N tokens, D head width; HP, DP are H and D rounded up to a power of two, inside a
kernel only. M query rows and K keys make a tile. Four ideas carry everything:

* A tile of maps is one 3-d tensor [HP, M, K] made by a batched product over heads. To mix heads it is re-read
  as [W, T, L] (``_stack``): W slices, one a warp, and T = max(16, HP) rows, since matrix units multiply
  nothing narrower than 16. With fewer than 16 heads a row of the stack is a pair (head, part of the tile) and
  the mixing matrix is theta (x) identity: no head is padded up to 16.
* Maps enter every small product as E = N P - 1 = exp2(S - lse + log2 N) - 1, never as P. Nearly uniform
  maps (a fresh network) differ from 1/N by less than bfloat16 can tell; E keeps the difference, and stays in
  float16's range.
* Rows beyond N and heads beyond H are read as zeros, with lse 0: then E is exactly 0 and they drop out of
  every sum. Only keys beyond N need a mask: an infinity there would reach real keys as 0 times infinity.
* Sums over programs (C, dtheta) are written one partial a program and added by torch: no atomics, so the same
  bits in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """Matrix product, summed in float32. "widen" is for the interpreter: it has no bfloat16 product."""
    if PRECISION == "widen":
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _dot_onto(total, a, b, PRECISION: tl.constexpr):
    """The same, added to ``total``."""
    if PRECISION == "widen":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _round(x, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """float32 to ``dtype``, to the nearest; of bfloat16 the interpreter would cut the digits off instead."""
    if PRECISION == "widen" and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True).to(dtype)
    else:
        return x.to(dtype)


@triton.jit
def _load_tokens(ptr, stride_h, stride_n, stride_d, tokens, N, H: tl.constexpr, D: tl.constexpr,
                 HP: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr = 0,
                 AGAIN: tl.constexpr = False):  # fmt: skip
    """Read [HP, tokens, WIDTH] of one image through the caller's strides, from width FIRST on; zeros outside.

    AGAIN keeps the compiler from moving the read out of a loop, where its result would stay in shared memory.
    """
    heads = tl.arange(0, HP)[:, None, None]
    dims = FIRST + tl.arange(0, WIDTH)[None, None, :]
    token = tokens[None, :, None]
    mask = (heads < H) & (token < N) & (dims < D)
    at = heads * stride_h + token * stride_n + dims * stride_d
    return tl.load(ptr + at, mask=mask, other=0.0, volatile=AGAIN)


@triton.jit
def _store_tokens(ptr, values, tokens, N, H: tl.constexpr, D: tl.constexpr,
                  HP: tl.constexpr, DP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Write [HP, tokens, DP] of one image to memory laid out [N, H, D]."""
    heads = tl.arange(0, HP)[:, None, None]
    dims = tl.arange(0, DP)[None, None, :]
    token = tokens[None, :, None]
    mask = (heads < H) & (token < N) & (dims < D)
    tl.store(
        ptr + heads * D + token * (H * D) + dims, _round(values, ptr.dtype.element_ty, PRECISION), mask=mask
    )


@triton.jit
def _load_rows(ptr, tokens, N, H: tl.constexpr, HP: tl.constexpr):
    """Read one number a head and row, [HP, tokens], from one image's float32 [H, N]; zeros outside."""
    heads = tl.arange(0, HP)[:, None]
    return tl.load(ptr + heads * N + tokens[None, :], mask=(heads < H) & (tokens[None, :] < N), other=0.0)


@triton.jit
def _stack(tile, T: tl.constexpr, W: tl.constexpr):
    """[HP, M, K] -> [W, T, L]: heads (times parts of the tile) become the rows of W matrices."""
    L: tl.constexpr = tile.shape[0] * tile.shape[1] * tile.shape[2] // (T * W)
    return tl.permute(tl.reshape(tile, [T, W, L]), [1, 0, 2])


@triton.jit
def _unstack(stacked, HP: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    """Undo ``_stack``."""
    return tl.reshape(tl.permute(stacked, [1, 0, 2]), [HP, M, K])


@triton.jit
def _mixer(ptr, stride_row, stride_col, H: tl.constexpr, HP: tl.constexpr, T: tl.constexpr):
    """Read an H x H matrix as [T, T]: itself (x) the identity over the parts of a tile; zeros outside."""
    R: tl.constexpr = T // HP
    row = tl.arange(0, T)[:, None]
    col = tl.arange(0, T)[None, :]
    mask = (row // R < H) & (col // R < H) & (row % R == col % R)
    return tl.load(ptr + (row // R) * stride_row + (col // R) * stride_col, mask=mask, other=0.0)


@triton.jit
def _normalised(matrix):
    """Divide by the largest absolute row sum, so that 16-bit products stay in range; also return that sum."""
    size = tl.max(tl.sum(tl.abs(matrix), axis=1), axis=0)
    size = tl.where(size > 0.0, size, 1.0)
    return matrix / size, size


@triton.jit
def _mix(mixer, stacked, W: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr):
    """Mix the heads of a stacked tile by a [T, T] matrix; float32 result."""
    each = tl.broadcast_to(_round(mixer, stacked.dtype, PRECISION)[None, :, :], [W, T, T])
    return _dot(each, stacked, PRECISION)


@triton.jit
def _store_heads(ptr, sums, scale, H: tl.constexpr, HP: tl.constexpr, T: tl.constexpr):
    """Reduce [W, T, T] sums over stacked tiles to H x H and write them."""
    R: tl.constexpr = T // HP
    whole = tl.reshape(tl.sum(sums, axis=0) * scale, [HP, R, HP, R])
    left = tl.arange(0, R)[None, :, None, None]
    right = tl.arange(0, R)[None, None, None, :]
    heads = tl.sum(tl.sum(tl.where(left == right, whole, 0.0), axis=3), axis=1)
    row = tl.arange(0, HP)[:, None]
    col = tl.arange(0, HP)[None, :]
    tl.store(ptr + row * H + col, heads, mask=(row < H) & (col < H))


@triton.jit
def _products(own, other, own_ptr, own_sh, own_sn, own_sd, own_tokens, ptr, sh, sn, sd, tokens, N,
              H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr, PARTS: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """Products of tokens that the program owns with others, a head at a time: [HP, own tokens, tokens].

    With PARTS > 1 the tiles ``own`` and ``other`` are left alone, and both are read from memory a part of the
    width at a time: wide float32 tiles do not fit into shared memory whole.
    """
    if PARTS == 1:
        return _dot(own, tl.permute(other, [0, 2, 1]), PRECISION)
    else:
        total = tl.zeros([HP, own_tokens.shape[0], tokens.shape[0]], tl.float32)
        for part in tl.static_range(PARTS):
            left = _load_tokens(own_ptr, own_sh, own_sn, own_sd, own_tokens, N, H, D, HP,
                                DP // PARTS, part * (DP // PARTS), True)  # fmt: skip
            right = _load_tokens(ptr, sh, sn, sd, tokens, N, H, D, HP, DP // PARTS, part * (DP // PARTS))
            total = _dot_onto(total, left, tl.permute(right, [0, 2, 1]), PRECISION)
        return total


@triton.jit
def row_lse(q, k, lse, sqb, sqh, sqn, sqd, skb, skh, skn, skd, N, log2_scale,
            H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """log2-sum-exp2 of every row of the scores, less log2 N: one program a head and row block.

    Apart from ``forward``, since a program of one head can take many more rows and so reads K far less often.
    """
    blocks = tl.cdiv(N, M)
    map_id = tl.program_id(0) // blocks
    rows = tl.program_id(0) % blocks * M + tl.arange(0, M)
    b = (map_id // H).to(tl.int64)
    h = map_id % H
    dims = tl.arange(0, DP)
    q_tile = tl.load(q + b * sqb + h * sqh + rows[:, None] * sqn + dims[None, :] * sqd,
                     mask=(rows[:, None] < N) & (dims[None, :] < D), other=0.0)  # fmt: skip
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    for start in range(0, N, K):
        keys = start + tl.arange(0, K)
        k_tile = tl.load(k + b * skb + h * skh + keys[:, None] * skn + dims[None, :] * skd,
                         mask=(keys[:, None] < N) & (dims[None, :] < D), other=0.0)  # fmt: skip
        scores = _dot(q_tile, tl.trans(k_tile), PRECISION) * log2_scale
        scores = tl.where(keys[None, :] < N, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        total = total * tl.exp2(top - new_top) + tl.sum(tl.exp2(scores - new_top[:, None]), axis=1)
        top = new_top
    tl.store(lse + map_id.to(tl.int64) * N + rows, top + tl.log2(total / N), mask=rows < N)


@triton.jit
def forward(q, k, v, theta, lse, o, c_parts,
            sqb, sqh, sqn, sqd, skb, skh, skn, skd, svb, svh, svn, svd, N, log2_scale,
            H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr, T: tl.constexpr,
            W: tl.constexpr, M: tl.constexpr, K: tl.constexpr, STATS: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """One image, M query rows, all heads: O_h = (sum_g theta[h,g] (P_g - 1/N)) V_h, and a part of C."""
    blocks = tl.cdiv(N, M)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    rows = tl.program_id(0) % blocks * M + tl.arange(0, M)
    dtype: tl.constexpr = q.dtype.element_ty
    q_tile = _load_tokens(q + b * sqb, sqh, sqn, sqd, rows, N, H, D, HP, DP)
    row_lse = _load_rows(lse + b * H * N, rows, N, H, HP)[:, :, None]
    mixer, size = _normalised(_mixer(theta, H, 1, H, HP, T))
    out = tl.zeros([HP, M, DP], tl.float32)
    c_sum = tl.zeros([W, T, T], tl.float32)
    for start in range(0, N, K):
        keys = start + tl.arange(0, K)
        k_tile = _load_tokens(k + b * skb, skh, skn, skd, keys, N, H, D, HP, DP)
        scores = _dot(q_tile, tl.permute(k_tile, [0, 2, 1]), PRECISION)
        # E = N P - 1 (the module's docstring)
        excess = tl.where(keys[None, None, :] < N, tl.exp2(scores * log2_scale - row_lse) - 1.0, 0.0)
        stacked = _stack(_round(excess, dtype, PRECISION), T, W)
        if STATS:
            c_sum = _dot_onto(c_sum, stacked, tl.permute(stacked, [0, 2, 1]), PRECISION)
        mixed = _unstack(_round(_mix(mixer, stacked, W, T, PRECISION), dtype, PRECISION), HP, M, K)
        v_tile = _load_tokens(v + b * svb, svh, svn, svd, keys, N, H, D, HP, DP)
        out = _dot_onto(out, mixed, v_tile, PRECISION)
    _store_tokens(o + b * N * H * D, out * (size / N), rows, N, H, D, HP, DP, PRECISION)
    if STATS:
        _store_heads(c_parts + tl.program_id(0) * H * H, c_sum, 1.0 / (N * 1.0 * N), H, HP, T)


@triton.jit
def _map_grad(excess, dm, mixer_t, size, pair, pair_size, N,
              HP: tl.constexpr, A: tl.constexpr, C: tl.constexpr, T: tl.constexpr, W: tl.constexpr,
              STATS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dP_g = sum_h theta[h,g] dM_h + sum_g' (dC + dC')[g,g'] (P_g' - 1/N), from stacked E and stacked dM."""
    dp = _mix(mixer_t, dm, W, T, PRECISION) * size
    if STATS:
        dp += _mix(pair, excess, W, T, PRECISION) * (pair_size / N)
    return _unstack(dp, HP, A, C)


@triton.jit
def backward_rows(q, k, v, do, theta, dc, lse, dq, row_dot, dtheta_parts,
                  sqb, sqh, sqn, sqd, skb, skh, skn, skd, svb, svh, svn, svd, sob, soh, son, sod,
                  N, scale, log2_scale,
                  H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr, T: tl.constexpr,
                  W: tl.constexpr, M: tl.constexpr, K: tl.constexpr, STATS: tl.constexpr,
                  PARTS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One image, M query rows, all heads: sweep 1 makes rowsum(dP P) and a part of dtheta, sweep 2 dQ."""
    blocks = tl.cdiv(N, M)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    q, k, v, do = q + b * sqb, k + b * skb, v + b * svb, do + b * sob
    rows = tl.program_id(0) % blocks * M + tl.arange(0, M)
    dtype: tl.constexpr = q.dtype.element_ty
    q_tile = _load_tokens(q, sqh, sqn, sqd, rows, N, H, D, HP, DP)
    do_tile = _load_tokens(do, soh, son, sod, rows, N, H, D, HP, DP)
    row_lse = _load_rows(lse + b * H * N, rows, N, H, HP)[:, :, None]
    mixer_t, size = _normalised(_mixer(theta, 1, H, H, HP, T))
    pair, pair_size = mixer_t, size
    if STATS:
        pair, pair_size = _normalised(_mixer(dc, H, 1, H, HP, T) + _mixer(dc, 1, H, H, HP, T))
    dots = tl.zeros([HP, M], tl.float32)
    dtheta = tl.zeros([W, T, T], tl.float32)
    for start in range(0, N, K):
        keys = start + tl.arange(0, K)
        k_tile = _load_tokens(k, skh, skn, skd, keys, N, H, D, HP, DP)
        scores = _products(q_tile, k_tile, q, sqh, sqn, sqd, rows, k, skh, skn, skd, keys, N,
                           H, D, HP, DP, PARTS, PRECISION)  # fmt: skip
        excess = tl.where(keys[None, None, :] < N, tl.exp2(scores * log2_scale - row_lse) - 1.0, 0.0)
        v_tile = _load_tokens(v, svh, svn, svd, keys, N, H, D, HP, DP)
        dm = _products(do_tile, v_tile, do, soh, son, sod, rows, v, svh, svn, svd, keys, N,
                       H, D, HP, DP, PARTS, PRECISION)  # fmt: skip
        excess_s = _stack(_round(excess, dtype, PRECISION), T, W)
        dm_s = _stack(_round(dm, dtype, PRECISION), T, W)
        dtheta = _dot_onto(dtheta, dm_s, tl.permute(excess_s, [0, 2, 1]), PRECISION)
        dp = _map_grad(excess_s, dm_s, mixer_t, size, pair, pair_size, N, HP, M, K, T, W, STATS, PRECISION)
        # keys beyond N: their dP is 0, made of zeros of v_tile and of excess
        dots += tl.sum(dp * (excess + 1.0), axis=2)
    dots = dots / N
    heads = tl.arange(0, HP)[:, None]
    tl.store(row_dot + b * H * N + heads * N + rows[None, :], dots, mask=(heads < H) & (rows[None, :] < N))
    _store_heads(dtheta_parts + tl.program_id(0) * H * H, dtheta, 1.0 / N, H, HP, T)

    dq_tile = tl.zeros([HP, M, DP], tl.float32)
    for start in range(0, N, K):
        keys = start + tl.arange(0, K)
        k_tile = _load_tokens(k, skh, skn, skd, keys, N, H, D, HP, DP)
        # A key beyond N is a row of zeros in k_tile, so its score gradient needs to be finite, no more.
        scores = _products(q_tile, k_tile, q, sqh, sqn, sqd, rows, k, skh, skn, skd, keys, N,
                           H, D, HP, DP, PARTS, PRECISION)  # fmt: skip
        excess = tl.where(keys[None, None, :] < N, tl.exp2(scores * log2_scale - row_lse) - 1.0, 0.0)
        v_tile = _load_tokens(v, svh, svn, svd, keys, N, H, D, HP, DP)
        dm = _products(do_tile, v_tile, do, soh, son, sod, rows, v, svh, svn, svd, keys, N,
                       H, D, HP, DP, PARTS, PRECISION)  # fmt: skip
        excess_s = _stack(_round(excess, dtype, PRECISION), T, W)
        dm_s = _stack(_round(dm, dtype, PRECISION), T, W)
        dp = _map_grad(excess_s, dm_s, mixer_t, size, pair, pair_size, N, HP, M, K, T, W, STATS, PRECISION)
        ds = (excess + 1.0) * (dp - dots[:, :, None]) * (1.0 / N)
        dq_tile = _dot_onto(dq_tile, _round(ds, dtype, PRECISION), k_tile, PRECISION)
    _store_tokens(dq + b * N * H * D, dq_tile * scale, rows, N, H, D, HP, DP, PRECISION)


@triton.jit
def backward_keys(q, k, v, do, theta, dc, lse, row_dot, dk, dv,
                  sqb, sqh, sqn, sqd, skb, skh, skn, skd, svb, svh, svn, svd, sob, soh, son, sod,
                  N, scale, log2_scale,
                  H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr, T: tl.constexpr,
                  W: tl.constexpr, M: tl.constexpr, K: tl.constexpr, STATS: tl.constexpr,
                  PARTS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One image, K keys, all heads: dK and dV. Tiles lie transposed, [HP, K, M]: no product turns them."""
    blocks = tl.cdiv(N, K)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    q, k, v, do = q + b * sqb, k + b * skb, v + b * svb, do + b * sob
    keys = tl.program_id(0) % blocks * K + tl.arange(0, K)
    dtype: tl.constexpr = q.dtype.element_ty
    k_tile = _load_tokens(k, skh, skn, skd, keys, N, H, D, HP, DP)
    v_tile = _load_tokens(v, svh, svn, svd, keys, N, H, D, HP, DP)
    mixer, size = _normalised(_mixer(theta, H, 1, H, HP, T))
    mixer_t = tl.trans(mixer)
    pair, pair_size = mixer, size
    if STATS:
        pair, pair_size = _normalised(_mixer(dc, H, 1, H, HP, T) + _mixer(dc, 1, H, H, HP, T))
    dk_tile = tl.zeros([HP, K, DP], tl.float32)
    dv_tile = tl.zeros([HP, K, DP], tl.float32)
    for start in range(0, N, M):
        rows = start + tl.arange(0, M)
        q_tile = _load_tokens(q, sqh, sqn, sqd, rows, N, H, D, HP, DP)
        do_tile = _load_tokens(do, soh, son, sod, rows, N, H, D, HP, DP)
        row_lse = _load_rows(lse + b * H * N, rows, N, H, HP)[:, None, :]
        dots = _load_rows(row_dot + b * H * N, rows, N, H, HP)[:, None, :]
        scores = _products(k_tile, q_tile, k, skh, skn, skd, keys, q, sqh, sqn, sqd, rows, N,
                           H, D, HP, DP, PARTS, PRECISION)  # fmt: skip
        excess = tl.where(keys[None, :, None] < N, tl.exp2(scores * log2_scale - row_lse) - 1.0, 0.0)
        dm = _products(v_tile, do_tile, v, svh, svn, svd, keys, do, soh, son, sod, rows, N,
                       H, D, HP, DP, PARTS, PRECISION)  # fmt: skip
        excess_s = _stack(_round(excess, dtype, PRECISION), T, W)
        dm_s = _stack(_round(dm, dtype, PRECISION), T, W)
        mixed = _unstack(_round(_mix(mixer, excess_s, W, T, PRECISION), dtype, PRECISION), HP, K, M)
        dv_tile = _dot_onto(dv_tile, mixed, do_tile, PRECISION)
        dp = _map_grad(excess_s, dm_s, mixer_t, size, pair, pair_size, N, HP, K, M, T, W, STATS, PRECISION)
        ds = (excess + 1.0) * (dp - dots) * (1.0 / N)
        dk_tile = _dot_onto(dk_tile, _round(ds, dtype, PRECISION), q_tile, PRECISION)
    _store_tokens(dk + b * N * H * D, dk_tile * scale, keys, N, H, D, HP, DP, PRECISION)
    _store_tokens(dv + b * N * H * D, dv_tile * (size / N), keys, N, H, D, HP, DP, PRECISION)
