"""The cures of a verdict with what to run for each."""

from __future__ import annotations

import shlex

from deepvit.collapse.results import Cure, Measurements


def cure_rows(result: Measurements) -> list[dict[str, str]]:
    """Name, place in words, reason and command of every cure, in the verdict's order."""
    return [
        {"name": cure.name, "where": _where(cure, result), "why": cure.why, "command": command(cure, result)}
        for cure in result.verdict.cures
    ]


def command(cure: Cure, result: Measurements) -> str:
    """What to run: a ``deepvit train`` command where the network can be trained by one, else Python.

    Whoever asked for the diagnosis knows that: ``provenance["train"]`` has ``options``, the words that name
    the network and its data, and ``out``, the run folder that the new one must not replace, or ``None``. A
    model that somebody handed to ``deepvit.diagnose`` has no name that a command line knows. Cures that the network has
    stay: those of its options are named again, or come with its weights where blocks go or are gone.
    """
    train = result.provenance.get("train")
    if train is None:
        return _python(cure)
    # The trained network goes on where blocks are taken from it, or were: their numbers are those that it has now.
    goes_on = bool(train.get("out")) and (cure.name == "cut" or bool(train.get("cut")))
    present = str(train.get("cures") or "")
    words = [*_options(cure, "" if goes_on else present)]
    if goes_on:
        words.insert(0, f"--weights {shlex.quote(train['out'])}")
        if cure.loss and present:
            words.insert(1, "--cures ''")
    if train.get("out"):
        words.append(f"--out {shlex.quote(train['out'] + '-' + cure.name)}")
    first = "deepvit train " + " ".join(shlex.quote(word) for word in train["options"])
    return " \\\n  ".join([first, *words])


def _options(cure: Cure, present: str) -> list[str]:
    if cure.loss:
        return [f"--losses.{cure.name} 1"]
    if present:
        own = cure.name if cure.blocks == "all" else f"{cure.name}@{cure.blocks}"
        return [f"--cures {shlex.quote(f'{present},{own}')}"]
    place = "" if cure.blocks == "all" else f" --cure_blocks {shlex.quote(cure.blocks)}"
    return [f"--cures {shlex.quote(cure.name)}{place}"]


def _python(cure: Cure) -> str:
    if cure.loss:
        return f"diversity = deepvit.losses.Diversity(model, {{{cure.name!r}: 1.0}})"
    return f"deepvit.cures.apply(model, {cure.name!r}, blocks={cure.blocks!r})"


def _where(cure: Cure, result: Measurements) -> str:
    if cure.loss:
        return "the objective"
    if cure.blocks in ("all", f"0-{len(result.blocks) - 1}"):
        return "every block"
    if cure.blocks.isdigit():
        return f"block {cure.blocks}"
    spelled = cure.blocks.replace(",", ", ").replace("-", " to ")
    return "blocks " + spelled.replace("last:", "last ").replace("first:", "first ")
