"""Losses against a frozen teacher: brute force with gradients, extremes, and what ``Diversity`` hands them."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from deepvit.errors import UserError
from deepvit.losses import Diversity, gram_anchoring, patch_kernel_alignment

B, N, C, D = 2, 5, 4, 3
BOTH = {"gram_anchoring": 1.0, "patch_kernel_alignment": 1.0}


def pair(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return (torch.randn(B, N, width, generator=g, dtype=torch.float64).to(dtype) for width in (C, D))


def cos(a, b):
    return a @ b / (a.norm() * b.norm())


def slow_gram(x, y, form):
    images = [
        sum((cos(s[i], s[j]) - cos(t[i], t[j])) ** 2 for i in range(N) for j in range(N))
        for s, t in zip(x, y, strict=True)
    ]
    return torch.stack(images).mean() / (N * N if form == "mean" else 1)


def slow_alignment(x, y):
    h = torch.eye(N, dtype=x.dtype) - 1 / N
    values = []
    for s, t in zip(x, y, strict=True):
        a, b = h @ s @ s.T @ h, h @ t @ t.T @ h
        values.append(1 - torch.trace(a @ b) / (torch.trace(a @ a) * torch.trace(b @ b)).sqrt())
    return torch.stack(values).mean()


@pytest.mark.parametrize(
    ("fast", "slow"),
    [
        (gram_anchoring, lambda x, y: slow_gram(x, y, "mean")),
        (lambda x, y: gram_anchoring(x, y, "frobenius"), lambda x, y: slow_gram(x, y, "frobenius")),
        (patch_kernel_alignment, slow_alignment),
    ],
)
def test_equal_to_brute_force_with_the_gradient(fast, slow):
    x, y = pair()
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y.requires_grad_()
    value, expected = fast(mine, y), slow(theirs, y.detach())
    torch.testing.assert_close(value, expected)
    value.backward(), expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert y.grad is None  # the teacher is frozen


def test_extremes():
    x, y = pair()
    turn = torch.linalg.qr(torch.randn(C, C, dtype=torch.float64))[0]
    assert gram_anchoring(x, 3 * x @ turn).item() == pytest.approx(0, abs=1e-12)
    assert patch_kernel_alignment(x, 3 * x @ turn + 7).item() == pytest.approx(0, abs=1e-12)
    assert 0 < patch_kernel_alignment(x, y).item() <= 1
    grid = x.view(B, 1, N, C)
    torch.testing.assert_close(gram_anchoring(grid, y), gram_anchoring(x, y))
    front = torch.cat((torch.randn(B, 2, C), x), 1), torch.cat((torch.randn(B, 2, D), y), 1)
    for loss in (gram_anchoring, patch_kernel_alignment):
        torch.testing.assert_close(loss(*front, prefix_tokens=2), loss(x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e-20, 1e10])
@pytest.mark.parametrize("loss", [gram_anchoring, patch_kernel_alignment])
def test_hostile_input_stays_finite(loss, size, dtype):
    x, y = pair(dtype)
    x = (size * x).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, y)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert x.grad.isfinite().all()


def vit(**options):
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 2, "num_classes": 5}
    return timm.create_model("vit_small_patch16_224", **{**small, **options})


@pytest.mark.parametrize("tokens", ["auto", "block"])
def test_the_teacher_sees_the_same_images_and_is_left_alone(tokens):
    model, images = vit(), torch.randn(3, 3, 32, 32)
    teacher = vit(embed_dim=48, drop_path_rate=0.5).train()
    before = copy.deepcopy(teacher.state_dict())
    div = Diversity(model, BOTH, teacher=teacher, tokens=tokens)
    assert not list(div.parameters())
    with div.watch():
        model(images)
    terms = div.terms()
    own, its = (
        m.forward_intermediates(
            images, indices=1, norm=tokens == "auto", output_fmt="NLC", intermediates_only=True
        )[0]
        for m in (model, teacher.eval())
    )
    torch.testing.assert_close(terms["gram_anchoring"], gram_anchoring(own, its))
    torch.testing.assert_close(terms["patch_kernel_alignment"], patch_kernel_alignment(own, its))
    div.total(terms).backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())
    torch.testing.assert_close(teacher.state_dict(), before)
    assert not teacher.training
    div.remove()
    assert not sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in [*model.modules(), *teacher.modules()]
    )


def test_a_copy_of_the_network_starts_at_nothing():
    model = vit().eval()
    div = Diversity(model, BOTH, teacher=copy.deepcopy(model))
    with div.watch():
        model(torch.randn(2, 3, 32, 32))
    assert max(term.item() for term in div.terms().values()) < 1e-6


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: Diversity(m, BOTH), "gram_anchoring compares with a frozen teacher: give teacher= a network"),
        (lambda m: Diversity(m, BOTH, teacher="vit_small"), "give teacher= a network"),
        (lambda m: Diversity(m, BOTH, teacher=m), "the teacher is the network itself"),
        (lambda m: Diversity(m, {"patch_cosine": 1}, teacher=vit()), "no loss with a weight needs one"),
        (lambda m: gram_anchoring(torch.zeros(1, 4, 2), torch.zeros(1, 9, 2)), "take a teacher of the same patch grid"),
        (lambda m: gram_anchoring(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), "x"), "no form 'x'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_line(ask, words):
    with pytest.raises(UserError, match=words):
        ask(vit())
