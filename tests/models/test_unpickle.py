"""Checkpoint files: what is let through, what is refused by its name, what is called damaged."""

from __future__ import annotations

import argparse
import collections
import fractions
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepvit.errors import UserError
from deepvit.models.unpickle import pickle_names, read_checkpoint

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(2)}


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path, call: Any = os.system) -> None:
        self.mark, self.call = mark, call

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.call, (f"touch {self.mark}",)


def message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("zipped", [True, False])
def test_official_layout_with_its_namespace(zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "official.pth.tar"
    content = {"state_dict": collections.OrderedDict(STATE), "args": argparse.Namespace(lr=5e-4), "epoch": 3}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(file)
    assert read["args"] == argparse.Namespace(lr=5e-4)
    assert read["epoch"] == 3
    assert torch.equal(read["state_dict"]["head.weight"], STATE["head.weight"])


def test_safetensors_by_content_and_not_by_name(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth"):
        save_file(STATE, tmp_path / name)
        assert torch.equal(read_checkpoint(tmp_path / name)["head.weight"], STATE["head.weight"])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", [os.system, shutil.rmtree, eval])
def test_hostile_files_are_refused_by_name_and_run_nothing(zipped: bool, call: Any, tmp_path: Path) -> None:
    file, mark = tmp_path / "bad.pth", tmp_path / "mark"
    content = {"state_dict": STATE, "args": Hostile(mark, call)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    name = f"{call.__module__}.{call.__name__}".replace("builtins.", "")
    text = message(file)
    assert "refused" in text
    assert name in text
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_plain_pickles_of_any_protocol(protocol: int, tmp_path: Path) -> None:
    file, mark = tmp_path / "bad.pkl", tmp_path / "mark"
    file.write_bytes(pickle.dumps({"x": "harmless", "y": Hostile(mark)}, protocol=protocol))
    text = message(file)
    assert "posix.system" in text or "nt.system" in text
    assert not mark.exists()


def test_other_classes_are_refused_even_if_the_process_allows_them(tmp_path: Path) -> None:
    file = tmp_path / "fraction.pth"
    torch.save({"state_dict": STATE, "metric": fractions.Fraction(1, 3)}, file)
    torch.serialization.add_safe_globals([fractions.Fraction])
    try:
        assert "fractions.Fraction" in message(file)
        assert fractions.Fraction in torch.serialization.get_safe_globals()
        assert argparse.Namespace not in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files(zipped: bool, tmp_path: Path) -> None:
    whole, file = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save(
        {"state_dict": {**STATE, "big": torch.zeros(1000)}}, whole, _use_new_zipfile_serialization=zipped
    )
    data = whole.read_bytes()
    for length in (0, 1, 9, 50, len(data) // 2, len(data) - 20):
        file.write_bytes(data[:length])
        assert "not a readable checkpoint: damaged, cut short" in message(file)


def test_files_of_another_kind(tmp_path: Path) -> None:
    text = tmp_path / "notes.pth"
    text.write_text("these are not weights\n" * 20)
    assert "not a readable checkpoint" in message(text)
    cut = tmp_path / "cut.safetensors"
    save_file(STATE, cut)
    cut.write_bytes(cut.read_bytes()[:-3])
    assert "not a readable checkpoint" in message(cut)
    assert "No such file" in message(tmp_path / "missing.pth")
    assert "cannot be opened" in message(tmp_path)
    modern = tmp_path / "modern.pth"
    torch.save(STATE, modern, pickle_protocol=4)
    assert "a pickle of a protocol that cannot be read safely" in message(modern)


def test_names_in_a_pickle_whose_strings_are_shared() -> None:
    # The module's name is pushed once and then recalled from the memo.
    value = [os.getcwd, os.getpid, "posix", collections.OrderedDict]
    assert pickle_names(pickle.dumps(value, protocol=4)) == [
        f"{os.getcwd.__module__}.getcwd",
        f"{os.getpid.__module__}.getpid",
        "collections.OrderedDict",
    ]
