"""torch's own attention modules, which run as one kernel in evaluation as long as nobody watches.

``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` take that way only while no torch function mode
is on (and the layer only while no hook is on it). A watched model would go the other way and round
differently. So the call that the model gets runs unwatched, and a second call, on the same inputs, gives the
map.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepvit.capturing.frames import first_tensor
from deepvit.capturing.maps import exact, relative_error, tolerance
from deepvit.capturing.seen import Check
from deepvit.errors import UserError

if TYPE_CHECKING:
    from deepvit.capturing.watch import Watch

_MARK = "_deepvit_capture"


class FusedModules:
    """Wraps the ``forward`` of every such module of a model, on the instance, and unwraps it again."""

    def __init__(self, model: nn.Module, watch: Watch) -> None:
        self.model = model
        self.watch = watch
        self._replaced: list[tuple[nn.Module, Any]] = []

    def install(self) -> None:
        """Wrap them; ``UserError`` for a second capture of a model with ``nn.TransformerEncoderLayer``."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                if hasattr(module.forward, _MARK):
                    raise UserError(
                        f"{name}: this model is already being captured; leave that with block first"
                    )
                self._replace(module, self._layer(name, module, module.forward))
            elif isinstance(module, nn.MultiheadAttention):
                self._replace(module, self._attention(name, module, module.forward))

    def remove(self) -> None:
        """Put every ``forward`` back as it was."""
        for module, before in reversed(self._replaced):
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
        self._replaced.clear()

    def _replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        setattr(forward, _MARK, True)
        self._replaced.append((module, module.__dict__.get("forward")))
        module.__dict__["forward"] = forward

    def _attention(self, name: str, module: nn.MultiheadAttention, original: Callable[..., Any]) -> Any:
        signature = inspect.signature(nn.MultiheadAttention.forward)

        def forward(*args: Any, **kwargs: Any) -> Any:
            frames = self.watch.recorder.frames
            if self.watch.paused or not frames.stack:
                return original(*args, **kwargs)
            with frames.running(name, module, first_tensor((*args, *kwargs.values()))) as frame:
                if module.training:  # no fused way in training: what the module calls is seen
                    out = original(*args, **kwargs)
                else:
                    with torch._C.DisableTorchFunction():
                        out = original(*args, **kwargs)
                    call = signature.bind(module, *args, **kwargs)
                    call.apply_defaults()
                    named = {k: v for k, v in call.arguments.items() if k != "self"}
                    with torch.no_grad(), torch._C.DisableTorchFunction():
                        self._weights(module, named, out[0])
                frames.finish(frame, out)
                return out

        return forward

    def _weights(self, module: nn.MultiheadAttention, named: dict[str, Any], out: Tensor) -> None:
        # The class's forward, not the instance's: another capture around this one must not see this call.
        again, weights = type(module).forward(
            module, **{**named, "need_weights": True, "average_attn_weights": False}
        )
        assert weights is not None
        self.watch.heads(weights, again, out, "", _call_of(module, named))

    def _layer(self, name: str, module: nn.TransformerEncoderLayer, original: Callable[..., Any]) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            frames = self.watch.recorder.frames
            if self.watch.paused or not frames.stack:
                return original(*args, **kwargs)
            with frames.running(name, module, first_tensor((*args, *kwargs.values()))) as frame:
                if module.training:
                    out = original(*args, **kwargs)
                else:
                    out = self._unwatched(original, args, kwargs)
                    with torch.no_grad():
                        again = original(*args, **kwargs)
                    with torch.no_grad(), torch._C.DisableTorchFunction():
                        how = "the layer's parts with the layer as one kernel"
                        self.watch.recorder.note(
                            Check(f"{name} as a layer", relative_error(again, out), tolerance(out), how)
                        )
                frames.finish(frame, out)
                return out

        return forward

    def _unwatched(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.watch.paused = True
        try:
            with torch._C.DisableTorchFunction():
                return original(*args, **kwargs)
        finally:
            self.watch.paused = False


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


def _call_of(module: nn.MultiheadAttention, named: dict[str, Any]) -> dict[str, Any]:
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
