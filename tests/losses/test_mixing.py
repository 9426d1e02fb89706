"""Patch-aligned mixing: every patch's label is found again from the pixels, and the losses equal loops."""

from __future__ import annotations

import pytest
import torch

from deepvit.errors import UserError
from deepvit.losses import PatchHead, PatchLabels, PatchMix, patch_mixing, soft_labels

K = 7


def numbered_images(b=6, height=24, width=32):
    """Image i is the constant i: what a patch holds of which image can be read off its pixels."""
    return torch.arange(b, dtype=torch.float64).view(b, 1, 1, 1).expand(b, 3, height, width).clone()


def binary_images(b=6, height=24, width=32):
    """Image i has one channel that is 1: the pixel is the vector of shares, whatever the mixing."""
    return torch.eye(b, dtype=torch.float64).view(b, b, 1, 1).expand(b, b, height, width).clone()


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize(
    "mix", [{"cutmix_alpha": 1.0}, {"cutmix_alpha": 0.0, "mixup_alpha": 0.8}, {"mixup_alpha": 0.8}]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_rebuilt_from_pixels(per_image, mix, smoothing):
    labels = torch.tensor([0, 1, 2, 3, 3, 6])
    source = soft_labels(labels, K, smoothing).double()
    seen = set()
    for seed in range(8):
        mixer = PatchMix(
            8,
            K,
            label_smoothing=smoothing,
            per_image=per_image,
            generator=torch.Generator().manual_seed(seed),
            **mix,
        )
        images = binary_images()
        before = images.clone()
        out = mixer(images, labels)
        assert torch.equal(images, before)  # the input is the caller's
        assert out.patches.grid == (3, 4)
        dense = out.patches.dense().double()
        shares = []
        for i in range(6):
            for n in range(12):
                row, column = divmod(n, 4)
                patch = out.images[i, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
                assert (patch == patch[:, :1, :1]).all()  # one patch, one mixture: the cut follows the grid
                share = patch[:, 0, 0]
                shares.append(share)
                torch.testing.assert_close(dense[i, n], share @ source, rtol=0, atol=1e-6)
        by_area = out.images.mean(dim=(2, 3)) @ source
        torch.testing.assert_close(out.targets.double(), by_area, rtol=0, atol=1e-6)
        torch.testing.assert_close(out.targets.sum(1), torch.ones(6))
        cut = all(((s == 0) | (s == 1)).all() for s in shares)
        seen.add("cut" if cut else "mixed")
    assert seen == {"cut"} if not mix.get("mixup_alpha") else "mixed" in seen


def test_mixup_before_the_cut_reaches_the_patches():
    images, labels = binary_images(), torch.tensor([0, 1, 2, 3, 4, 5])
    first = PatchMix(8, K, cutmix_alpha=0, mixup_alpha=1.0, generator=torch.Generator().manual_seed(0))(
        images, labels
    )
    second = PatchMix(8, K, generator=torch.Generator().manual_seed(3))(first.images, first.targets)
    dense = second.patches.dense().double()
    source = soft_labels(labels, K).double()
    pixels = second.images[:, :, ::8, ::8].flatten(2).transpose(1, 2)
    torch.testing.assert_close(dense, pixels @ source, rtol=0, atol=1e-6)
    assert ((dense > 0).sum(-1) > 1).any()


def test_the_rectangle_covers_what_lambda_says_and_every_place():
    mixer = PatchMix(4, 2, generator=torch.Generator().manual_seed(0))
    hits, areas = torch.zeros(4, 12), []  # wide: a mask with its axes exchanged would miss places
    for _ in range(400):
        out = mixer(torch.zeros(2, 1, 16, 48), torch.tensor([0, 1]))
        hits += (1 - out.patches.share[0, :, 0]).view(4, 12)
        areas.append(1 - out.patches.share[0, :, 0].mean().item())
    assert hits.min() > 0
    assert 0.4 < sum(areas) / len(areas) < 0.6  # Beta(1, 1) has mean one half


def test_off_and_probability_zero():
    labels = torch.tensor([1, 2])
    for mixer in (PatchMix(8, K, cutmix_alpha=0), PatchMix(8, K, prob=0.0)):
        images = torch.randn(2, 3, 16, 16)
        out = mixer(images, labels)
        assert torch.equal(out.images, images)
        assert torch.equal(out.targets, soft_labels(labels, K))
        assert torch.equal(out.patches.dense()[0, 3], soft_labels(labels, K)[0])


def test_swin_patches_are_32_pixels():
    out = PatchMix(32, K)(torch.randn(2, 3, 224, 224), torch.tensor([0, 1]))
    assert out.patches.grid == (7, 7)


def patches(seed=0):
    g = torch.Generator().manual_seed(seed)
    mixer = PatchMix(8, K, label_smoothing=0.1, generator=g)
    return mixer(torch.randn(4, 3, 24, 32, generator=g), torch.tensor([0, 1, 2, 3])).patches


def test_mixing_equals_the_loop():
    labels = patches()
    double = PatchLabels(labels.sources.double(), labels.share.double(), labels.grid)
    logits = torch.randn(4, 12, K, dtype=torch.float64, requires_grad=True)
    slow = logits.detach().clone().requires_grad_()
    dense = double.dense()
    expected = torch.stack(
        [-(dense[b, n] * torch.log_softmax(slow[b, n], 0)).sum() for b in range(4) for n in range(12)]
    )
    value = patch_mixing(logits, double)
    torch.testing.assert_close(value, expected.mean())
    torch.testing.assert_close(patch_mixing(logits, dense), expected.mean())  # soft labels, spelled out
    value.backward(), expected.mean().backward()
    torch.testing.assert_close(logits.grad, slow.grad)


def test_hard_labels_with_smoothing():
    logits, labels = torch.randn(2, 5, K), torch.randint(K, (2, 5))
    soft = soft_labels(labels.flatten(), K, 0.1).view(2, 5, K)
    torch.testing.assert_close(patch_mixing(logits, labels, label_smoothing=0.1), patch_mixing(logits, soft))
    perfect = 100 * torch.nn.functional.one_hot(labels, K).float()
    assert patch_mixing(perfect, labels).item() == pytest.approx(0, abs=1e-6)
    assert patch_mixing(torch.zeros(2, 5, K), labels).item() == pytest.approx(
        torch.log(torch.tensor(7.0)).item()
    )


def test_official_form_equals_the_loop():
    labels = patches(1)
    head = PatchHead(6, K, "official").eval()
    tokens = torch.randn(4, 12, 6)
    total = 0.0
    for b in range(4):
        for s in range(2):
            inside = labels.share[b, :, s].bool()
            if not inside.any():
                continue
            log_prob = torch.log_softmax(head.linear(tokens[b, inside].mean(0)), 0)
            label = labels.sources[b, s]
            total += inside.float().mean() * (label * (label.log() - log_prob)).sum()
    torch.testing.assert_close(head(tokens, labels), total / 4)
    assert head.dropout.p == 0.2
    head.train()
    assert head(tokens, labels) != head(tokens, labels)


def test_official_form_with_an_empty_region():
    share = torch.stack([torch.ones(2, 4), torch.zeros(2, 4)], -1)
    labels = PatchLabels(soft_labels(torch.tensor([0, 1]), K).unsqueeze(1).expand(2, 2, K), share, (2, 2))
    tokens = torch.randn(2, 4, 6, requires_grad=True)
    loss = PatchHead(6, K, "official")(tokens, labels)
    loss.backward()
    assert loss.isfinite()
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize("form", ["paper", "official"])
@pytest.mark.parametrize(
    "tokens",
    [torch.zeros(1, 1, 6), 1e4 * torch.randn(1, 1, 6), torch.randn(1, 1, 6).bfloat16()],
    ids=["zeros", "large", "bfloat16"],
)
def test_hostile_input_stays_finite(form, tokens):
    head = PatchHead(6, K, form).to(tokens.dtype)
    labels = PatchLabels.whole(soft_labels(torch.tensor([3]), K), (1, 1))
    tokens = tokens.clone().requires_grad_()
    loss = head(tokens, labels)
    assert loss.dtype == torch.float32
    loss.backward()
    assert loss.isfinite()
    assert tokens.grad.isfinite().all()
    assert head.linear.weight.grad.isfinite().all()


def test_prefix_logits_are_ignored_and_grids_flattened():
    logits, labels = torch.randn(2, 6, K), torch.randint(K, (2, 6))
    with_prefix = torch.cat([1e6 * torch.randn(2, 3, K), logits], 1)
    torch.testing.assert_close(
        patch_mixing(with_prefix, labels, prefix_tokens=3), patch_mixing(logits, labels)
    )
    torch.testing.assert_close(patch_mixing(logits.view(2, 2, 3, K), labels), patch_mixing(logits, labels))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: PatchMix(16, K)(torch.zeros(2, 3, 225, 224), torch.tensor([0, 1])),
            "patch size divides: 225×224 pixels, patches of 16×16; resize or crop to 240×224",
        ),
        (lambda: PatchMix(16, K, cutmix_alpha=-1), "cutmix_alpha=-1"),
        (lambda: PatchMix(16, K, label_smoothing=2), "between 0 and 1"),
        (lambda: PatchMix(0, K), "at least 1 pixel"),
        (lambda: PatchMix(8, K)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 7])), "labels run from 0 to 7"),
        (lambda: soft_labels(torch.rand(2, 3), K), r"soft labels must be \[B, 7\]"),
        (
            lambda: patch_mixing(torch.zeros(2, 3, K), torch.zeros(2, 4).long()),
            r"patch labels must be \[2, 3\]",
        ),
        (lambda: patch_mixing(torch.zeros(4, 9, K), patches()), "3×4 patches but the network has 9"),
        (
            lambda: patch_mixing(torch.zeros(4, 9, K), patches(), "official"),
            r"takes region logits \[B, S, K\]",
        ),
        (lambda: patch_mixing(torch.zeros(2, 3, K), torch.zeros(2, 3).long(), "x"), "no form 'x'"),
        (lambda: PatchHead(4, 0), "num_classes of at least 1"),
        (lambda: PatchHead(4, 2, "x"), "no form 'x'"),
    ],
)
def test_mistakes_are_one_clear_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
