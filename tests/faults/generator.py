"""A seeded generator of things that are wrong: command lines, configs, run folders, images, tars, checkpoints.

Every case is wrong by construction, so that the only right answer is one line and exit code 2.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


@dataclass
class Case:
    """A command line that must be refused; ``out`` must not come to be."""

    name: str
    words: list[str]
    out: Path


class Owned:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def cases(seed: int, count: int, place: Path, run: Path) -> Iterator[Case]:
    """``count`` cases in ``place``; ``run`` is a good run folder that is copied before it is damaged."""
    kinds: list[Callable[..., list[str]]] = [command_line, config, run_folder, image, tar, checkpoint]
    for number in range(count):
        draw = random.Random(seed * 1_000_003 + number)
        kind = kinds[number % len(kinds)]
        here = place / str(number)
        here.mkdir(parents=True)
        out = here / "out"
        yield Case(f"{kind.__name__}-{number}", kind(draw, here, run, out), out)


GOOD = {
    "epochs": 3,
    "batch_size": 8,
    "lr": 0.01,
    "data": "digits",
    "seed": 1,
    "accumulate": 2,
    "ema_decay": 0.5,
}
WRONG = {
    "epochs": [-1, 0, "many", "", "1e", None, [1]], "batch_size": [0, -7, "x", 2.5], "lr": [-1, 0, "nan", "inf", "fast"],
    "data": ["no/such/place", "torch/NoSuch", "", "digits/x", "\0", "wds/none.tar"], "seed": [-1, "s"],
    "accumulate": [0, "a"], "ema_decay": [1, 1.5, -0.1, "d"], "precision": ["8", "bf", 32.5],
    "devices": ["cpu:0", "0", "7", "x", "1,1", "-1"], "nodes": [0, -1, "n"], "save_steps": [-1, "s"],
    "model": ["vit_none", "", "../x", "hf:none/none"], "cures": ["nothing", "reattention@99", ","],
    "cure_blocks": ["last:3", "99"], "keep": ["first"], "on_nonfinite": ["go", "skip:0"], "task": ["speech"],
    "weights": ["none.pt", "no/run"], "layer_decay": [0, 2], "workers": [-1, "w"], "warmup_steps": [-3],
}  # fmt: skip


def command_line(draw: random.Random, here: Path, run: Path, out: Path) -> list[str]:
    """A valid command with one thing wrong."""
    name = draw.choice(sorted(WRONG))
    turn = draw.randrange(5)
    if turn == 0:
        option = "".join(draw.choices("abcdefghij_", k=draw.randint(3, 9)))
        return ["train", f"--{option}x", "1", "--out", str(out)]
    if turn == 1:
        word = draw.choice(
            ["trian", "", "--", "-x", "\N{GREEK SMALL LETTER ALPHA}", "train;", "help me", "evaluat"]
        )
        return [word or "nothing", "--out", str(out)]
    if turn == 2:
        command = draw.choice(["evaluate", "predict", "diagnose", "compare"])
        return [command, str(here / "nothing"), *(["x.png"] if command == "predict" else [])]
    if turn == 3:
        bad = draw.choice(
            [["--workers", "-1"], ["--batch_size", "0"], ["--device", "tpu9"], ["--max_val_images", "0"]]
        )
        return ["evaluate", str(run), *bad]
    value = draw.choice([v for v in WRONG[name] if isinstance(v, str | int | float)])
    return ["train", f"--{name}={value}", "--out", str(out)]


def config(draw: random.Random, here: Path, run: Path, out: Path) -> list[str]:
    """A file of options that is no YAML, no options, or a bomb."""
    good = "\n".join(f"{name}: {value}" for name, value in GOOD.items()) + "\n"
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    name = draw.choice(sorted(WRONG))
    texts: list[bytes] = [
        laughs.encode(), b"a: &a [*a]\n", b"[" * 3000 + b"]" * 3000, good.encode() + b"\xff\xfe\x80", b"", b"- a\n- b\n",
        b"{" * draw.randint(100, 2000), good.encode() + b"epochs:\n\t- 1\n", b"!!python/object/apply:os.system ['true']\n",
        b"epochs: !!binary x\n", ("lr: " + "9" * 300_000).encode(), b"a: 1\n" * 60_000, good.encode() + b"noption: 1\n",
        json.dumps({**GOOD, name: draw.choice(WRONG[name]) or {"x": 1}}).encode(), b"epochs: 2024-13-45\n", b"\x00\x01\x02",
    ]  # fmt: skip
    file = here / "config.yaml"
    file.write_bytes(draw.choice(texts))
    return [
        "train",
        "--config",
        str(file),
        *draw.choice([[], ["--task", "classification"]]),
        "--out",
        str(out),
    ]


def run_folder(draw: random.Random, here: Path, run: Path, out: Path) -> list[str]:
    """A run with a damaged file, and a command that needs this file."""
    copy = here / "run"
    shutil.copytree(run, copy)
    uses = {
        "model.json": ["evaluate", str(copy)], "model.safetensors": ["evaluate", str(copy)],
        "config.yaml": ["train", "--resume", "--out", str(copy)],
        "run.json": ["compare", str(copy), str(run), "--out", str(out)],
        "metrics.csv": ["compare", str(copy), str(run), "--out", str(out)],
        "collapse.json": ["compare", str(copy), str(run), "--out", str(out)],
    }  # fmt: skip
    name = draw.choice(sorted(uses))
    file = copy / name
    data = file.read_bytes()
    deep = b'{"a":' * 100_000
    garbage = bytes(draw.randrange(256) for _ in range(200))
    bad = [data[: draw.randrange(1, len(data) * 2 // 3)], garbage, deep, b"\xff" + data, b"[1]", b"null"]
    if name == "metrics.csv":
        bad = [b"\xff" + data, data.replace(b",", b",x", 40), b"a,b\n1,2\n", garbage, b"epoch\nx\n"]
    if name == "config.yaml":
        bad = [b"\xff" + data, garbage, b"[1]", b"epochs: [", b"a: &a [*a]\n", data + b"nothing: 1\n"]
    file.write_bytes(draw.choice(bad))
    return uses[name]


def image(draw: random.Random, here: Path, run: Path, out: Path) -> list[str]:
    """A file that is no whole image."""
    made = io.BytesIO()
    pixels = np.random.default_rng(draw.randrange(99)).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    kind = draw.choice(["PNG", "JPEG", "BMP"])
    Image.fromarray(pixels).save(made, kind)
    data = made.getvalue()
    file = here / f"x.{kind.lower()}"
    file.write_bytes(
        draw.choice([data[: draw.randrange(len(data) // 2)], b"", b"GIF89a", b"\x89PNG" + data[-30:]])
    )
    return ["predict", str(run), str(file), "--out", str(out)]


def tar(draw: random.Random, here: Path, run: Path, out: Path) -> list[str]:
    """An archive that is cut short, lies, or holds nothing to train on."""
    file = here / "x.tar"
    with tarfile.open(file, "w") as archive:
        for number in range(6):
            made = io.BytesIO()
            Image.new("RGB", (8, 8), (number, 0, 0)).save(made, "PNG")
            entry = tarfile.TarInfo(f"{'ab'[number % 2]}/{number}.png")
            entry.size = len(made.getvalue())
            made.seek(0)
            archive.addfile(entry, made)
    data = bytearray(file.read_bytes())
    turn = draw.randrange(4)
    if turn == 0:
        data = data[: draw.randrange(1, 6 * 1024)]
    elif turn == 1:
        data[draw.randrange(6) * 1024 + draw.randrange(156)] ^= 1 << draw.randrange(8)  # a header
    elif turn == 2:
        data = bytearray(draw.randrange(256) for _ in range(3000))
    else:
        data = bytearray(b"\0" * 10240)
    file.write_bytes(data)
    return ["train", "--data", str(file), "--devices", "cpu", "--out", str(out)]


def checkpoint(draw: random.Random, here: Path, run: Path, out: Path) -> list[str]:
    """A file of weights that is damaged, a bomb, or a program."""
    file = here / "x.pt"
    turn = draw.randrange(5)
    if turn == 0:
        torch.save({"state_dict": Owned(here / "owned")}, file)
    elif turn == 1:
        file.write_bytes(pickle.dumps(Owned(here / "owned")))
    else:
        torch.save({"head.weight": torch.zeros(10, 16)}, file)
        data = file.read_bytes()
        if turn == 2:
            file.write_bytes(data[: draw.randrange(len(data) * 2 // 3)])
        elif turn == 3:
            file.write_bytes(bytes(draw.randrange(256) for _ in range(400)))
        else:  # 256 MB of zeros in a few kilobytes
            with zipfile.ZipFile(file) as old:
                parts = {name: old.read(name) for name in old.namelist()}
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
                for name, part in parts.items():
                    new.writestr(name, b"\0" * 2**28 if "/data/" in name else part)
    return ["diagnose", str(file), "--arch", "vit_tiny_patch16_224", "--data", "digits", "--out", str(out)]
