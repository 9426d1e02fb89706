"""What is minimised: the task's own loss and any diversity losses, as named terms."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.losses import Diversity
from deepvit.tasks.task import Criterion, Mixed


class Objective(nn.Module):
    """The task's loss plus weighted diversity losses; returns every term by name.

    Args:
        backbone: the network that the diversity losses watch; it is not a child of this module.
        criterion: the task's loss, (output, targets) → weighted terms.
        classes: width of the mixing loss's own head.
        weights: name → weight of the diversity losses, empty for none (``deepvit.losses.Diversity``).
        options: further arguments of ``Diversity`` (``forms`` and so on).
        mix: what is done to a batch before the network sees it, with labels of patches for the mixing loss; or None.

    Raises:
        UserError: an unknown loss, a negative weight, a model without patch tokens.
    """

    def __init__(
        self,
        backbone: nn.Module,
        criterion: Criterion,
        *,
        classes: int,
        weights: dict[str, float] | None = None,
        options: dict[str, Any] | None = None,
        mix: Callable[[Tensor, Any], Mixed] | None = None,
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self.mix = mix
        self.diversity: Diversity | None = None
        if weights:
            try:
                self.diversity = Diversity(backbone, weights=weights, num_classes=classes, **(options or {}))
            except TypeError as error:
                raise UserError(f"loss_args: {str(error).removeprefix('Diversity.__init__() ')}") from None
            except UserError as error:
                raise UserError(as_typed(str(error))) from None
        elif options:
            raise UserError(
                "loss_args is given but no loss has a weight: add for example --losses.patch_cosine 1"
            )

    def forward(
        self,
        network: Callable[[Tensor], Any],
        images: Tensor,
        targets: Any,
        after_mixing: Callable[[], None] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the network on the images and return the total loss with its terms.

        Args:
            network: the model, or its compiled form.
            images: normalised, ``[B, 3, H, W]``.
            targets: as the task's criterion takes them.
            after_mixing: called when the batch has been mixed: what is drawn from there on may have another seed.

        Returns:
            the total (a scalar) and the terms by name: the task's as they enter the total, the diversity losses
            without their weights.
        """
        mixed = Mixed(images, targets, targets) if self.mix is None else self.mix(images, targets)
        if after_mixing is not None:
            after_mixing()
        if self.diversity is None:
            own = self.criterion(network(mixed.images), mixed.targets)
            return total_of(own), own
        with self.diversity.watch():
            output = network(mixed.images)
        terms = self.diversity.terms(mixed.patches)
        own = self.criterion(output, mixed.targets)
        return total_of(own) + self.diversity.total(terms), {**own, **terms}

    def parts(self) -> list[nn.Module]:
        """What is trained beside the network: heads of the diversity losses."""
        if self.diversity is None:
            return []
        return [part for part in self.diversity.children() if any(True for _ in part.parameters())]


def as_typed(text: str) -> str:
    """What ``Diversity`` says, with its arguments as a run's options have them."""
    if "no forward pass was watched" in text:  # it ran, and the module that was named had no part in it
        return "the module of --loss_args.last is not run by itself; name another"
    return re.sub(r"\b(first|last)=", r"--loss_args.\1", text)


def total_of(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms; one term is its own sum, to the bit."""
    first, *others = terms.values()
    return first if not others else torch.stack([first, *others]).sum()
