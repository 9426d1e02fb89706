"""The command line: every mistake is one line on standard error, exit code 2, no traceback."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepvit import commands
from deepvit.cli import main, values_of
from deepvit.commands import help as help_module
from deepvit.parsing import normalise


def tell(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small colour images, train and val."""
    root = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 6)):
        for label, colour in (("apple", (200, 30, 30)), ("leaf", (30, 160, 40))):
            folder = root / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(colour) + generator.normal(0, 25, (32, 32, 3)), 0, 255).astype(
                    np.uint8
                )
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


TRAIN = ("--model", "vit_tiny_patch16_224", "--model.depth", "2", "--model.img_size", "32", "--model.patch-size", "8",
         "--model.embed_dim", "16", "--model.num_heads", "2", "--epochs", "2", "--batch-size=8", "--devices", "cpu",
         "--lr", "0.003")  # fmt: skip


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    assert (
        main(["train", *TRAIN, "--data", str(photographs), "--out", str(out), "--diagnose_images", "8"]) == 0
    )
    return out


def test_the_commands_of_the_quickstart_work(
    run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = tell(capsys, "evaluate", str(run), "--out", str(tmp_path / "result.json"))
    assert code == 0
    assert "12 images" in out
    assert json.loads((tmp_path / "result.json").read_text())["images"] == 12
    photo = photographs / "val" / "apple" / "0.png"
    code, out, _ = tell(capsys, "predict", str(run), str(photo), "--topk", "2")
    assert code == 0
    assert str(photo) in out
    assert "apple" in out
    assert "leaf" in out
    other = tmp_path / "two"
    assert (
        tell(capsys, "train", *TRAIN, "--data", str(photographs), "--out", str(other), "--seed", "1")[0] == 0
    )
    code, out, _ = tell(capsys, "compare", str(run), str(other), "--out", str(tmp_path / "side"))
    assert code == 0
    assert "top-1 accuracy" in out
    assert (tmp_path / "side" / "compare.html").exists()
    code, out, _ = tell(capsys, "diagnose", str(run), "--images", "8", "--out", str(tmp_path / "report"))
    assert code == 0
    assert (tmp_path / "report" / "report.html").exists()


def test_a_tar_of_class_folders_trains_too(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photographs, arcname=".")
    out = tmp_path / "run"
    code, text, _ = tell(
        capsys, "train", *TRAIN, "--data", str(tmp_path / "photos.tar"), "--out", str(out), "--epochs", "1"
    )
    assert code == 0
    assert "val top-1" in text


def test_diagnose_names_what_it_could_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        Image.new("RGB", (40, 40), (80 * i, 20, 90)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    shape = (
        "--model.depth",
        "2",
        "--model.img_size",
        "32",
        "--model.embed_dim",
        "24",
        "--model.num_heads",
        "2",
    )
    out = tmp_path / "report"
    code, text, _ = tell(
        capsys, "diagnose", "vit_tiny_patch16_224", *shape, "--data", str(tmp_path), "--out", str(out)
    )
    assert code == 0
    assert "1 image was left out" in text
    assert "broken.png" in text
    assert json.loads((out / "collapse.json").read_text())["provenance"]["images"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean train"),
        (["train", "--epoch", "3"], "did you mean --epochs"),
        (["train", "--epochs", "many"], "epochs"),
        (["train", "--model", "deepvit_s_patch16_242"], "deepvit_s_patch16_224"),
        (["train", "--data", "no/such/folder"], "no/such/folder"),
        (["train", "--config", "cifar1"], "cifar10"),
        (["evaluate", "no/such/run"], "no/such/run"),
        (["evaluate"], "run"),
        (["predict", "no/such/run", "x.png"], "no/such/run"),
        (["compare", "one"], "two or more"),
        (["study", "quickstrat"], "quickstart"),
        (["study"], "recipe"),
        (["list", "cakes"], "models, cures, recipes, data"),
        (["diagnose", "resnet18", "--data", "digits"], "resnet18"),
        (["diagnose", "hf:nobody/nothing", "--data", "digits"], "hf:nobody/nothing"),
        (["convert", "nothing.pth", "out.safetensors"], "nothing.pth"),
        (["benchmark", "nothing"], "attention"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, errors = tell(capsys, *arguments)
    lines = [line for line in errors.splitlines() if line.startswith("deepvit ")]
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in errors
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_data_mistakes_are_one_line(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path) -> str:
        code, _, errors = tell(
            capsys, "train", *TRAIN, "--data", str(folder), "--out", str(tmp_path / "never")
        )
        assert code == 2
        assert not (tmp_path / "never").exists()
        assert len(errors.splitlines()) == 1, errors
        return errors

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images" in refused(empty)
    strange = tmp_path / "strange"
    for part, labels in (("train", ("a", "b")), ("val", ("a", "z"))):
        for label in labels:
            (strange / part / label).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(strange / part / label / "0.png")
    assert "'z'" in refused(strange)
    broken = tmp_path / "broken"
    for part in ("train", "val"):
        for label in ("a", "b"):
            (broken / part / label).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(broken / part / label / "0.png")
    (broken / "train" / "a" / "1.png").write_bytes(b"no image at all")
    assert "1.png" in refused(broken)


def test_hostile_and_misfitting_weights_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    code, _, errors = tell(capsys, "convert", str(tmp_path / "evil.pth"), str(tmp_path / "out.safetensors"))
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out.safetensors").exists()
    torch.save({"head.weight": torch.zeros(3, 5)}, tmp_path / "other.pth")
    code, _, errors = tell(
        capsys,
        "train",
        *TRAIN,
        "--data",
        "digits",
        "--weights",
        str(tmp_path / "other.pth"),
        "--out",
        str(tmp_path / "x"),
    )
    assert code == 2
    assert "cls_token" in errors
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", commands.NAMES)
def test_help_shows_every_option_with_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"deepvit {name}" in text
    assert "``" not in text
    assert ":func:" not in text
    for option in commands.find(name).options([]):
        assert f"--{option.typed}" in text, option.name
        assert option.help, option.name


def test_every_command_has_its_function_and_its_printer() -> None:
    for name in commands.NAMES:
        assert callable(commands.find(name).function)
        assert callable(commands.find(name).show)


def test_normalise() -> None:
    kinds = {"--resume": "switch", "--seeds": "list", "--methods": "list"}

    def read(*words: str) -> list[str]:
        return normalise(list(words), kinds)

    assert read("--batch-size", "3", "--model.img-size=8") == [
        "--batch_size",
        "3",
        "--model_args.img_size",
        "8",
    ]
    assert read("--resume", "--out", "a-b") == ["--resume=true", "--out", "a-b"]
    assert read("--resume", "false") == ["--resume", "false"]
    assert read("--train.model.depth", "4") == ["--train.model_args.depth", "4"]
    assert read("--model", "vit-x") == ["--model", "vit-x"]
    for words in (["0,1,2"], ["0", "1", "2"], ["[0, 1, 2]"]):
        assert read("--seeds", *words, "--out", "x") == ["--seeds", "[0, 1, 2]", "--out", "x"]
    for word, other in (("--device", "--devices"), ("--devices", "--device")):
        assert normalise([word, "cpu"], {other: ""}) == [other, "cpu"]
        assert normalise([f"{word}=cpu"], {word: "", other: ""}) == [word, "cpu"]
        assert normalise([word, "cpu"], {}) == [word, "cpu"]  # unknown, and told as it was typed
    assert normalise(["--train.device", "cpu"], {"--train.devices": ""}) == ["--train.devices", "cpu"]
    assert read("--methods", "plain,attnscale@last:6") == ["--methods", '["plain", "attnscale@last:6"]']


def test_given_options_are_those_that_were_typed_or_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("epochs: 3\naugment: {crop_padding: 0}\n")
    words = ["--resume=true", "--model_args.depth", "4", "--config", str(tmp_path / "options.yaml"), "--lr=1"]
    values = values_of("train", commands.find("train"), words)
    assert set(values) == {"resume", "model_args", "epochs", "augment", "lr"}


def test_convert_takes_the_models_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deepvit.models import create

    shape = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_classes": 5}
    torch.save(create("deepvit_d16_patch16_224", **shape).state_dict(), tmp_path / "small.pth")
    source, target = str(tmp_path / "small.pth"), str(tmp_path / "small.safetensors")
    code, _, errors = tell(capsys, "convert", source, target)
    assert (code, "--model" in errors) == (2, True)
    model = ["--model", "deepvit_d16_patch16_224", "--model.embed_dim", "24", "--model.depth", "1"]
    code, out, errors = tell(capsys, "convert", source, target, *model)
    assert (code, errors) == (0, "")
    assert "deepvit_d16_patch16_224" in out


def test_module_and_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepvit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("deepvit 0.")


def test_what_help_says_is_what_the_commands_are() -> None:
    kept = json.loads((Path(help_module.__file__).with_name("help.json")).read_text())
    assert kept == help_module.everything(), "write it anew: python -m deepvit.commands.help"


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["nonsense"], *([n, "--help"] for n in commands.NAMES)]
)
def test_help_loads_neither_torch_nor_timm(words: list[str]) -> None:
    code = (
        "import sys, deepvit_command\n"
        "deepvit_command.sys.argv[1:] = sys.argv[1:]\n"
        "code = deepvit_command.main()\n"
        "heavy = {'torch', 'timm', 'lightning', 'numpy', 'jsonargparse', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == (2 if words == ["nonsense"] else 0), done.stderr


def test_help_tells_the_task_of_what_is_named_without_loading_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(help_module, "described", lambda *_: pytest.fail("what trains is loaded"))
    (tmp_path / "model.json").write_text('{"task": "segmentation"}')
    for words, option in (
        (["evaluate", str(tmp_path)], "--overlap"),
        (["predict", str(tmp_path)], "--overlap"),
        (["study", "segmentation/camvid_cures"], "--train.head"),
        (["train", "--config", "segmentation/digit_scenes"], "--scene.crop_size"),
    ):
        assert main([*words, "--help"]) == 0
        assert option in capsys.readouterr().out, words
    assert main(["help", "evaluate"]) == 0
    assert "--overlap" not in capsys.readouterr().out  # of a classifier, as where nothing is named


@pytest.mark.parametrize("name", commands.NAMES)
def test_examples_in_help_are_understood_and_fit(name: str) -> None:
    command = commands.find(name)
    assert len(command.examples) >= 2
    for example in command.examples:
        program, named, *words = shlex.split(example)
        assert (program, named) == ("deepvit", name)
        assert values_of(name, command, words)
    for width in (80, 110):
        for line in help_module.rendered(help_module.described(name, []), width).splitlines():
            assert len(line) <= width or "  deepvit " in line, line
