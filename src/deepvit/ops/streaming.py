"""The streaming backend: maps are made block by block, used, and forgotten; any device, any floating dtype.

The arithmetic is in ``sweeps.py``, the sizes of the blocks in ``blocking.py``, the threads in ``lanes.py``. Here
are its registrations: an ``autograd.Function`` for eager work, another for torch.func's transforms (whose form
costs 50 microseconds a call, as much as a small layer's arithmetic), and the custom operators
``deepvit::streaming_core`` and ``deepvit::streaming_core_backward``, opaque to torch.compile and torch.export,
which torch.func does not accept.
"""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .sweeps import sweep_backward, sweep_forward

NAME = "streaming"


def why_not(q: Tensor, dropout_p: float) -> str | None:
    """None: runs on any device, in any floating dtype, with dropout."""
    return None


def core(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor, scale: float, need_stats: bool, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inner operator (see ``core.py``). Dropout draws one seed from torch's CPU generator.

    With one or two heads it computes in float64: a gradient that is a number a head has nothing beside it then,
    and where it cancels by chance float32 keeps too few digits. Nobody waits for networks of two heads.
    """
    if q.shape[1] <= 2 and q.device.type != "mps":
        theta = theta.double()
    # A seed and not a mask is what the backward pass needs: the mask is drawn again, block by block.
    seed = torch.randint(2**62, (), dtype=torch.int64) if dropout_p > 0 else None
    call: Any
    if torch.compiler.is_compiling():
        call = torch.ops.deepvit.streaming_core
    elif torch._C._are_functorch_transforms_active():
        call = _FunctionalCore.apply
    elif torch.is_grad_enabled():
        call = _Core.apply
    else:
        call = sweep_forward
    o, c, e = call(q, k, v, theta, seed, scale, need_stats, dropout_p)
    return o, c, e if dropout_p > 0 else None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, theta, seed, ctx.scale, ctx.need_stats, ctx.dropout_p = inputs
    ctx.save_for_backward(q, k, v, theta, seed)


class _Core(torch.autograd.Function):
    """(q, k, v, theta, seed, scale, need_stats, dropout_p) -> (o, c, e)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = sweep_forward(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, do: Tensor, dc: Tensor, de: Tensor) -> tuple[Tensor | None, ...]:
        # create_graph=True: a function whose own derivative says that there is none
        sweep: Any = _FunctionalBackward.apply if torch.is_grad_enabled() else sweep_backward
        options = (ctx.scale, ctx.need_stats, ctx.dropout_p)
        return *sweep(do, dc, de, *ctx.saved_tensors, *options), None, None, None, None


class _FunctionalCore(torch.autograd.Function):
    """The same for torch.func."""

    forward = staticmethod(sweep_forward)
    setup_context = staticmethod(_save)

    @staticmethod
    def backward(ctx: Any, do: Tensor, dc: Tensor, de: Tensor) -> tuple[Tensor | None, ...]:
        options = (ctx.scale, ctx.need_stats, ctx.dropout_p)
        grads = _FunctionalBackward.apply(do, dc, de, *ctx.saved_tensors, *options)
        return *grads, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _each(_FunctionalCore, info.batch_size, in_dims, inputs)


class _FunctionalBackward(torch.autograd.Function):
    """A function of its own, so that torch.func hands it plain tensors; it has no derivative."""

    forward = staticmethod(sweep_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            "the streaming backend has no second derivative; ask for backend='reference'"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _each(_FunctionalBackward, info.batch_size, in_dims, inputs)


def _each(function: Any, size: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> Any:
    """torch.func.vmap: one call for each entry (statistics are per call, so entries cannot share a batch)."""
    results = [
        function.apply(
            *(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True))
        )
        for i in range(size)
    ]
    outputs = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return outputs, (0,) * len(outputs)


@torch.library.custom_op("deepvit::streaming_core", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    seed: Tensor | None,
    scale: float,
    need_stats: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return sweep_forward(q, k, v, theta, seed, scale, need_stats, dropout_p)


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    seed: Tensor | None,
    scale: float,
    need_stats: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, tokens, width = q.shape
    o = theta.new_empty(batch, tokens, heads, width).transpose(1, 2)
    return o, theta.new_empty(heads), theta.new_empty(heads)


@torch.library.custom_op("deepvit::streaming_core_backward", mutates_args=())
def _backward(
    do: Tensor,
    dc: Tensor,
    de: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    seed: Tensor | None,
    scale: float,
    need_stats: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return sweep_backward(do, dc, de, q, k, v, theta, seed, scale, need_stats, dropout_p)


@_backward.register_fake
def _(
    do: Tensor,
    dc: Tensor,
    de: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    seed: Tensor | None,
    scale: float,
    need_stats: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, tokens, width = q.shape
    dq, dk, dv = (x.new_empty(batch, tokens, heads, width).transpose(1, 2) for x in (q, k, v))
    return dq, dk, dv, torch.empty_like(theta)


def _differentiate(ctx: Any, do: Tensor, dc: Tensor, de: Tensor) -> tuple[Tensor | None, ...]:
    options = (ctx.scale, ctx.need_stats, ctx.dropout_p)
    grads = torch.ops.deepvit.streaming_core_backward(do, dc, de, *ctx.saved_tensors, *options)
    return *grads, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
