"""What people get wrong, of options, models, data and files: exit code 2, one line with the way out, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepvit.cli import main

SMALL = (
    "--model vit_tiny_patch16_224 --model.depth 1 --model.embed_dim 16 --model.num_heads 2 --model.img_size 8"
    " --model.patch_size 4 --devices cpu"
)

TNT = "--model tnt_s_legacy_patch16_224 --model.depth 1 --data digits --devices cpu"

OPTIONS = [
    ("trian", "did you mean train"),
    ("train --epoch 3", "did you mean --epochs"),
    ("train --epochs many", "--epochs takes a whole number, not 'many'"),
    ("train --epochs 2.5", "--epochs takes a whole number"),
    ("train --epochs 0", "epochs=0 must be at least 1"),
    ("train --epochs", "--epochs"),
    ("train --lr abc", "--lr takes a number, not 'abc'"),
    ("train --lr -1", "lr=-1.0 must be above 0"),
    ("train --lr nan", "--lr takes a number, not 'nan'"),
    ("train --min_lr -1", "min_lr=-1.0"),
    ("train --precision fp16", "say 16"),
    ("train --precision bfloat16", "say bf16"),
    ("train --precision 64", "one of auto, 32, bf16, 16"),
    ("train --batch_size 0", "batch_size=0"),
    ("train --accumulate 0", "accumulate=0"),
    ("train --weight_decay -1", "weight_decay=-1"),
    ("train --ema_decay 1", "ema_decay=1.0 must be in [0, 1)"),
    ("train --layer_decay 2", "layer_decay=2.0"),
    ("train --drop_path 1.5", "drop_path=1.5"),
    ("train --head_dropout -0.1", "head_dropout=-0.1"),
    ("train --on_nonfinite ignore", "ignore"),
    ("train --keep worst", "one of last, best"),
    ("train --schedule step", "one of cosine, poly"),
    ("train --devices gpu", "devices='gpu' must be auto, cpu"),
    ("train --task sorting", "sorting"),
    ("train --resume --overwrite --out x", "give one of them"),
    ("train digits", "one word too much"),
    ("train --augment.mixup -1", "mixup"),
    ("train --augment.hflip 2", "hflip"),
    ("train --augment.mixupp 1", "mixup"),
    ("train --augment.randaugment nonsense", "randaugment"),
    ("train --seed -1", "seed=-1"),
    ("train --warmup_steps -1", "warmup_steps=-1"),
    ("train --clip_grad -1", "clip_grad=-1"),
    ("train --diagnose_images -1", "diagnose_images=-1"),
    ("train --diagnose_at 1", "diagnose_at=1.0"),
    ("train --diagnose_at 0.1 --diagnose_images 0", "--diagnose_at needs images"),
    ("train --diagnose_lesions some", "diagnose_lesions"),
    ("train --until 0", "until=0"),
    ("train --losses.patch_cosine 1 --loss_args.teacher vit_tiny_patch16_224", "teacher"),
    ("study quickstart --train.until 1", "take --halving"),
    ("train --max_train_images 0", "max_train_images=0"),
    ("train --log_every 0", "log_every=0"),
    ("train --save_minutes -1", "save_minutes=-1"),
    ("train --img_size 32", "did you mean --model.img_size"),
    ("train --losses.cosine 1", "cosine"),
    ("train --losses.patch_cosine abc", "losses"),
    ("train --losses.patch_cosine -1", "patch_cosine"),
    ("train --cures reattenton", "reattention"),
    ("train --cures reattention --cure_blocks 99", "99"),
    ("train --cures reattention --cure_blocks auto", "--cure_report"),
    ("train --cures reattention,reattention", "reattention"),
    ("train --cure_args.reattention {{}}", "--cures"),
    ("train --cure_init random --cures reattention", "one of auto, identity, paper"),
    ("evaluate", "run is missing"),
    ("evaluate {run} --batch_size 0", "batch_size=0"),
    ("evaluate {run} --device gpux", "gpux"),
    ("evaluate {run} --devices gpux", "gpux"),
    ("evaluate {run} --devices 0,1", "takes one device"),
    ("evaluate {run} --devices 2", "takes one device"),
    ("predict {run} {photo} --devices cpu:2", "takes one device"),
    ("train --device gpu", "devices='gpu' must be auto, cpu"),
    ("train --device cuda:99", "devices='cuda:99'"),
    ("predict {run} {photo} --topk 0", "topk=0"),
    ("predict {run}", "images"),
    ("study quickstrat", "did you mean quickstart"),
    ("study quickstart --methods cake", "cake"),
    ("study quickstart --depths 0", "depths must be at least 1"),
    ("study quickstart --seeds 1 1", "seeds names a value twice"),
    ("study quickstart --jobs 0", "jobs=0"),
    ("study cifar10", "no study recipe"),
    ("study quickstart --train.epoch 3", "train.epochs"),
    ("diagnose vit_tiny_patch16_224", "--data is needed"),
    ("diagnose vit_tiny_patch16_224 --data digits --images 0", "images=0"),
    ("diagnose {run} --blocks 50", "50"),
    ("diagnose {run} --pretrained", "--pretrained"),
    ("diagnose {run} --model.depth 3", "--model.KEY"),
    ("list cakes", "models, cures, recipes, data"),
    ("benchmark nothing", "attention"),
]
MODELS = [
    ("train --model deepvit_s_patch16_242", "deepvit_s_patch16_224"),
    ("train --model resnet18 --cures reattention", "reattention"),
    ("train --model.depth 0", "depth=0 must be at least 1"),
    ("train --model.depth many", "depth"),
    ("train --model.depht 3", "depth"),
    ("train --model.num_heads 7", "7"),
    ("train --model.img_size 8 --model.patch_size 3", "patch"),
    ("train --model.num_classes 5", "comes from the data"),
    ("train --model.in_chans 1", "in_chans"),
    ("train --model tnt_s_legacy_patch16_224 --model.depth 1 --data digits", "give --model.img_size and --model.patch_size"),
    ("train {tnt}", "model tnt_s_legacy_patch16_224 cannot run on images of 8×8 (shape"),
    ("train {tnt_that_fits} --losses.patch_cosine 1", "--losses (patch_cosine) read: blocks.0 (Block) returns a tuple"),
    ("train {tnt_that_fits} --losses.patch_mixing 1", "name other modules with --loss_args.first and --loss_args.last"),
    ("train --model resnet18 --losses.patch_cosine 1", "name the modules with --loss_args.first and --loss_args.last"),
    ("train --model xcit_nano_12_p16_224 --data digits", "patch size has to be in [8, 16]"),
    ("train --model xcit_nano_12_p16_224 --data digits --epochs 2", "img_size=8 and patch_size=2 were chosen"),
    ("train --weights nowhere.pth", "nowhere.pth"),
    ("train --weights {text}", "notes.txt"),
    ("train {small} --model.depth 2 --weights {run}/model.safetensors", "blocks.1"),
    ("train --model vit_small_patch16_224 --weights {run}", "holds vit_tiny_patch16_224"),
    ("diagnose /nope/run --data digits", "there is no file or folder /nope/run"),
    ("diagnose facebook/dinov2-small --data digits", "hf:facebook/dinov2-small"),
    ("diagnose torchvision:vit_b_61 --data digits", "vit_b_16"),
    ("diagnose resnet18 --data digits --images 2", "resnet18"),
    ("diagnose {empty} --data digits", "neither a run"),
    ("diagnose vit_tiny_patch16_224 --arch vit_tiny_patch16_224 --data digits", "--arch goes with a checkpoint"),
    ("diagnose {text} --data digits", "notes.txt"),
    ("convert nothing.pth out.safetensors", "nothing.pth"),
    ("convert {text} out.safetensors", "notes.txt"),
]  # fmt: skip
DATA = [
    ("train {small} --data no/such/folder", "no/such/folder"),
    ("train {small} --data {empty}", "no images"),
    ("train {small} --data {single}", "one class only"),
    ("train {small} --data {misspelt}", "vall"),
    ("train {small} --data {broken}", "1.png"),
    ("train {small} --data {strange}", "'z'"),
    ("train {small} --data {flat}", "class"),
    ("train {small} --data {text}", "notes.txt"),
    ("train {small} --data {no_tar}", "photos.tar"),
    ("train {small} --data torch/cifar11", "cifar10"),
    ("train {small} --data cifar10", "torch/cifar10"),
    ("train {small} --data digits --data.val_fraction 0.5", "val_fraction"),
    ("train {small} --data {photos} --data.val_fraction 2", "val_fraction"),
    ("train {small} --data {photos} --data.rooot x", "root"),
    ("evaluate {run} --data {photos}", "apple"),
    ("diagnose {run} --data {empty}", "no images"),
]
FILES = [
    ("train --resume --out nowhere", "no run to resume"),
    ("train --config nowhere", "nowhere"),
    ("train --config {bad_yaml}", "bad.yaml"),
    ("train --config {list_yaml}", "list.yaml"),
    ("train {small} --out {run}", "holds a run already"),
    ("train {small} --out {text}", "is a file"),
    ("train {small} --out {photos}", "not a run"),
    ("train --resume --out {run} --lr 5", "lr="),
    ("train --resume --out {run} --batch_size 3", "batch_size=32 as the run was started, not 3"),
    ("evaluate no/such/run", "no/such/run"),
    ("evaluate {empty}", "empty"),
    ("evaluate {cut}", "model.safetensors"),
    ("evaluate {no_card}", "model.json"),
    ("predict no/such/run x.png", "no/such/run"),
    ("predict {run} missing.png", "missing.png"),
    ("predict {run} {text}", "notes.txt"),
    ("predict {run} {empty}", "no image"),
    ("compare {run}", "two or more"),
    ("compare {run} {run}", "named twice"),
    ("compare {run} nowhere", "nowhere"),
    ("compare {run} {empty}", "empty"),
    ("compare {run} {bad_json}", "collapse.json"),
    ("study {bad_yaml}", "bad.yaml"),
    ("study quickstart --out {photos}", "not a study"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files and folders by the names that the command lines have in braces."""
    root = tmp_path_factory.mktemp("places")
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)

    def pictures(*names: str) -> str:
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        return str(root / names[0].split("/")[0])

    def text(name: str, content: str) -> str:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
        return str(root / name)

    def parts(name: str, *parts: str) -> str:
        return pictures(*(f"{name}/{part}/{k}.png" for part in parts for k in range(4)))

    found = {
        "small": SMALL, "tnt": f"{TNT} --model.img_size 8 --model.patch_size 2",
        "tnt_that_fits": f"{TNT} --model.img_size 32 --model.patch_size 8",
        "run": str(root / "run"), "cut": str(root / "cut"), "no_card": str(root / "no_card"),
        "photos": parts("photos", "train/apple", "train/leaf", "val/apple", "val/leaf"),
        "photo": str(root / "photos/val/leaf/0.png"),
        "single": parts("single", "train/apple", "val/apple"),
        "misspelt": parts("misspelt", "train/a", "train/b", "vall/a", "vall/b"),
        "broken": parts("broken", "train/a", "train/b", "val/a", "val/b"),
        "strange": parts("strange", "train/a", "train/b", "val/a", "val/z"),
        "flat": pictures("flat/0.png", "flat/1.png"),
        "empty": str(root / "empty"), "text": text("notes.txt", "no image, no weights"),
        "no_tar": text("photos.tar", "no archive"), "bad_yaml": text("bad.yaml", "epochs: [3"),
        "list_yaml": text("list.yaml", "- epochs\n"), "bad_json": text("collapse.json", "{}"),
    }  # fmt: skip
    (root / "empty").mkdir()
    text("broken/train/a/1.png", "no image at all")
    train = ["train", *SMALL.split(), "--data", "digits", "--epochs", "1", "--batch_size", "32"]
    few = [
        "--max_train_images",
        "64",
        "--max_val_images",
        "32",
        "--diagnose_images",
        "0",
        "--progress",
        "false",
    ]
    assert main([*train, *few, "--out", found["run"]]) == 0
    for name in ("cut", "no_card"):
        for file in (root / "run").iterdir():
            if file.is_file():
                (root / name).mkdir(exist_ok=True)
                (root / name / file.name).write_bytes(file.read_bytes())
    weights = (root / "cut" / "model.safetensors").read_bytes()
    (root / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (root / "no_card" / "model.json").unlink()
    return found


def state_of(root: Path) -> dict[str, int]:
    """Every file with its size: what a command may not change."""
    return {str(path): path.stat().st_size if path.is_file() else -1 for path in sorted(root.rglob("*"))}


@pytest.mark.parametrize(("line", "message"), [*OPTIONS, *MODELS, *DATA, *FILES], ids=lambda text: text[:60])
def test_a_mistake_is_one_line(
    line: str,
    message: str,
    places: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path(places["run"]).parent
    before = state_of(root)
    code = main([word for part in line.split() for word in part.format_map(places).split()])
    out, errors = capfd.readouterr()
    assert code == 2, out + errors
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith(f"deepvit {line.split()[0]}: ")
    assert message in errors
    assert out == ""
    assert list(tmp_path.iterdir()) == []
    assert state_of(root) == before


def test_there_are_sixty_of_them() -> None:
    lines = [line for line, _ in (*OPTIONS, *MODELS, *DATA, *FILES)]
    assert len(set(lines)) == len(lines) >= 60
