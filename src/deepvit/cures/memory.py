"""What blocks remember during a forward pass, so that it stays with that pass.

Some cures hand something from one block to another (the first block's values) or must find again what they did
(a step of a power iteration). Gradient checkpointing runs a block a second time in the backward pass, when other
forward passes, of training or evaluation, may have gone through the network since. So what is remembered follows
the tokens: the tensor that enters a block leads to the record of its pass, and checkpointing hands the very same
tensor to the second run. Each thread has a place of its own for the block under way.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from deepvit.cures.target import blocks_of, split_values
from deepvit.errors import UserError

Record = dict[nn.Module, Any]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Trail:
    """What a block's input leads to.

    Attributes:
        record: what parts kept in this pass; None where the pass is not known. It must hold nothing of the graph:
            the first block's input leads to it, and a graph that holds its own key would never be freed.
        values: the first block's values [B, N, D]; None before the first block.
    """

    record: Record | None
    values: Tensor | None


class Now:
    """The block under way, and what passes between two hooks of one block."""

    def __init__(self) -> None:
        self.whole = False
        """The network is being compiled as a whole: one graph is one pass, and needs no trail."""
        self.record: Record | None = None
        self.values: Tensor | None = None
        self.mask: Tensor | None = None
        self.mean: Tensor | None = None
        self.pull: Tensor | None = None
        self.gate: Tensor | None = None
        self.padding: Tensor | None = None
        self.stream: Tensor | None = None


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.now = Now()


_PER_THREAD = _PerThread()
# What a graph that is being traced passes on inside itself; nothing of it is left when the graph has run.
_TRACED = Now()


def now() -> Now:
    """The place of this thread, or of the graph that is being traced."""
    return _TRACED if torch.compiler.is_compiling() else _PER_THREAD.now


# Keys are held weakly: a trail lasts as long as its tensor, which the graph of its pass holds where it is needed.
_TRAILS = WeakTensorKeyDictionary()


def remembers(hook: F) -> F:
    """For hooks that use what was remembered: run them outside of graphs, except in one of the whole network.

    A graph of one block is run again by gradient checkpointing without a look at Python's state.
    """
    outside = torch.compiler.disable(hook)

    @functools.wraps(hook)
    def either(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() and not _TRACED.whole:
            return outside(*inputs)
        return hook(*inputs)

    return either  # type: ignore[return-value]


def recomputing() -> bool:
    """Whether this runs inside a backward pass, as gradient checkpointing's second run does."""
    return torch._C._current_graph_task_id() != -1


def follow(model: nn.Module, cure: str) -> None:
    """Let records follow the tokens through this model's blocks; a second call changes nothing."""
    blocks = blocks_of(model, cure)
    if any(hook is _enter for hook in blocks[0]._forward_pre_hooks.values()):
        return
    model.register_forward_pre_hook(_begin, prepend=True)
    model.register_forward_hook(_end)
    for block in blocks:
        block.register_forward_pre_hook(_enter)
        block.register_forward_hook(_leave if block is not blocks[-1] else _leave_the_last)


def _begin(_model: nn.Module, _inputs: Any) -> None:
    if torch.compiler.is_compiling():
        _TRACED.whole = True


def _end(_model: nn.Module, _inputs: Any, _output: Any) -> None:
    here = now()
    here.record = here.values = None
    _TRACED.whole = False


@remembers
def _enter(_block: nn.Module, inputs: tuple[Any, ...]) -> None:
    here = now()
    if here.whole or not inputs or not isinstance(inputs[0], Tensor):
        return
    tokens = inputs[0]
    trail = _TRAILS.get(tokens)
    if trail is None and recomputing():
        trail = Trail(None, None)
    elif trail is None:
        # The first block, or a block whose input somebody's hook put in the place of the last block's output.
        trail = _TRAILS[tokens] = Trail({}, here.values)
    here.record, here.values = trail.record, trail.values


@remembers
def _leave(_block: nn.Module, _inputs: Any, output: Any) -> None:
    here = now()
    if not here.whole and isinstance(output, Tensor):
        _TRAILS[output] = Trail(here.record, here.values)
        here.record = None


@remembers
def _leave_the_last(_block: nn.Module, _inputs: Any, _output: Any) -> None:
    here = now()
    here.record = here.values = None


@remembers
def keep_values(_module: nn.Module, _inputs: Any, qkv: Tensor) -> None:
    """Hook on the first block's ``qkv``: its values are what later blocks of this pass are handed."""
    now().values = split_values(qkv)[1]


def first_values(cure: str) -> Tensor:
    """The first block's values [B, N, D] of the pass under way, for a hook that ``remembers``.

    Raises UserError where they are not known.
    """
    values = now().values
    if values is None:
        raise _lost(cure, "the first block's values")
    return values


@torch.compiler.disable  # type: ignore[untyped-decorator]
def once_a_pass(part: nn.Module, cure: str, make: Callable[[], Any]) -> Any:
    """What ``make`` returned when this part first asked in this pass; it must hold nothing of the graph.

    Not in a graph of the whole network (``now().whole``).
    """
    record = now().record
    if record is not None and part in record:
        return record[part]
    if recomputing():
        raise _lost(cure, "the norms")
    made = make()
    if record is not None:
        record[part] = made
    return made


def _lost(cure: str, what: str) -> UserError:
    if recomputing():
        return UserError(
            f"{cure}: {what} of the forward pass that is computed again are not known: gradient checkpointing must be "
            "of the non-reentrant kind and begin at a block's input, as timm's set_grad_checkpointing() does"
        )
    return UserError(
        f"{cure}: a block was run by itself; {what} are not known before the first block has run"
    )
