"""The native backend: every kind of processor, and every way in which its library can be missing."""

from __future__ import annotations

import logging
import subprocess

import pytest
import torch

from deepvit.errors import UserError
from deepvit.ops import choose_backend, native, reattention
from deepvit.ops.native import build, sweeps
from tests.ops.test_agreement import assert_close, problem, run

CAN = ["DEFAULT", "AVX2", "AVX512"]
HERE = torch.backends.cpu.get_cpu_capability()


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No library loaded yet, and none kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(build.SWITCH, raising=False)
    build._library.cache_clear()
    yield tmp_path
    build._library.cache_clear()


# Rows of one image in two lanes, padded widths, more heads than a tile has rows.
@pytest.mark.parametrize("size", [(197, 33, 5), (65, 64, 16), (7, 16, 3)], ids=str)
@pytest.mark.parametrize("capability", CAN)
def test_every_kind_of_processor_computes_the_same(capability, size, monkeypatch):
    if HERE in CAN and CAN.index(capability) > CAN.index(HERE):
        pytest.skip(f"this processor has no {capability}")
    library = build.build(build._compiler(), capability)
    monkeypatch.setattr(sweeps, "library", lambda: library)
    for training in (True, False):
        leaves, buffers, grad = problem(*size, torch.float32, fresh=False, batch=3)
        result = run("native", leaves, buffers, grad, training=training)
        expected = run("reference", leaves, buffers, grad, training=training)
        assert_close(result, expected, 1e-5, ["dtheta_bias"] * training)


def test_it_is_compiled_once_and_kept(fresh, monkeypatch):
    runs = []

    def counted(*args, **kwargs):
        runs.append(args)
        return subprocess_run(*args, **kwargs)

    subprocess_run = subprocess.run
    monkeypatch.setattr(subprocess, "run", counted)
    assert not isinstance(build.library(), str)
    build._library.cache_clear()
    assert not isinstance(build.library(), str)
    assert len(runs) == 1
    assert [path.suffix for path in (fresh / "deepvit").iterdir()] == [".so"]


def test_a_home_that_cannot_be_written_does_not_stop_it(fresh, monkeypatch):
    (fresh / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    assert not isinstance(build.library(), str)


def refused(message):
    q, k, v = torch.randn(3, 2, 3, 5, 4).unbind(0)
    with pytest.raises(UserError, match=rf"native.*cannot run here: .*{message}.*streaming") as caught:
        reattention(q, k, v, torch.eye(3), norm="none", backend="native")
    assert "\n" not in str(caught.value)
    assert choose_backend(q) == "streaming"
    assert reattention(q, k, v, torch.eye(3), norm="none").shape == q.shape


def test_without_a_compiler_the_choice_is_streaming(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    refused("needs a C\\+\\+ compiler")


def test_it_can_be_forbidden(fresh, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "0")
    refused("DEEPVIT_NATIVE=0 forbids it")


def test_a_compiler_that_fails_is_named_with_its_words(fresh, monkeypatch, caplog):
    compiler = fresh / "broken"
    compiler.write_text("#!/bin/sh\necho 'note: x' >&2; echo 'fatal error: no headers' >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with caplog.at_level(logging.WARNING):
        refused("broken did not compile it \\(fatal error: no headers\\)")
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # and not at every call
    assert not list((fresh / "deepvit").iterdir())


def test_a_compiler_that_does_not_exist_is_named(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "nowhere-c++")
    refused("nowhere-c\\+\\+ did not compile it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float16}, "no float16"),
        ({"dtype": torch.float64}, "no float64"),
        ({"device": "meta"}, "the input is on meta"),
    ],
)
def test_inputs_that_it_cannot_take_are_refused(change, message):
    assert message in native.why_not(torch.empty(2, 3, 5, 4, **change), 0.0)
    assert "dropout" in native.why_not(torch.empty(2, 3, 5, 4), 0.1)
    assert "one or two heads" in native.why_not(torch.empty(2, 2, 5, 4), 0.0)


def test_an_exported_program_runs_where_there_is_no_compiler(fresh, monkeypatch):
    q, k, v = torch.randn(3, 2, 3, 5, 4).unbind(0)
    theta = torch.randn(3, 3)
    expected = torch.ops.deepvit.native_core(q, k, v, theta, None, 0.5, True, 0.0)
    monkeypatch.setenv(build.SWITCH, "0")
    for a, b in zip(
        torch.ops.deepvit.native_core(q, k, v, theta, None, 0.5, True, 0.0), expected, strict=True
    ):
        torch.testing.assert_close(a, b)


def test_what_is_not_a_number_stays_so():
    q, k, v = torch.randn(3, 2, 3, 40, 8).unbind(0)
    for bad in (float("nan"), float("inf")):
        x = q.clone()
        x[0, 1, 7, 2] = bad
        out = reattention(x, k, v, torch.randn(3, 3), norm="none", backend="native")
        assert out[0, :, 7].isnan().all()
        assert out.isnan().sum() == 3 * 8


def test_gradients_of_any_layout_are_read_right():
    leaves, buffers, _ = problem(33, 24, 4, torch.float32, fresh=False)
    grad = torch.randn(1, 4, 1, 1).expand(2, 4, 33, 24)  # as of a sum: every stride is 0
    result, expected = (
        {name: x for name, x in run(backend, leaves, buffers, grad, norm="none").items() if x is not None}
        for backend in ("native", "reference")
    )
    assert_close(result, expected, 1e-5)
