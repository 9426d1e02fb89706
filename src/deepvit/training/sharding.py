"""A network shared out to processes (torch's ``fully_shard``): what is made whole again, when, and for whom.

Without ``--strategy fsdp`` nothing here does anything: whole tensors are whole. ``strategy.Sharded`` is the rest of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def share(value: Any, parameter: Tensor) -> Any:
    """This process's share of a whole tensor that belongs to a parameter; other values as they are."""
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    whole = value.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def shard(network: nn.Module, mesh: DeviceMesh, *, gather_again: bool = True) -> None:
    """Leave each process its share of a network's weights, those of the first process.

    A block's weights are gathered for its own passes; what is in no block is gathered for the whole pass.

    Args:
        network: the network, the same in all processes.
        mesh: the processes.
        gather_again: drop a block's weights after its forward pass and gather them again for its backward pass; without
            it they stay until then, for losses that compute with them after the forward pass.
    """
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            dist.broadcast(tensor, 0)
    for block in blocks_in(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=gather_again)
        block._gathered_again = gather_again  # type: ignore[assignment]
    fully_shard(network, mesh=mesh)


def blocks_in(network: nn.Module) -> list[nn.Module]:
    """Modules with weights in lists called ``blocks``, as timm's networks have them, hierarchical ones too."""
    lists = [m for name, m in network.named_modules() if name.rpartition(".")[2] == "blocks"]
    found = [block for one in lists if isinstance(one, nn.Sequential | nn.ModuleList) for block in one]
    return [block for block in found if any(True for _ in block.parameters())]


def is_sharded(network: nn.Module) -> bool:
    """Whether any part of a network is shared out."""
    return any(isinstance(module, FSDPModule) for module in network.modules())


@contextlib.contextmanager
def put_together(network: nn.Module) -> Iterator[None]:
    """A sharded network is whole in every process inside: forward passes wait for nobody. All processes enter and leave."""
    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        for part in parts:
            # The outermost keeps its own weights through a step, as torch has it.
            part.set_reshard_after_forward(getattr(part, "_gathered_again", False), recurse=False)
            part.reshard()


def whole(value: Tensor) -> Tensor:
    """A tensor with all shares of it; all processes take part."""
    return value.full_tensor() if isinstance(value, DTensor) else value  # type: ignore[no-any-return]


def own(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole_state(state: Mapping[str, Any], *, keep: bool = True) -> dict[str, Any]:
    """A state dict with whole tensors, those that were shared out on the CPU; all processes take part.

    With ``keep`` false it is empty: this process does not need it.
    """
    found: dict[str, Any] = {}
    for name, value in state.items():
        gathered = whole(value) if isinstance(value, Tensor) else value
        if keep:
            found[name] = gathered.cpu() if isinstance(value, DTensor) else gathered
    return found
