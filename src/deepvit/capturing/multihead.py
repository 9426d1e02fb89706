"""torch's own multi-head attention: called once more for its weights, and its output rebuilt from them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from deepvit.capturing.maps import aside, exact, relative_error, tolerance
from deepvit.capturing.recorder import Recorder
from deepvit.capturing.seen import Check
from deepvit.errors import UserError

MULTI_HEAD = F.multi_head_attention_forward
SIGNATURE = inspect.signature(MULTI_HEAD)


def multi_head(
    recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any], out: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor | None] | None:
    """``F.multi_head_attention_forward``: called once more, for its weights, without dropout.

    Returns what it is to give with another map, if the recorder asks for one.
    """
    bound = SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    call: dict[str, Any] = dict(bound.arguments)
    wanted, without = out[0], ""
    if call["training"] and call["dropout_p"] > 0.0:
        without = f" without its dropout of {call['dropout_p']:g}"
        wanted = MULTI_HEAD(**{**call, "need_weights": False, "training": False})[0]
    again, weights = MULTI_HEAD(
        **{**call, "need_weights": True, "average_attn_weights": False, "training": False}
    )
    assert weights is not None
    instead = heads(recorder, weights, again, wanted, without, {**call, "batch_first": False})
    return None if instead is None else (instead.to(out[0].dtype), None if out[1] is None else weights)


def heads(
    recorder: Recorder, weights: Tensor, again: Tensor, out: Tensor, without: str, call: dict[str, Any]
) -> Tensor | None:
    """Record torch's own multi-head attention.

    Returns the output with another map, if the recorder asks for one.

    ``weights`` [B, H, N, M] and the output ``again`` come from a second call that forms the map; ``out``
    is what the model got; ``call`` holds the arguments of ``F.multi_head_attention_forward``.
    """
    rows, columns = weights.shape[-2:]
    site = recorder.site(tuple(weights.shape[:-2]), rows, columns, None)
    if site is None:
        return None
    source, width = "multi_head_attention", again.shape[-1] // weights.shape[-3]
    if not recorder.wants_map(site):
        recorder.record_layout(site, rows, columns, width, source)
        return None
    projected = projections(call)
    with aside(out):
        if projected is None:  # keys of its own, that are no activations
            error, how = (
                relative_error(again, out),
                f"multi-head attention with and without weights{without}",
            )
        else:
            rebuilt, how = (
                rebuild(weights, projected[2], call),
                f"map @ V, projected, with its output{without}",
            )
            error = relative_error(rebuilt, out)
    q, k, v = (site.arrange(t) for t in projected) if projected else (None, None, None)
    instead = recorder.record(
        site,
        queries=q,
        keys=k,
        values=v,
        attention=site.arrange(weights),
        softmax=None,
        source=source,
        measured="softmax map" + (f", taken{without}" if without else ""),
        head_dim=width,
        check=Check(site.key, error, tolerance(out), how),
    )
    if instead is None:
        return None
    if projected is None:
        raise UserError(f"{site.key}: its attention adds keys of its own, so that its map cannot be replaced")
    with aside(out):
        return rebuild(site.order.undo(instead), projected[2], call)


def projections(call: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Queries, keys, values [B, H, tokens, D] of one ``F.multi_head_attention_forward``, by its arguments.

    None where it adds keys of its own (``bias_k``, ``add_zero_attn``, ``static_k``).
    """
    extra = [call[x] is not None for x in ("bias_k", "bias_v", "static_k", "static_v")]
    if any(extra) or call["add_zero_attn"]:
        return None
    if call["use_separate_proj_weight"]:
        weights: Sequence[Tensor] = tuple(call[f"{x}_proj_weight"] for x in "qkv")
    else:
        weights = call["in_proj_weight"].chunk(3)
    biases = (None, None, None) if call["in_proj_bias"] is None else call["in_proj_bias"].chunk(3)
    heads = call["num_heads"]
    # [tokens, B, H * D], or [tokens, H * D] of one image
    made = [
        F.linear(call[x], w, b).unflatten(-1, (heads, -1)).movedim(0, -2)
        for x, w, b in zip(("query", "key", "value"), weights, biases, strict=True)
    ]
    return made[0], made[1], made[2]


def rebuild(weights: Tensor, values: Tensor, call: dict[str, Any]) -> Tensor:
    """The output of multi-head attention from maps [B, H, N, M] and values [B, H, M, D]."""
    heads_out = (exact(weights) @ exact(values)).movedim(-2, 0).flatten(-2)  # [N, B, H * D]
    bias = call["out_proj_bias"]
    out = F.linear(heads_out, exact(call["out_proj_weight"]), None if bias is None else exact(bias))
    return out.transpose(0, 1) if call["batch_first"] else out


def call_of(module: nn.MultiheadAttention, named: dict[str, Any]) -> dict[str, Any]:
    """The arguments with which a module calls ``F.multi_head_attention_forward``; those that matter."""
    inputs = {x: named[x] for x in ("query", "key", "value")}
    turned = module.batch_first and inputs["query"].ndim == 3
    if turned:
        inputs = {x: t.transpose(0, 1) for x, t in inputs.items()}
    return {
        **inputs,
        "bias_k": module.bias_k,
        "bias_v": module.bias_v,
        "static_k": None,
        "static_v": None,
        "add_zero_attn": module.add_zero_attn,
        "use_separate_proj_weight": not module._qkv_same_embed_dim,
        "q_proj_weight": module.q_proj_weight,
        "k_proj_weight": module.k_proj_weight,
        "v_proj_weight": module.v_proj_weight,
        "in_proj_weight": module.in_proj_weight,
        "in_proj_bias": module.in_proj_bias,
        "out_proj_weight": module.out_proj.weight,
        "out_proj_bias": module.out_proj.bias,
        "num_heads": module.num_heads,
        "batch_first": turned,
    }
