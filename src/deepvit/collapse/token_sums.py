"""Running sums of all token metrics, by their records: tokens come in block by block and are gone after the batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepvit.capturing import TokenLayout
from deepvit.collapse.catalogue import of_stage
from deepvit.collapse.metrics import cka_matrix
from deepvit.collapse.metrics.metric import computed
from deepvit.collapse.metrics.tokens import image_directions, image_similarity
from deepvit.collapse.moments import Moments
from deepvit.collapse.plan import Plan, spread_evenly
from deepvit.collapse.rows import Row
from deepvit.collapse.states import has_patches_alike
from deepvit.errors import UserError

# Fewer tokens than this say nothing about alignment.
_FEWEST_ALIGNMENT_TOKENS = 16


class TokenSums:
    """Takes the tokens after every block of one forward pass after another; mean and deviation over images.

    Call ``begin``, then for each block ``entering`` (its input, where known) and ``on_tokens`` (its output)
    in order, then ``end``. Prefix tokens are left out of every metric. A few patches of each image are kept
    for CKA, no more than ``plan.alignment_tokens`` in all.
    """

    def __init__(self, rows: Sequence[Row], plan: Plan) -> None:
        self.rows, self.plan = rows, plan
        self.position = {
            row.block: number for number, row in enumerate(rows) if row.tokens and row.patches > 0
        }
        self.series: dict[str, dict[int, Moments]] = defaultdict(lambda: defaultdict(Moments))
        self.states: dict[str, dict[int, Moments]] = defaultdict(lambda: defaultdict(Moments))
        self._metrics = of_stage("tokens", plan.metrics)
        self._at_end = of_stage("end", plan.metrics)
        # Between images: one running direction a block, so that memory does not grow with the images.
        self._between = plan.metrics is None or "image_similarity" in plan.metrics
        self._directions: dict[int, Tensor] = {}
        self._counts: dict[int, int] = defaultdict(int)
        self._kept: dict[int, dict[int, Tensor]] = defaultdict(dict)
        self._images: list[int] = []
        self._before: dict[int, Tensor] = {}
        self._between_branches: dict[int, Tensor] = {}
        self._outputs: dict[int, Tensor] = {}

    def begin(self, images: Sequence[int]) -> None:
        """Start a forward pass over the images with these numbers."""
        self._images = list(images)
        self._before.clear()
        self._between_branches.clear()
        self._outputs.clear()

    def entering(self, block: str, tokens: Tensor) -> None:
        """The tokens [B,N,C] that enter a block."""
        if block in self.position:
            # A copy: the block may add to its input in place.
            self._before[self.position[block]] = tokens.detach().clone()

    def between(self, block: str, tokens: Tensor) -> None:
        """The tokens [B,N,C] between the two branches of a block."""
        if block in self.position:
            self._between_branches[self.position[block]] = tokens.detach().clone()

    def on_tokens(self, block: str, tokens: Tensor, layout: TokenLayout) -> None:
        """The tokens [B,N,C] that leave a block."""
        number = self.position.get(block)
        if number is None:
            return
        patches = tokens[:, layout.patches]
        if not bool(patches.isfinite().all()):
            raise UserError(
                f"{block}: its tokens are NaN or infinite; the model has diverged, or needs another precision"
            )
        if self._between:
            self._directions[number] = image_directions(patches).sum(0).cpu() + self._directions.get(
                number, 0
            )
            self._counts[number] += len(patches)
        before = self._before.pop(number, None)
        some = patches[:, spread_evenly(patches.shape[1], self.plan.patch_limit, patches.device)]
        few = [place for place, image in enumerate(self._images) if self.plan.wants_rank(image)]
        if before is not None and before.shape != tokens.shape:
            before = None
        between = self._between_branches.pop(number, None)
        if between is not None and between.shape != tokens.shape:
            between = None
        supply: dict[str, Callable[[], Any]] = {
            "patches": lambda: patches,
            "some_patches": lambda: some,
            "few_patches": lambda: some[few] if few else None,
            "patches_before": lambda: None if before is None else before[:, layout.patches],
            "patches_between": lambda: None if between is None else between[:, layout.patches],
            "token_layout": lambda: layout,
        }
        for metric, values in computed(self._metrics, supply):
            self.series[metric.key][number].add(values)
            if metric.key == "patch_similarity":
                self.states["patches"][number].add(has_patches_alike(values).to(torch.float64))
        # Indexing made a copy unless all patches were taken as they are.
        self._outputs[number] = some

    def end(self) -> None:
        """Finish the forward pass: what needs the last block's tokens, and the tokens kept for CKA."""
        last = self._outputs.get(max(self.position.values(), default=-1))
        for number, tokens in self._outputs.items():
            alike = last is not None and last.shape == tokens.shape
            supply = {
                "some_patches": partial(_same, tokens),
                "last_patches": partial(_same, last if alike else None),
            }
            for metric, values in computed(self._at_end, supply):
                self.series[metric.key][number].add(values)
        for number, tokens in self._outputs.items():
            count = min(self.plan.alignment_per_image, tokens.shape[1])
            # By the number of the image, not by how many came: the choice must not depend on the batch size.
            first = self.plan.alignment_tokens // count
            places = spread_evenly(tokens.shape[1], count, tokens.device)
            for place, image in enumerate(self._images):
                if image < first:
                    # Other places in every image: few tokens an image then still cover the grid.
                    picked = tokens[place, (places + image) % tokens.shape[1]]
                    self._kept[number][image] = picked.to("cpu", torch.float32)
        self._outputs.clear()

    def between_images(self) -> list[float]:
        """Similarity between images after each block; NaN where there is none."""
        nothing = torch.zeros(1)
        return [
            image_similarity(self._directions.get(number, nothing), self._counts.get(number, 0))
            for number in range(len(self.rows))
        ]

    @property
    def images_between(self) -> int:
        """How many images ``between_images`` rests on."""
        return max(self._counts.values(), default=0)

    def alignment(self) -> list[list[float | None]]:
        """Debiased linear CKA of every pair of rows with equally many patches; ``None`` elsewhere."""
        size = len(self.rows)
        result: list[list[float | None]] = [[None] * size for _ in range(size)]
        groups: dict[int, list[int]] = defaultdict(list)
        for number in self._kept:
            groups[self.rows[number].patches].append(number)
        for members in groups.values():
            # In the order of the images: the order of sums then does not depend on the batches either.
            features = [torch.cat([tokens for _, tokens in sorted(self._kept[n].items())]) for n in members]
            if features[0].shape[0] < _FEWEST_ALIGNMENT_TOKENS:
                continue
            matrix = cka_matrix(features)
            for i, p in enumerate(members):
                for j, q in enumerate(members):
                    value = float(matrix[i, j])
                    result[p][q] = value if value == value else None
        return result


def _same(value: Tensor | None) -> Tensor | None:
    return value
