"""Compile the Triton kernels for an NVIDIA GPU without having one: registers, spills and shared memory of each.

    python benchmarks/triton_resources.py [--capability 90] [--out results.json]

Triton's compiler and ptxas come with its package, so this runs on any Linux machine. Spilled bytes are per
thread. A kernel that needs more shared memory than the GPU has (227 KiB on capability 9.0) would fail to start.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from deepvit.files import write_json
from deepvit.ops import triton_backend, triton_kernels

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SHAPES = [(12, 32), (12, 35), (12, 64), (6, 64), (3, 64)]
HALVES = ("q", "k", "v", "do", "o", "dq", "dk", "dv")
FLOATS = ("theta", "dc", "lse", "row_dot", "c_parts", "dtheta_parts")
ALIGNED = [["tt.divisibility", 16]]


def resources(
    kernel: str, heads: int, dim: int, dtype: torch.dtype, capability: int = 90, stats: bool = True
) -> dict[str, object]:
    """Compile one kernel as it is launched on a packed qkv of this shape, and read what it needs."""
    function = getattr(triton_kernels, kernel)
    tile = getattr(triton_backend.default_tiles(heads, dim, dtype), kernel)
    q = torch.empty((1, heads, 1, dim), dtype=dtype)
    known = triton_backend._constants(q, tile) | {"STATS": stats}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(function.arg_names):
        stride = re.fullmatch("s[qkvo]([bhnd])", name)
        if name in known or (stride and stride[1] == "d"):
            signature[name], constants[index,] = "constexpr", known.get(name, 1)
        elif name in HALVES:
            signature[name], attributes[index,] = "*" + TYPES[dtype], ALIGNED
        elif name in FLOATS:
            signature[name], attributes[index,] = "*fp32", ALIGNED
        else:
            signature[name] = "i32" if stride or name == "N" else "fp32"
            if stride and dim % 16 == 0:
                attributes[index,] = ALIGNED
    source = ASTSource(function, signature, constants, attributes)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _registers(compiled.asm["cubin"])
    return {
        "kernel": kernel, "heads": heads, "dim": dim, "dtype": TYPES[dtype], **tile._asdict(),
        "registers": registers, "spilled_bytes": spilled, "shared_bytes": compiled.metadata.shared,
    }  # fmt: skip


def _registers(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes a thread, by the disassembler in Triton's package."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def main() -> None:
    """Print a Markdown table; with --out, write the rows as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    print("| kernel | heads | width | dtype | rows | keys | registers | spilled | shared KiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        for heads, dim in SHAPES:
            for kernel in triton_backend.Tiles._fields:
                row = resources(kernel, heads, dim, dtype, options.capability)
                rows.append(row)
                shown = [row[key] for key in (
                    "kernel", "heads", "dim", "dtype", "rows", "keys", "registers", "spilled_bytes",
                )]  # fmt: skip
                print("|", " | ".join(map(str, [*shown, row["shared_bytes"] // 1024])), "|", flush=True)
    if options.out:
        versions = {"triton": triton.__version__, "capability": options.capability}
        write_json(options.out, {"versions": versions, "kernels": rows})


if __name__ == "__main__":
    main()
