"""The first block's values, handed to later blocks: what NeuTRENO and value residuals have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deepvit.cures.target import attention_of, split_values
from deepvit.errors import UserError


class FirstValues:
    """Holds the first block's values [B, N, D] of the forward pass under way, for the blocks after it.

    They stay until the next forward pass, because gradient checkpointing reads them again in the backward
    pass. Copies and files of the model go without them.
    """

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def see(self, _module: nn.Module, _inputs: Any, qkv: Tensor) -> None:
        """Hook on the first block's ``qkv``."""
        self.values = split_values(qkv)[1]

    def get(self) -> Tensor:
        """The values; the first block has always run before a later one."""
        assert self.values is not None
        return self.values

    def __getstate__(self) -> dict[str, None]:
        return {"values": None}


def attach(
    model: nn.Module, blocks: list[int], cure: str, *kinds: type[nn.Module]
) -> tuple[FirstValues, list[Any]]:
    """Listen to block 0; return its values' holder and the attention modules of the other blocks.

    Block 0 itself is left alone (it would be given its own values). Raises UserError when no other is asked
    for, or when a block's attention is of another class.
    """
    later = [number for number in blocks if number > 0]
    if not later:
        raise UserError(f"{cure} hands block 0's values to later blocks; blocks={blocks} names none")
    first = attention_of(model, 0, cure, *kinds)
    found = [attention_of(model, number, cure, *kinds) for number in later]
    holder = FirstValues()
    first.qkv.register_forward_hook(holder.see)
    return holder, found
