"""The gradient at each block's patches, split: against autograd by hand, in closed forms, and without a trace."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from collapse.lesioned import images_of, with_equal_patches, working
from torch.nn import functional as F

from deepvit.collapse import CollapseProbe
from deepvit.collapse.gradients import centred_norm, mean_share, patch_gradients
from deepvit.collapse.measuring import probe


def rows_of(model, images):
    return probe(model, images[:1], None)[0]


def test_the_split_equals_brute_force():
    g = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for image in range(3):
        mean = sum(g[image, i] for i in range(7)) / 7
        whole = sum(float(g[image, i, c]) ** 2 for i in range(7) for c in range(5))
        rest = sum(float((g[image, i] - mean)[c]) ** 2 for i in range(7) for c in range(5))
        assert float(mean_share(g)[image]) == pytest.approx(7 * float((mean**2).sum()) / whole)
        assert float(centred_norm(g)[image]) == pytest.approx(rest**0.5)
        assert float(mean_share(g)[image]) == pytest.approx(1 - rest / whole)
    same = g[:, :1].expand(-1, 7, -1)
    assert mean_share(same).tolist() == pytest.approx([1, 1, 1])
    assert centred_norm(same).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert mean_share(g - g.mean(1, keepdim=True)).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert mean_share(0 * g).isnan().all()


FAMILIES = {
    "ViT": lambda: working(depth=3, class_token=False),
    "class token": lambda: working(depth=3),
    "Swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=56,
        depths=(2, 2),
        num_heads=(3, 6),
        embed_dim=24,
        num_classes=5,
    ).eval(),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_autograd(name):
    torch.manual_seed(0)
    model = FAMILIES[name]()
    images = torch.randn(3, 3, 56, 56) if name == "Swin" else images_of(model, 3)
    rows = rows_of(model, images)
    found = patch_gradients(model, rows, images)
    blocks = [b for s in model.layers for b in s.blocks] if name == "Swin" else list(model.blocks)
    kept = []
    handles = [
        b.register_forward_hook(lambda m, a, out: (out.retain_grad(), kept.append(out))[0]) for b in blocks
    ]
    logits = model(images)
    F.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    for handle in handles:
        handle.remove()
    prefix = 1 if name == "class token" else 0
    for number, out in enumerate(kept):
        expected = out.grad.flatten(1, 2) if out.grad.ndim == 4 else out.grad[:, prefix:]
        torch.testing.assert_close(found[number], expected)
    if name == "class token":  # nobody looks at the patches behind the last block
        assert not found[2].any()


def test_patches_made_equal_get_one_push():
    model = with_equal_patches(working(depth=3, class_token=False), 1)
    images = images_of(model, 3)
    found = patch_gradients(model, rows_of(model, images), images)
    # From there on all patches are the same and are treated the same.
    assert mean_share(found[1]).tolist() == pytest.approx([1, 1, 1])
    assert centred_norm(found[1]).max() < 1e-5 * found[1].abs().max()
    free = working(depth=3, class_token=False)
    pushed = patch_gradients(free, rows_of(free, images), images)
    assert mean_share(pushed[1]).max() < 0.95
    assert mean_share(pushed[2]).tolist() == pytest.approx(
        [1, 1, 1]
    )  # of a mean every patch is the same part


@pytest.mark.parametrize("kind", ["features", "one output", "frozen"])
def test_networks_without_classes_and_without_gradients_of_their_own(kind):
    model = working(depth=3, classes=1 if kind == "one output" else 6)
    if kind == "features":
        model.reset_classifier(0)
    if kind == "frozen":
        model.requires_grad_(False)
    images = images_of(model, 2)
    found = patch_gradients(model, rows_of(model, images), images)
    assert set(found) == {0, 1, 2}
    assert all(bool(found[n].any()) for n in (0, 1))


def test_the_monitor_logs_them_and_leaves_gradients_alone():
    model = working(depth=4, class_token=False).train()
    images = images_of(model, 4)
    loss = model(images).square().mean()
    loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    logged = CollapseProbe(model, images, attention_images=2).measure()
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters() if name in before)
    model.eval()
    found = patch_gradients(model, rows_of(model, images), images[::2])
    shares = [float(mean_share(found[n]).mean()) for n in range(4)]
    assert logged["collapse/gradient_mean_share/last"] == pytest.approx(shares[3], rel=1e-5)
    assert logged["collapse/gradient_mean_share/deep"] == pytest.approx((shares[2] + shares[3]) / 2, rel=1e-5)
    assert logged["collapse/gradient_centred_norm/last"] == pytest.approx(
        float(centred_norm(found[3]).mean()), rel=1e-5
    )
    off = CollapseProbe(model, images, gradients=False).measure()
    assert not any("gradient" in key for key in off)


def test_a_network_without_any_gradient_says_so_once():
    model = working(depth=2, class_token=False)
    whole = model.forward_features
    model.forward_features = lambda x, **options: whole(x.detach(), **options)
    model.requires_grad_(False)
    watching = CollapseProbe(model, images_of(model, 2))
    with pytest.warns(UserWarning, match="gradients are not measured"):
        watching.measure()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watching.measure()
