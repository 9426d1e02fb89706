"""Re-attention by Triton on a GPU: first that it is right, then what it costs beside FlashAttention.

    python benchmarks/gpu_attention.py [--out FOLDER] [--steps check,time,model,tune] [--seconds 540]

Needs an NVIDIA GPU. Every finished measurement is kept in FOLDER/gpu_attention.json (FOLDER defaults to $OUT, or
benchmarks/results), and a second call goes on where the first stopped; a change of the kernels starts afresh.
Nothing is timed whose check failed. --dry goes through every step at toy size in Triton's interpreter, on the CPU:
it tests this script, and its figures mean nothing.

check   output, statistics and every gradient against the formulas in float64, fresh memory full of NaN
time    Re-attention against FlashAttention through SDPA on the same packed qkv, A B A B, medians
model   the 32-block model's training step at 224^2 against its plain twin, A B A B, with peak memory
tune    the time of each kernel under other tile sizes (not in the default steps)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import deepvit.ops
from deepvit.files import write_json
from deepvit.ops import triton_backend

HEADS = 12
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}
STATISTICS = {"float32": 1e-5, "bfloat16": 2e-3, "float16": 2e-3}


class Sizes:
    """What is measured on a GPU; ``dry`` makes it a toy."""

    def __init__(self, dry: bool) -> None:
        self.device = "cpu" if dry else "cuda"
        self.tokens = (17,) if dry else (197, 577, 1025, 4097)
        self.widths = (16,) if dry else (32, 35, 64)  # 35: the published 32-block model
        self.heads = 3 if dry else HEADS
        self.check_dtypes = ("float32", "bfloat16") if dry else ("float32", "bfloat16", "float16")
        self.tokens_at_once = 34 if dry else 32_768
        self.rounds = 2 if dry else 6
        self.repeats = 1 if dry else 10
        self.model = "deepvit_tiny_d16_patch4_32" if dry else "deepvit_d32_patch16_224"
        self.image, self.batch = (8, 2) if dry else (224, 128)
        self.autocast = torch.float32 if dry else torch.bfloat16


class Record:
    """Finished measurements by name, on disk after each one."""

    def __init__(self, folder: Path, seconds: float, sizes: Sizes) -> None:
        self.path = folder / "gpu_attention.json"
        self.end = time.monotonic() + seconds
        sources = sorted(Path(triton_backend.__file__).parent.glob("*.py"))
        about = {
            "kernels": hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16],
            "device": torch.cuda.get_device_name()
            if sizes.device == "cuda"
            else "cpu, interpreted: no measurement",
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }
        self.content: dict[str, Any] = {"about": about, "results": {}}
        if self.path.exists():
            before = json.loads(self.path.read_text())
            if before["about"] == about:
                self.content = before

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of this name: kept from before, or measured now; an error is written down and tried again."""
        results: dict[str, Any] = self.content["results"]
        if name not in results or "error" in results[name]:
            if time.monotonic() > self.end:
                print(f"{name}: left for the next call, the time is used up")
                return {"error": "not measured yet"}
            try:
                results[name] = measure()
            except Exception as error:  # of the compiler, the driver or memory: the other measurements go on
                results[name] = {"error": f"{type(error).__name__}: {error}"[:600]}
            write_json(self.path, self.content)
        print(name, json.dumps(results[name]), flush=True)
        found: dict[str, Any] = results[name]
        return found


def packed(batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """q, k, v as a model makes them: views into one [B, N, 3, H, D]."""
    qkv = torch.randn(batch, tokens, 3, heads, dim, device=device).to(dtype)
    return [x.detach().requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4).unbind(0)]


def formulas(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """o and c as deepvit/ops/core.py states them."""
    maps = torch.softmax(scale * q @ k.mT, dim=-1) - 1 / q.shape[2]
    mixed = torch.einsum("hg,bgmn->bhmn", theta, maps)
    return mixed @ v, torch.einsum("bgmn,bhmn->gh", maps, maps)


def check(sizes: Sizes, tokens: int, dim: int, name: str) -> dict[str, Any]:
    """Relative errors of output, statistics and gradients; ``right`` says whether all are within tolerance."""
    torch.manual_seed(0)
    dtype = getattr(torch, name)
    inputs = packed(1 if tokens > 2000 else 2, sizes.heads, tokens, dim, dtype, sizes.device)
    inputs.append(torch.randn(sizes.heads, sizes.heads, device=sizes.device).requires_grad_())
    exact = [x.detach().double().requires_grad_() for x in inputs]
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)  # empty tensors are handed out full of NaN
    o, c, _ = triton_backend.core(*inputs, dim**-0.5, True, 0.0)
    do = torch.randn(o.shape, device=o.device).to(dtype)
    dc = torch.randn(c.shape, device=o.device) / tokens
    found = [o, c, *torch.autograd.grad((o, c), inputs, (do, dc))]
    torch.use_deterministic_algorithms(False)
    wanted: list[Tensor] = list(formulas(*exact, dim**-0.5))
    wanted += torch.autograd.grad(wanted, exact, (do.double(), dc.double()))
    names = ("o", "c", "dq", "dk", "dv", "dtheta")
    errors = {
        which: ((a.double() - b).norm() / b.norm()).item()
        for which, a, b in zip(names, found, wanted, strict=True)
    }
    right = all(error <= (STATISTICS if which == "c" else TOLERANCE)[name] for which, error in errors.items())
    # NaN is not JSON; it has failed already, since no comparison with it holds
    return {
        "right": right,
        "errors": {which: error if error == error else None for which, error in errors.items()},
    }


def alternate(sizes: Sizes, contenders: dict[str, Callable[[], object]]) -> dict[str, Any]:
    """Median milliseconds of each contender, taken in turn, their spread, and ratios to the first."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():  # compilation and caches
        run()
        run()
    for _ in range(sizes.rounds):
        for name, run in contenders.items():
            times[name].append(milliseconds(sizes, run))
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    return {
        "ms": medians,
        "spread": {name: (max(values) - min(values)) / medians[name] for name, values in times.items()},
        "ratio": {name: value / first for name, value in medians.items()},
    }


def milliseconds(sizes: Sizes, run: Callable[[], object]) -> float:
    """Mean of a few runs, by the device's own clock."""
    if sizes.device == "cpu":
        begin = time.perf_counter()
        run()
        return (time.perf_counter() - begin) * 1000
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(sizes.repeats):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / sizes.repeats


def peak_mebibytes(sizes: Sizes, run: Callable[[], object]) -> float | None:
    """Memory that a run takes beyond what is held before it."""
    if sizes.device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def attention(sizes: Sizes, tokens: int, dim: int, training: bool) -> dict[str, Any]:
    """Forward, and in training backward, of the whole operator in bfloat16 against FlashAttention."""
    torch.manual_seed(0)
    heads, dtype = sizes.heads, torch.bfloat16
    batch = max(1, sizes.tokens_at_once // tokens)
    q, k, v = packed(batch, heads, tokens, dim, dtype, sizes.device)
    theta = (torch.eye(heads, device=sizes.device) + 0.1).requires_grad_()
    weight = torch.ones(heads, device=sizes.device, requires_grad=True)
    bias = torch.zeros(heads, device=sizes.device, requires_grad=True)
    mean, var = torch.zeros(heads, device=sizes.device), torch.ones(heads, device=sizes.device)

    def flash() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if sizes.device == "cuda" else nullcontext():
            return F.scaled_dot_product_attention(q, k, v)

    def ours() -> Tensor:
        return deepvit.ops.reattention(
            q, k, v, theta, norm_weight=weight, norm_bias=bias, running_mean=mean, running_var=var,
            training=training, backend="triton",
        )  # fmt: skip

    with torch.set_grad_enabled(training):
        result: dict[str, Any] = {
            "batch": batch,
            "forward": alternate(sizes, {"flash": flash, "triton": ours}),
        }
    if not training:
        return result
    flash_out, our_out = flash(), ours()
    do = torch.randn_like(flash_out)
    learned = [q, k, v, theta, weight, bias]
    result["backward"] = alternate(
        sizes,
        {
            "flash": lambda: torch.autograd.grad(flash_out, [q, k, v], do, retain_graph=True),
            "triton": lambda: torch.autograd.grad(our_out, learned, do, retain_graph=True),
        },
    )
    both = result["forward"]["ms"], result["backward"]["ms"]
    result["ratio"] = sum(part["triton"] for part in both) / sum(part["flash"] for part in both)
    return result


def training_step(sizes: Sizes, compiled: bool) -> dict[str, Any]:
    """The whole model's training step against the plain twin's: forward, loss, backward, fused AdamW."""
    import timm

    contenders, peaks = {}, {}
    for name, blocks in (("plain", "none"), ("triton", "all")):
        torch.manual_seed(0)
        backend = {} if blocks == "none" else {"backend": "triton"}
        model = timm.create_model(
            sizes.model, num_classes=1000, img_size=sizes.image, reattention_blocks=blocks, **backend
        ).to(sizes.device)
        step = Step(sizes, torch.compile(model) if compiled else model)
        step()
        step()
        peaks[name] = peak_mebibytes(sizes, step)
        contenders[name] = step
    return alternate(sizes, contenders) | {"peak_mib": peaks, "batch": sizes.batch, "compiled": compiled}


class Step:
    """One training step of a model on images that stay on the device."""

    def __init__(self, sizes: Sizes, model: torch.nn.Module) -> None:
        self.sizes, self.model = sizes, model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        self.images = torch.randn(sizes.batch, 3, sizes.image, sizes.image, device=sizes.device)
        self.labels = torch.randint(1000, (sizes.batch,), device=sizes.device)

    def __call__(self) -> None:
        """Forward, loss, backward, update."""
        mixed = torch.autocast(self.sizes.device, torch.bfloat16)
        with mixed if self.sizes.autocast == torch.bfloat16 else nullcontext():
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def candidates(default: triton_backend.Tile, rows_own: bool) -> Iterator[triton_backend.Tile]:
    """Tiles near the default one: half or twice as many rows or keys, fewer warps, other read-ahead."""
    for own in (1, 0.5, 2):
        for other in (1, 0.5, 2):
            for warps, stages in ((8, default.stages), (4, default.stages), (8, 1), (8, 3)):
                if stages != default.stages and (own, other) != (1, 1):
                    continue
                rows, keys = (own, other) if rows_own else (other, own)
                rows, keys = int(default.rows * rows), int(default.keys * keys)
                if min(rows, keys) >= 16:
                    yield default._replace(rows=rows, keys=keys, warps=warps, stages=stages)


def tune(sizes: Sizes, tokens: int, dim: int, kernel: str, record: Record) -> dict[str, Any]:
    """Milliseconds of forward (or forward and backward) of the inner operator with each tile of one kernel."""
    torch.manual_seed(0)
    q, k, v = packed(
        max(1, sizes.tokens_at_once // tokens), sizes.heads, tokens, dim, torch.bfloat16, sizes.device
    )
    theta = torch.randn(sizes.heads, sizes.heads, device=sizes.device, requires_grad=True)
    default = triton_backend.default_tiles(sizes.heads, dim, torch.bfloat16)

    def run() -> None:
        o, c, _ = triton_backend.core(q, k, v, theta, dim**-0.5, True, 0.0)
        if kernel.startswith("backward"):
            torch.autograd.grad((o, c), (q, k, v, theta), (torch.ones_like(o), torch.ones_like(c)))

    found: list[tuple[float, list[int]]] = []
    failed = 0
    for tile in candidates(getattr(default, kernel), kernel != "backward_keys"):
        if time.monotonic() > record.end or (sizes.device == "cpu" and found):
            break
        triton_backend.set_tiles(sizes.heads, dim, torch.bfloat16, default._replace(**{kernel: tile}))
        try:
            run()
            run()
            found.append((min(milliseconds(sizes, run) for _ in range(2)), list(tile)))
        except (
            Exception
        ):  # too much shared memory, or a tile that the compiler refuses: a result of the search
            failed += 1
    triton_backend.set_tiles(sizes.heads, dim, torch.bfloat16, None)
    found.sort()
    return {"default": list(getattr(default, kernel)), "best_ms_and_tile": found[:5], "failed": failed}


def main() -> None:
    """Take the steps in order, leaving each result on disk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")))
    parser.add_argument("--steps", default="check,time,model")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    if options.dry and os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("--dry runs in Triton's interpreter: set TRITON_INTERPRET=1")
    if not options.dry and not torch.cuda.is_available():
        sys.exit("no CUDA GPU here: nothing was checked or measured (--dry tests the script itself)")
    sizes = Sizes(options.dry)
    record = Record(options.out, options.seconds, sizes)
    steps = options.steps.split(",")
    wrong = []
    shapes = [(tokens, dim) for tokens in sizes.tokens for dim in sizes.widths]
    if "check" in steps:
        for tokens, dim in shapes:
            for name in sizes.check_dtypes:
                key = f"check {name} N={tokens} d={dim}"
                if not record.once(key, lambda: check(sizes, tokens, dim, name)).get("right"):  # noqa: B023
                    wrong.append(key)
    if "time" in steps:
        for tokens, dim in shapes:
            if record.content["results"].get(f"check bfloat16 N={tokens} d={dim}", {}).get("right"):
                for training in (True, False):
                    key = f"time {'training' if training else 'evaluation'} bfloat16 N={tokens} d={dim}"
                    record.once(key, lambda: attention(sizes, tokens, dim, training))  # noqa: B023
            else:
                print(f"N={tokens} d={dim}: not timed, since its check has not passed")
    if "model" in steps and not wrong:
        for compiled in (False,) if options.dry else (False, True):
            key = f"training step {sizes.model}{' compiled' if compiled else ''}"
            record.once(key, lambda: training_step(sizes, compiled))  # noqa: B023
    if "tune" in steps:
        for dim in sizes.widths:
            tokens = sizes.tokens[len(sizes.tokens) // 3]  # 577
            for kernel in triton_backend.Tiles._fields:
                key = f"tune {kernel} N={tokens} d={dim}"
                record.once(key, lambda: tune(sizes, tokens, dim, kernel, record))  # noqa: B023
    if wrong:
        sys.exit("wrong or unfinished: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
