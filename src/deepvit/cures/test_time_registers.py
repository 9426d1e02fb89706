"""Test-time registers: a zero token takes over what a few neurons do to patches. Nothing is trained.

Mechanism: in networks trained without registers a few neurons of the MLPs make the patches of huge norm. Where their
activations are moved from the patches to an extra token, that token becomes the outlier, and the patches describe their
places again.

Formula: with h the activations of an MLP's hidden layer and n such a neuron, ``h[register, n] = max_i h[i, n]`` over the
patches i, then ``h[i, n] = 0``; the register starts as a zero token.
Source: Jiang, Dravid, Efros and Gandelsman 2025, "Vision Transformers Don't Need Trained Registers" (arXiv 2506.08010);
written from the description. How neurons are ranked and up to which block they are looked for: ``register_neurons``.
Cost: one more token in every block; no parameter that is trained.
Start: not the identity: that is what it is for. A checkpoint keeps its weights.
Helps: outlier patch tokens of trained networks, noisy maps in dense prediction. Acts on the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from deepvit.cures.cure import Cure
from deepvit.cures.registers import add_tokens
from deepvit.cures.target import add_part, blocks_of
from deepvit.errors import UserError


@dataclass(frozen=True)
class Options:
    """Options of test-time registers."""

    neurons: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Block number → numbers of the register neurons in its MLP's hidden layer, of ``register_neurons``."""
    count: int = 1
    """How many tokens are added."""


class Shift(nn.Module):
    """Moves some channels of [B, N, H] from the patches to the registers, by their largest value."""

    moved: Tensor

    def __init__(self, channels: int, neurons: Sequence[int], before: int, count: int, like: Tensor) -> None:
        super().__init__()
        self.before, self.count = before, count
        moved = torch.zeros(channels, device=like.device, dtype=torch.bool)
        moved[list(neurons)] = True
        self.register_buffer("moved", moved, persistent=False)

    def change(self, _act: nn.Module, _inputs: Any, hidden: Tensor) -> Tensor:
        """Hook behind the MLP's activation."""
        first, registers, patches = hidden.split(
            [self.before, self.count, hidden.shape[1] - self.before - self.count], 1
        )
        registers = torch.where(self.moved, patches.amax(1, keepdim=True), registers)
        return torch.cat([first, registers, patches.masked_fill(self.moved, 0.0)], 1)


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Add the token and the shifts; raises UserError without neurons, for ones that are not there, or other MLPs."""
    if not options.neurons:
        raise UserError(
            "test_time_registers needs its neurons: find them by cures.test_time_registers.register_neurons(model, images)"
        )
    found = blocks_of(model, "test_time_registers")
    chosen: dict[int, list[int]] = {}
    for key, numbers in options.neurons.items():
        if not str(key).isdecimal() or int(key) >= len(found):
            raise UserError(f"test_time_registers: there is no block {key} (0 to {len(found) - 1})")
        width = _mlp(found[int(key)], int(key)).fc1.out_features
        wrong = [number for number in numbers if not 0 <= number < width]
        if wrong:
            raise UserError(f"test_time_registers: block {key} has no neuron {wrong[0]} (0 to {width - 1})")
        chosen[int(key)] = list(numbers)
    before = int(model.num_prefix_tokens)  # type: ignore[arg-type]
    add_tokens(model, options.count, "test_time_registers")
    model.reg_token.requires_grad_(False)  # type: ignore[operator, union-attr]
    for number, numbers in chosen.items():
        mlp = _mlp(found[number], number)
        shift = Shift(mlp.fc1.out_features, numbers, before, options.count, mlp.fc1.weight)
        add_part(mlp, "register_shift", shift)
        mlp.act.register_forward_hook(shift.change)


def _mlp(block: Any, number: int) -> Any:
    mlp: Any = getattr(block, "mlp", None)
    if type(mlp) is not Mlp or not isinstance(mlp.fc1, nn.Linear):
        raise UserError(
            f"blocks.{number}.mlp is {type(mlp).__name__}, which cannot take test_time_registers; it needs timm's Mlp"
        )
    return mlp


@torch.no_grad()
def register_neurons(
    model: nn.Module, images: Tensor, top: int = 10, factor: float = 3.0
) -> dict[str, list[int]]:
    """The neurons that make high-norm patches: block number → neurons, as the option ``neurons`` takes them.

    A patch is an outlier where its norm after the last block is above ``factor`` times the median norm of its image's
    patches (the rule of reports, ours). Neurons of all blocks up to the first after which these patches are outliers on
    average are ranked by the mean size of their activation at outliers; the first ``top`` are taken.

    Args:
        model: a timm ViT, in evaluation mode.
        images: [B, 3, h, w], a few dozen.

    Raises:
        UserError: no such patch, or a network whose blocks have other MLPs.
    """
    found = blocks_of(model, "test_time_registers")
    prefix = int(model.num_prefix_tokens)  # type: ignore[arg-type]
    norms: list[Tensor] = []
    hidden: list[Tensor] = []
    handles = []
    for number, block in enumerate(found):
        keep = lambda _m, _a, out: norms.append(out[:, prefix:].float().norm(dim=-1))  # noqa: E731
        see = lambda _m, _a, out: hidden.append(out[:, prefix:].float().abs())  # noqa: E731
        handles += [block.register_forward_hook(keep), _mlp(block, number).act.register_forward_hook(see)]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    outlying = norms[-1] > factor * norms[-1].median(1, keepdim=True).values
    if not bool(outlying.any()):
        raise UserError(
            f"no patch of these images has more than {factor:g} times the median norm after the last block"
        )
    relative = [float((norm / norm.median(1, keepdim=True).values)[outlying].mean()) for norm in norms]
    last = next(number for number, value in enumerate(relative) if value > factor or number == len(found) - 1)
    scores = torch.stack([each[outlying].mean(0) for each in hidden[: last + 1]])
    best = scores.flatten().topk(min(top, scores.numel())).indices.tolist()
    chosen: dict[str, list[int]] = {}
    for place in sorted(best):
        chosen.setdefault(str(place // scores.shape[1]), []).append(place % scores.shape[1])
    return chosen


CURE = Cure(
    name="test_time_registers",
    mechanism="a zero token takes over what register neurons do to patches: its n is max_i h[i, n], patches' is 0",
    source="Jiang et al. 2025, arXiv 2506.08010",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=False,
    slots=frozenset({"prefix tokens"}),
    helps="outlier patches of trained networks",
    per_block=False,
    needs_options=True,
)
