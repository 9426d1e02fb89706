"""``deepvit.capture``: the public context manager."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from deepvit.capturing.fused import FusedModules
from deepvit.capturing.options import Options
from deepvit.capturing.recorder import Recorder
from deepvit.capturing.seen import AttentionConsumer, Seen, TokenConsumer
from deepvit.capturing.watch import Watch
from deepvit.errors import UserError

_WRAPPERS = (nn.parallel.DistributedDataParallel,)


@contextmanager
def capture(
    model: nn.Module,
    blocks: Sequence[str] | Sequence[int] | None = None,
    *,
    attention: bool = True,
    tokens: bool = True,
    qkv: bool = False,
    prefix_tokens: int | None = None,
    on_attention: AttentionConsumer | None = None,
    on_softmax: AttentionConsumer | None = None,
    on_tokens: TokenConsumer | None = None,
    on_mismatch: Literal["error", "flag"] = "error",
) -> Iterator[Seen]:
    """Watch any Vision Transformer: ``with deepvit.capture(model) as seen: model(images)``.

    Finds every attention over tokens (``scaled_dot_product_attention``, eager softmax attention, torch's
    multi-head attention, Re-attention) without the model's code, names its block, and verifies each map by
    rebuilding the attention output from it. The model's outputs do not change by a bit. Tensors are detached;
    those of the latest forward pass are kept.

    Args:
        model: any eager ``nn.Module``; in training mode maps are given before dropout (``seen.notes`` says
            so).
        blocks: module names of the blocks, or their numbers in order of execution from 0; None is all of
            them.
        attention: capture maps: ``seen.attention[block]`` [B, H, N, M], rows queries, columns keys.
        tokens: capture tokens as they leave each block: ``seen.tokens[block]`` [B, N, C].
        qkv: capture ``seen.queries``, ``seen.keys``, ``seen.values`` [B, H, N, D] as well.
        prefix_tokens: how many tokens precede the patches; None tells it from the model.
        on_attention: called with (key, map, layout) as soon as a map is there; then maps are not kept.
        on_softmax: the same for the softmax map behind a map that is not one itself (Re-attention, talking
            heads); called just before ``on_attention`` of the same key.
        on_tokens: called with (block, tokens, layout) as soon as a block ends; then tokens are not kept.
        on_mismatch: what to do with a map that does not give the model's attention output: "error" raises,
            "flag" leaves it to ``seen.checks``.

    Yields:
        ``Seen``: the tensors by block name, and ``layout``, ``token_layout``, ``checks``, ``skipped`` beside
        them.

    Raises:
        UserError: a compiled or scripted model, a block that does not exist, maps over channels (XCiT), no
            attention found, or the model not called at all; in one line, when it is known (at the latest when
            the block ends).
    """
    model = _eager(model)
    options = Options(
        blocks=_checked(blocks),
        attention=attention,
        tokens=tokens,
        qkv=qkv,
        prefix_tokens=prefix_tokens,
        on_attention=on_attention,
        on_softmax=on_softmax,
        on_tokens=on_tokens,
        on_mismatch=on_mismatch,
    )
    if on_mismatch not in ("error", "flag"):
        raise UserError(f"on_mismatch={on_mismatch!r}: choose 'error' or 'flag'")
    recorder = Recorder(model, options)
    recorder.seen.notes += _notes(model)
    watch = Watch(recorder)
    fused = FusedModules(model, recorder)
    try:
        fused.install()
        recorder.frames.install()
        with watch:
            yield recorder.seen
    finally:
        recorder.frames.remove()
        fused.remove()
        watch.follower.clear()
    watch.differences.close()
    recorder.finish()


def attention_blocks(model: nn.Module, images: torch.Tensor) -> list[str]:
    """Module names of the attention blocks of a model in order of execution, found by one forward pass.

    ``images`` [B, 3, h, w]: one is enough. No map is computed. Raises ``UserError`` as :func:`capture` does.
    """
    with torch.no_grad(), capture(model, attention=False, tokens=False) as seen:
        model(images)
    return list(seen.blocks)


def _eager(model: nn.Module) -> nn.Module:
    """The module that runs in Python; raises for what does not."""
    if isinstance(model, _WRAPPERS):
        model = model.module
    if not isinstance(model, nn.Module):
        raise UserError(f"capture needs a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise UserError(
            "this model is compiled and its attention cannot be seen: capture and call model._orig_mod"
        )
    for name, part in model.named_modules():
        what = f"{name or 'this model'} ({type(part).__name__})"
        if isinstance(part, torch.jit.ScriptModule):
            raise UserError(
                f"{what} is scripted, its attention cannot be seen: capture the model before torch.jit"
            )
        if isinstance(part, torch._dynamo.eval_frame.OptimizedModule) or part._compiled_call_impl is not None:
            raise UserError(
                f"{what} is compiled, its attention cannot be seen: capture the model before compiling"
            )
        if isinstance(part, nn.DataParallel):
            raise UserError(
                f"{what} runs in several threads and cannot be watched: capture {name or 'model'}.module"
            )
    return model


def _checked(blocks: Sequence[str] | Sequence[int] | None) -> tuple[str, ...] | tuple[int, ...] | None:
    if blocks is None:
        return None
    if isinstance(blocks, str) or not blocks:
        raise UserError(
            f"blocks={blocks!r}: give a list of module names or of numbers, or None for all blocks"
        )
    if all(isinstance(b, str) for b in blocks):
        return tuple(str(b) for b in blocks)
    if all(isinstance(b, int) and not isinstance(b, bool) and b >= 0 for b in blocks):
        return tuple(int(b) for b in blocks)
    raise UserError(f"blocks={blocks!r}: give module names, or numbers from 0 up, and not both")


def _notes(model: nn.Module) -> list[str]:
    if not any(m.training for m in model.modules()):
        return []
    return [
        "the model was in training mode: dropout, drop path and batch statistics were active; "
        "maps are given before dropout"
    ]
