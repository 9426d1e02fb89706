"""What differs between the networks of a comparison, and what makes their numbers incomparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepvit.collapse.results import Measurements
from deepvit.report.page import number
from deepvit.report.run import run_facts
from deepvit.report.words import has_random_weights


def facts_of(result: Measurements) -> dict[str, str]:
    """What can be told of one network, how it was trained, and how it was measured: name → words."""
    run = result.provenance.get("run") or {}
    told = run_facts(run)
    facts: dict[str, str] = {key: told[key] for key in ("Model", "Cures", "Losses", "Data") if key in told}
    for key in ("epochs", "batch", "seed", "weights"):
        if run.get(key) is not None:
            facts[_NAMES[key]] = str(run[key])
    if has_random_weights(result):
        facts["weights"] = "random"
    facts["class"] = str(result.model.get("class", "–"))
    if isinstance(result.model.get("parameters"), int):
        facts["parameters"] = f"{result.model['parameters']:,}"
    if result.model.get("input"):
        facts["input"] = " × ".join(map(str, result.model["input"]))
    facts["blocks"] = str(len(result.blocks))
    for name, values in (
        ("heads", [block.heads for block in result.blocks]),
        ("patch grid", ["×".join(map(str, block.grid)) if block.grid else None for block in result.blocks]),
    ):
        kept = dict.fromkeys(value for value in values if value is not None)
        facts[name] = ", ".join(map(str, kept)) or "–"
    if result.provenance.get("data"):
        facts["measured on"] = str(result.provenance["data"])
    if isinstance(result.provenance.get("images"), int):
        facts["images measured"] = number(result.provenance["images"])
    return {name[:1].upper() + name[1:]: value for name, value in facts.items()}


_NAMES = {"epochs": "epochs", "batch": "images a step", "seed": "seed", "weights": "weights"}


def differences(results: Sequence[Measurements], names: Sequence[str]) -> dict[str, Any] | None:
    """The table of what differs (a row a fact, a column a network), and in ``same`` what is alike in all."""
    if len(results) < 2:
        return None
    facts = [facts_of(result) for result in results]
    keys = list(dict.fromkeys(key for each in facts for key in each))
    rows, same = [], []
    for key in keys:
        values = [each.get(key) for each in facts]
        known = set(values) - {None}
        if len(known) == 1:
            where = "" if None not in values else " (where it is said)"
            same.append(f"{key[:1].lower()}{key[1:]} {known.pop()}{where}")
        else:
            rows.append([key, *("not said" if value is None else value for value in values)])
    return {"heads": ["", *names], "rows": rows, "same": same}


def warnings(results: Sequence[Measurements]) -> list[str]:
    """What should stop a reader from comparing the numbers as they stand."""
    found = []
    runs = [result.provenance.get("run") or {} for result in results]
    data = _values(run.get("data") for run in runs)
    measured = _values(result.provenance.get("data") for result in results)
    if len(data) > 1:
        found.append(f"Trained on different data ({_list(data)}): accuracies do not compare.")
    if len(measured) > 1:
        found.append(
            f"Measured on different images ({_list(measured)}): collapse hangs on the images as well as on the network."
        )
    epochs = _values(run.get("epochs") for run in runs)
    if len(epochs) > 1:
        found.append(
            f"Different budgets ({_list(epochs)} epochs): a difference may be that of training time."
        )
    batches = _values(run.get("batch") for run in runs)
    if len(batches) > 1:
        found.append(f"Different numbers of images a step ({_list(batches)}).")
    said = sum(bool(run) for run in runs)
    if 0 < said < len(results):
        found.append(
            f"How it was trained is known of {said} of {len(results)} networks: whether budgets and data are alike "
            "cannot be told."
        )
    images = _values(result.provenance.get("images") for result in results)
    if len(images) > 1:
        found.append(f"Measured on different numbers of images ({_list(images)}).")
    inputs = _values(
        tuple(result.model["input"]) if result.model.get("input") else None for result in results
    )
    if len(inputs) > 1:
        sizes = ["×".join(map(str, size[1:])) for size in inputs]
        found.append(
            f"Different input sizes ({_list(sizes)}): entropy, distance and ranks hang on the number of tokens."
        )
    random = [result.name for result in results if has_random_weights(result)]
    if random:
        found.append(f"Random weights in {_list(random)}: nothing was loaded, so that is how it starts.")
    return found


def _values(values: Any) -> list[Any]:
    return list(dict.fromkeys(value for value in values if value is not None))


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
