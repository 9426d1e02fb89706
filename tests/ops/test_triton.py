"""The Triton backend without a GPU: kernels interpreted, in a process of their own, and compiled, not run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deepvit.ops
from deepvit.errors import UserError
from deepvit.ops import triton_backend

pytest.importorskip("triton", reason="Triton comes with torch on Linux only")


@pytest.mark.parametrize(
    ("cases", "at_least"), [("not slow", 28), pytest.param("slow", 7, marks=pytest.mark.slow)]
)
def test_kernels_equal_the_formulas_in_the_interpreter(cases, at_least):
    file = Path(__file__).with_name("triton_interpreted.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        "-m",
        cases,
        str(file),
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= at_least
    assert "skipped" not in done.stdout


def test_triton_is_imported_only_when_used():
    # torch itself may import the package; the kernels are what would fail to import without it
    code = "import sys, deepvit.ops.triton_backend; sys.exit('deepvit.ops.triton_kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_asked_for_by_name_on_the_cpu_it_says_why_not_and_what_instead(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q = torch.randn(1, 3, 5, 16)
    with pytest.raises(UserError, match=r"needs an NVIDIA GPU, .* on cpu .*ask for backend='streaming'"):
        deepvit.ops.reattention(q, q, q, torch.eye(3), norm="none", backend="triton")


@pytest.mark.parametrize(
    ("q", "dropout_p", "reason"),
    [
        (torch.empty(1, 3, 5, 16), 0.1, "it has no attention dropout; ask for backend='streaming'"),
        (torch.empty(1, 3, 5, 16, dtype=torch.float64), 0.0, "it has no float64"),
        (torch.empty(1, 3, 5, 80), 0.0, "head width 80 is more than 64"),
        (torch.empty(1, 17, 5, 16), 0.0, "17 heads are more than 16"),
        (torch.empty(1, 1, 65_001, 1, dtype=torch.float16), 0.0, "65001 tokens overflow float16"),
    ],
)
def test_refusals_name_their_reason(q, dropout_p, reason):
    found = triton_backend.why_not(q, dropout_p)
    assert found is not None
    assert reason in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("row_lse", torch.bfloat16),
        ("forward", torch.bfloat16),
        ("backward_rows", torch.bfloat16),
        ("backward_keys", torch.bfloat16),
        ("backward_rows", torch.float32),
    ],
)
def test_compiles_for_a_gpu_that_is_not_here(kernel, dtype, monkeypatch, tmp_path):
    monkeypatch.setenv(
        "TRITON_CACHE_DIR", str(tmp_path)
    )  # the home may not be writable, and nothing old is read
    path = Path(__file__).parents[2] / "benchmarks" / "triton_resources.py"
    spec = importlib.util.spec_from_file_location("triton_resources", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    needs = module.resources(kernel, heads=12, dim=64, dtype=dtype)
    assert needs["shared_bytes"] <= triton_backend.SHARED_MEMORY  # more, and it would not start
    assert dtype == torch.float32 or needs["spilled_bytes"] <= 256


def test_gpu_benchmark_says_in_one_line_that_there_is_no_gpu():
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_attention.py"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("no CUDA GPU here")
    assert done.stderr.count("\n") == 1
