"""Which block a module belongs to, told by its name alone: the innermost item of a repeated container.

``blocks.3.attn`` is in ``blocks.3``, ``layers.2.blocks.1.attn`` in ``layers.2.blocks.1``,
``encoder.layers.encoder_layer_3.self_attention`` in ``encoder.layers.encoder_layer_3``, and
``transformer.layers.0.0`` in ``transformer.layers.0``: there the inner list pairs an attention with an MLP
and repeats nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from deepvit.errors import UserError

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
# Layers that any container may hold twice without repeating a block.
_PLAIN = frozenset(
    {nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d, nn.Dropout, nn.Identity, nn.ReLU, nn.GELU}
)
_NUMBERED = re.compile(r"^(.*?)\d+$")


class BlockNames:
    """Maps the name of any module of a model to the name of its block.

    ``explicit`` names the blocks instead (any module names); what lies outside them then has no block.
    Raises ``UserError`` for an explicit name that the model does not have.
    """

    def __init__(self, model: nn.Module, explicit: Sequence[str] | None = None) -> None:
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        if explicit is None:
            self._items = {name for name in self.modules if name and self._is_item(name)}
        else:
            for name in explicit:
                if name not in self.modules:
                    found = ", ".join(sorted(n for n in self.modules if n and self._is_item(n))[:4])
                    raise UserError(
                        f"blocks: the model has no module {name!r}"
                        + (f"; its blocks are named like {found}" if found else "")
                    )
            self._items = set(explicit)

    def block_of(self, module_name: str) -> str | None:
        """The name of the innermost block that holds the module (or is it); None outside all blocks."""
        parts = module_name.split(".")
        for length in range(len(parts), 0, -1):
            name = ".".join(parts[:length])
            if name in self._items:
                return name
        return None

    def key_of(self, block: str, owner: str) -> str:
        """The key of the attention made in module ``owner`` of ``block``.

        It is the block's name where the block has one module of the owner's class, else the name of the
        shortest branch that tells them apart (MaxViT: ``stages.0.blocks.0.attn_block`` and ``….attn_grid``).
        """
        same = [name for name in self._within(block) if type(self.modules[name]) is type(self.modules[owner])]
        if owner == block or len(same) < 2:
            return block
        branch = block
        for part in owner[len(block) + 1 :].split("."):
            branch = f"{branch}.{part}"
            if sum(name == branch or name.startswith(branch + ".") for name in same) == 1:
                break
        return branch

    def is_called(self, block: str) -> bool:
        """Whether the block has a forward of its own (a bare list of its parts has none: vit-pytorch)."""
        return not isinstance(self.modules[block], nn.ModuleList | nn.ModuleDict)

    def _within(self, block: str) -> Iterable[str]:
        return (name for name in self.modules if name == block or name.startswith(block + "."))

    def _is_item(self, name: str) -> bool:
        parent_name, _, own = name.rpartition(".")
        parent, module = self.modules[parent_name], self.modules[name]
        siblings = dict(parent.named_children())
        if isinstance(parent, _CONTAINERS):
            alike = [n for n, m in siblings.items() if type(m) is type(module)]
            # A container of one (a stage one block deep) repeats its block once.
            if len(alike) >= 2 or len(siblings) == 1:
                return True
            # One block of several may be wrapped, or of a class of its own that is derived from theirs.
            types = [type(m) for m in siblings.values()]
            repeated = tuple({t for t in types if types.count(t) >= 2 and t not in _PLAIN})
            return bool(repeated) and any(isinstance(part, repeated) for part in module.modules())
        stem = _NUMBERED.match(own)
        if stem is None:
            return False
        alike = [
            n
            for n, m in siblings.items()
            if type(m) is type(module) and (match := _NUMBERED.match(n)) and match[1] == stem[1]
        ]
        # Layers of an attention may be numbered too (fc1, fc2): a block has parts, a layer has none.
        return len(alike) >= 2 and any(True for _ in module.children())
