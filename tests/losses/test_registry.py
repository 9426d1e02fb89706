"""A loss is a file and a line: ``Diversity`` asks the record what to take and how to compute it."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch

from deepvit import losses
from deepvit.errors import UserError


def model():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_small_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=3, num_classes=5
    ).eval()


@dataclasses.dataclass(frozen=True)
class Options:
    power: float = 2.0


def compute(seen, form, options):
    spread = seen.last() - seen.first() if form == "between" else seen.last()
    return -spread.abs().pow(options.power).mean()


@pytest.fixture
def spread():
    loss = losses.Loss(
        name="spread", formula="−mean |h|^p", source="this test", options=Options, compute=compute, helps="nothing",
        forms={"last": frozenset({"last"}), "between": frozenset({"first", "normed"})},
        answers={"patches_alike": "spreads them"},
    )  # fmt: skip
    yield losses.register(loss)
    del losses.LOSSES["spread"]


def test_a_registered_loss_is_known_everywhere(spread):
    network, images = model(), torch.randn(2, 3, 32, 32)
    kept = {}
    for number in (0, 2):
        network.blocks[number].register_forward_hook(
            lambda _m, _i, out, n=number: kept.update({n: out[:, 1:]})
        )
    network.norm.register_forward_hook(lambda _m, _i, out: kept.update(norm=out[:, 1:]))
    for form, power, expected in (
        ("last", 2.0, lambda: -kept[2].square().mean()),
        ("between", 3.0, lambda: -(kept["norm"] - kept[0]).abs().pow(3).mean()),
    ):
        div = losses.Diversity(
            network, {"spread": 0.5}, forms={"spread": form}, options={"spread": {"power": power}}
        )
        with div.watch():
            network(images)
        terms = div.terms()
        torch.testing.assert_close(terms["spread"], expected())
        torch.testing.assert_close(div.total(terms), 0.5 * expected())
        div.remove()
    assert ("spread", "spreads them") in losses.answering("patches_alike")
    assert "spread" in {row["name"] for row in losses.table()}


def test_mistakes_are_one_clear_line(spread):
    for call, words in (
        (lambda: losses.register(spread), "there is a loss 'spread' already"),
        (
            lambda: losses.Diversity(model(), {"spread": 1}, forms={"spread": "x"}),
            "no form 'x'; choose from last, between",
        ),
        (
            lambda: losses.Diversity(model(), {"spread": 1}, options={"spread": {"x": 1}}),
            "no option 'x'; it has power",
        ),
        (lambda: losses.Diversity(model(), {"spread": 1}, options={"x": {}}), "no diversity loss 'x'"),
        (
            lambda: dataclasses.replace(spread, forms={"a": frozenset({"maps"})}),
            "needs maps: there are first, embed",
        ),
        (lambda: dataclasses.replace(spread, forms={}), "has no form"),
    ):
        with pytest.raises(UserError, match=words):
            call()
