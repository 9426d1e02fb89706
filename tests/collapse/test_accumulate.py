"""Streaming sums against everything at once: batch sizes, order of images, shapes, memory."""

import gc
from types import FunctionType, ModuleType

import pytest
import timm
import torch
from collapse.constructed import images, network

from deepvit.capturing import capture
from deepvit.collapse import metrics
from deepvit.collapse.measuring import probe
from deepvit.collapse.moments import Moments
from deepvit.collapse.plan import Plan
from deepvit.collapse.stream import Batch, Pass
from deepvit.report import diagnose


def numbers(report):
    """All numbers of a report by a name, without the Nones."""
    found = {}
    for key, series in report.measurements.series.items():
        for part in ("values", "spread"):
            for block, value in enumerate(getattr(series, part)):
                if value is not None:
                    found[key, part, block] = value
    for key, matrix in report.measurements.matrices.items():
        for p, row in enumerate(matrix):
            for q, value in enumerate(row):
                if value is not None:
                    found[key, p, q] = value
    for key, heads in report.measurements.per_head.items():
        for block, values in enumerate(heads):
            for head, value in enumerate(values or []):
                found[key, "head", block, head] = value
    return found


def same(a, b, but=()):
    a = {key: value for key, value in numbers(a).items() if key[0] not in but}
    b = {key: value for key, value in numbers(b).items() if key[0] not in but}
    assert a.keys() == b.keys()
    # Effective ranks count up to the number of patches: relative.
    worst = max(a, key=lambda key: abs(a[key] - b[key]) / max(1.0, abs(b[key])))
    assert abs(a[worst] - b[worst]) <= 1e-6 * max(1.0, abs(b[worst])), worst
    return len(a)


def batches_of(data, size):
    return [data[i : i + size] for i in range(0, len(data), size)]


def test_moments_equal_mean_and_deviation_whatever_the_batches():
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double() * 1e-3 + 1e4
    values[4, 1] = torch.nan
    moments = Moments()
    for part in (values[:1], values[1:20], values[20:]):
        moments.add(part)
    assert moments.images == 50
    real = values[~values[:, 1].isnan(), 1]
    torch.testing.assert_close(moments.mean[0], values[:, 0].mean(), atol=1e-9, rtol=0)
    torch.testing.assert_close(moments.mean[1], real.mean(), atol=1e-9, rtol=0)
    torch.testing.assert_close(moments.deviation[0], values[:, 0].std(correction=0), atol=1e-9, rtol=0)
    nothing = Moments()
    nothing.add(torch.full((2,), torch.nan))
    assert nothing.mean.isnan()


@pytest.mark.parametrize("size", [1, 5])
def test_streaming_equals_all_at_once(size):
    model, data = network(depth=4, start=2, kind="maps_alike"), images(11)
    options = {"progress": False, "attention_images": 4}  # attention on each third image
    whole = diagnose(model, [data], **options)
    assert same(diagnose(model, batches_of(data, size), images=11, **options), whole) > 100
    assert whole.metrics["provenance"]["attention_images"] == 4


def test_the_order_of_images_does_not_matter_when_attention_is_measured_on_all():
    model, data = network(depth=3, start=9), images(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    # CKA takes other patches of an image when it stands elsewhere.
    same(
        diagnose(model, [data], progress=False),
        diagnose(model, batches_of(data[order], 4), images=9, progress=False),
        but=("cka",),
    )


def test_series_are_the_metrics_of_captured_tensors():
    model, data = network(depth=3, start=9), images(6)
    report = diagnose(model, [data], progress=False)
    with torch.no_grad(), capture(model, qkv=True) as seen:
        model(data)
    maps, values = list(seen.attention.values()), list(seen.values.values())
    tokens = [block[:, 1:] for block in seen.tokens.values()]
    series = report.measurements.series

    def close(key, block, values):
        assert series[key].values[block] == pytest.approx(values.double().mean().item(), abs=1e-6)
        assert series[key].spread[block] == pytest.approx(values.double().std(correction=0).item(), abs=1e-6)

    close("attention_similarity", 2, metrics.column_similarity(maps[1], maps[2]))
    close("attention_similarity_centred", 2, metrics.column_similarity(maps[1], maps[2], centred=True))
    close("entropy", 1, metrics.attention_entropy(maps[1]).mean(1))
    close("head_similarity", 0, metrics.head_similarity(maps[0]))
    close("map_contrast", 0, metrics.map_contrast(maps[0]))
    close("map_rank", 0, metrics.effective_rank(maps[0]).mean(1))
    close("attention_distance", 1, metrics.attention_distance(maps[1], (5, 5), 1).mean(1))
    close("patch_similarity", 2, metrics.patch_similarity(tokens[2]))
    close("patch_similarity_signed", 2, metrics.signed_patch_similarity(tokens[2]))
    close("feature_similarity", 0, metrics.feature_similarity(tokens[0], tokens[2]))
    close("token_rank", 1, metrics.effective_rank(tokens[1]))
    close("rank_one_distance", 1, metrics.rank_one_distance(tokens[1]))
    close("change", 1, metrics.change(tokens[0], tokens[1]))
    close("update_cosine", 1, metrics.update_cosine(tokens[0], tokens[1]))
    close("sink_share", 1, metrics.sink_share(maps[1]).mean(1))
    close("sink_value_norm", 2, metrics.sink_value_norm(maps[2], values[2]).mean(1))
    between = metrics.image_similarity(metrics.image_directions(tokens[1]).sum(0), 6)
    assert series["image_similarity"].values[1] == pytest.approx(between, abs=1e-9)
    assert (series["image_similarity"].spread[1], series["image_similarity"].images) == (None, 6)
    close("high_norm_share", 1, metrics.high_norm_share(tokens[1]))
    assert series["attention_similarity"].values[0] is None
    cka = metrics.cka_matrix([block.flatten(0, 1) for block in tokens])
    assert report.metrics["matrices"]["cka"][0][2] == pytest.approx(cka[0, 2].item(), abs=1e-5)
    pair = metrics.column_similarity(maps[0], maps[2]).mean().item()
    assert report.metrics["matrices"]["attention_similarity"][0][2] == pytest.approx(pair, abs=1e-6)
    assert report.metrics["matrices"]["attention_similarity"][2][0] == pytest.approx(pair, abs=1e-6)


def test_mixed_heads_are_measured_after_and_entropy_before_mixing():
    model = timm.create_model(
        "cait_xxs24_224", img_size=32, patch_size=8, depth=2, depth_token_only=1, embed_dim=32, num_heads=4
    )
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.proj_w.weight)
    data = torch.randn(4, 3, 32, 32)
    report = diagnose(model, [data], progress=False)
    with torch.no_grad(), capture(model.eval()) as seen:
        model(data)
    series = report.measurements.series
    mixed, softmax = [list(each.values()) for each in (seen.attention, seen.softmax)]
    assert [block.mixed for block in report.measurements.blocks] == [True, True, False]
    assert float(mixed[0].min()) < 0
    entropy = metrics.attention_entropy(softmax[1]).mean().item()
    assert series["entropy"].values[1] == pytest.approx(entropy, abs=1e-6)
    for key, maps in (("attention_similarity", mixed), ("softmax_similarity", softmax)):
        expected = metrics.column_similarity(maps[0], maps[1]).mean().item()
        assert series[key].values[1] == pytest.approx(expected, abs=1e-6)
    # The class token's own block asks with one query: nothing to compare it with.
    last = report.measurements.blocks[2]
    assert (last.kind, last.group) == ("class", None)
    assert report.metrics["matrices"]["attention_similarity"][2] == [None, None, None]


def test_maps_of_other_windows_are_not_compared_and_masks_are_left_out():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=16,
        depths=(4, 2),
        num_heads=(2, 4),
    )
    report = diagnose(model, [torch.randn(2, 3, 64, 64)], progress=False)
    blocks = report.measurements.blocks
    assert [block.kind for block in blocks] == ["windowed"] * 6
    matrix = report.metrics["matrices"]["attention_similarity"]
    alike = [[value is not None for value in row] for row in matrix]
    # Plain and shifted windows alternate; the second stage has other maps.
    assert alike[0] == [True, False, True, False, False, False]
    assert alike[1] == [False, True, False, True, False, False]
    assert alike[4] == [False, False, False, False, True, False]
    series = report.measurements.series
    assert [value is None for value in series["attention_similarity"].values] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    # Without its mask a fresh network is uniform in shifted windows too.
    assert min(series["entropy"].values[:4]) > 0.99
    assert report.verdict.kind == "untrained_or_uniform"


def test_long_sequences_are_sampled_and_the_report_says_so():
    exact = network(depth=2, start=9, grid=16, dim=16, heads=2)  # 257 tokens
    report = diagnose(exact, [images(2, 16)], progress=False)
    notes = " ".join(report.metrics["provenance"]["notes"])
    assert "255 of 257 columns" in notes
    assert "rank of maps is that of 128" in notes
    with torch.no_grad(), capture(exact) as seen:
        exact(images(2, 16))
    maps = list(seen.attention.values())
    true = metrics.column_similarity(maps[0], maps[1]).mean().item()
    assert report.measurements.series["attention_similarity"].values[1] == pytest.approx(true, abs=1e-3)
    assert "all columns of each map" in " ".join(
        diagnose(network(depth=2, start=9), [images(2)], progress=False).metrics["provenance"]["notes"]
    )


def held_numbers(thing):
    """How many numbers are held in tensors that can be reached from an object, its model aside."""
    seen, stack, total = set(), [thing], 0
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, type | ModuleType | FunctionType | torch.nn.Module):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            total += item.numel()
        stack += gc.get_referents(item)
    return total


def test_memory_does_not_grow_with_the_number_of_images():
    model, data = network(depth=3, start=9), images(8)
    rows, _ = probe(model, data[:1], None)
    plan = Plan(attention_every=2, rank_every=4, alignment_per_image=25, alignment_tokens=200)
    measured, sizes = Pass(model, rows, plan), []
    for start in range(0, 64, 8):
        measured.run(Batch(data, list(range(start, start + 8)), [""] * 8))
        sizes.append(held_numbers(measured))
    assert sizes[0] > 1000
    assert sizes[-1] == sizes[1]
