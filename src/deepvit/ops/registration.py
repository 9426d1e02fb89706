"""A sweep forward and a sweep backward as one differentiable operator, in every way that PyTorch calls one.

An ``autograd.Function`` for eager work, another for torch.func's transforms (whose form costs 50 microseconds a
call, as much as a small layer's arithmetic), and the custom operators ``deepvit::<name>_core`` and
``deepvit::<name>_core_backward``, opaque to torch.compile and torch.export, which torch.func does not accept.
"""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

SweepForward = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""(q, k, v, theta, seed, scale, need_stats, dropout_p) -> (o, c, e) of ``core.py``, c and e in the [H] form, o in
theta's dtype; ``seed`` None is without dropout."""
SweepBackward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
"""(do, dc, de, and what the sweep forward got) -> gradients of q, k, v and theta."""


def register(name: str, forward: SweepForward, backward: SweepBackward) -> SweepForward:
    """``forward``, differentiable by ``backward``; call it once for a name.

    The result has no second derivative: asking for one raises ``NotImplementedError``.
    """
    eager, functional = _functions(name, forward, backward)
    operator = _operators(name, forward, backward)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or _without_memory(inputs[0]):
            return operator(*inputs)
        if torch._C._are_functorch_transforms_active():
            return functional.apply(*inputs)
        # in forward mode the function refuses, where the bare sweep would drop the tangents
        differentiated = torch.is_grad_enabled() or forward_ad._current_level >= 0
        return eager.apply(*inputs) if differentiated else forward(*inputs)

    return call


def _without_memory(x: Tensor) -> bool:
    """Whether ``x`` has a shape only: the custom operator says what becomes of it."""
    return x.device.type == "meta" or isinstance(x, FakeTensor)


def token_major(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Empty [B, H, N, D] that lies in memory as [B, N, H, D], as the projections around attention want it."""
    batch, heads, tokens, width = like.shape
    return like.new_empty((batch, tokens, heads, width), dtype=dtype).transpose(1, 2)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, theta, seed, ctx.scale, ctx.need_stats, ctx.dropout_p = inputs
    ctx.save_for_backward(q, k, v, theta, seed)


def _functions(name: str, forward: SweepForward, backward: SweepBackward) -> tuple[Any, Any]:
    """The autograd functions for eager work and for torch.func."""

    class FunctionalBackward(torch.autograd.Function):
        """A function of its own, so that torch.func hands it plain tensors; it has no derivative."""

        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, ...]:
            return backward(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            raise NotImplementedError(
                f"the {name} backend has no second derivative; ask for backend='reference'"
            )

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
            return _each(FunctionalBackward, info.batch_size, in_dims, inputs)

    class Functional(torch.autograd.Function):
        """The whole operator, for torch.func."""

        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
            return forward(*inputs)

        setup_context = staticmethod(_save)

        @staticmethod
        def backward(ctx: Any, do: Tensor, dc: Tensor, de: Tensor) -> tuple[Tensor | None, ...]:
            options = (ctx.scale, ctx.need_stats, ctx.dropout_p)
            grads = FunctionalBackward.apply(do, dc, de, *ctx.saved_tensors, *options)
            return *grads, None, None, None, None

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
            return _each(Functional, info.batch_size, in_dims, inputs)

    class Eager(torch.autograd.Function):
        """The whole operator, in ordinary autograd."""

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
            output = forward(*inputs)
            _save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, do: Tensor, dc: Tensor, de: Tensor) -> tuple[Tensor | None, ...]:
            # create_graph=True: a function whose own derivative says that there is none
            sweep: Any = FunctionalBackward.apply if torch.is_grad_enabled() else backward
            options = (ctx.scale, ctx.need_stats, ctx.dropout_p)
            return *sweep(do, dc, de, *ctx.saved_tensors, *options), None, None, None, None

    return Eager, Functional


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


def _operators(name: str, forward: SweepForward, backward: SweepBackward) -> Any:
    """The custom operators. Torch reads their schemas off these two functions' annotations."""

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
        return forward(q, k, v, theta, seed, scale, need_stats, dropout_p)

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
        return backward(do, dc, de, q, k, v, theta, seed, scale, need_stats, dropout_p)

    def _fake(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
        heads = q.shape[1]
        return token_major(q, theta.dtype), theta.new_empty(heads), theta.new_empty(heads)

    def _fake_backward(do: Tensor, dc: Tensor, de: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        q, k, v, theta = inputs[:4]
        return token_major(q), token_major(k), token_major(v), theta.new_empty(theta.shape)

    core = torch.library.custom_op(f"deepvit::{name}_core", _forward, mutates_args=())
    core_backward = torch.library.custom_op(f"deepvit::{name}_core_backward", _backward, mutates_args=())
    core.register_fake(_fake)
    core_backward.register_fake(_fake_backward)

    def differentiate(ctx: Any, do: Tensor, dc: Tensor, de: Tensor) -> tuple[Tensor | None, ...]:
        options = (ctx.scale, ctx.need_stats, ctx.dropout_p)
        grads = core_backward(do, dc, de, *ctx.saved_tensors, *options)
        return *grads, None, None, None, None

    core.register_autograd(differentiate, setup_context=_save)
    return getattr(torch.ops.deepvit, f"{name}_core")
