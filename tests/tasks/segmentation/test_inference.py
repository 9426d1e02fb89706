"""Windows, scales and mirror images against whole images, on networks for which they must agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepvit.errors import UserError
from deepvit.tasks.segmentation.choices import InferOptions
from deepvit.tasks.segmentation.inference import logits_of

WINDOW = (16, 16)


class Pointwise(nn.Module):
    """Each pixel by itself: windows change nothing, and mirroring commutes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 5, 1)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images):
        self.seen.append(tuple(images.shape[-2:]))
        return {"out": self.layer(images)}


class Blur(nn.Module):
    """Looks two pixels around: agrees with the whole image away from the borders of windows."""

    def forward(self, images):
        return {"out": nn.functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)}


@pytest.fixture
def images():
    return torch.randn(2, 3, 37, 50, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.75])
def test_windows_of_a_pointwise_network_are_the_whole_image(images, overlap):
    network = Pointwise()
    whole = logits_of(network, images, WINDOW, InferOptions(inference="whole"))
    network.seen.clear()
    slid = logits_of(network, images, WINDOW, InferOptions(inference="slide", overlap=overlap))
    assert set(network.seen) == {WINDOW}
    assert len(network.seen) > 6
    torch.testing.assert_close(slid, whole)


def test_a_window_as_large_as_the_image_is_the_whole_image(images):
    whole = logits_of(Blur(), images, (37, 50), InferOptions(inference="whole"))
    torch.testing.assert_close(logits_of(Blur(), images, (37, 50), InferOptions(inference="slide")), whole)


def test_windows_agree_away_from_their_borders(images):
    whole = logits_of(Blur(), images, WINDOW, InferOptions(inference="whole"))
    slid = logits_of(Blur(), images, WINDOW, InferOptions(inference="slide", overlap=0.0))
    torch.testing.assert_close(slid[..., 2:14, 2:14], whole[..., 2:14, 2:14])
    assert not torch.allclose(slid, whole)  # so the test above says something


def test_auto_slides_over_large_images_only(images):
    network = Pointwise()
    logits_of(network, images[..., :16, :32], WINDOW, InferOptions())
    assert network.seen == [(16, 32)]
    logits_of(network, images, WINDOW, InferOptions())
    assert set(network.seen[1:]) == {WINDOW}


def test_mirror_and_scale_averages_of_a_network_that_commutes_with_them():
    # Constant stripes survive scaling by whole numbers, and a pointwise network commutes with both.
    network = Pointwise()
    images = torch.randn(1, 3, 1, 1).expand(1, 3, 24, 36)
    plain = logits_of(network, images, (64, 64), InferOptions()).log_softmax(1)
    options = InferOptions(scales=[0.5, 1.0, 2.0], flip=True)
    network.seen.clear()
    averaged = logits_of(network, images, (64, 64), options)
    assert network.seen == [(12, 18)] * 2 + [(24, 36)] * 2 + [(48, 72)] * 2
    torch.testing.assert_close(averaged, plain, atol=1e-5, rtol=1e-5)


def test_mirrored_passes_are_turned_back(images):
    network = Pointwise()
    averaged = logits_of(network, images, (64, 64), InferOptions(flip=True))
    plain = logits_of(network, images, (64, 64), InferOptions()).log_softmax(1)
    torch.testing.assert_close(averaged, plain, atol=1e-5, rtol=1e-5)


def test_averages_are_of_probabilities(images):
    class Sided(nn.Module):
        def forward(self, images):
            ramp = torch.linspace(-2, 2, images.shape[-1]).expand(len(images), 1, *images.shape[-2:])
            return {"out": torch.cat([ramp, -ramp], 1)}

    found = logits_of(Sided(), images, (64, 64), InferOptions(flip=True))
    one = Sided()(images)["out"].softmax(1)
    expected = (one + one.flip(-1)) / 2
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 37, 50))


def test_options_are_checked():
    for bad in ({"overlap": 1.0}, {"scales": []}, {"scales": [0.0]}):
        with pytest.raises(UserError, match=next(iter(bad))):
            InferOptions(**bad)
