"""``deepvit.ops.reattention``: checks its arguments, chooses a backend, runs it."""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from deepvit.errors import UserError
from deepvit.ops import reference
from deepvit.ops.choose import backend_module, choose_backend
from deepvit.ops.epilogue import run_core
from deepvit.ops.options import Options

NORMS = ("batch", "none")


def reattention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    *,
    theta_bias: Tensor | None = None,
    norm: str = "batch",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    batch_statistics: bool | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    scale: float | None = None,
    output_scale: float = 1.0,
    dropout_p: float = 0.0,
    process_group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """Re-attention: ``Norm(theta softmax(scale q k^T) + bias) v``, without keeping attention maps.

    DeepViT, Zhou et al. 2021 (arXiv 2103.11886), in the form of the official code (batch norm over heads).

    Args:
        q: queries [B, H, N, D]; views into a packed qkv serve as they are. Under autocast float32 inputs are
            cast to the autocast type, as scaled_dot_product_attention does.
        k: keys [B, H, N, D].
        v: values [B, H, N, D].
        theta: [H, H], output head by input head.
        theta_bias: [H] or None.
        norm: "batch" (batch norm per head over batch and both token axes, as published) or "none".
        norm_weight: [H] or None (ones).
        norm_bias: [H] or None (zeros).
        running_mean: [H], updated in place when training, read when not.
        running_var: [H], the same.
        training: apply dropout, and take batch statistics unless ``batch_statistics`` decides.
        batch_statistics: normalise by the batch's statistics, or (False) by the running ones, as with a frozen norm;
            None is as ``training`` says. Those of an empty batch change nothing.
        momentum: weight of the new statistics in the running ones, 0 to 1.
        eps: added to the variance.
        scale: softmax scale; None is D ** -0.5.
        output_scale: factor on the normalised map (D ** -0.5 in the one published model that rescales).
        dropout_p: dropout on the softmax maps before theta, only when training; 0 <= p < 1.
        process_group: take batch statistics over all processes of this group (synchronised batch norm).
        backend: "auto", "reference", "streaming", "native" or "triton".

    Returns:
        [B, H, N, D] in v's dtype (autocast's, under autocast).

    Raises:
        UserError: shapes or options that do not fit, or a backend that cannot run here.
    """
    options = Options(
        theta_bias=theta_bias,
        norm=norm,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        running_mean=running_mean,
        running_var=running_var,
        training=training,
        batch_statistics=batch_statistics,
        momentum=momentum,
        eps=eps,
        scale=scale,
        output_scale=output_scale,
        dropout_p=dropout_p,
        process_group=process_group,
    )
    if has_torch_function((q, k, v)):
        result: Tensor = handle_torch_function(
            reattention, (q, k, v), q, k, v, theta, **options._asdict(), backend=backend
        )
        return result
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        raise UserError(
            "q, k and v must have one shape [B, H, N, D]; "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    heads, tokens = q.shape[1], q.shape[2]
    if theta.shape != (heads, heads):
        raise UserError(f"theta has shape {tuple(theta.shape)}; {heads} heads need [{heads}, {heads}]")
    if norm not in NORMS:
        raise UserError(f"norm={norm!r} is unknown; choose {' or '.join(NORMS)}")
    if not 0 <= dropout_p < 1:
        raise UserError(f"dropout_p={dropout_p}: expected 0 <= p < 1")
    if norm == "batch":
        if not options.of_batch and (running_mean is None or running_var is None):
            raise UserError(
                "norm='batch' in evaluation needs running_mean and running_var; "
                "pass training=True for batch statistics"
            )
        if options.of_batch and process_group is None and q.shape[0] * tokens == 1:
            raise UserError(
                "batch statistics of one image with one token do not exist; use more images, or norm='none'"
            )
    device = q.device.type
    autocast = device != "meta"  # which knows none
    if autocast and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q, k, v = (x.to(dtype) if x.dtype == torch.float32 else x for x in (q, k, v))
    name = choose_backend(q, options.dropout, backend)
    with torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext():
        if name == "reference":
            return reference.reattention(q, k, v, theta, options)
        return run_core(backend_module(name).core, q, k, v, theta, options)
