"""A frozen network whose patch tokens a loss compares with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.losses.intermediates import Taken, find_places, listen, patches_of


class Teacher:
    """Gives a frozen network's patch tokens for the images that another network was called with.

    Args:
        model: the network; it is put into evaluation mode and moves to the images' device by itself.
        block, norm: whether tokens of the last block and after the final norm will be asked for.
    """

    def __init__(self, model: nn.Module, *, block: bool, norm: bool) -> None:
        self.model = model.eval()
        self.places = find_places(model)
        wanted = {self._name(False)} if block else set()
        wanted |= {self._name(True)} if norm else set()
        self._switch, self._handles = listen(model, wanted, [])

    def _name(self, normed: bool) -> str:
        return self.places.norm if normed and self.places.norm else self.places.last

    def tokens(self, called: Mapping[str, Any], normed: bool) -> Tensor:
        """Patch tokens [B, N, C] of the same images; one run serves all losses of a step."""
        if "teacher" not in called:
            called["teacher"] = self._run(called)  # type: ignore[index]
        name = self._name(normed)
        return patches_of(self.model, self.places, name, called["teacher"].outputs[name])

    def _run(self, called: Mapping[str, Any]) -> Taken:
        images = next((x for x in called["inputs"] if isinstance(x, Tensor)), None)
        if images is None:
            raise UserError("the teacher needs the images: call the watched model with a tensor first")
        if next(self.model.parameters()).device != images.device:
            self.model.to(images.device)
        self.model.eval()
        taken = self._switch.taken = Taken()
        try:
            with torch.no_grad():
                self.model(*called["inputs"], **called["given"])
        finally:
            self._switch.taken = None
        return taken

    def remove(self) -> None:
        """Take the hooks off the network."""
        for handle in self._handles:
            handle.remove()
