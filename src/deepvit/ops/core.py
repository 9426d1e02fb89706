"""The inner operator: what a fast backend implements, and nothing else.

    core(q, k, v, theta, scale, need_stats, dropout_p) -> (o, c, e)

    # B batch, H heads, N tokens, D head width
    q, k, v     [B, H, N, D]  float32, bfloat16 or float16 (all three the same), any strides with a contiguous
                              last dimension: views into one packed qkv are the normal case
    theta       [H, H]        float32 (float64 with float64 inputs); output head h, input head g
    scale       float         softmax scale
    need_stats  bool
    dropout_p   float         dropout on the maps; a backend that has none refuses it in ``why_not``

    o  [B, H, N, D]   o_h = (sum_g theta[h, g] (P_g - 1/N)) v_h,   P_g = softmax(scale q_g k_g^T);
                      dtype of v, or theta's, which has more digits
    c  second moments, a sum over b, m, n and not a mean, dtype of theta; zeros where need_stats is false:
       [H, H]  c[g, g'] = sum of (P_g - 1/N) (P_g' - 1/N), centred before the product, or
       [H]     c[h] = sum of (sum_g theta[h, g] (P_g - 1/N))^2, the diagonal of theta c theta^T: which of the two
               is cheaper depends on the device
    e  [H] or None, dtype of theta:  e[h] = sum over b, m, n of sum_g theta[h, g] (P_g - 1/N); None without
       dropout, where it is 0

Maps enter o *centred*, so that bfloat16 keeps its digits where maps are nearly uniform (a fresh network): the
1/N that every entry shares would drown the part that carries information. Without dropout the rows of P sum
to 1, so that a backend may subtract 1/N from P in float32 before rounding, or subtract its mean over the
tokens from v: both give the same o. With P~ = dropout(P), P~ takes the place of P in o, c and e.

Differentiable in q, k, v and theta, given gradients of o and of c, e (where need_stats). In the backward
pass the centring of P needs no term of its own in dP, since the softmax backward ignores a constant added to
a row. With c [H, H]:

    Pc = P - 1/N,  G = dC + dC^T,  dM_h = dO_h v_h^T,  dv_h = (sum_g theta[h,g] Pc_g)^T dO_h,
    dtheta[h,g] = <dM_h, Pc_g>,  dP_g = sum_h theta[h,g] dM_h + sum_g' G[g,g'] P_g'   (up to a row constant)

With c [H], dM_h = dO_h v_h^T + 2 dc_h sum_g theta[h,g] Pc_g, the same dv and dtheta, and dP without G.

Saved for the backward pass: tensors that grow with N only. Everything else about Re-attention (bias, norm,
running statistics, rescaling, synchronising statistics over processes) is ``epilogue.py``, one function
shared by all backends.

A backend is a module with ``NAME``, ``why_not(q, dropout_p) -> str | None`` (one line: the reason that it
cannot run this input, ending with what to ask for instead; None when it can) and ``core``. It registers
``core`` and its backward as torch custom operators (``deepvit::<name>_core``, with fake and autograd), so
that torch.compile, torch.export and autocast see one opaque operator.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Core(Protocol):
    """The signature of a backend's inner operator (module docstring)."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        theta: Tensor,
        scale: float,
        need_stats: bool,
        dropout_p: float,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(o, c, e) as described above."""
        ...
