"""The inner operator: what a fast backend implements, and nothing else.

    core(q, k, v, theta, scale, need_stats) -> (o, c)

    # B batch, H heads, N tokens, D head width
    q, k, v   [B, H, N, D]  float32, bfloat16 or float16 (all three the same), any strides with a contiguous
                            last dimension: views into one packed qkv are the normal case
    theta     [H, H]        float32 (float64 with float64 inputs); output head h, input head g
    scale     float         softmax scale
    need_stats bool

    o  [B, H, N, D]   dtype of v:   o_h = (sum_g theta[h, g] P_g) v_h,   P_g = softmax(scale q_g k_g^T)
    c  [H, H]         float32:      c[g, g'] = sum over b, m, n of (P_g - 1/N) (P_g' - 1/N), centred before
                                    the product; zeros where need_stats is false

Differentiable in q, k, v and theta, given gradients of o and (need_stats) of c. Saved for the backward pass:
tensors that grow with N only. Everything else about Re-attention (bias, norm, running statistics, rescaling,
synchronising statistics over processes) is ``epilogue.py``, one function shared by all backends; it hands
the core a v that is already centred over the tokens (rows of P sum to 1, so ``P (v - mean v) = P v - mean v``),
which keeps bfloat16 exact where maps are nearly uniform.

A backend is a module with ``NAME``, ``why_not(q, dropout_p) -> str | None`` (the reason that it cannot run
this, ending with what to ask for instead; None when it can) and ``core``. It registers ``core`` and its
backward as torch custom operators (``torch.library.custom_op("deepvit::<name>_core")``, fake and autograd),
so that torch.compile, torch.export and autocast see one opaque operator.
"""

from __future__ import annotations
