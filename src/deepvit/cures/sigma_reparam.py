"""σReparam: keep each weight's spectral norm at a learned value.

Mechanism: attention entropy falls (maps turn sharp, training blows up) when the spectral norms of the
projections grow; dividing each weight by its own leaves one learned scalar in charge of the size.

Formula: ``W ← γ·W / σ(W)``, σ(W) = uᵀWv by power iteration, one step a training forward; γ learned, one a
weight.
Source: Zhai et al. 2023, "Stabilizing Transformer Training by Preventing Attention Entropy Collapse" (arXiv
2303.06296).
Cost: two matrix-vector products a weight and step; one parameter a weight. Attention is untouched.
Start: ``init="identity"`` γ = σ(W), the weights are what they were; ``init="paper"`` γ = 1.
Helps: maps that are too sharp, training that diverges. Does not help uniform maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deepvit.cures.cure import Cure
from deepvit.cures.memory import follow, now, once_a_pass
from deepvit.cures.target import blocks_of
from deepvit.errors import UserError
from deepvit.losses.precision import full


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch 2.11 cannot compile the question
def _autocast_device(device: str) -> str:
    """The device type itself, or "cpu" where it has no autocast (meta)."""
    return device if torch.amp.is_autocast_available(device) else "cpu"


class SigmaReparam(nn.Module):
    """Parametrization of a weight [out, in]: ``γ·W / σ(W)``; u and v are buffers that training moves."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, identity: bool) -> None:
        super().__init__()
        with torch.no_grad():
            # Exact at the start, by the Gram matrix of the smaller side: a power iteration cut short would
            # keep moving σ, and with it the function, in the first steps of fine-tuning.
            matrix = weight.double()
            wide = matrix.shape[1] > matrix.shape[0]
            top = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix).eigenvectors[:, -1]
            v = F.normalize(matrix.T @ top, dim=0) if wide else top
            u = F.normalize(matrix @ v, dim=0)
            sigma = torch.dot(u, matrix @ v)
            u, v = u.float(), v.float()
        self.moved: tuple[Tensor, Tensor] | None = None
        self.register_buffer("u", u)
        self.register_buffer("v", v)
        self.gain = nn.Parameter(
            sigma.to(weight.dtype) if identity else torch.ones_like(sigma, dtype=weight.dtype)
        )

    @staticmethod
    def step(matrix: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """One power iteration: new u [out] and v [in], unit vectors."""
        u = F.normalize(torch.mv(matrix, v), dim=0)
        return u, F.normalize(torch.mv(matrix.T, u), dim=0)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses."""
        # In float32 at least, whatever autocast says and whatever the model was cast to since: σ to three digits
        # would move the function by as much.
        device = weight.device.type
        with torch.autocast(_autocast_device(device), enabled=False):
            matrix = full(weight)
            if self.moved is not None:
                u, v = self.moved
            elif self.training:
                u, v = once_a_pass(self, "sigma_reparam", lambda: self.move(matrix))
            else:
                u, v = self.vectors(matrix)
            sigma = torch.dot(u, torch.mv(matrix, v))
            floor = torch.finfo(matrix.dtype).tiny
            return (matrix * (self.gain.to(matrix.dtype) / sigma.clamp_min(floor))).to(weight.dtype)

    def vectors(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """u and v as the buffers hold them, unit vectors also where these were rounded to half precision."""
        u, v = self.u.to(matrix.dtype), self.v.to(matrix.dtype)
        return (u, v) if self.u.dtype == matrix.dtype else (F.normalize(u, dim=0), F.normalize(v, dim=0))

    @torch.no_grad()
    def move(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the buffers, and what it came to: the graph keeps that, as the next pass moves them on."""
        u, v = self.step(matrix, self.v.to(matrix.dtype))
        self.u.copy_(u)
        self.v.copy_(v)
        return u, v


def move_all(model: nn.Module, _inputs: Any) -> None:
    """Hook before a network: where it is compiled as a whole, all parts move here, outside of what gradient
    checkpointing computes again."""
    if now().whole:
        for part, weight in _parts(model):
            part.moved = part.move(full(weight)) if part.training else None


def moved_all(model: nn.Module, _inputs: Any, _output: Any) -> None:
    """Hook after a network: nothing of the graph is kept."""
    if torch.compiler.is_compiling():
        for part, _ in _parts(model):
            part.moved = None


def _parts(model: nn.Module) -> list[tuple[SigmaReparam, Tensor]]:
    lists = [m for m in model.modules() if isinstance(m, parametrize.ParametrizationList)]
    return [(places[0], places.original) for places in lists if isinstance(places[0], SigmaReparam)]


@dataclass(frozen=True)
class Options:
    """Options of σReparam."""

    init: str = "identity"
    """"identity": γ = σ(W). "paper": γ = 1."""
    where: str = "all"
    """"all" linear layers of a block, or "attention"'s only."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Reparametrize the linear layers of these blocks; raises UserError where some are already."""
    if options.where not in ("all", "attention"):
        raise UserError(f"sigma_reparam: where={options.where!r}: choose all or attention")
    found = []
    for number in blocks:
        block = blocks_of(model, "sigma_reparam")[number]
        owner = block if options.where == "all" else block.attn
        # Head mixing (H×H) is no projection of tokens; its size is not what sharpens maps.
        layers = [m for m in owner.modules() if isinstance(m, nn.Linear) and min(m.weight.shape) > 1]
        layers = [m for m in layers if m not in (getattr(block.attn, n, None) for n in ("proj_l", "proj_w"))]
        if not layers:
            raise UserError(f"blocks.{number} ({type(block).__name__}) has no linear layer for sigma_reparam")
        if any(parametrize.is_parametrized(layer) for layer in layers):
            raise UserError(
                f"blocks.{number} has a reparametrized weight already; sigma_reparam cannot be added"
            )
        found += layers
    follow(model, "sigma_reparam")
    if not any(hook is move_all for hook in model._forward_pre_hooks.values()):
        model.register_forward_pre_hook(move_all)
        model.register_forward_hook(moved_all)
    for layer in found:
        part = SigmaReparam(layer.weight, options.init == "identity").train(layer.training)
        parametrize.register_parametrization(layer, "weight", part)


CURE = Cure(
    name="sigma_reparam",
    mechanism="weights of a learned spectral norm: W·γ/σ(W), σ by power iteration",
    source="Zhai et al. 2023, arXiv 2303.06296",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"weights"}),
    helps="maps that are too sharp",
    answers={
        "sharp_maps": "bounds the spectral norm of the weights, so that scores cannot run away",
    },
)
