"""Numbers that are not finite never reach the weights: the gradient is looked at before the step, on the device.

On the CPU a bad gradient is noticed at once. On an accelerator looking would make every step wait, so the fused
optimizer is told by a flag on the device to leave the weights as they are, and the report follows with the next reading
of the losses; until then a run that is to stop changes nothing more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.training.sharding import whole

HELP = "lower --lr, lengthen --warmup_steps, or use --precision 32"


class DivergedError(UserError):
    """A loss, a gradient, the weights or a validation figure is no longer finite; the text names what."""


@dataclass(frozen=True)
class Policy:
    """What a step with a non-finite gradient does.

    Attributes:
        skip: how many such steps are left out before the run stops; 0 stops at the first.
        exact_attention: after the first, attention computes in float32 for the rest of the run, and that step is left out.
    """

    skip: int = 0
    exact_attention: bool = False

    @classmethod
    def read(cls, text: str) -> Policy:
        """``stop``, ``skip:N`` or ``fp32_attention``; raises ``UserError`` for anything else."""
        if text == "stop":
            return cls()
        if text == "fp32_attention":
            return cls(skip=1, exact_attention=True)
        if match := re.fullmatch(r"skip:([1-9]\d*)", text):
            return cls(skip=int(match.group(1)))
        raise UserError(f"on_nonfinite={text!r} must be stop, skip:N (as skip:3) or fp32_attention")


class Guard:
    """Watches gradient norms; one a run.

    Args:
        policy: what to do.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.skipped = 0
        self._bad: Tensor | None = None  # on the device: bad steps since the last reading
        self._first: Tensor | None = None  # on the device: number of the first of them, -1 for none

    def look(self, norm: Tensor, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """Take in the gradient norm of a step, before the optimizer runs.

        Returns:
            whether the step must not be made (known on the CPU only; elsewhere the optimizer is told on the device,
            which only a fused one understands).
        """
        if norm.device.type == "cpu" or not optimizer.defaults.get("fused"):
            return not bool(norm.isfinite())
        bad = (~norm.isfinite()).to(torch.float32)
        if self._bad is None or self._first is None:
            self._bad = torch.zeros((), device=norm.device)
            self._first = torch.full((), -1, dtype=torch.int64, device=norm.device)
        self._first = torch.where((bad > 0) & (self._first < 0), step, self._first)
        self._bad = self._bad + bad
        # A run that stops changes nothing after the first bad step, so that what was bad can be seen again.
        optimizer.found_inf = bad if self.policy.skip else torch.clamp(self._bad, max=1.0)  # type: ignore[attr-defined]
        return False

    def read(self) -> tuple[int, int]:
        """Bad steps on the device since the last reading, and the number of the first (-1 for none); waits for it."""
        if self._bad is None or self._first is None:
            return 0, -1
        count, first = int(self._bad), int(self._first)
        self._bad, self._first = torch.zeros_like(self._bad), torch.full_like(self._first, -1)
        return count, first

    def left_out(self, count: int = 1) -> bool:
        """Count steps that were left out; returns whether the run may go on."""
        self.skipped += count
        return self.skipped <= self.policy.skip


def finite_or_raise(total: Tensor, terms: dict[str, Tensor], where: str) -> None:
    """Stop before the update when the total loss is not finite, naming each term.

    Raises:
        DivergedError: with every term's value and what usually helps.
    """
    if not torch.isfinite(total):
        values = ", ".join(f"{name}={float(value.detach()):.4g}" for name, value in terms.items())
        raise DivergedError(f"the loss is not finite at {where} ({values}): {HELP}")


def attention_in_float32(model: nn.Module) -> int:
    """Let every attention module compute in float32 from now on, whatever autocast says; returns how many there are."""

    def exact(module: nn.Module) -> None:
        inner = module.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            with torch.autocast(x.device.type, enabled=False):
                return inner(x.float(), *args, **kwargs)

        module.forward = forward  # type: ignore[method-assign]

    found = [
        module for name, module in model.named_modules() if name.rpartition(".")[2] in ("attn", "attention")
    ]
    for module in found:
        exact(module)
    return len(found)


def first_nonfinite(model: nn.Module, run: Any) -> str | None:
    """Name of the first module whose output is not finite in the forward pass ``run()``, or None.

    Containers end after what they contain, so the first to be seen is the innermost.
    """
    seen: list[str] = []
    handles = []

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            bad = any(
                isinstance(t, Tensor) and t.is_floating_point() and not bool(t.isfinite().all())
                for t in tensors
            )
            if bad and not seen:
                seen.append(name)

        return hook

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(hook_of(name or "the network")))
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen[0] if seen else None


def first_bad_gradient(model: nn.Module) -> str | None:
    """Name of the last parameter, in the order of the network, whose gradient is not finite: backward starts there."""
    bad = [
        n
        for n, p in model.named_parameters()
        if p.grad is not None and not bool(whole(p.grad).isfinite().all())
    ]
    return bad[-1] if bad else None
