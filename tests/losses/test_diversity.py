"""Patch cosine and contrastive losses against loops in float64, at their extremes and on hostile input."""

from __future__ import annotations

import math

import pytest
import torch

from deepvit.errors import UserError
from deepvit.losses import patch_contrastive, patch_cosine, patch_tokens

B, GRID, C = 2, (3, 4), 5
N = GRID[0] * GRID[1]


def tokens(seed=0, n=N, dtype=torch.float64):
    return torch.randn(B, n, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_cosine(h, form):
    values = []
    for image in h:
        for i in range(len(image)):
            for j in range(len(image)):
                if form == "paper" and i == j:
                    continue
                cos = image[i] @ image[j] / (image[i].norm() * image[j].norm())
                values.append(cos.abs() if form == "paper" else cos)
    return torch.stack(values).mean()


def slow_contrastive(first, last, form):
    values = []
    for f, h in zip(first, last, strict=True):
        if form == "diverse_vit":
            f, h = f / f.norm(dim=1, keepdim=True), h / h.norm(dim=1, keepdim=True)
        else:
            f = f.detach()
        for i in range(len(f)):
            scores = [f[i] @ h[i], f[i] @ torch.stack([h[j] for j in range(len(h)) if j != i]).mean(0)]
            if form == "official":
                y, x = divmod(i, GRID[1])
                near = [
                    h[r * GRID[1] + s]
                    for r in range(max(0, y - 3), min(GRID[0], y + 4))
                    for s in range(max(0, x - 3), min(GRID[1], x + 4))
                    if (r, s) != (y, x)
                ]
                scores.append(f[i] @ torch.stack(near).sum(0) / 48)  # everywhere, as the official code has it
            values.append(-torch.log_softmax(torch.stack(scores), 0)[0])
    return torch.stack(values).mean()


@pytest.mark.parametrize("form", ["paper", "diverse_vit"])
def test_cosine_equals_the_loop(form):
    fast, slow = tokens().requires_grad_(), tokens().requires_grad_()
    value, expected = patch_cosine(fast, form), slow_cosine(slow, form)
    torch.testing.assert_close(value, expected)
    value.backward(), expected.backward()
    torch.testing.assert_close(fast.grad, slow.grad)


@pytest.mark.parametrize("form", ["paper", "official", "diverse_vit"])
def test_contrastive_equals_the_loop(form):
    fast = [tokens(s).requires_grad_() for s in (1, 2)]
    slow = [tokens(s).requires_grad_() for s in (1, 2)]
    value, expected = patch_contrastive(*fast, form, grid=GRID), slow_contrastive(*slow, form)
    torch.testing.assert_close(value, expected)
    value.backward(), expected.backward()
    torch.testing.assert_close(fast[1].grad, slow[1].grad)
    if form == "diverse_vit":
        torch.testing.assert_close(fast[0].grad, slow[0].grad)
    else:
        assert fast[0].grad is None  # stopped at the early tokens


def test_a_wide_grid_has_places_beyond_the_neighbourhood():
    # 3×4 lies wholly inside a 7×7 window; 2×9 does not, so the window's edge is looked at too.
    first, last = tokens(3, 18), tokens(4, 18)
    value = patch_contrastive(first, last, "official", grid=(2, 9))
    rows = []
    for f, h in zip(first, last, strict=True):
        for i in range(18):
            near = [j for j in range(18) if j != i and abs(j % 9 - i % 9) <= 3]
            others = [j for j in range(18) if j != i]
            scores = torch.stack([f[i] @ h[i], f[i] @ h[others].mean(0), f[i] @ h[near].sum(0) / 48])
            rows.append(-torch.log_softmax(scores, 0)[0])
    torch.testing.assert_close(value, torch.stack(rows).mean())


def test_cosine_extremes():
    parallel = torch.randn(1, 1, 8).expand(2, 6, 8) * torch.randn(2, 6, 1)  # signs differ: |cos| is still 1
    assert patch_cosine(parallel).item() == pytest.approx(1, abs=1e-5)
    orthogonal = torch.eye(6)[None]
    assert patch_cosine(orthogonal).item() == 0
    assert patch_cosine(torch.ones(1, 6, 8), "diverse_vit").item() == pytest.approx(1)
    opposite = torch.tensor([[[1.0, 0], [-1.0, 0]]])
    assert patch_cosine(opposite, "diverse_vit").item() == 0  # signed: cancels


def test_contrastive_extremes():
    far = 50 * torch.eye(6)[None]
    assert patch_contrastive(far, far).item() == pytest.approx(0, abs=1e-6)
    same = torch.randn(1, 1, 8).expand(1, 9, 8)
    assert patch_contrastive(same, same).item() == pytest.approx(math.log(2), abs=1e-4)
    assert patch_contrastive(same, same, "diverse_vit").item() == pytest.approx(math.log(2), abs=1e-5)
    grid = same[:, :1].expand(2, 49, 8)
    near = torch.tensor(
        [
            [(min(y, 3) + min(6 - y, 3) + 1) * (min(x, 3) + min(6 - x, 3) + 1) - 1 for x in range(7)]
            for y in range(7)
        ]
    )
    length = grid[0, 0].square().sum()
    expected = torch.log(2 + torch.exp(length * (near.flatten() / 48 - 1))).mean()
    assert patch_contrastive(grid, grid, "official").item() == pytest.approx(expected.item(), abs=1e-4)


LOSSES = {
    "cosine": lambda h: patch_cosine(h),
    "cosine signed": lambda h: patch_cosine(h, "diverse_vit"),
    "contrastive": lambda h: patch_contrastive(h.detach(), h),
    "contrastive official": lambda h: patch_contrastive(h, h, "official"),
    "contrastive diverse": lambda h: patch_contrastive(h, h, "diverse_vit"),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    "hostile",
    {
        "zeros": torch.zeros(2, 9, 8),
        "one zero token": torch.cat([torch.zeros(2, 1, 8), torch.randn(2, 8, 8)], 1),
        "one patch": torch.randn(2, 1, 8),
        "one image": torch.randn(1, 9, 8),
        "bfloat16": torch.randn(2, 9, 8).bfloat16(),
        "float16": torch.randn(2, 9, 8).half(),
        "large": 1e4 * torch.randn(2, 9, 8),
        "large bfloat16": 1e4 * torch.randn(2, 9, 8).bfloat16(),
        "tiny": 1e-4 * torch.randn(2, 9, 8),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_hostile_input_stays_finite(loss, hostile):
    h = hostile[1].clone().requires_grad_()
    value = loss(h)
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    assert h.grad.isfinite().all()
    if hostile[0] in ("zeros", "one patch") and loss is LOSSES["cosine"]:
        assert value == 0
    if hostile[0] == "one zero token" and loss is LOSSES["cosine signed"]:
        assert (h.grad[:, 0] == 0).all()
        assert (h.grad[:, 1:] != 0).any()


def test_half_precision_computes_in_float32():
    h = torch.randn(2, 50, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = patch_cosine(h)
    torch.testing.assert_close(under_autocast, patch_cosine(h.double()).float(), rtol=1e-5, atol=1e-6)


def test_prefix_tokens_are_ignored():
    h, wild = tokens(5), tokens(6)
    with_prefix = torch.cat([wild[:, :2] * 1e3, h], 1)
    torch.testing.assert_close(patch_cosine(with_prefix, prefix_tokens=2), patch_cosine(h))
    first = torch.cat([wild[:, 2:4] * 1e3, h + 1], 1)
    torch.testing.assert_close(
        patch_contrastive(first, with_prefix, prefix_tokens=2), patch_contrastive(h + 1, h)
    )
    assert with_prefix.requires_grad_().grad is None
    patch_cosine(with_prefix, prefix_tokens=2).backward()
    assert (with_prefix.grad[:, :2] == 0).all()


def test_grids_from_windowed_networks():
    h = tokens(7)
    grid = h.view(B, *GRID, C)
    torch.testing.assert_close(patch_cosine(grid), patch_cosine(h))
    torch.testing.assert_close(
        patch_contrastive(grid + 1, grid, "official"), patch_contrastive(h + 1, h, "official", grid=GRID)
    )
    assert patch_tokens(grid).shape == (B, N, C)


def test_gradcheck():
    h = tokens(8, 6).requires_grad_()
    assert torch.autograd.gradcheck(patch_cosine, h)
    first = tokens(9, 6)
    assert torch.autograd.gradcheck(lambda x: patch_contrastive(first, x), h)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: patch_cosine(tokens(), "nope"), "no form 'nope'; choose from paper, diverse_vit"),
        (lambda: patch_contrastive(tokens(), tokens(), "nope"), "no form 'nope'"),
        (lambda: patch_contrastive(tokens(), tokens(n=5)), r"first is \[2, 12, 5\] and last is \[2, 5, 5\]"),
        (lambda: patch_contrastive(tokens(), tokens(), "official"), "do not fill a 3×3 grid"),
        (lambda: patch_cosine(torch.zeros(3, 4)), r"must be \[B, N, C\]"),
        (lambda: patch_cosine(tokens(), prefix_tokens=N), "leave no patch token"),
    ],
)
def test_mistakes_are_one_clear_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
