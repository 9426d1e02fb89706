"""Metrics of patch tokens against closed forms and brute force."""

import math

import pytest
import torch

from deepvit.collapse import metrics


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_patch_similarity_equals_brute_force():
    x = tokens(2, 5, 3)
    for i in range(2):
        cosines = torch.tensor(
            [torch.cosine_similarity(x[i, a], x[i, b], dim=0) for a in range(5) for b in range(5) if a != b]
        )
        assert metrics.patch_similarity(x)[i].item() == pytest.approx(cosines.abs().mean().item(), abs=1e-6)
        assert metrics.signed_patch_similarity(x)[i].item() == pytest.approx(cosines.mean().item(), abs=1e-6)


def test_patch_similarity_of_equal_orthogonal_and_opposite_patches():
    equal = tokens(1, 1, 8).expand(2, 6, 8)
    torch.testing.assert_close(metrics.patch_similarity(equal), torch.ones(2))
    torch.testing.assert_close(metrics.signed_patch_similarity(equal), torch.ones(2))
    assert metrics.patch_similarity(torch.eye(4)[None]).item() == pytest.approx(0, abs=1e-6)
    opposite = torch.tensor([[[1.0, 0], [-1.0, 0]]])
    assert metrics.patch_similarity(opposite).item() == pytest.approx(1)
    assert metrics.signed_patch_similarity(opposite).item() == pytest.approx(-1)
    assert metrics.patch_similarity(equal[:, :1]).isnan().all()


@pytest.mark.parametrize(
    "metric",
    [
        metrics.patch_similarity,
        metrics.signed_patch_similarity,
        metrics.rank_one_distance,
        metrics.high_norm_share,
    ],
)
def test_token_metrics_ignore_scale_and_order_of_patches_and_treat_images_alone(metric):
    x = tokens(4, 7, 5) + 0.5
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(metric(x[:, order]), metric(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(metric(3 * x), metric(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat([metric(x[:1]), metric(x[1:])]), metric(x), atol=1e-6, rtol=0)


def test_feature_similarity_of_equal_opposite_and_orthogonal_features():
    x = tokens(2, 5, 4)
    torch.testing.assert_close(metrics.feature_similarity(x, 2 * x), torch.ones(2))
    torch.testing.assert_close(metrics.feature_similarity(x, -x), -torch.ones(2))
    a, b = torch.eye(4)[None, :2], torch.eye(4)[None, 2:]
    assert metrics.feature_similarity(a, b).item() == 0


def test_rank_one_distance():
    same = tokens(1, 1, 8).expand(2, 6, 8)
    torch.testing.assert_close(metrics.rank_one_distance(same), torch.zeros(2), atol=1e-6, rtol=0)
    x = tokens(1, 6, 8)
    torch.testing.assert_close(metrics.rank_one_distance(x - x.mean(1, keepdim=True)), torch.ones(1))
    # Two orthogonal unit vectors: what is left after their mean is half of the squared length.
    assert metrics.rank_one_distance(torch.eye(2)[None]).item() == pytest.approx(0.5**0.5)


def test_change():
    x = tokens(2, 5, 4)
    torch.testing.assert_close(metrics.change(x, x), torch.zeros(2))
    torch.testing.assert_close(metrics.change(x, 3 * x), torch.full((2,), 2.0))
    assert metrics.change(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)).isinf().all()


def test_high_norm_share():
    x = torch.ones(1, 10, 4)
    assert metrics.high_norm_share(x).item() == 0
    x[0, :2] = 10
    assert metrics.high_norm_share(x).item() == pytest.approx(0.2)
    x[0, :2] = 2.9
    assert metrics.high_norm_share(x).item() == 0


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_invariances(debiased):
    x, y = tokens(40, 6), tokens(40, 9, seed=1)
    rotation = torch.linalg.qr(tokens(6, 6, seed=2)).Q
    assert metrics.linear_cka(x, x, debiased) == pytest.approx(1, abs=1e-6)
    assert metrics.linear_cka(x, 5 * x @ rotation + 3, debiased) == pytest.approx(1, abs=1e-5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    plain = metrics.linear_cka(x, y, debiased)
    assert metrics.linear_cka(x[order], y[order], debiased) == pytest.approx(plain, abs=1e-6)
    assert metrics.cka_matrix([x, y, x], debiased)[0].tolist() == pytest.approx([1, plain, 1], abs=1e-6)


def test_plain_cka_equals_the_form_in_features():
    x, y = tokens(40, 6), tokens(40, 9, seed=1)
    xc, yc = x - x.mean(0), y - y.mean(0)
    brute = (yc.T @ xc).norm() ** 2 / ((xc.T @ xc).norm() * (yc.T @ yc).norm())
    assert metrics.linear_cka(x, y, debiased=False) == pytest.approx(brute.item(), abs=1e-6)
    # Features that never vary together: two cosines of different frequency over the tokens.
    phase = torch.arange(40) / 40 * 2 * torch.pi
    apart = metrics.linear_cka(phase.cos()[:, None], (2 * phase).cos()[:, None], debiased=False)
    assert apart == pytest.approx(0, abs=1e-6)


def test_debiased_cka_equals_the_unbiased_hsic_and_is_near_zero_for_unrelated_features():
    x, y = tokens(12, 4).double(), tokens(12, 5, seed=1).double()

    def hsic(a, b):
        n = len(a)
        k, m = a @ a.T, b @ b.T
        k.fill_diagonal_(0)
        m.fill_diagonal_(0)
        middle = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
        return ((k @ m).trace() + middle) / (n * (n - 3))

    x, y = x - x.mean(0), y - y.mean(0)
    brute = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    assert metrics.linear_cka(x, y) == pytest.approx(brute.item(), abs=1e-5)
    wide, other = tokens(200, 150), tokens(200, 150, seed=1)
    assert metrics.linear_cka(wide, other, debiased=False) > 0.3
    assert abs(metrics.linear_cka(wide, other)) < 0.05
    with pytest.raises(ValueError, match="at least 4"):
        metrics.linear_cka(x[:3], y[:3])


def test_update_cosine_equals_brute_force():
    before, added = tokens(2, 5, 4).double(), tokens(2, 5, 4, seed=1).double()
    brute = [
        sum(
            float(before[b, i] @ added[b, i])
            / math.sqrt(float(before[b, i] @ before[b, i] * (added[b, i] @ added[b, i])))
            for i in range(5)
        )
        / 5
        for b in range(2)
    ]
    assert metrics.update_cosine(before, before + added).tolist() == pytest.approx(brute, abs=1e-5)
    assert metrics.update_cosine(before, 3 * before).tolist() == pytest.approx([1, 1])
    assert metrics.update_cosine(before, 0 * before).tolist() == pytest.approx([-1, -1])
    assert metrics.update_cosine(before, before).isnan().all()
    half = before.clone()
    half[:, 0] *= 2  # one patch of five is changed: it alone counts
    assert metrics.update_cosine(before, half).tolist() == pytest.approx([1, 1])


def test_image_similarity_equals_brute_force():
    x = tokens(6, 7, 5).double() + 0.3
    means = [x[b].mean(0) for b in range(6)]
    pairs = [
        float(a @ b) / math.sqrt(float((a @ a) * (b @ b)))
        for i, a in enumerate(means)
        for j, b in enumerate(means)
        if i != j
    ]
    directions = metrics.image_directions(x)
    assert metrics.image_similarity(directions.sum(0), 6) == pytest.approx(sum(pairs) / 30, abs=1e-12)
    same = metrics.image_directions(x[:1].expand(4, -1, -1))
    assert metrics.image_similarity(same.sum(0), 4) == pytest.approx(1)
    assert math.isnan(metrics.image_similarity(directions[0], 1))
