"""Metrics of attention maps against closed forms and brute force."""

import itertools
import math

import pytest
import torch

from deepvit.collapse import metrics


def softmax_maps(*shape, seed=0, sharpness=2.0):
    return torch.softmax(sharpness * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), -1)


def brute_similarity(a, b):
    """The definition, one cosine at a time."""
    images, heads, _, tokens = a.shape
    out = []
    for i in range(images):
        cosines = [
            torch.dot(a[i, h, :, t], b[i, h, :, t]) / (a[i, h, :, t].norm() * b[i, h, :, t].norm())
            for h, t in itertools.product(range(heads), range(tokens))
        ]
        out.append(torch.stack(cosines).mean())
    return torch.stack(out)


def permutation_maps(order, images=2, heads=3):
    return torch.eye(len(order))[list(order)].expand(images, heads, -1, -1)


def uniform_maps(tokens, images=2, heads=3):
    return torch.full((images, heads, tokens, tokens), 1.0 / tokens)


def test_cross_layer_similarity_equals_brute_force():
    blocks = [softmax_maps(3, 2, 7, 7, seed=s) for s in range(4)]
    matrix = metrics.similarity_matrix(blocks)
    for p, q in itertools.product(range(4), range(4)):
        torch.testing.assert_close(matrix[:, p, q], brute_similarity(blocks[p], blocks[q]), atol=1e-6, rtol=0)
    centred = metrics.similarity_matrix(blocks, centred=True)
    reference = brute_similarity(blocks[0] - 1 / 7, blocks[2] - 1 / 7)
    torch.testing.assert_close(centred[:, 0, 2], reference, atol=1e-6, rtol=0)


def test_identical_maps_give_one_and_disjoint_maps_zero():
    maps = softmax_maps(2, 3, 9, 9)
    ones = torch.ones(2)
    torch.testing.assert_close(metrics.column_similarity(maps, maps), ones)
    torch.testing.assert_close(metrics.column_similarity(maps, maps, centred=True), ones)
    shifted = metrics.column_similarity(permutation_maps((0, 1, 2, 3)), permutation_maps((1, 2, 3, 0)))
    torch.testing.assert_close(shifted, torch.zeros(2))


def test_uniform_maps_are_alike_but_have_no_centred_similarity():
    uniform = uniform_maps(17)
    torch.testing.assert_close(metrics.column_similarity(uniform, uniform), torch.ones(2))
    assert metrics.column_similarity(uniform, uniform, centred=True).isnan().all()
    # Computed uniform maps carry rounding, which must not count as structure.
    computed = torch.softmax(torch.full((2, 3, 197, 197), 3.3), -1)
    assert metrics.column_similarity(computed, computed, centred=True).isnan().all()
    nearly = torch.softmax(1e-3 * torch.randn(2, 3, 50, 50, generator=torch.Generator().manual_seed(1)), -1)
    other = torch.softmax(1e-3 * torch.randn(2, 3, 50, 50, generator=torch.Generator().manual_seed(2)), -1)
    assert metrics.column_similarity(nearly, other).min() > 0.999
    assert metrics.column_similarity(nearly, other, centred=True).abs().max() < 0.05


def test_tokens_that_receive_nothing_in_both_blocks_are_left_out():
    def all_to(token):
        maps = torch.zeros(1, 2, 4, 4)
        maps[..., token] = 1
        return maps

    assert metrics.column_similarity(all_to(1), all_to(1)).item() == 1
    assert metrics.column_similarity(all_to(1), all_to(2)).item() == 0
    assert metrics.column_similarity(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)).isnan().all()


def test_signed_maps_are_allowed_and_opposite_maps_give_minus_one():
    maps = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(metrics.column_similarity(maps, -maps), -torch.ones(2))


def test_similarity_ignores_the_order_of_queries_and_follows_the_order_of_images():
    a, b = softmax_maps(4, 2, 6, 6, seed=1), softmax_maps(4, 2, 6, 6, seed=2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    plain = metrics.column_similarity(a, b)
    torch.testing.assert_close(metrics.column_similarity(a[:, :, order], b[:, :, order]), plain)
    images = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(metrics.column_similarity(a[images], b[images]), plain[images])


def test_maps_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="different shapes"):
        metrics.column_similarity(softmax_maps(2, 3, 5, 5), softmax_maps(2, 3, 4, 4))


def test_sampled_columns_hold_all_prefix_tokens_and_estimate_the_mean():
    sample = metrics.sample_columns(197, prefix=1, limit=64)
    assert not sample.exact
    assert sample.index[0] == 0
    assert len(sample.index) == len(set(sample.index.tolist())) == 64
    assert int(sample.index.max()) < 197
    assert math.isclose(float(sample.weight.sum()), 1.0, rel_tol=1e-5)
    assert metrics.sample_columns(64, prefix=1, limit=64).exact
    a, b = softmax_maps(2, 3, 197, 197, seed=1), softmax_maps(2, 3, 197, 197, seed=2)
    exact = metrics.similarity_matrix([a, b])[:, 0, 1]
    sampled = metrics.similarity_matrix([a, b], sample)[:, 0, 1]
    torch.testing.assert_close(sampled, exact, atol=0.01, rtol=0)


def test_similar_blocks_follow_the_stated_rule():
    assert metrics.similar_blocks([None, 0.89, 0.9, 0.95, None, 0.2]) == [2, 3]


def test_entropy_of_uniform_one_hot_and_two_key_maps():
    torch.testing.assert_close(metrics.attention_entropy(uniform_maps(16)), torch.ones(2, 3))
    torch.testing.assert_close(metrics.attention_entropy(permutation_maps((1, 0, 2))), torch.zeros(2, 3))
    two = torch.zeros(1, 1, 8, 8)
    two[..., :2] = 0.5
    assert metrics.attention_entropy(two).item() == pytest.approx(1 / 3)
    assert metrics.attention_entropy(torch.ones(1, 1, 4, 1)).isnan().all()


def test_entropy_equals_brute_force():
    maps = softmax_maps(2, 2, 5, 6)
    reference = -(maps * maps.log()).sum(-1).mean(-1) / math.log(6)
    torch.testing.assert_close(metrics.attention_entropy(maps), reference)


@pytest.mark.parametrize("maps", [torch.full((1, 1, 2, 2), 0.6), torch.tensor([[[[1.5, -0.5], [0.5, 0.5]]]])])
def test_entropy_refuses_what_is_no_distribution(maps):
    with pytest.raises(ValueError, match="rows that sum to 1"):
        metrics.attention_entropy(maps)


def test_contrast_of_uniform_one_hot_and_signed_maps():
    torch.testing.assert_close(metrics.map_contrast(uniform_maps(16)), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(metrics.map_contrast(permutation_maps((1, 0, 2))), torch.full((2,), 2**0.5))
    nearly = softmax_maps(1, 2, 40, 40, sharpness=0.05)
    short = 1 - metrics.attention_entropy(nearly).mean().item()
    assert metrics.map_contrast(nearly).item() ** 2 / (2 * math.log(40)) == pytest.approx(short, rel=0.05)
    mixed = 2 * nearly[:, [1, 0]] - 0.5 * nearly
    assert metrics.map_contrast(mixed).item() < 0.2


def test_attention_distance_of_known_maps():
    identity = permutation_maps(range(6))
    torch.testing.assert_close(metrics.attention_distance(identity, (2, 3)), torch.zeros(2, 3))
    # One row of four patches, everybody looks one to the right, the last one stays.
    right = torch.eye(4)[[1, 2, 3, 3]].expand(1, 1, 4, 4)
    assert metrics.attention_distance(right, (1, 4)).item() == pytest.approx(0.75)
    # With a class token that takes half of the attention, the patches' share alone counts.
    full = torch.zeros(1, 1, 5, 5)
    full[0, 0, 0, 0] = 1
    full[0, 0, 1:, 0] = 0.5
    full[0, 0, 1:, 1:] = 0.5 * right[0, 0]
    assert metrics.attention_distance(full, (1, 4), prefix=1).item() == pytest.approx(0.75)
    only_class = torch.zeros(1, 1, 5, 5)
    only_class[..., 0] = 1
    assert metrics.attention_distance(only_class, (1, 4), prefix=1).isnan().all()


def test_attention_distance_equals_brute_force_and_knows_pooled_keys():
    maps = softmax_maps(1, 2, 6, 6)
    places = [(r, c) for r in range(2) for c in range(3)]
    for h in range(2):
        travelled = [
            sum(maps[0, h, i, j].item() * math.dist(places[i], places[j]) for j in range(6)) for i in range(6)
        ]
        assert metrics.attention_distance(maps, (2, 3))[0, h].item() == pytest.approx(
            sum(travelled) / 6, abs=1e-6
        )
    # Two by two patches, one pooled key in the middle: every patch is half a diagonal away.
    pooled = metrics.attention_distance(torch.ones(1, 1, 4, 1), (2, 2), key_grid=(1, 1))
    assert pooled.item() == pytest.approx(math.sqrt(0.5))
    with pytest.raises(ValueError, match="tokens"):
        metrics.attention_distance(maps, (3, 3))


def test_head_similarity_of_equal_disjoint_and_single_heads():
    one = softmax_maps(2, 1, 5, 5)
    torch.testing.assert_close(metrics.head_similarity(one.expand(-1, 4, -1, -1)), torch.ones(2))
    disjoint = torch.stack([torch.eye(4)[[0, 1, 2, 3]], torch.eye(4)[[1, 2, 3, 0]]])[None]
    assert metrics.head_similarity(disjoint).item() == 0
    assert metrics.head_similarity(one).isnan().all()


def test_head_similarity_equals_brute_force():
    maps = softmax_maps(2, 3, 5, 5)
    pairs = [
        brute_similarity(maps[:, g : g + 1], maps[:, h : h + 1]) for g in range(3) for h in range(g + 1, 3)
    ]
    torch.testing.assert_close(metrics.head_similarity(maps), torch.stack(pairs).mean(0), atol=1e-6, rtol=0)


def test_effective_rank_of_known_matrices():
    column, row = torch.rand(9, 1), torch.rand(1, 7)
    assert metrics.effective_rank(column @ row).item() == pytest.approx(1, abs=1e-3)
    for k in (1, 3, 6):
        embedded = torch.zeros(8, 10)
        embedded[:k, :k] = torch.eye(k)
        assert metrics.effective_rank(embedded).item() == pytest.approx(k, abs=1e-6)
    matrix = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(matrix)
    share = singular / singular.sum(-1, keepdim=True)
    reference = torch.exp(-(share * share.log()).sum(-1)).double()
    torch.testing.assert_close(metrics.effective_rank(matrix), reference, atol=1e-5, rtol=0)
    assert metrics.effective_rank(torch.zeros(3, 3)).isnan()


def test_sinks_equal_brute_force():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 3, 5, 6, generator=generator).double().softmax(-1)
    values = torch.randn(2, 3, 6, 4, generator=generator).double()
    for b in range(2):
        for h in range(3):
            received = [sum(float(maps[b, h, q, t]) for q in range(5)) / 5 for t in range(6)]
            norms = [math.sqrt(sum(float(v) ** 2 for v in values[b, h, t])) for t in range(6)]
            sink = max(range(6), key=lambda t: received[t])
            middle = (sorted(norms)[2] + sorted(norms)[3]) / 2
            assert metrics.sink_share(maps)[b, h].item() == pytest.approx(received[sink], abs=1e-6)
            assert metrics.sink_value_norm(maps, values)[b, h].item() == pytest.approx(
                norms[sink] / middle, abs=1e-5
            )


def test_the_two_kinds_of_sinks_are_told_apart():
    maps = torch.full((1, 1, 4, 4), 0.1)
    maps[..., 2] = 0.7
    values = torch.ones(1, 1, 4, 3)
    assert metrics.sink_share(maps).item() == pytest.approx(0.7)
    nothing = values.clone()
    nothing[:, :, 2] = 1e-4
    assert metrics.sink_value_norm(maps, nothing).item() < 0.01
    values[:, :, 2] = 5
    assert metrics.sink_value_norm(maps, values).item() == pytest.approx(5)
    assert metrics.sink_value_norm(maps, torch.ones(1, 2, 4, 3)) is None
