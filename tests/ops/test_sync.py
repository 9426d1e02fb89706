"""Statistics over two processes equal those of one process with the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from deepvit.layers import ReAttention
from deepvit.ops import reattention, reattention_maps

HEADS, TOKENS, WIDTH = 3, 7, 4


def whole_batch():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(5, TOKENS, HEADS * WIDTH, generator=draw, dtype=torch.float64)
    grad = torch.randn(5, TOKENS, HEADS * WIDTH, generator=draw, dtype=torch.float64)
    return x, grad


def layer(backend):
    torch.manual_seed(2)
    made = ReAttention(HEADS * WIDTH, HEADS, backend=backend).double()
    with torch.no_grad():
        made.var_norm.weight.uniform_(0.5, 1.5)
        made.var_norm.bias.normal_()
    return made


def run(made, x, grad):
    x = x.clone().requires_grad_()
    y = made(x)
    y.backward(grad)
    return y.detach(), x.grad


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x, grad = whole_batch()
    part = slice(0, 2) if rank == 0 else slice(2, 5)  # unequal shares
    results = {}
    for backend in ("streaming", "reference"):
        made = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer(backend)))[0]
        assert isinstance(made.var_norm, nn.SyncBatchNorm)
        y, dx = run(made, x[part], grad[part])
        for parameter in made.parameters():
            dist.all_reduce(parameter.grad)
        results[backend] = {
            "y": y,
            "dx": dx,
            "grads": {name: p.grad for name, p in made.named_parameters()},
            "buffers": dict(made.var_norm.named_buffers()),
        }
    # Images of another size on the other worker, with and without dropout's first moment.
    tokens = 4 + 3 * rank
    draw = torch.Generator().manual_seed(rank)
    q, k = torch.randn(2, 2, HEADS, tokens, WIDTH, generator=draw, dtype=torch.float64).unbind(0)
    unit = torch.eye(tokens, dtype=torch.float64)[..., :WIDTH].expand_as(q)
    theta = torch.eye(HEADS, dtype=torch.float64)
    for p in (0.0, 0.3):
        mean, var = torch.zeros(HEADS, dtype=torch.float64), torch.ones(HEADS, dtype=torch.float64)
        running = {
            "running_mean": mean,
            "running_var": var,
            "momentum": 1.0,
            "process_group": dist.group.WORLD,
        }
        args = {"training": True, "dropout_p": p, "backend": "streaming"}
        torch.manual_seed(rank)
        out = reattention(q, k, unit, theta, **args, **running)
        torch.manual_seed(rank)
        plain = reattention(q, k, unit, theta, norm="none", **args)
        maps, _ = reattention_maps(q, k, theta, norm="none")
        results[f"uneven {p}"] = {
            "out": out, "plain": plain, "maps": maps, "mean": mean, "var": var, "tokens": tokens
        }  # fmt: skip
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for backend in ("streaming", "reference"):
        made = layer(backend)
        y, dx = run(made, *whole_batch())
        parts = [result[backend] for result in results]
        torch.testing.assert_close(torch.cat([part["y"] for part in parts]), y)
        torch.testing.assert_close(torch.cat([part["dx"] for part in parts]), dx)
        for part in parts:
            for name, parameter in made.named_parameters():
                torch.testing.assert_close(
                    part["grads"][name], parameter.grad, msg=name, rtol=1e-6, atol=1e-9
                )
            for name, buffer in made.var_norm.named_buffers():
                torch.testing.assert_close(part["buffers"][name], buffer, msg=name)
    for p in (0.0, 0.3):
        check_uneven(p, *(result[f"uneven {p}"] for result in results))


def check_uneven(p, first, second):
    """The pooled mean and variance are one pair of numbers a head, though every worker has its own 1/N."""
    mean, var = first["mean"], first["var"]
    torch.testing.assert_close(mean, second["mean"])
    torch.testing.assert_close(var, second["var"])
    count = 2 * first["tokens"] ** 2 + 2 * second["tokens"] ** 2
    biased = (var * (count - 1) / count).view(1, HEADS, 1, 1)
    # theta and the first columns of V are unit matrices: "plain" holds the first columns of the maps
    for part in (first, second):
        expected = (part["plain"] - mean.view(1, HEADS, 1, 1)) / torch.sqrt(biased + 1e-5)
        torch.testing.assert_close(part["out"], expected)
    if p == 0:
        pooled = 2 * (first["tokens"] + second["tokens"]) / count
        torch.testing.assert_close(mean, torch.full_like(mean, pooled))
        # and the variance is that of all the maps' entries about that mean
        squares = sum(
            (part["maps"] - mean.view(1, HEADS, 1, 1)).square().sum((0, 2, 3)) for part in (first, second)
        )
        torch.testing.assert_close(var, squares / (count - 1))
