"""Semantic segmentation as a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tvf

from deepvit.data import AugmentConfig, DataOptions, ImageSet, InputSpec, Loaders, preparation, read_image
from deepvit.data.augmentation import SMALL_SIDE
from deepvit.data.sets import Subset
from deepvit.data.split import evenly_spaced
from deepvit.errors import UserError
from deepvit.files import write_atomic
from deepvit.masks import open_masks
from deepvit.report.sections import Section
from deepvit.tasks.segmentation import overlays, sections
from deepvit.tasks.segmentation.choices import InferOptions, SegmentOptions
from deepvit.tasks.segmentation.confusion import Confusion, scores
from deepvit.tasks.segmentation.inference import logits_of
from deepvit.tasks.segmentation.network import Deployed, SegmentationNetwork
from deepvit.tasks.segmentation.patches import by_mask
from deepvit.tasks.task import Column, Criterion, Fitting, Settings, Task
from deepvit.terminal import print_table, say

CHANNELS, SMALL_CHANNELS = 512, 64
SHOWN, LARGEST = 4, 256
EPOCHS = 9
MODEL = "deepvit_tiny_d16_patch4_32"
MODEL_ARGS = {"depth": 8, "reattention_blocks": "none", "stem": "conv"}
"""A convolutional stem learns from few scenes what a linear one does not; attention is plain, to compare cures with."""
"""Images of a validation batch that TensorBoard shows, and rows of each at most."""
AT_ONCE = 2**21
"""Pixels of a validation batch at most: logits of 150 classes for so many take 1.3 GB."""


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
        data = open_masks(spec, source)
        if data.num_classes < 2:
            raise UserError(
                f"{spec} has one class only ({data.class_names[0]}): there is nothing to tell apart"
            )
        return data

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
            from deepvit.masks import class_weights

            weights = torch.as_tensor(class_weights(data, own.class_weights), dtype=torch.float32)
        loaders = self.loaders(data, input, settings)

        def examples(images: Tensor, output: Tensor, targets: Tensor) -> Tensor:
            step = max(1, images.shape[-2] // LARGEST)
            images, output, targets = (x[..., ::step, ::step] for x in (images, output, targets))
            rows = [
                self.strip(images[i], targets[i], output[i].argmax(0), input)
                for i in range(min(SHOWN, len(images)))
            ]
            return torch.from_numpy(np.concatenate(rows)).permute(2, 0, 1)

        return Fitting(loaders, criterion(weights, own.aux_weight, self.nothing), mix, examples)

    def loaders(
        self, data: Any, input: InputSpec, settings: Settings, kind: type[Loaders] = Loaders
    ) -> Loaders:
        """The data room's loaders, with joint transforms of image and mask."""
        own: SegmentOptions = settings.options
        known = evenly_spaced(len(data.val), 16)
        sizes = [data.val.size(i) for i in (range(len(data.val)) if known is None else known.tolist())]
        largest = max(height * width for height, width in sizes)
        return kind(
            data,
            eval_batch_size=max(1, min(settings.batch_size, AT_ONCE // largest)),
            input=input,
            batch_size=settings.batch_size,
            transforms=data.transforms(own.scene, input),
            workers=settings.workers,
            seed=settings.seed,
            max_train_images=settings.max_train_images,
            max_val_images=settings.max_val_images,
            unreadable=settings.unreadable,
            progress=settings.progress,
        )

    def strip(self, image: Tensor, truth: Tensor, said: Tensor, input: InputSpec) -> Any:
        """Image, truth, prediction and mistakes side by side."""
        return overlays.strip(
            overlays.shown(image, input),
            truth.cpu().numpy(),
            said.cpu().numpy(),
            self.facts["palette"],
            self.nothing,
        )

    # -- measuring and using -----------------------------------------------------------------------

    def validation(
        self, data: Any, input: InputSpec, settings: Settings, kind: type[Loaders] = Loaders
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """Validation batches with classes of this network, whichever of them the data has."""
        names = self.names
        for name in data.class_names:
            if name not in names:
                raise UserError(
                    f"class {name!r} of {data.spec} is not one of the {len(names)} classes that the run was trained on"
                )
        wanted = torch.full((max(data.ignore_index, len(data.class_names)) + 1,), self.nothing)
        wanted[: len(data.class_names)] = torch.tensor([names.index(name) for name in data.class_names])
        loaders = self.loaders(data, input, settings, kind)
        loaders.setup("validate")
        try:
            for images, masks in loaders.val_dataloader():
                yield images, wanted[masks.cpu()]
        finally:
            loaders.teardown()

    def meter(self) -> Confusion:
        """The confusion matrix over the classes of the network."""
        return Confusion(self.classes, self.nothing)

    def infer(self, network: nn.Module, images: Tensor, options: Any = None) -> Tensor:
        """Logits [B, K, H, W], or the logarithm of averaged probabilities."""
        assert isinstance(network, SegmentationNetwork)
        return logits_of(network, images, network.window, options or InferOptions())

    def detail(self, meter: Any, data: Any) -> dict[str, Any]:
        """``per_class`` IoU and accuracy in percent (None where a class has none), ``left_out``, and ``confusion``."""
        matrix = meter.counts()
        found = scores(matrix)
        return {
            "per_class": {
                name: {"iou": percent(iou), "accuracy": percent(accuracy)}
                for name, iou, accuracy in zip(self.names, found.iou, found.accuracy, strict=True)
            },
            "left_out": [name for name, iou in zip(self.names, found.iou, strict=True) if np.isnan(iou)],
            "confusion": matrix.tolist(),
        }

    @classmethod
    def show_detail(cls, result: Mapping[str, Any]) -> None:
        """The classes from worst to best, and those that are left out."""
        rows = {name: row for name, row in result["per_class"].items() if row["iou"] is not None}
        table = []
        for name, row in sorted(rows.items(), key=lambda item: item[1]["iou"]):
            accuracy = row["accuracy"]
            table.append([name, f"{row['iou']:.2f}", "–" if accuracy is None else f"{accuracy:.2f}"])
        print_table(["class", "IoU %", "accuracy %"], table)
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
        meter = Confusion(self.classes, self.nothing, together=False)
        strips: list[tuple[Any, str]] = []
        count = len(self.loaders(data, input, settings).val_set)
        wanted = {round(i * (count - 1) / max(sections.EXAMPLES - 1, 1)) for i in range(sections.EXAMPLES)}
        seen = 0
        with torch.inference_mode():
            for images, masks in self.validation(data, input, settings, Alone):
                output = self.infer(network, images.to(next(network.parameters()).device)).cpu()
                meter.update(output, masks)
                for i in range(len(images)):
                    if seen + i in wanted:
                        said = output[i].argmax(0)
                        one = Confusion(self.classes, self.nothing, together=False)
                        one.update(output[i : i + 1], masks[i : i + 1])
                        share = scores(one.counts()).pixel_accuracy
                        caption = f"{len(strips) + 1}: {share:.1%} of its pixels right"
                        strips.append((self.strip(images[i], masks[i], said, input), caption))
                seen += len(images)
        matrix = meter.counts()
        return [
            sections.example_section(strips),
            sections.class_section(matrix, self.names, self.facts["palette"]),
            sections.confusion_section(overlays.confusion_png(matrix, self.names)),
        ]

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
        if out is not None and out.suffix:
            raise UserError(f"--out {out} is a file; masks are written into a folder")
        for path in images:
            read_image(path).close()  # all are looked at first: a bad name should not end half a listing
        where = next(network.parameters()).device
        for path, stem in zip(images, stems(images), strict=True):
            picture = read_image(path)
            said = self.classes_of(network, picture, input, infer, where)
            counts = np.bincount(said.flatten(), minlength=self.classes)
            shares = {
                self.names[i]: float(100 * counts[i] / said.size) for i in np.argsort(-counts) if counts[i]
            }
            row: dict[str, Any] = {"image": str(path), "shares": shares}
            if out is not None:
                row |= overlays.write_masks(out, stem, np.asarray(picture), said, self.facts["palette"])
            yield row

    def classes_of(
        self, network: nn.Module, picture: Any, input: InputSpec, infer: Any, where: torch.device
    ) -> Any:
        """The class of every pixel of a photograph: an array [H, W]."""
        height, width = picture.height, picture.width
        side = self.facts["short_side"]
        if side is not None:
            picture = tvf.resize(picture, side, antialias=True)
        pixels = tvf.to_dtype(tvf.pil_to_tensor(picture), torch.float32, scale=True)
        image = tvf.normalize(pixels, list(input.mean), list(input.std))[None].to(where)
        logits = self.infer(network, image, infer)
        if logits.shape[-2:] != (height, width):
            logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return logits[0].argmax(0).cpu().numpy()

    def told(self, row: Mapping[str, Any]) -> str:
        """``ground 91.2%, digit 4 5.0%``, and where the overlay lies."""
        text = ", ".join(f"{name} {share:.1f}%" for name, share in list(row["shares"].items())[:5])
        return f"{text} → {row['overlay']}" if "overlay" in row else text


class Alone(Loaders):
    """Loaders of a process that does not share its images with others: they have gone on, or wait."""

    def process(self) -> tuple[int, int]:
        """The first of one."""
        return 0, 1


class Pictures(Subset):
    """Images of a set of pairs, without what belongs to them."""

    def target(self, index: int) -> int:
        """The label: none."""
        return int(self.targets[index])


def criterion(weights: Tensor | None, aux_weight: float, ignore_index: int) -> Criterion:
    """Cross-entropy in float32 over the pixels that count, of the decoder and, weighted, of the auxiliary head.

    A batch in which nothing counts has the loss 0, with gradients of 0.

    Args:
        weights: of the classes [K], or None.
        aux_weight: of the auxiliary head's loss.
        ignore_index: value of pixels that do not count.
    """

    def pixels(logits: Tensor, targets: Tensor) -> Tensor:
        given = None if weights is None else weights.to(logits.device)
        total = F.cross_entropy(
            logits.float(), targets, weight=given, ignore_index=ignore_index, reduction="sum"
        )
        known = targets != ignore_index
        if given is None:
            return total / known.sum().clamp_min(1)
        least = torch.finfo(torch.float32).tiny
        return total / given[torch.where(known, targets, 0)].mul(known).sum().clamp_min(least)

    def terms(output: Any, targets: Tensor) -> dict[str, Tensor]:
        found = {"cross_entropy": pixels(output["out"], targets)}
        if "aux" in output:
            found["auxiliary"] = aux_weight * pixels(output["aux"], targets)
        return found

    return terms


def stems(images: Sequence[Path]) -> list[str]:
    """A name for each image's masks: its own without ending, with its number where two are called alike."""
    plain = [path.stem for path in images]
    return [stem if plain.count(stem) == 1 else f"{stem}-{i}" for i, stem in enumerate(plain)]


def percent(value: float) -> float | None:
    """A share in percent; None for NaN, which JSON has not."""
    return None if np.isnan(value) else float(100 * value)
