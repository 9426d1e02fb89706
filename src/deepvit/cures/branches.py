"""Cures of the residual sum: they see the stream that a branch reads and change what the branch adds to it."""

from __future__ import annotations

from typing import Any

from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from deepvit.cures.masks import find_mask, mask_place
from deepvit.cures.memory import now
from deepvit.cures.target import add_part, blocks_of
from deepvit.errors import UserError
from deepvit.models.block import ResidualScaleBlock

# Blocks that compute x + drop_path(branch(norm(x))), twice.
PRE_NORM = (Block, ResidualScaleBlock, EvaBlock)
BRANCHES = (("norm1", "drop_path1"), ("norm2", "drop_path2"))


def pre_norm_blocks(model: nn.Module, blocks: list[int], cure: str) -> list[Any]:
    """These blocks; raises UserError where one does not add its branches to the stream that their norms read."""
    found = [blocks_of(model, cure)[number] for number in blocks]
    for number, block in zip(blocks, found, strict=True):
        if type(block) not in PRE_NORM:
            raise UserError(
                f"blocks.{number} is {type(block).__name__}, which cannot take {cure}; it needs a block that norms before "
                "each branch: timm's Block or EvaBlock"
            )
    return found


class ChangesBranch(nn.Module):
    """Base: changes one branch [B, N, C] of a block, drop path included, given the stream [B, N, C] it is added to."""

    def __init__(self, cure: str) -> None:
        super().__init__()
        self.cure = cure
        self.mask_place = -1

    def listen(self, _block: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Hook before the block: its padding mask."""
        now().padding = find_mask(inputs, given, self.mask_place, self.cure)

    def see(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Hook before the branch's norm: the stream."""
        now().stream = inputs[0]

    def change(self, _end: nn.Module, _inputs: Any, branch: Tensor) -> Tensor:
        """Hook after the branch's drop path."""
        here = now()
        stream, here.stream = here.stream, None
        assert stream is not None
        return self.combine(stream, branch, here.padding)

    def combine(self, stream: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
        """What is added to the stream in place of ``branch``."""
        raise NotImplementedError

    def attach(self, block: Any, name: str, norm: str, end: str) -> None:
        """Become a part of a block, for one of its ``BRANCHES``."""
        add_part(block, name, self)
        self.mask_place = mask_place(block)
        block.register_forward_pre_hook(self.listen, with_kwargs=True)
        getattr(block, norm).register_forward_pre_hook(self.see)
        getattr(block, end).register_forward_hook(self.change)
