"""Semantic segmentation as a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepvit.data import AugmentConfig, DataOptions, ImageSet, InputSpec, preparation
from deepvit.data.augmentation import SMALL_SIDE
from deepvit.data.checking import DataCheck
from deepvit.errors import UserError
from deepvit.files import write_atomic
from deepvit.masks import (
    MaskData,
    check_masks,
    class_weights,
    has_masks,
    open_masks,
    open_unchecked,
    table,
)
from deepvit.report.sections import Section
from deepvit.tasks.labelled import several
from deepvit.tasks.segmentation import overlays, sections
from deepvit.tasks.segmentation.batches import Alone, Pictures, mask_batches, mask_loaders
from deepvit.tasks.segmentation.choices import InferOptions, SegmentOptions
from deepvit.tasks.segmentation.confusion import Confusion, by_class, class_rows
from deepvit.tasks.segmentation.inference import logits_of
from deepvit.tasks.segmentation.loss import criterion
from deepvit.tasks.segmentation.network import Deployed, SegmentationNetwork
from deepvit.tasks.segmentation.patches import by_mask
from deepvit.tasks.segmentation.predicting import predicted
from deepvit.tasks.task import Column, Fitting, Settings, Task
from deepvit.terminal import print_table, say

CHANNELS, SMALL_CHANNELS = 512, 64
EPOCHS = 5
MODEL = "deepvit_tiny_d16_patch4_32"
MODEL_ARGS = {"depth": 6, "reattention_blocks": "none", "stem": "conv"}
"""A convolutional stem learns from few scenes what a linear one does not; attention is plain, to compare cures with."""


class Segmentation(Task):
    """Images whose every pixel has one of ``facts["class_names"]``, or counts for nothing."""

    name = "segmentation"
    help = "a class for every pixel"
    columns = (
        Column("miou", "mean IoU %", "mIoU", unit="%"),
        Column("mean_accuracy", "mean accuracy %", "mean accuracy", unit="%"),
        Column("pixel_accuracy", "pixel accuracy %", "pixel accuracy", unit="%"),
        Column("loss", "validation loss", "loss", digits=4, better="lower"),
    )
    watch = "miou"
    options = SegmentOptions
    infer_options = InferOptions
    cells = 12
    hub_name = "image-segmentation"
    foremost = ("patch_similarity",)

    @classmethod
    def defaults(cls, given: Collection[str] = ()) -> dict[str, Any]:
        """A small ViT on drawn scenes, as quick as a first look should be, and segmentation's usual schedule and batch."""
        fresh = "weights" not in given
        chosen: dict[str, Any] = {"data": "digit-scenes", "schedule": "poly", "min_lr": 0.0, "batch_size": 16}
        chosen |= {"epochs": EPOCHS, "lr": 1e-3 if fresh else 1e-4}
        if fresh and "model" not in given:
            chosen |= {"model": MODEL} | ({} if "model_args" in given else {"model_args": dict(MODEL_ARGS)})
        return chosen

    # -- data --------------------------------------------------------------------------------------

    @classmethod
    def open(cls, spec: str, source: DataOptions, options: Any = None) -> Any:
        """Images with masks: ``MaskData``."""
        return several(open_masks(spec, source))

    @classmethod
    def sources(cls) -> list[dict[str, str]]:
        """Folders of pairs, published layouts, and drawn scenes."""
        return table()

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Names of sets with masks, and folders that hold them."""
        return has_masks(spec)

    @classmethod
    def open_unchecked(cls, spec: str, source: DataOptions) -> MaskData:
        """No mask is looked at."""
        return open_unchecked(spec, source)

    @classmethod
    def check(cls, data: Any, progress: Callable[[int], None]) -> DataCheck:
        """Unknown ids, void, sizes, missing halves of pairs, and a histogram of the classes."""
        return check_masks(data, progress=progress)

    @classmethod
    def facts_of(cls, data: Any, options: Any) -> dict[str, Any]:
        """Names and colours of the classes, and what the head is."""
        return {
            "class_names": list(data.class_names),
            "palette": [list(colour) for colour in data.palette],
            "ignore_index": data.ignore_index,
            **options.facts(),
        }

    def told_facts(self) -> str:
        """``11 classes, upernet head``."""
        return f"{self.classes} classes, {self.facts['head']} head"

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return list(self.facts["class_names"])

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.names)

    @property
    def nothing(self) -> int:
        """The value of pixels that do not count."""
        return int(self.facts["ignore_index"])

    # -- the network -------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """The backbone has no classifier."""
        return 0

    def model_args(self, takes: Callable[[str], bool], options: Any) -> dict[str, Any]:
        """Any size of images where the model can, and the size of crops as its own."""
        wanted: dict[str, Any] = {"dynamic_img_size": True, "dynamic_img_pad": True}
        # Windows of Swin have no table of positions that crops could fit, and its size must be a multiple of the patch.
        if options.scene.crop_size is not None and takes("dynamic_img_size") == takes("dynamic_img_pad"):
            wanted["img_size"] = options.scene.crop_size
        return {name: value for name, value in wanted.items() if takes(name)}

    def input(self, input: InputSpec, options: Any) -> InputSpec:
        """Crops of the size that is asked for; whole images are evaluated, so nothing is cut from them."""
        size = options.scene.crop_size or input.size
        return dataclasses.replace(input, size=size, crop_pct=1.0)

    def network(self, backbone: nn.Module, input: InputSpec) -> SegmentationNetwork:
        """The backbone with neck and decoder."""
        facts = self.facts
        usual = SMALL_CHANNELS if max(input.hw) <= SMALL_SIDE else CHANNELS
        return SegmentationNetwork(
            backbone, self.classes, input.hw, head=facts["head"], channels=facts["channels"] or usual,
            dropout=facts["decoder_dropout"], aux=facts["aux"],
        )  # fmt: skip

    def backbone(self, network: nn.Module) -> nn.Module:
        """The network without neck and decoder."""
        assert isinstance(network, SegmentationNetwork)
        return network.backbone

    # -- training ----------------------------------------------------------------------------------

    def fitting(self, data: Any, input: InputSpec, network: nn.Module, settings: Settings) -> Fitting:
        """Batches of crops, cross-entropy over the pixels that count, and labels of patches from the masks."""
        assert isinstance(network, SegmentationNetwork)
        own: SegmentOptions = settings.options
        for field in dataclasses.fields(settings.augment):
            if getattr(settings.augment, field.name) != getattr(AugmentConfig(), field.name):
                raise UserError(
                    f"--augment.{field.name} varies images without their masks; segmentation has --scene.KEY (deepvit train "
                    "--task segmentation --help)"
                )
        if own.frozen:
            if settings.losses:
                raise UserError(
                    "--frozen keeps the backbone as it is, so diversity losses have nothing to change"
                )
            network.freeze()
        mix = None
        if settings.losses.get("patch_mixing"):
            mix = by_mask(network.depths.sides[-1], self.classes, self.nothing)
        weights = None
        if own.class_weights != "none":
            weights = torch.as_tensor(class_weights(data, own.class_weights), dtype=torch.float32)
        loss = criterion(weights, own.aux_weight, self.nothing)
        return Fitting(mask_loaders(data, input, settings), loss, mix, overlays.examples(self.strips(input)))

    def strips(self, input: InputSpec) -> overlays.Strip:
        """What draws an image with truth, prediction and mistakes in this problem's colours."""
        return overlays.strips(input, self.facts["palette"], self.nothing)

    # -- measuring and using -----------------------------------------------------------------------

    def validation(self, data: Any, input: InputSpec, settings: Settings) -> Iterable[tuple[Tensor, Tensor]]:
        """Validation batches with classes of this network, whichever of them the data has."""
        return mask_batches(data, input, settings, self.names, self.nothing)

    def meter(self) -> Confusion:
        """The confusion matrix over the classes of the network."""
        return Confusion(self.classes, self.nothing)

    def infer(self, network: nn.Module, images: Tensor, options: Any = None) -> Tensor:
        """Logits [B, K, H, W], or the logarithm of averaged probabilities."""
        assert isinstance(network, SegmentationNetwork)
        return logits_of(network, images, network.window, options or InferOptions())

    def detail(self, meter: Any, data: Any) -> dict[str, Any]:
        """``per_class`` IoU and accuracy in percent (None where a class has none), ``left_out``, and ``confusion``."""
        return by_class(meter.counts(), self.names)

    @classmethod
    def show_detail(cls, result: Mapping[str, Any]) -> None:
        """The classes from worst to best, and those that are left out."""
        headings, rows = class_rows(result["per_class"])
        print_table(headings, rows)
        if result["left_out"]:
            left_out = ", ".join(result["left_out"])
            say(f"left out of the means, as neither truth nor prediction has them: {left_out}")

    @classmethod
    def draw(cls, result: Mapping[str, Any], stem: Path) -> list[Path]:
        """``STEM-confusion.png``."""
        png = overlays.confusion_png(np.array(result["confusion"]), list(result["per_class"]))
        return [write_atomic(stem.with_name(f"{stem.name}-confusion.png"), png)]

    def pictures(self, data: Any) -> ImageSet:
        """The validation images without their masks."""
        return Pictures(data.val, torch.arange(len(data.val)))

    def report_parts(
        self, network: nn.Module, data: Any, input: InputSpec, settings: Settings
    ) -> Sequence[Section]:
        """Examples, IoU by class and the confusion matrix, over all validation images, by this process alone."""
        alone = mask_batches(data, input, settings, self.names, self.nothing, Alone)
        count = len(mask_loaders(data, input, settings).val_set)
        where = next(network.parameters()).device

        def logits(images: Tensor) -> Tensor:
            return self.infer(network, images.to(where)).cpu()

        return sections.of_images(alone, count, logits, self.strips(input), self.facts)

    def deployed(self, network: nn.Module) -> nn.Module:
        """Whole images → logits of every pixel; the auxiliary head is for training alone."""
        assert isinstance(network, SegmentationNetwork)
        network.aux = None
        return Deployed(network)

    def preparation(self, input: InputSpec) -> list[dict[str, Any]]:
        """Whole images: nothing is cut off, and resized only where the run was trained on resized ones."""
        return preparation.whole(input, self.facts["short_side"])

    def answer(self) -> dict[str, Any]:
        """Logits by class and pixel."""
        resized = {} if self.facts["short_side"] is None else {"resized_to_image": "bilinear"}
        return {
            "meaning": "one logit a class and pixel; the largest says the class, softmax over the second dimension gives "
            "probabilities; deepvit predict --inference whole gives the same",
            **resized,
            "classes": self.names,
            "palette": self.facts["palette"],
        }

    def predict(
        self,
        network: nn.Module,
        images: Sequence[Path],
        input: InputSpec,
        options: Any,
        infer: Any,
        out: Path | None,
    ) -> Iterator[dict[str, Any]]:
        """``shares`` of the classes in percent of the pixels, and with ``out`` the paths of the masks, in its folder."""
        where = next(network.parameters()).device
        logits = lambda given: self.infer(network, given.to(where), infer)  # noqa: E731
        return predicted(logits, images, input, self.facts, out)

    def told(self, row: Mapping[str, Any]) -> str:
        """``ground 91.2%, digit 4 5.0%``, and where the overlay lies."""
        text = ", ".join(f"{name} {share:.1f}%" for name, share in list(row["shares"].items())[:5])
        return f"{text} → {row['overlay']}" if "overlay" in row else text
