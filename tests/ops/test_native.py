"""The native backend: every kind of processor, and every way in which its library can be missing."""

from __future__ import annotations

import logging
import shutil
import subprocess

import pytest
import torch
from torch.autograd import forward_ad

from deepvit.errors import UserError
from deepvit.layers import ReAttention
from deepvit.ops import blocking, choose_backend, lanes, native, reattention
from deepvit.ops import sweeps as plain
from deepvit.ops.native import build, sweeps
from tests.ops.test_agreement import TOLERANCE, assert_close, cancelled, problem, run

COMPILERS = [name for name in ("c++", "clang++") if shutil.which(name)]
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


# Whole vectors of tokens, rows 1 KiB apart, wide and narrow heads, more heads than a tile has rows.
SIZES = [(197, 33, 5), (65, 64, 16), (7, 16, 3), (16, 8, 3), (256, 3, 5), (32, 130, 33), (24, 1, 64)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("capability", CAN)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_kind_of_processor_computes_the_same(compiler, capability, size, monkeypatch):
    if capability != "DEFAULT" and (HERE not in CAN or CAN.index(capability) > CAN.index(HERE)):
        pytest.skip(f"this processor has no {capability}")
    library = build.build([compiler], capability)
    monkeypatch.setattr(sweeps, "library", lambda: library)
    for training in (True, False):
        leaves, buffers, grad = problem(*size, torch.float32, fresh=False, batch=3)
        result = run("native", leaves, buffers, grad, training=training)
        expected = run("reference", leaves, buffers, grad, training=training)
        assert_close(result, expected, 1e-5, cancelled(size[0], size[2], training))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 25])
@pytest.mark.parametrize("batch", [1, 3, 60])
def test_any_number_of_lanes_computes_the_same(batch, tokens, dtype, monkeypatch):
    """Lanes of one row, of parts of two images, and of whole images."""
    monkeypatch.setattr(blocking, "_SHARE_BYTES", 1)
    monkeypatch.setattr(lanes, "count", lambda device: 7)
    training = batch * tokens > 1
    leaves, buffers, grad = problem(tokens, 16, 3, dtype, fresh=False, batch=batch)
    result = run("native", leaves, buffers, grad, training=training)
    expected = run("reference", leaves, buffers, grad, training=training)
    assert_close(result, expected, TOLERANCE[dtype], cancelled(tokens, 3, training))


def test_the_compiled_sweeps_are_what_runs(monkeypatch):
    """Everything here would pass with the PyTorch sweeps as well, which stand in for what C++ cannot read."""
    library, calls = build.library(), []

    class Counted:
        deepvit_scratch = library.deepvit_scratch

        def deepvit_forward(self, sweep):
            calls.append("forward")
            library.deepvit_forward(sweep)

        def deepvit_backward(self, sweep):
            calls.append("backward")
            library.deepvit_backward(sweep)

    monkeypatch.setattr(sweeps, "library", Counted)
    layer, x = ReAttention(24, 3), torch.randn(2, 5, 24)

    def ran(work):
        calls.clear()
        work()
        return calls

    both = ["forward", "backward"]
    assert ran(lambda: layer(x).sum().backward()) == both
    with torch.autocast("cpu", torch.bfloat16):
        assert ran(lambda: layer(x).float().sum().backward()) == both
    with torch.inference_mode():
        assert ran(lambda: layer(x)) == ["forward"]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert ran(lambda: compiled(x).sum().backward()) == both
    parameters = torch.nn.Parameter(torch.randn(2, 3, 5, 4))
    assert ran(lambda: native.core(parameters, parameters, parameters, torch.eye(3), 0.5, True, 0.0)) == [
        "forward"
    ]


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


def kept_in(folder):
    """The library's file in another cache folder, as a run before would have left it there, and who may write it."""
    build.library()
    (kept,) = (folder / "deepvit").iterdir()
    other = folder / "other" / "deepvit" / kept.name  # another path: the loader knows the first one already
    other.parent.mkdir(parents=True, mode=0o700)
    shutil.copy2(kept, other)
    build._library.cache_clear()
    return other


def again(compiled, caplog, monkeypatch, cache):
    """Load with the folder of ``cache``: the library works, was compiled again or not, and what was said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    runs, run_compiler = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (runs.append(a), run_compiler(*a, **k))[1])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = build.library()
    assert found.deepvit_scratch(3, 5, 8, 24, 0) > 0
    assert bool(runs) == compiled
    assert len(caplog.records) == compiled  # once, and not at every call
    return caplog.text


def test_a_kept_library_is_loaded(fresh, monkeypatch, caplog):
    kept = kept_in(fresh)
    assert kept.stat().st_mode & 0o077 == 0
    again(False, caplog, monkeypatch, fresh / "other")


@pytest.mark.parametrize("damage", ["empty", "half", "last byte", "bit", "as compiled"])
def test_a_damaged_library_is_compiled_again_and_never_loaded(damage, fresh, monkeypatch, caplog):
    """A file cut short ends the process when it is loaded (SIGBUS), so that it must not be tried."""
    kept = kept_in(fresh)
    data = bytearray(kept.read_bytes())
    flipped = data.copy()
    flipped[len(data) // 2] ^= 4
    kept.write_bytes(
        {
            "empty": b"",
            "half": data[: len(data) // 2],
            "last byte": data[:-1],
            "bit": flipped,
            "as compiled": data[:-32],
        }[damage]
    )
    loaded, load = [], build._load
    monkeypatch.setattr(build, "_load", lambda path: (loaded.append(path), load(path))[1])
    assert "is damaged" in again(True, caplog, monkeypatch, fresh / "other")
    assert kept not in loaded
    assert kept.read_bytes() == data  # a good one is in its place
    build._library.cache_clear()
    again(False, caplog, monkeypatch, fresh / "other")


@pytest.mark.parametrize("which", ["file", "folder"])
def test_a_library_of_another_user_is_not_loaded(which, fresh, monkeypatch, caplog):
    kept = kept_in(fresh)
    foreign, stat = kept if which == "file" else kept.parent, build.os.stat

    def of_another(path, **options):
        found = list(stat(path, **options))
        if build.Path(path) == foreign:
            found[4] += 1
        return build.os.stat_result(found)

    monkeypatch.setattr(build.os, "stat", of_another)
    monkeypatch.setattr(build, "_load", lambda path, load=build._load: (check(path != kept), load(path))[1])
    assert f"{foreign} belongs to another user" in again(True, caplog, monkeypatch, fresh / "other")


def check(fact):
    assert fact


@pytest.mark.parametrize("mode", [0o777, 0o770])
@pytest.mark.parametrize("which", ["file", "folder"])
def test_a_library_that_others_may_write_is_not_loaded(which, mode, fresh, monkeypatch, caplog):
    kept = kept_in(fresh)
    before = kept.stat().st_ino
    (kept if which == "file" else kept.parent).chmod(mode)
    monkeypatch.setattr(build, "_load", lambda path, load=build._load: (check(path != kept), load(path))[1])
    assert "can be written by other users; chmod go-w" in again(True, caplog, monkeypatch, fresh / "other")
    assert (kept.stat().st_ino == before) == (which == "folder")  # nothing is put into such a folder
    if which == "file":
        assert kept.stat().st_mode & 0o077 == 0


def test_a_library_without_the_sweeps_is_compiled_again(fresh, monkeypatch, caplog):
    kept = kept_in(fresh)
    source = fresh / "other.cpp"
    source.write_text('extern "C" int deepvit_other() { return 0; }')
    made = fresh / "other.so"
    subprocess.run([COMPILERS[0], "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    kept.unlink()
    assert build._keep(kept, made.read_bytes())
    assert "does not load" in again(True, caplog, monkeypatch, fresh / "other")


def test_a_compiler_that_makes_another_library_is_named(fresh, monkeypatch, caplog):
    source = fresh / "other.cpp"
    source.write_text("")
    compiler = fresh / "strange"
    compiler.write_text(
        f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n{COMPILERS[0]} -shared -fPIC {source} -o "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with caplog.at_level(logging.WARNING):
        refused("strange made no library that loads \\(.*undefined symbol: deepvit_scratch\\)")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("command", ["false", "true"])
def test_a_command_that_compiles_nothing_is_named(command, fresh, monkeypatch):
    monkeypatch.setenv("CXX", command)
    refused(f"{command} made no library that loads")
    assert not list((fresh / "deepvit").glob("*"))


def test_a_home_that_cannot_be_written_does_not_stop_it(fresh, monkeypatch):
    (fresh / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    assert not isinstance(build.library(), str)


def test_a_user_without_a_home_does_not_stop_it(fresh, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(build.Path, "home", homeless)
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
        refused("broken made no library that loads \\(fatal error: no headers\\)")
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # and not at every call
    assert not list((fresh / "deepvit").glob("*"))


def test_a_compiler_that_does_not_exist_is_named(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "nowhere-c++ -O1")
    refused("nowhere-c\\+\\+ -O1 made no library that loads")


def test_a_compiler_that_cannot_be_read_is_named(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "'g++")
    refused("is not a command \\(No closing quotation\\)")


def test_a_compiler_that_takes_for_ever_is_named(fresh, monkeypatch):
    def too_long(command, **options):
        raise subprocess.TimeoutExpired(command, 300, stderr=b"warning: \xff\nand so on\n")

    monkeypatch.setattr(subprocess, "run", too_long)
    refused("made no library that loads \\(warning: .\\)")


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
    layer, x = ReAttention(24, 3, backend="native").eval(), torch.randn(2, 5, 24)
    program = torch.export.export(layer, (x,))
    assert "native_core" in str(program.graph)
    with_compiler = program.module()(x)
    monkeypatch.setenv(build.SWITCH, "0")
    torch.testing.assert_close(program.module()(x), with_compiler)


@pytest.mark.parametrize("dtypes", ["fff", "ddd", "hhh", "fdf", "fhf"])
def test_tensors_that_cpp_cannot_read_are_not_handed_to_it(dtypes):
    """As of an exported program that was moved to another dtype."""
    names = {"f": torch.float32, "d": torch.float64, "h": torch.float16}
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=draw).to(names[name]) for name in dtypes)
    theta, do = torch.randn(3, 3, generator=draw), torch.randn(2, 3, 5, 4, generator=draw)
    if dtypes == "ddd":
        theta, do = theta.double(), do.double()
    options = (None, 0.5, True, 0.0)
    ours, theirs = (
        (
            *getattr(torch.ops.deepvit, f"{name}_core")(q, k, v, theta, *options),
            *getattr(torch.ops.deepvit, f"{name}_core_backward")(
                do, theta[0].clone(), theta[0].clone(), q, k, v, theta, *options
            ),
        )
        for name in ("native", "streaming")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


def test_dropout_is_never_left_out():
    """The operator's name promises what streaming's does, also to a caller that does not ask ``why_not``."""
    q, k, v = torch.randn(3, 2, 3, 5, 4).unbind(0)
    inputs = (q, k, v, torch.randn(3, 3), torch.tensor(3), 0.5, True, 0.4)
    for a, b in zip(
        torch.ops.deepvit.native_core(*inputs), torch.ops.deepvit.streaming_core(*inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_forward_mode_is_refused():
    q, k, v = torch.randn(3, 2, 3, 5, 4).unbind(0)
    for guard in (torch.no_grad(), torch.enable_grad()):
        with (
            guard,
            forward_ad.dual_level(),
            pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward"),
        ):
            native.core(forward_ad.make_dual(q, torch.ones_like(q)), k, v, torch.eye(3), 0.5, False, 0.0)


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


def test_rounding_that_a_row_shares_is_taken_away():
    """Where maps are nearly uniform it is most of what is wrong with the gradient of v; streaming leaves it there."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, do = torch.randn(4, 2, 4, 197, 16, generator=draw).unbind(0)
    theta, zeros = torch.randn(4, 4, generator=draw), torch.zeros(4)
    inputs = (do, zeros, zeros, 0.03 * q, 0.03 * k, v, theta)
    exact = plain.sweep_backward(*(x.double() for x in inputs), None, 0.25, True, 0.0)[2]
    ours, theirs = (
        (sweep(*inputs, None, 0.25, True, 0.0)[2] - exact).abs().max()
        for sweep in (sweeps.sweep_backward, plain.sweep_backward)
    )
    assert ours < 0.5 * theirs
