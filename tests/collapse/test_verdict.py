"""Verdicts against networks whose collapse is known by construction, through capture, metrics and verdict."""

import pytest
import timm
import torch
from collapse.constructed import images, network

from deepvit import cures
from deepvit.collapse import verdict as judging
from deepvit.collapse.catalogue import METRICS
from deepvit.collapse.lesions.effects import Effect, Lesions
from deepvit.collapse.lesions.lines import keeps_answer
from deepvit.collapse.remedies import block_range, cures_for
from deepvit.collapse.results import BlockFacts, Series
from deepvit.collapse.stretches import find_stretch
from deepvit.report import diagnose
from deepvit.report.spoken import speak

LOSSES = {"patch_cosine", "patch_contrastive"}
KINDS = ("maps_alike", "uniform_maps", "sharp_maps", "patches_alike")
# depth, first collapsed block, width, patches a side, class token
SIZES = [(12, 8, 64, 5, True), (24, 8, 96, 3, False), (10, 4, 32, 6, True)]


def verdict_of(kind, depth, start, dim, grid, class_token):
    model = network(kind, depth, start, dim, grid=grid, class_token=class_token)
    return diagnose(model, [images(8, grid)], progress=False, lesions="off").verdict


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_constructed_collapse_is_called_by_name_and_from_the_right_block(kind, size):
    verdict = verdict_of(kind, *size)
    depth, start = size[:2]
    assert (verdict.kind, verdict.from_block, verdict.collapsed) == (kind, start, True)
    assert f"from block {start} on" in verdict.headline
    assert verdict.sureness == "sure"
    assert verdict.findings[0].blocks == list(range(start, depth))
    assert verdict.findings[0].evidence
    assert {cure.name for cure in verdict.cures} <= set(cures.REGISTRY) | LOSSES
    in_blocks = [cure.blocks for cure in verdict.cures if cure.name not in LOSSES]
    assert f"{start}-{depth - 1}" in in_blocks


@pytest.mark.parametrize("size", SIZES)
def test_a_healthy_network_is_called_healthy(size):
    verdict = verdict_of("healthy", *size)
    assert (verdict.kind, verdict.collapsed, verdict.from_block) == ("healthy", False, None)
    assert not verdict.cures
    assert verdict.sureness == "sure"


def test_the_untrained_base_model_is_untrained_or_uniform():
    model = timm.create_model("vit_base_patch16_224")
    verdict = diagnose(model, [torch.randn(2, 3, 224, 224)], progress=False).verdict
    assert verdict.kind == "untrained_or_uniform"
    assert not verdict.collapsed
    assert "not called collapse" in verdict.text
    assert not verdict.cures


def decide(*args):
    """The verdict with its words."""
    return speak(judging.decide(*args))


def made(depth=12, prefix=1, mixed=False, images=64, **values):
    """Blocks and series of a healthy network, with the given values in place of its own."""
    blocks = [
        BlockFacts(i, f"blocks.{i}", heads=6, keys=197, prefix=prefix, mixed=mixed) for i in range(depth)
    ]
    own = {
        "attention_similarity": 0.4,
        "attention_similarity_centred": 0.3,
        "entropy": 0.7,
        "map_contrast": 2.0,
        "head_similarity": 0.3,
        "patch_similarity": 0.3,
        "rank_one_distance": 0.8,
    }
    series = {}
    for key, value in own.items():
        given = values.get(key, value)
        given = list(given) if isinstance(given, list) else [given] * depth
        if key.startswith("attention_similarity"):
            given[0] = None
        series[key] = Series(given, [0.01] * depth, images)
    for key in set(values) - set(own):
        series[key] = Series(values[key], [0.01] * depth, images)
    return blocks, series


def test_what_sets_in_first_names_the_verdict_and_all_is_told():
    similarity = [0.4] * 5 + [0.97] * 7
    patches = [0.3] * 9 + [0.95] * 3
    parts = {"attention_similarity": similarity, "attention_similarity_centred": [0.9] * 12}
    verdict = decide(*made(**parts, patch_similarity=patches))
    assert (verdict.kind, verdict.from_block) == ("maps_alike", 4)
    assert [finding.kind for finding in verdict.findings[:2]] == ["maps_alike", "patches_alike"]
    earlier = decide(*made(**parts, patch_similarity=[0.3] * 2 + [0.95] * 10))
    assert (earlier.kind, earlier.from_block) == ("patches_alike", 2)


def test_alike_by_uniformity_alone_is_not_maps_alike():
    verdict = decide(*made(attention_similarity=0.95, attention_similarity_centred=0.1, entropy=0.95))
    assert verdict.kind == "healthy"
    assert "11 of 11 blocks are similar" in verdict.text


def test_uniform_softmax_maps_that_mixing_makes_different_are_not_uniform():
    mixed = made(mixed=True, entropy=0.999, map_contrast=5.0, attention_similarity=0.02)
    assert decide(*mixed).kind == "healthy"
    assert decide(*made(mixed=True, entropy=0.999, map_contrast=0.05)).kind == "untrained_or_uniform"


def test_first_blocks_that_are_uniform_are_a_remark_and_deep_ones_a_collapse():
    early = decide(*made(entropy=[0.999] * 3 + [0.7] * 9))
    assert early.kind == "healthy"
    assert any("near uniform" in finding.sentence for finding in early.findings)
    deep = decide(*made(entropy=[0.7] * 6 + [0.999] * 4 + [0.7] * 2))
    assert (deep.kind, deep.from_block, deep.headline) == (
        "uniform_maps",
        6,
        "Collapse: maps uniform in blocks 6 to 9",
    )


def test_high_patch_similarity_beside_different_maps_is_said():
    values = [0.3 + 0.05 * i for i in range(12)]
    softmax = [None] + [0.6] * 11
    verdict = decide(
        *made(mixed=True, attention_similarity=0.02, patch_similarity=values, softmax_similarity=softmax)
    )
    assert verdict.kind == "healthy"
    assert "0.85, high, although neighbouring maps differ (similarity 0.02" in verdict.text
    assert "alike by 0.60 with the previous block, the mixed maps by 0.02" in verdict.text


def test_nearly_alike_maps_are_said():
    verdict = decide(*made(attention_similarity=0.85, attention_similarity_centred=0.8))
    assert verdict.kind == "healthy"
    assert "close to alike, 0.85 on the average" in verdict.text


def test_patches_alike_after_the_last_block_alone_matter_without_a_class_token_only():
    values = [0.3] * 11 + [0.95]
    assert decide(*made(patch_similarity=values, prefix=0)).from_block == 11
    verdict = decide(*made(patch_similarity=values, prefix=1))
    assert verdict.kind == "healthy"
    assert "0.95, nearly all alike" in verdict.text


def test_fresh_wide_networks_are_untrained_although_their_maps_are_less_uniform():
    # Width 1408: the scores deviate by .56, exp(entropy) is .85 of the keys.
    assert decide(*made(entropy=0.97)).kind == "untrained_or_uniform"
    assert decide(*made(entropy=[0.97] * 11 + [0.9])).kind == "healthy"


@pytest.mark.parametrize(
    ("share", "images", "sureness"),
    [(1.0, 64, "sure"), (0.75, 64, "likely"), (0.5, 64, "unsure"), (1.0, 4, "likely")],
)
def test_sureness_follows_the_share_of_images(share, images, sureness):
    blocks, series = made(attention_similarity=0.95, attention_similarity_centred=0.9, images=images)
    verdict = decide(blocks, series, {"alike": [None] + [share] * 11})
    assert verdict.kind == "maps_alike"
    assert verdict.sureness == sureness
    assert f"{share:.0%} of {images} images" in verdict.sureness_text


def test_stretches():
    def stretch(text, least=2):
        found = find_stretch("uniform_maps", [{"x": True, ".": False, "?": None}[c] for c in text], least)
        return found and (found.start, found.to_end, len(found.members))

    assert stretch("....xxxx") == (4, True, 4)
    assert stretch("....xxx.xxxx") == (4, True, 7)  # an exception does not break it
    assert stretch("x...xx.xx..") == (4, False, 2)
    assert stretch("......x.") is None
    assert stretch(".......x") is None
    assert stretch(".......x", least=1) == (7, True, 1)
    assert stretch("..xx????") == (2, True, 2)
    assert stretch("????????") is None


def test_block_ranges_are_the_syntax_of_the_block_option():
    assert block_range([8, 9, 10, 11], range(12)) == "8-11"
    assert block_range([3, 8, 9], range(12)) == "3,8-9"
    assert block_range(range(12), range(12)) == "all"


def test_every_recommended_cure_exists():
    kinds = ("maps_alike", "uniform_maps", "sharp_maps", "patches_alike")
    named = {cure.name for kind in kinds for cure in cures_for(kind, [1], [0, 1])}
    assert named <= set(cures.REGISTRY) | LOSSES
    assert set(METRICS) >= {"attention_similarity", "entropy", "patch_similarity"}


def test_few_images_are_said_in_english():
    blocks, series = made(attention_similarity=0.95, attention_similarity_centred=0.9, images=1)
    one = decide(blocks, series, {"alike": [None] + [1.0] * 11})
    assert (one.sureness, one.sureness_text) == (
        "likely",
        "one image was measured, which is too few to be sure",
    )
    blocks, series = made(images=4)
    assert "all 4 images show" in decide(blocks, series, {"alike": [0.0] * 12}).sureness_text


def test_softmax_and_mixed_maps_are_not_mixed_up_in_one_paragraph():
    blocks, series = made(
        mixed=True, entropy=0.999, map_contrast=0.05, attention_similarity=0.02, attention_similarity_centred=0.01,
        softmax_similarity=[None] + [0.99] * 11,
    )  # fmt: skip
    text = decide(blocks, series).text
    # It said "similarity with the previous block, 0.99, says nothing … on centred maps it is 0.01" of two
    # kinds of maps, then "similarities lie between 0.02 and 0.02" as if of the same.
    assert "Before heads are mixed, every block attends to all tokens nearly alike" in text
    assert "by 0.99 with the previous block here; once mixed, the maps are alike by 0.02" in text
    assert "0 of 11 blocks are similar to the previous one (at least 0.9) in the maps that multiply V" in text
    assert "centred" not in text
    assert text.count("0.99 ") == 1


def test_a_verdict_is_made_of_parts():
    verdict = judging.decide(
        *made(attention_similarity=[0.4] * 5 + [0.97] * 7, attention_similarity_centred=0.9)
    )
    finding = verdict.findings[0]
    assert (finding.about, finding.blocks, finding.to_end) == ("maps_alike", list(range(4, 12)), True)
    assert finding.number("attention_similarity") == pytest.approx(0.97)
    assert finding.number("attention_similarity", "before") == pytest.approx(0.4)
    assert finding.number("entropy") is None
    assert (verdict.counts.similar, verdict.counts.comparable) == (7, 11)
    assert not any(isinstance(value, str) and " " in value for value in vars(finding).values())


@pytest.mark.parametrize(("task", "changed", "score", "kept"), [
    ("dense", 0.02, 51.4, False),
    ("dense", 0.008, 47.3, False),
    ("dense", 0.008, 51.0, True),
    ("classification", 1 / 14, 51.4, True),
    ("classification", 2 / 14, 51.4, False),
])  # fmt: skip
def test_a_few_images_of_many_pixels_are_no_small_sample(
    task: str, changed: float, score: float, kept: bool
) -> None:
    """Of 14 images one may change whatever is done; two pixels of a hundred, or four points of mean IoU, may not."""
    found = Lesions(task=task, images=14, told_apart=1.0, score_name="mean IoU", score=51.4)
    assert keeps_answer(found, Effect("block", [3, 4, 5], 0.008, 0.001, changed, score)) is kept
