"""Any backbone becomes a segmentation network: sizes that are no multiple of a patch, batches of one image, refusals."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from deepvit import cures, models
from deepvit.errors import UserError
from deepvit.losses import Diversity
from deepvit.tasks.segmentation.choices import InferOptions
from deepvit.tasks.segmentation.features import Neck, depths_of, feature_maps
from deepvit.tasks.segmentation.heads import SteadyNorm
from deepvit.tasks.segmentation.inference import logits_of
from deepvit.tasks.segmentation.loss import criterion
from deepvit.tasks.segmentation.network import SegmentationNetwork
from deepvit.tasks.segmentation.patches import by_mask

ANY = {"dynamic_img_size": True, "dynamic_img_pad": True}
TINY = {"depth": 4, "embed_dim": 24, "num_heads": 2, "img_size": 64, **ANY}
BACKBONES = {
    "plain ViT": ("vit_small_patch16_224", TINY),
    "registers": ("vit_small_patch14_reg4_dinov2", TINY | {"img_size": 70}),
    "two prefix tokens": ("deit_tiny_distilled_patch16_224", TINY),
    "rotary": ("vit_small_patch16_dinov3", TINY | {"depth": 2, "embed_dim": 24, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "embed_dim": 12,
            "num_heads": [1, 2, 2, 2],
            "depths": [1, 1, 2, 1],
            "img_size": 64,
            "dynamic_img_size": True,
        },
    ),
    "deepvit_s": ("deepvit_s_patch16_224", TINY),
    "one block": ("vit_small_patch16_224", TINY | {"depth": 1}),
    "convolutions": ("resnet18", {}),
}


def network_of(name, *, cure=None, **options):
    torch.manual_seed(0)
    arch, args = BACKBONES[name]
    backbone = models.create(arch, num_classes=0, **args)
    if cure:
        cures.apply(backbone, cure, init="paper")
    return SegmentationNetwork(backbone, 5, (64, 64), channels=8, **options)


def two_steps(network, images, targets, **losses):
    loss = criterion(None, 0.4, 255)
    diversity = Diversity(network.backbone, losses, num_classes=5) if losses else None
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network.train()
    for _ in range(2):
        optimizer.zero_grad()
        if diversity is None:
            output, extra = network(images), {}
        else:
            with diversity.watch():
                output = network(images)
            side = network.depths.sides[-1]
            extra = diversity.terms(by_mask(side, 5, 255)(images, targets).patches)
        terms = loss(output, targets) | extra
        total = sum(terms.values())
        assert torch.isfinite(total)
        total.backward()
        optimizer.step()
    return terms


@pytest.mark.parametrize("name", BACKBONES)
def test_two_steps_at_an_odd_size_with_one_image(name):
    network = network_of(name)
    images, targets = torch.randn(1, 3, 75, 53), torch.randint(0, 5, (1, 75, 53))
    before = [p.clone() for p in network.parameters()]
    two_steps(network, images, targets)
    asked = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    assert not [n for n, p in asked if p.grad is None]  # else several devices would wait for it
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert network(images)["out"].shape == (1, 5, 75, 53)
    network.eval()
    assert set(network(images)) == {"out"}


@pytest.mark.parametrize("name", ["plain ViT", "registers", "swin"])
def test_diversity_losses_see_the_patches(name):
    network = network_of(name, cure=None)
    images, targets = torch.randn(2, 3, 61, 53), torch.randint(0, 5, (2, 61, 53))
    terms = two_steps(network, images, targets, patch_cosine=1.0, patch_contrastive=1.0, patch_mixing=1.0)
    assert {"patch_cosine", "patch_contrastive", "patch_mixing", "auxiliary", "cross_entropy"} == set(terms)


@pytest.mark.parametrize("cure", ["reattention", "registers", "featscale+value_residual"])
def test_a_cured_vit_trains_with_checkpointing_as_without(cure):
    images, targets = torch.randn(2, 3, 61, 53), torch.randint(0, 5, (2, 61, 53))
    found, buffers = [], []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        network = network_of("plain ViT", cure=cure, dropout=0.0).train()
        network.aux[3].p = 0.0
        network.backbone.set_grad_checkpointing(checkpointed)
        sum(criterion(None, 0.4, 255)(network(images), targets).values()).backward()
        found.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
        buffers.append(dict(network.named_buffers()))
    # blocks are computed twice, and running statistics, those of heads and of Re-attention, still move once
    assert set(buffers[0]) == set(buffers[1])
    assert any(name.endswith("running_var") for name in buffers[0])
    for name, value in buffers[0].items():
        torch.testing.assert_close(buffers[1][name], value, msg=lambda text, name=name: f"{name}: {text}")
    assert set(found[0]) == set(found[1])
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["plain ViT", "registers", "two prefix tokens"])
def test_maps_are_the_patch_tokens_of_their_blocks(name):
    backbone = network_of(name).backbone.eval()
    side = 14 if name == "registers" else 16
    images = torch.randn(1, 3, 3 * side, 5 * side)
    seen = []
    handles = [block.register_forward_hook(lambda *a: seen.append(a[2])) for block in backbone.blocks]
    with torch.no_grad():
        maps = feature_maps(backbone, depths_of(backbone, (64, 64)), images)
        for handle in handles:
            handle.remove()
        final = backbone.forward_features(images)
    prefix = backbone.num_prefix_tokens
    tokens = [*seen[:3], final]
    for map_, given in zip(maps, tokens, strict=True):
        assert map_.shape == (1, 24, 3, 5)
        torch.testing.assert_close(map_.flatten(2).transpose(1, 2), given[:, prefix:])


@pytest.mark.parametrize(
    ("side", "expected"), [(16, [48, 24, 12, 6]), (14, [48, 24, 12, 6]), (4, [24, 12, 6, 3])]
)
def test_the_neck_makes_a_pyramid(side, expected):
    maps = [torch.randn(1, 6, 12, 12) for _ in range(4)]
    assert [one.shape[-1] for one in Neck((6,) * 4, side)(maps)] == expected


def test_the_pyramid_pools_one_image_to_one_cell():
    norm = SteadyNorm(3)
    norm.running_mean.fill_(0.5)
    one = norm(torch.ones(1, 3, 1, 1))
    torch.testing.assert_close(one.flatten(), torch.full((3,), 0.5), atol=1e-4, rtol=0)
    assert norm.running_mean.tolist() == [0.5] * 3
    several, plain = torch.randn(2, 3, 1, 1), nn.BatchNorm2d(3)
    torch.testing.assert_close(SteadyNorm(3)(several), plain(several))


def test_frozen_features_stay():
    network = network_of("plain ViT", head="linear", aux=False)
    network.freeze()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    two_steps(network, torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64)))
    assert not network.backbone.training
    assert network.head.training
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "neither tokens nor feature maps"),
        (timm.create_model("mixer_s32_224", num_classes=0), "gives no feature maps of crops of 64×64"),
    ],
)
def test_a_backbone_that_gives_nothing_is_refused(backbone, message):
    with pytest.raises(UserError, match=message) as error:
        SegmentationNetwork(backbone, 5, (64, 64), channels=8)
    assert "\n" not in str(error.value)


def test_a_network_of_one_size_is_known():
    backbone = timm.create_model(
        "cait_xxs24_224", num_classes=0, depth=4, embed_dim=24, num_heads=2, img_size=64
    )
    assert SegmentationNetwork(backbone, 5, (64, 64), channels=8).depths.fixed == (64, 64)
    assert network_of("convolutions").depths.fixed is None


def test_patches_are_labelled_by_their_pixels():
    mask = torch.tensor([[[0, 0, 1, 2], [0, 0, 1, 9], [9, 9, 2, 2], [9, 9, 2, 2], [1, 1, 9, 0]]])
    mixed = by_mask(2, 3, 9)(torch.zeros(1, 3, 5, 4), mask)
    assert mixed.patches.grid == (3, 2)
    assert mixed.targets is mask
    expected = [[1, 0, 0], [0, 2 / 3, 1 / 3], [0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    torch.testing.assert_close(mixed.patches.dense()[0], torch.tensor(expected))


def test_a_patch_without_a_label_counts_for_nothing():
    from deepvit.losses.mixing import patch_mixing

    labels = by_mask(2, 3, 9)(
        torch.zeros(1, 3, 2, 6), torch.tensor([[[0, 0, 1, 1, 9, 9], [0, 0, 1, 1, 9, 9]]])
    ).patches
    logits = torch.randn(1, 3, 3)
    expected = F.cross_entropy(logits[0, :2], torch.tensor([0, 1]))
    torch.testing.assert_close(patch_mixing(logits, labels), expected)


def test_the_loss_counts_pixels_once_and_void_not_at_all():
    logits, truth = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    truth[0, :2] = 255
    weights = torch.tensor([0.5, 1.0, 4.0])
    found = criterion(weights, 0.4, 255)({"out": logits, "aux": 2 * logits}, truth)
    torch.testing.assert_close(
        found["cross_entropy"], F.cross_entropy(logits, truth, weights, ignore_index=255)
    )
    torch.testing.assert_close(
        found["auxiliary"], 0.4 * F.cross_entropy(2 * logits, truth, weights, ignore_index=255)
    )
    nothing = criterion(None, 0.4, 255)({"out": logits}, torch.full((2, 4, 5), 255))
    assert float(nothing["cross_entropy"]) == 0.0


def test_whole_images_are_refused_where_a_network_takes_one_size() -> None:
    backbone = timm.create_model("beit_base_patch16_224", depth=2, embed_dim=24, num_heads=2, img_size=32)
    network = SegmentationNetwork(backbone, 3, (32, 32), head="linear").eval()
    with torch.no_grad():
        logits_of(network, torch.randn(1, 3, 32, 32), (32, 32), InferOptions(inference="whole"))
        with pytest.raises(
            UserError, match="--inference whole: the network takes images of 32×32 pixels only, not 40×48"
        ):
            logits_of(network, torch.randn(1, 3, 40, 48), (32, 32), InferOptions(inference="whole"))
