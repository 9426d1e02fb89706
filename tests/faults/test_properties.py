"""What holds whatever one writes: data strings, options and files end well or in one line; the operator is as defined."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from deepvit.data import ImageData, open_data
from deepvit.errors import UserError
from deepvit.ops import reattention
from deepvit.parsing import parse_words, read_yaml
from deepvit.training.config import TrainConfig, train_options

OPTIONS = {option.name: option for option in train_options() if "." not in option.name}
FEW, MANY = 40, 1500
"""Examples in the fast suite, and in the whole one."""


def twice(*strategies: Any, few: int = FEW, many: int = MANY) -> Callable[[Any], Any]:
    """Parametrise a property by how many examples it is tried on, many being slow."""

    def decorate(holds: Callable[..., None]) -> Any:
        @pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
            folder = tmp_path_factory.mktemp("property")

            @settings(
                max_examples=count, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(st.tuples(*strategies))
            def tried(values: tuple[Any, ...]) -> None:
                holds(folder, *values)

            tried()

        test.__doc__ = holds.__doc__
        return test

    return decorate


def one_line(error: UserError) -> None:
    """A message is one that can be read: some words, on one line once the command line has printed it."""
    assert len(str(error).split()) > 2, repr(str(error))
    assert len(str(error)) < 2000


def said(action: Callable[[], Any]) -> Any:
    """What an action gives, or None where it ends in a ``UserError``; anything else is a fault."""
    try:
        return action()
    except UserError as error:
        one_line(error)
        return None


DATA = st.one_of(
    st.text(max_size=40),
    st.integers(200, 6000).map("x".__mul__),
    st.tuples(
        st.sampled_from(["digits", "torch/", "wds/", "hfds/", "folder", "./", "~", "file://", "x.tar", "torch/cifar10"]),
        st.text(max_size=12),
    ).map("".join),
)  # fmt: skip


@twice(DATA, many=400)
def test_a_data_string_is_data_or_one_line(folder: Path, spec: str) -> None:
    """Whatever is typed after --data opens, or says why not."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        assume(not Path(spec).expanduser().exists())  # "/" is a folder of images to look for, a large one
    opened = said(lambda: open_data(spec))
    assert opened is None or isinstance(opened, ImageData)


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from(["auto", "cpu", "cpu:2", "none", "last:3", "skip:2", "best", "16", "", "1e-3", "-1", "0"]),
)  # fmt: skip
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)  # fmt: skip
NAMES = st.one_of(st.sampled_from(sorted(OPTIONS)), st.text(max_size=10))


@twice(st.dictionaries(NAMES, VALUES, max_size=4))
def test_options_from_python_are_a_config_or_one_line(folder: Path, values: dict[str, Any]) -> None:
    """Any values by any names; and what is a config is the same one once written and read."""
    config = said(lambda: TrainConfig(**values))
    if config is None:
        return
    for name, value in config.options().items():
        assert not (isinstance(value, float) and math.isnan(value)), name
    file = folder / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    again = TrainConfig.from_yaml(file).options()
    changeable = {"resume", "overwrite"}  # a record is not of how the run was started
    assert {n: v for n, v in again.items() if n not in changeable} == {
        n: v for n, v in config.options().items() if n not in changeable
    }


WORDS = st.lists(
    st.one_of(
        st.text(max_size=12),
        NAMES.map("--{}".format),
        st.tuples(NAMES, PLAIN).map(lambda pair: f"--{pair[0]}={pair[1]}"),
        st.tuples(st.sampled_from(["model", "data", "losses", "augment"]), st.text(max_size=6), PLAIN).map(
            lambda parts: f"--{parts[0]}.{parts[1]}={parts[2]}"
        ),
    ),
    max_size=5,
)


@twice(WORDS)
def test_a_command_line_is_options_or_one_line(folder: Path, words: list[str]) -> None:
    """Any words: options by name, or what is wrong with them."""
    assume("--config" not in " ".join(words))
    parsed = said(lambda: parse_words(words, train_options()))
    if parsed is not None:
        said(lambda: TrainConfig(**parsed))


@twice(
    st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode), VALUES.map(repr).map(str.encode))
)
def test_a_file_of_options_is_read_or_one_line(folder: Path, content: bytes) -> None:
    """Any bytes in a YAML file."""
    file = folder / "any.yaml"
    file.write_bytes(content)
    read = said(lambda: read_yaml(file, "options"))
    if read is not None:
        said(lambda: TrainConfig(**{str(name): value for name, value in read.items()}))


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 40), st.integers(1, 24), st.integers(0, 10**6)
)
"""Images, heads, tokens, width of a head, seed"""


@twice(SHAPES, st.sampled_from(["streaming", "native"]), st.booleans(), st.floats(0.0, 4.0), few=25, many=600)
def test_a_fast_backend_is_the_definition(
    folder: Path, shape: tuple[int, ...], backend: str, training: bool, spread: float
) -> None:
    """Output, gradients and running statistics, for any shape and any size of scores."""
    images, heads, tokens, width, seed = shape
    assume(images * tokens > 1 or not training)  # one number has no variance, and that is said
    draw = torch.Generator().manual_seed(seed)
    q, k, v, weight = (torch.randn(images, heads, tokens, width, generator=draw) for _ in range(4))
    theta, vectors = torch.randn(heads, heads, generator=draw), torch.randn(3, heads, generator=draw)
    leaves = {"q": q * spread, "k": k, "v": v, "theta": theta}
    leaves |= dict(zip(("theta_bias", "norm_weight", "norm_bias"), vectors, strict=True))
    found = []
    for name, dtype in (("reference", torch.float64), (backend, torch.float32)):
        own = {key: value.to(dtype).requires_grad_() for key, value in leaves.items()}
        mean, var = torch.zeros(heads), torch.ones(heads)
        try:
            out = reattention(
                **own, running_mean=mean, running_var=var, training=training, eps=1e-2, backend=name
            )
        except UserError as error:  # the compiled backend says what it does not take
            one_line(error)
            assert name == "native"
            return
        (out * weight).sum().backward()
        found.append([out.detach(), mean, var, *(value.grad for value in own.values())])
    for exact, fast in zip(*found, strict=True):
        exact, fast = exact.double(), fast.double()
        assert (exact - fast).abs().max() <= 1e-4 * (1 + exact.abs().max())
