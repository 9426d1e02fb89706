"""What blocks are worth, in networks where that is known by construction; lesions against brute force; time and labels."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from collapse.lesioned import (
    doing_harm,
    images_of,
    sharing_a_map,
    with_equal_patches,
    working,
    zeroed,
)

from deepvit.collapse import measure
from deepvit.collapse.lesions.budget import Budget, Pace
from deepvit.collapse.lesions.lines import believed
from deepvit.collapse.lesions.measuring import measure_lesions
from deepvit.collapse.measuring import probe
from deepvit.collapse.verdict import upper_share
from deepvit.errors import UserError
from deepvit.report.spoken import speak

# depth, width, patches a side, class token
SIZES = [(8, 48, 3, True), (12, 64, 4, False), (16, 32, 3, True)]
SLOW = [pytest.param(size, marks=[pytest.mark.slow] if size[0] > 8 else []) for size in SIZES]


def made(size, seed=0):
    depth, dim, grid, class_token = size
    return working(depth, dim, grid=grid, class_token=class_token, seed=seed)


def judged(model, labels=None, count=48):
    images = images_of(model, count)
    batch = images if labels is None else (images, labels)
    found = measure(model, [batch], images=count, lesions="full", attention_images=16)
    assert believed(found.lesions)
    assert found.lesions.images == count
    return found


def about(verdict, what):
    return next((finding for finding in verdict.findings if finding.about == what), None)


@pytest.mark.parametrize("size", SLOW)
def test_dead_blocks_are_idle_where_they_are(size):
    found = judged(zeroed(made(size), [3, 4]))
    assert (found.verdict.kind, found.verdict.findings[0].blocks) == ("idle", [3, 4])
    assert not found.verdict.findings[0].to_end
    assert [(cure.name, cure.blocks) for cure in found.verdict.cures] == [("cut", "3-4")]
    assert speak(found.verdict).headline == "Blocks 3 and 4 are idle: no answer changes without them"


@pytest.mark.parametrize("size", SLOW)
def test_a_dead_end_is_idle_from_its_first_block_on(size):
    depth = size[0]
    found = judged(zeroed(made(size), range(depth - 3, depth)))
    verdict = found.verdict
    assert (verdict.kind, verdict.from_block, verdict.findings[0].to_end) == ("idle", depth - 3, True)
    assert verdict.findings[0].blocks == list(range(depth - 3, depth))
    assert speak(verdict).headline == f"Idle from block {depth - 3} on: no answer changes without them"
    exits = found.lesions.single("exit")
    assert exits[depth - 4].value == pytest.approx(0, abs=1e-9)
    assert exits[depth - 5].value > 0.02


@pytest.mark.parametrize("needed", [True, False], ids=["needed", "not needed"])
@pytest.mark.parametrize("size", SLOW)
def test_one_map_for_blocks_that_need_it_and_for_blocks_that_do_not(size, needed):
    start = size[0] // 2
    verdict = judged(sharing_a_map(made(size), start, needed=needed)).verdict
    finding = about(verdict, "maps_alike")
    assert (verdict.kind, verdict.from_block, verdict.collapsed) == ("maps_alike", start, True)
    assert (finding.blocks, finding.outcome) == (list(range(start, size[0])), "unneeded")
    attention = finding.numbers["attention"]
    assert attention["kept"] == (0 if needed else attention["of"])
    words = speak(verdict).text
    assert "work as well with the map of the block before" in words
    assert ("though not without attention" in words) == needed
    assert ("as well without any attention" in words) == (not needed)


@pytest.mark.parametrize("size", SLOW)
def test_patches_made_equal_are_needed_by_nothing_from_there_on_and_that_is_no_collapse_of_a_classifier(size):
    start = size[0] // 2
    found = judged(with_equal_patches(made(size), start))
    verdict = found.verdict
    assert (verdict.kind, verdict.collapsed) == ("healthy", False)
    assert about(verdict, "patches_unneeded").blocks == list(range(start, size[0]))
    assert about(verdict, "patches_alike").blocks == list(range(start, size[0]))
    assert found.lesions.single("patch_mean")[start].value == pytest.approx(0, abs=1e-9)
    assert found.lesions.single("patch_mean")[start - 1].value > 0.01
    assert "how a classifier finishes" in speak(verdict).text


@pytest.mark.parametrize("size", SLOW)
def test_a_block_that_does_harm_is_found(size):
    model = made(size)
    block = size[0] // 2
    model, labels = doing_harm(model, block, images_of(model, 96))
    verdict = judged(model, labels, 96).verdict
    assert (verdict.kind, verdict.findings[0].blocks) == ("harm", [block])
    assert verdict.findings[0].number("score") == 100.0
    assert verdict.findings[0].number("score", "intact") < 95
    assert [(cure.name, cure.blocks) for cure in verdict.cures] == [("cut", str(block))]
    assert speak(verdict).headline.startswith(f"Block {block} does harm: 100.0% without,")


@pytest.mark.parametrize("size", SLOW)
@pytest.mark.parametrize("seed", [0, 1])
def test_where_every_block_works_it_is_healthy(size, seed):
    verdict = judged(made(size, seed)).verdict
    assert (verdict.kind, verdict.collapsed, verdict.cures) == ("healthy", False, [])
    assert speak(verdict).headline == "No collapse, and every block works"


# --- brute force -------------------------------------------------------------------------------


def kl(intact, lesioned):
    """By hand, from probabilities."""
    p, q = intact.double().softmax(1), lesioned.double().softmax(1)
    return (p * (p / q).log()).sum(1)


@contextlib.contextmanager
def replaced(module, function):
    """A module's forward by hand."""
    before = module.forward
    module.forward = function
    try:
        yield
    finally:
        module.forward = before


def lesions_of(model, images, **options):
    model.eval()
    rows, _ = probe(model, images[:1], None)
    return measure_lesions(model, rows, images, **options)


def attention_in_full(attn, change):
    """timm's attention written out, with ``change(map)`` in the map's place."""

    def forward(x, *_, **__):
        b, n, _ = x.shape
        q, k, v = attn.qkv(x).reshape(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(q), attn.k_norm(k)
        out = change((q * attn.scale @ k.mT).softmax(-1)) @ v
        return attn.proj(attn.norm(out.transpose(1, 2).reshape(b, n, -1)))

    return forward


@torch.no_grad()
def test_every_lesion_of_a_vit_equals_brute_force():
    model = working(depth=5)
    images = images_of(model, 6)
    found = lesions_of(model, images)
    intact = model(images)
    maps = {}

    def keep(number):
        def change(a):
            maps[number] = a
            return a

        return change

    for number, block in enumerate(model.blocks):
        with replaced(block.attn, attention_in_full(block.attn, keep(number))):
            model(images)
    prefix = model.num_prefix_tokens

    def check(lesion, number):
        effect = found.single(lesion)[number]
        by_hand = kl(intact, model(images))
        assert effect.value == pytest.approx(float(by_hand.mean()), rel=1e-5, abs=1e-7)
        assert effect.spread == pytest.approx(float(by_hand.std()), rel=1e-4, abs=1e-7)
        changes = (intact.argmax(1) != model(images).argmax(1)).double().mean()
        assert effect.changed == pytest.approx(float(changes))

    for number, block in enumerate(model.blocks):
        with replaced(block, lambda x, **_: x):
            check("block", number)
        with replaced(block.attn, lambda x, **_: torch.zeros_like(x)):
            check("attention", number)
        with replaced(
            block.attn, attention_in_full(block.attn, lambda a: a.mean(-2, keepdim=True).expand_as(a))
        ):
            check("map_mean", number)
        if number:
            before = maps[number - 1]
            with replaced(block.attn, attention_in_full(block.attn, lambda a, before=before: before)):
                check("map_reuse", number)
        whole = block.forward

        def averaged(x, whole=whole, **options):
            out = whole(x, **options)
            return torch.cat(
                [out[:, :prefix], out[:, prefix:].mean(1, keepdim=True).expand_as(out[:, prefix:])], 1
            )

        with replaced(block, averaged):
            check("patch_mean", number)
        if number < 4:
            shorter = copy.deepcopy(model)
            shorter.blocks = shorter.blocks[: number + 1]
            assert found.single("exit")[number].value == pytest.approx(
                float(kl(intact, shorter(images)).mean()), rel=1e-5
            )
    assert set(found.single("map_reuse")) == {1, 2, 3, 4}
    assert found.measure == "kl"
    assert found.prefix_kept


# --- what is refused, left out, and said -----------------------------------------------------------------------


def test_labels_of_other_classes_are_left_out_and_that_is_said():
    model = working(depth=4)
    images = images_of(model, 40)
    generator = torch.Generator().manual_seed(0)
    wrong = lesions_of(model, images, targets=torch.randint(6, (40,), generator=generator))
    assert (wrong.score, wrong.notes) == (None, ["labels"])
    outside = lesions_of(model, images, targets=torch.full((40,), 900))
    assert outside.score is None
    right = lesions_of(model, images, targets=model(images).argmax(1))
    assert (right.score_name, right.score) == ("accuracy", 100.0)
    assert right.single("block")[0].score < 100


def test_networks_without_a_classifier_are_told_by_the_cosine():
    model = working(depth=4)
    model.reset_classifier(0)
    images = images_of(model, 6)
    found = lesions_of(model, images)
    assert (found.measure, found.task) == ("cosine", "features")
    with torch.no_grad(), replaced(model.blocks[1], lambda x, **_: x):
        gone = model(images)
    with torch.no_grad():
        expected = 1 - torch.cosine_similarity(model(images).double(), gone.double())
    assert found.single("block")[1].value == pytest.approx(float(expected.mean()), rel=1e-5)
    assert found.single("block")[1].changed is None


@torch.no_grad()
def test_a_network_of_one_output_is_told_by_what_its_head_is_given():
    model = working(depth=4, classes=1)
    images = images_of(model, 6)
    found = lesions_of(model, images)
    assert (found.measure, found.task) == ("cosine", "features")
    assert found.told_apart > 0.1  # of the one number it would be 0: nothing could be judged
    assert believed(found)

    def features():
        return model.forward_head(model.forward_features(images), pre_logits=True).double()

    intact = features()
    with replaced(model.blocks[1], lambda x, **_: x):
        gone = features()
    expected = 1 - torch.cosine_similarity(intact, gone)
    assert found.single("block")[1].value == pytest.approx(float(expected.mean()), rel=1e-5)
    targets = torch.randint(2, (6,))
    assert lesions_of(model, images, targets=targets).score is None  # no classes, so no accuracy


def test_one_output_that_no_layer_makes_is_refused_by_name():
    class Summed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = working(depth=2)

        def forward(self, x):
            return self.inner(x).sum(1, keepdim=True)

    model = Summed()
    found = lesions_of(model, images_of(model.inner, 4))
    assert found.failed == "it has one output, and no layer is found that makes it"


class Dense(torch.nn.Module):
    """Logits for every patch."""

    def __init__(self):
        super().__init__()
        self.backbone = working(depth=4, class_token=False)
        self.head = torch.nn.Conv2d(64, 5, 1)
        torch.nn.init.normal_(self.head.weight, std=0.3)

    def forward(self, x):
        tokens = self.backbone.forward_features(x)
        return self.head(tokens.mT.unflatten(-1, (4, 4)))


@torch.no_grad()
def test_dense_answers_are_compared_pixel_by_pixel_and_patches_alike_ail_them():
    model = Dense().eval()
    images = images_of(model.backbone, 6)
    masks = model(images).argmax(1)
    found = lesions_of(model, images, targets=masks)
    assert (found.measure, found.task, found.score_name, found.score) == (
        "kl_per_pixel",
        "dense",
        "mIoU",
        100.0,
    )
    with replaced(model.backbone.blocks[2], lambda x, **_: x):
        by_hand = kl(model.forward(images), model.forward(images))
    intact = model(images)
    with replaced(model.backbone.blocks[2], lambda x, **_: x):
        by_hand = kl(intact, model(images)).mean((1, 2))
    assert found.single("block")[2].value == pytest.approx(float(by_hand.mean()), rel=1e-4)
    verdict = measure(with_equal(model), [images], lesions="full").verdict
    assert (verdict.kind, verdict.collapsed, verdict.task) == ("patches_alike", True, "dense")
    assert "this is what ails the network" in speak(verdict).text


def with_equal(model):
    with_equal_patches(model.backbone, 1)
    return model


class Moody(torch.nn.Module):
    """Gives another answer in every pass."""

    def __init__(self):
        super().__init__()
        self.net = working(depth=3)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.net(x) + torch.tensor([1.0, 0, 0, 0, 0, 0]) * self.passes


def test_a_network_that_fails_the_control_is_refused_by_name_and_the_rest_is_shown():
    found = measure(Moody().eval(), [torch.randn(6, 3, 32, 32)], lesions="full")
    assert "Moody" in found.lesions.failed
    assert "cannot be believed" in found.lesions.failed
    assert found.lesions.effects == []
    assert found.verdict.unjudged == "failed"
    assert "entropy" in found.series
    assert "could not be tested on this network" in speak(found.verdict).text


def test_too_little_time_leaves_out_kinds_from_the_end_and_says_so():
    model = working(depth=4)
    images = images_of(model, 40)
    none = lesions_of(model, images, seconds=1e-3)
    assert {effect.lesion for effect in none.effects} <= {"exit", "block", "blocks"}
    assert none.left_out == ["patch_mean", "map_reuse", "attention", "map_mean"]
    assert 0 < none.images < 40
    enough = lesions_of(model, images, seconds=60)
    assert (enough.left_out, enough.images) == ([], 40)
    budget = Budget(10.0, budget_start())
    kinds, fit = budget.choose(
        {"exit": [0.1] * 4, "block": [0.5] * 4, "attention": [8.0] * 4}, 1000, Pace(0, 0.02), 64
    )
    assert kinds == ["exit", "block"]
    assert 102 < fit < 126  # 8.5 s / (0.02 s * 3.4 passes)


def budget_start():
    import time

    return time.perf_counter()


def test_modes_and_hooks_are_as_before_and_a_wrong_mode_is_refused():
    model = working(depth=3).train()
    measure(model, [torch.randn(4, 3, 32, 32)], lesions="full")
    assert model.training
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules()
    )
    with pytest.raises(UserError, match="lesions='some': choose auto, off, full"):
        measure(model, [torch.randn(4, 3, 32, 32)], lesions="some")


def test_the_upper_end_of_a_share():
    # Wilson 1927, against the usual tables: 0 of 100 and 10 of 100.
    assert upper_share(0.0, 100) == pytest.approx(0.0370, abs=1e-4)
    assert upper_share(0.1, 100) == pytest.approx(0.1744, abs=1e-4)
