"""``collapse.json``: written so that it can be read by people and by programs, and read back whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from deepvit.collapse.results import Measurements
from deepvit.collapse.verdict import decide
from deepvit.errors import UserError
from deepvit.files import read_json, write_atomic
from deepvit.report.spoken import SpokenFinding, SpokenMeasurements, speak, spoken


def save(results: Measurements, path: str | os.PathLike[str], *, maps: bool = True) -> Path:
    """Write the measurements as JSON (schema: docs/collapse-json.md); ``maps=False`` leaves images out."""
    text = dumps(plain(results, maps=maps)) + "\n"
    # A file name that is not valid Unicode: its surrogates become JSON escapes and are read back equal.
    return write_atomic(path, text.encode("utf-8", "backslashreplace"))


def plain(results: Measurements, *, maps: bool = True) -> dict[str, Any]:
    """The measurements as plain JSON values, the verdict's words beside its parts."""
    found = results.to_dict(maps=maps)
    verdict = speak(results.verdict)
    words = {"headline": verdict.headline, "text": verdict.text, "sureness_text": verdict.sureness_text}
    for entry, finding in zip(found["verdict"]["findings"], verdict.findings, strict=True):
        assert isinstance(finding, SpokenFinding)
        entry |= {"sentence": finding.sentence, "evidence": finding.evidence}
    found["verdict"] |= words
    return found


def load(path: str | os.PathLike[str]) -> SpokenMeasurements:
    """Read a ``collapse.json``, or the one in a folder; raises UserError when it is missing or none.

    The verdict comes with its words. Files whose verdict has no parts yet are judged again from their numbers.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "collapse.json"
    if not file.exists():
        raise UserError(f"{file}: no such file; `deepvit diagnose MODEL --out DIR` writes one")
    found = read_json(file, "a collapse report")
    try:
        return spoken(Measurements.from_dict(found, decide))
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{file}: a damaged collapse report ({type(error).__name__}: {error})") from None


def dumps(value: Any, indent: int = 0) -> str:
    """JSON with objects over several lines and lists of plain values on one: a matrix looks like one."""
    pad = "  " * (indent + 1)
    end = "  " * indent
    if isinstance(value, dict) and value:
        names = (json.dumps(str(key), ensure_ascii=False) for key in value)
        items = [
            f"{pad}{name}: {dumps(each, indent + 1)}"
            for name, each in zip(names, value.values(), strict=True)
        ]
        return "{\n" + ",\n".join(items) + f"\n{end}}}"
    if isinstance(value, list | tuple) and any(isinstance(each, dict | list | tuple) for each in value):
        return "[\n" + ",\n".join(pad + dumps(each, indent + 1) for each in value) + f"\n{end}]"
    # NaN and infinities are no JSON; measurements say None for what does not exist.
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
