"""Our own operator: the two maps of Re-attention, made again from its arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepvit import ops
from deepvit.capturing.maps import aside, exact, relative_error, tolerance
from deepvit.capturing.recorder import Recorder
from deepvit.capturing.seen import Check


def reattention(
    recorder: Recorder,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    *,
    out: Tensor,
    backend: str = "auto",
    **options: Any,
) -> Tensor | None:
    """Our own operator: both maps, P and the mixed and normalised Y that multiplies V.

    With batch statistics nothing may be updated, and with dropout the model's own maps cannot be made
    again: then the operator is called once more without it, and its output is what the maps have to give.
    """
    source = "reattention"
    site = recorder.site(tuple(q.shape[:-2]), q.shape[-2], k.shape[-2], v)
    if site is None:
        return None
    if not recorder.wants_map(site):
        recorder.record_layout(site, q.shape[-2], k.shape[-2], v.shape[-1], source)
        return None
    how, measured = "Y @ V with the operator", "softmax map mixed over heads and normalised (Y)"
    if _of_batch(options):
        options = {**options, "running_mean": None, "running_var": None}
    if options.get("training") and options.get("dropout_p", 0.0) > 0.0:
        how += f" without its dropout of {options['dropout_p']:g}"
        measured += f", without dropout of {options['dropout_p']:g}"
        options = {**options, "dropout_p": 0.0}
        out = ops.reattention(q, k, v, theta, backend=backend, **options)
    with aside(out):
        q_cast, k_cast = (t.to(out.dtype) for t in (q, k))  # as the operator does under autocast
        softmax, mixed = ops.reattention_maps(q_cast, k_cast, theta, **options)
        error = relative_error(mixed @ v.to(mixed.dtype), out)
        allowed = tolerance(out)
        if error > allowed:
            allowed *= max(1.0, _cancellation(softmax, theta, v, out, options))
    instead = recorder.record(
        site,
        queries=site.arrange(q),
        keys=site.arrange(k),
        values=site.arrange(v),
        attention=site.arrange(mixed),
        softmax=site.arrange(softmax),
        source=source,
        measured=measured,
        head_dim=v.shape[-1],
        check=Check(site.key, error, allowed, how),
    )
    return None if instead is None else site.put(instead, site.arrange(v), out)


def _of_batch(options: dict[str, Any]) -> bool:
    """Whether a call of our operator takes the batch's statistics."""
    chosen = options.get("batch_statistics")
    return bool(options.get("training") if chosen is None else chosen)


def _cancellation(softmax: Tensor, theta: Tensor, v: Tensor, out: Tensor, options: dict[str, Any]) -> float:
    """How much larger the terms that Re-attention adds up are than their sum, its output.

    The norm takes out what all entries of a mixed map share and amplifies the rest, so that terms far larger
    than the output cancel in it; rounding is a share of the terms, whichever way they are added up.
    """
    gain = softmax.new_full((softmax.shape[1],), float(options.get("output_scale", 1.0)))
    mixed = torch.einsum("hg,bgmn->bhmn", theta.to(softmax.dtype), softmax)
    if options.get("norm", "batch") == "batch":
        spread = options.get("running_var")
        if _of_batch(options) or spread is None:
            spread = mixed.var(dim=(0, 2, 3), unbiased=False)
        gain = gain * torch.rsqrt(spread.to(softmax.dtype) + options.get("eps", 1e-5))
        if options.get("norm_weight") is not None:
            gain = gain * options["norm_weight"].to(softmax.dtype).abs()
    terms = torch.einsum("hg,bgmn->bhmn", theta.abs().to(softmax.dtype), softmax) @ v.abs().to(softmax.dtype)
    largest = (gain.abs()[:, None, None] * terms).amax()
    return float(largest / exact(out).abs().amax().clamp_min(torch.finfo(softmax.dtype).tiny))
