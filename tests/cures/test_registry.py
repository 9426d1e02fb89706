"""A cure is a file and a line: exclusions, remedies, lists and the docs table follow from its record."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import nn

from deepvit import cures, losses
from deepvit.collapse.remedies import cures_for
from deepvit.cures import registry
from deepvit.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"

# What the cures named by hand before they had slots.
MAP = ("reattention", "talking_heads", "attnscale", "centred_attention", "differential_attention")
BY_HAND = {frozenset(pair) for pair in combinations(MAP, 2)} | {
    frozenset({"neutreno", "value_residual"}),
    frozenset({"neutreno", "differential_attention"}),
}
OLD = {
    *MAP,
    "neutreno",
    "value_residual",
    "layerscale",
    "featscale",
    "contranorm",
    "sigma_reparam",
    "qk_norm",
    "registers",
}

# What the verdict's list of remedies named by hand, in its order.
ABOUT_LESIONS = {"idle", "harm"}  # answered by cut
REMEDIES = {
    "maps_alike": ["reattention", "talking_heads", "value_residual"],
    "uniform_maps": ["attnscale", "centred_attention", "featscale"],
    "sharp_maps": ["qk_norm", "sigma_reparam"],
    "patches_alike": [
        "patch_cosine",
        "patch_contrastive",
        "contranorm",
        "neutreno",
        "featscale",
        "layerscale",
    ],
}


def test_exclusions_follow_from_slots():
    excluded = {
        frozenset({a, b})
        for a, b in combinations(cures.CURES, 2)
        if cures.CURES[a].excludes(cures.CURES[b]) and {a, b} <= OLD
    }
    assert excluded == BY_HAND
    assert all(cure.excludes(cure) for cure in cures.CURES.values())  # nothing goes twice into a block


@pytest.mark.parametrize("kind", REMEDIES)
def test_remedies_follow_from_answers(kind):
    found = [
        cure for cure in cures_for(kind, [1, 2], range(3)) if cure.name in OLD or cure.name in losses.LOSSES
    ]
    assert [cure.name for cure in found] == REMEDIES[kind]
    assert all(cure.blocks == ("all" if cure.name in losses.LOSSES else "1-2") and cure.why for cure in found)


def test_answers_name_findings_that_there_are():
    told = [*cures.CURES.values(), *losses.LOSSES.values()]
    assert {finding for entry in told for finding in entry.answers} <= set(REMEDIES) | ABOUT_LESIONS
    assert {name for kind in ABOUT_LESIONS for name, _ in cures.answering(kind)} == {"cut"}


def as_markdown(rows):
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]


def test_the_docs_tables_are_the_registries():
    told = [{name: text for name, text in entry.items() if name != "source"} for entry in cures.table()]
    cure_rows = as_markdown([f"`{row['name']}`", *list(row.values())[1:]] for row in told)
    loss_rows = as_markdown(
        [f"`{entry.name}`", entry.formula, entry.helps, ", ".join(f"`{form}`" for form in entry.forms)]
        for entry in losses.LOSSES.values()
    )
    page = (DOCS / "cure.md").read_text().splitlines()
    assert as_markdown([list(told[0])])[0] in page  # `deepvit list cures` has the same headings
    shown = [line for line in page if line.startswith("| `")]
    assert shown == cure_rows + loss_rows, "\n".join(["docs/cure.md should have", *cure_rows, "", *loss_rows])


@dataclasses.dataclass(frozen=True)
class Options:
    pass


class Half(nn.Module):
    def forward(self, x):
        return x / 2


def put(model, blocks, options):
    for number in blocks:
        model.blocks[number].ls1 = Half()


@pytest.fixture
def half(monkeypatch):
    monkeypatch.setattr(registry, "CURES", cures.CURES)
    cure = cures.Cure(
        name="half", mechanism="x/2", source="this test, arXiv 0", options=Options, put=put, needs_maps=False,
        identity_at_start=False, slots=frozenset({"branch gain"}), helps="nothing",
        answers={"sharp_maps": "halves the first branch"},
    )  # fmt: skip
    yield cures.register(cure)
    del cures.CURES["half"]


def test_a_registered_cure_is_known_everywhere(make, half, images):
    model = cures.apply(make(), "half@1")
    assert isinstance(model.blocks[1].ls1, Half)
    again = cures.reapply(make(), model.deepvit_cures)
    torch.testing.assert_close(again(images), model(images))
    with pytest.raises(UserError, match="exclude each other and both ask for block 1"):
        cures.apply(model, "layerscale")
    assert cures_for("sharp_maps", [1], [0, 1])[-1].why == "halves the first branch"
    assert "half" in {row["name"] for row in cures.table()}
    assert cures.parse_method("half+diversity").names == ("half",)
    with pytest.raises(UserError, match="there is a cure 'half' already"):
        cures.register(half)
