"""torch's own attention modules, which run as one kernel in evaluation as long as nobody watches.

``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` take that way only while no torch function mode
is on (and the layer only while no hook is on it). A watched model would go the other way and round
differently. So the call that the model gets runs unwatched, and a second call, on the same inputs, gives the
map.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.capturing.maps import relative_error, tolerance
from deepvit.capturing.multihead import call_of, heads
from deepvit.capturing.recorder import Recorder
from deepvit.capturing.seen import Check
from deepvit.capturing.spatial import first_tensor
from deepvit.errors import UserError

_MARK = "_deepvit_capture"


class FusedModules:
    """Wraps the ``forward`` of every such module of a model, on the instance, and unwraps it again."""

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        self.model = model
        self.recorder = recorder
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
            frames = self.recorder.frames
            if self.recorder.paused or not frames.stack:
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
        heads(self.recorder, weights, again, out, "", call_of(module, named))

    def _layer(self, name: str, module: nn.TransformerEncoderLayer, original: Callable[..., Any]) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            frames = self.recorder.frames
            if self.recorder.paused or not frames.stack:
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
                        self.recorder.note(
                            Check(f"{name} as a layer", relative_error(again, out), tolerance(out), how)
                        )
                frames.finish(frame, out)
                return out

        return forward

    def _unwatched(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.recorder.paused = True
        try:
            with torch._C.DisableTorchFunction():
                return original(*args, **kwargs)
        finally:
            self.recorder.paused = False
