"""``deepvit.diagnose``: what it takes, what it leaves alone, what it writes, and what it refuses."""

import base64
import json

import pytest
import timm
import torch
from collapse.constructed import images, network

import deepvit
from deepvit.collapse.chosen import displayed
from deepvit.errors import UserError
from deepvit.report import diagnose, load
from deepvit.report.store import plain


class Loader(list):
    """A list of batches with what our loaders have besides."""

    skipped = ()


def test_it_is_public_and_writes_json_and_page(tmp_path):
    model = network("maps_alike", depth=6, start=3)
    report = deepvit.diagnose(model, [images(6)], out=tmp_path, name="made", progress=False)
    assert [path.name for path in report.files] == ["report.html", "collapse.json"]
    assert all(path.is_file() for path in report.files)
    kept = load(tmp_path)
    assert kept.verdict == report.verdict
    assert kept.name == "made"
    assert plain(kept, maps=False) == json.loads(json.dumps(report.metrics, allow_nan=False))
    assert kept.maps
    assert "all maps alike from block 3 on" in (tmp_path / "report.html").read_text()


def test_model_modes_gradients_and_random_state_are_left_alone():
    model = network(depth=3, start=9).train()
    model.blocks[1].eval()
    model.zero_grad()
    state = torch.get_rng_state()
    diagnose(model, [images(3)], progress=False)
    assert model.training
    assert model.blocks[0].mlp.training
    assert not any(module.training for module in model.blocks[1].modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_modes_come_back_after_an_error():
    model = network(depth=2, start=9).train()
    with pytest.raises(UserError):
        diagnose(model, [images(3)], blocks="7", progress=False)
    assert model.training


@pytest.mark.parametrize(
    "batch",
    [images(3), (images(3), torch.tensor([0, 1, 2])), {"pixel_values": images(3), "labels": [0, 1, 2]}],
    ids=["tensor", "tuple", "mapping"],
)
def test_loaders_may_give_tensors_tuples_or_mappings(batch):
    report = diagnose(
        network(depth=2, start=9), [batch], images=2, class_names=["ant", "bee"], progress=False
    )
    assert report.metrics["provenance"]["images"] == 2
    labels = [image.label for image in report.measurements.maps]
    named = not isinstance(batch, torch.Tensor)
    assert labels == (["ant (image 0)", "bee (image 1)"] if named else ["image 0", "image 1"])


def test_only_as_many_images_as_asked_for_are_read():
    drawn = []

    def loader():
        for number in range(10):
            drawn.append(number)
            yield images(4)

    report = diagnose(network(depth=2, start=9), loader(), images=6, progress=False)
    assert report.metrics["provenance"]["images"] == 6
    assert len(drawn) <= 3


def test_chosen_blocks_keep_their_numbers():
    report = diagnose(network("maps_alike", depth=6, start=3), [images(4)], blocks="2-5", progress=False)
    assert [block.index for block in report.measurements.blocks] == [2, 3, 4, 5]
    assert report.verdict.from_block == 3
    # Block 1 was not measured, so block 2 has nothing to be compared with; its input is known all the same.
    assert report.measurements.series["attention_similarity"].values[0] is None
    assert report.measurements.series["change"].values[0] is not None
    apart = diagnose(network(depth=6, start=9), [images(4)], blocks=[0, 5], progress=False)
    assert "attention_similarity" not in apart.measurements.series


class Wrapped(torch.nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, **kwargs):
        return self.block(x, **kwargs)


def test_a_block_that_somebody_wrapped_keeps_its_place():
    model = network("maps_alike", depth=6, start=3)
    model.blocks[2] = Wrapped(model.blocks[2])
    report = diagnose(model, [images(4)], progress=False)
    assert [block.name for block in report.measurements.blocks] == [f"blocks.{i}" for i in range(6)]
    assert report.verdict.from_block == 3


def test_maps_of_chosen_images_are_those_of_the_class_token():
    model, data = network(depth=3, start=9), images(5)
    report = diagnose(model, [data], maps=2, normalize=((0.5,) * 3, (0.5,) * 3), progress=False)
    assert len(report.measurements.maps) == 2
    with torch.no_grad(), deepvit.capture(model) as seen:
        model(data)
    first = report.measurements.maps[0]
    assert [kept.block for kept in first.maps if kept.query == "class token"] == [0, 1, 2]
    asking = {"class token": 0, "patch (1, 1)": 1 + 6, "patch (2, 2)": 1 + 12, "patch (3, 3)": 1 + 18}
    of_block = [kept for kept in first.maps if kept.block == 1]
    assert [kept.query for kept in of_block] == list(asking)
    for kept in of_block:
        assert kept.shape == [4, 5, 5]
        values = torch.frombuffer(bytearray(base64.b64decode(kept.data)), dtype=torch.uint8).view(4, 5, 5)
        true = seen.attention["blocks.1"][0, :, asking[kept.query], 1:].view(4, 5, 5)
        decoded = kept.low + (kept.high - kept.low) * values / 255
        torch.testing.assert_close(decoded, true, atol=(kept.high - kept.low) / 400, rtol=0)
    pooled = diagnose(network(depth=2, start=9, class_token=False), [data], maps=1, progress=False)
    assert pooled.measurements.maps[0].maps[0].query == "mean of all queries"


def test_images_are_shown_as_they_were():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    normalised = (image - mean[:, None, None]) / std[:, None, None]
    shown = displayed(normalised, (mean.tolist(), std.tolist()))
    assert torch.equal(shown, (image * 255).round().to(torch.uint8).permute(1, 2, 0))
    assert displayed(torch.rand(3, 900, 600), None).shape == (320, 213, 3)


def test_unreadable_images_are_named():
    loader = Loader([images(2)])
    loader.skipped = ["cat.jpg: not an image"]
    report = diagnose(network(depth=2, start=9), loader, progress=False)
    assert report.metrics["provenance"]["unreadable"] == ["cat.jpg: not an image"]
    empty = Loader()
    empty.skipped = ["cat.jpg: not an image"]
    with pytest.raises(UserError, match=r"no images: 1 could not be read, the first: cat\.jpg"):
        diagnose(network(depth=2, start=9), empty, progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": "0-9"}, "no block"),
        ({"blocks": "none"}, "chooses none of the 2 blocks"),
        ({"images": 0}, "images=0"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(options, words):
    with pytest.raises(UserError, match=words) as error:
        diagnose(network(depth=2, start=9), [images(2)], progress=False, **options)
    assert "\n" not in str(error.value)


def test_models_and_data_that_cannot_be_measured_are_refused():
    with pytest.raises(UserError, match="float images"):
        diagnose(network(depth=2, start=9), [["no", "image"]], progress=False)
    with pytest.raises(UserError, match="no attention"):
        diagnose(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), [images(2)], progress=False)
    channels = timm.create_model("xcit_nano_12_p16_224", img_size=32, patch_size=16, depth=2)
    with pytest.raises(UserError, match="over channels"):
        diagnose(channels, [torch.randn(2, 3, 32, 32)], progress=False)
    broken = network(depth=2, start=9)
    broken.blocks[1].mlp.fc1.bias.data[0] = torch.nan
    with pytest.raises(UserError, match=r"blocks\.1: its tokens are NaN"):
        diagnose(broken, [images(2)], progress=False)


def test_the_progress_bar_is_on_standard_error(capsys):
    diagnose(network(depth=2, start=9), [images(2)], progress=True)
    diagnose(network(depth=2, start=9), [images(2)], progress=False)
    assert capsys.readouterr().out == ""


def test_half_precision_models_are_measured():
    report = diagnose(network(depth=3, start=9).bfloat16(), [images(3)], progress=False)
    assert report.verdict.kind == "healthy"


def test_measuring_needs_no_report():
    from deepvit.collapse import measure

    model, data = network("maps_alike", depth=6, start=3), images(4)
    measured = measure(model, [data])
    told = diagnose(model, [data], progress=False, lesions="off").measurements
    assert type(measured.verdict).__name__ == "Verdict"
    assert measured.series == told.series
    assert measured.verdict == type(measured.verdict)(
        **vars(told.verdict) | {"findings": measured.verdict.findings}
    )
    assert not any("Tokens were measured" in str(value) for value in measured.provenance.values())
    assert any("Tokens were measured on 4 images" in note for note in told.provenance["notes"])


def test_patches_of_chosen_images_are_kept_with_norms_and_similarities():
    model, data = network(depth=3, start=9), images(4)
    report = diagnose(model, [data], maps=2, progress=False)
    with torch.no_grad(), deepvit.capture(model) as seen:
        model(data)
    kept = report.measurements.maps[0].patches[1]
    assert (kept.block, kept.grid) == (1, [5, 5])
    patches = seen.tokens["blocks.1"][0, 1:].double()
    norms = patches.norm(dim=-1)
    shares = kept.highest * torch.tensor(list(base64.b64decode(kept.norms))) / 255
    torch.testing.assert_close(shares.double(), norms / norms.median(), atol=kept.highest / 400, rtol=0)
    data_bytes = base64.b64decode(kept.similarity)
    place = 0
    for i in range(25):
        for j in range(i + 1, 25):
            cosine = float(patches[i] @ patches[j] / (norms[i] * norms[j]))
            assert -1 + 2 * data_bytes[place] / 255 == pytest.approx(cosine, abs=1 / 200)
            place += 1
    assert place == len(data_bytes)
