"""What Lightning is told of the processes: they are there already, and who is who."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deepvit.runs.place import Place
from deepvit.training.processes import Team


class Here(ClusterEnvironment):
    """A process's place, as Lightning asks for it. Being no ``SLURMEnvironment``, it requeues nothing by itself."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    creates_processes_externally = True

    @property
    def main_address(self) -> str:
        """Where the processes have met."""
        return self.place.address

    @property
    def main_port(self) -> int:
        """Where the processes have met."""
        return self.place.port

    @staticmethod
    def detect() -> bool:
        """Never found by Lightning itself."""
        return False

    def world_size(self) -> int:
        """Number of processes."""
        return self.place.world

    def set_world_size(self, size: int) -> None:
        """Lightning counts devices; the number of processes is known."""

    def global_rank(self) -> int:
        """Number of this process."""
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        """As ``set_world_size``."""

    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return self.place.local_rank

    def node_rank(self) -> int:
        """Number of this machine."""
        return self.place.rank // self.place.local_world


# Running statistics are the same everywhere already: synchronised, or deliberately each process's own.
_NO_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class DataParallel(DDPStrategy):
    """DistributedDataParallel on the device of this process.

    Args:
        team: the processes.
        unused: some parameters get no gradient, and are not to be waited for; looking for them costs time every step.
    """

    def __init__(self, team: Team, unused: bool) -> None:
        super().__init__(
            cluster_environment=Here(team.place),
            find_unused_parameters=unused,
            **{_NO_BUFFERS: False},
        )
        self._device = torch.device(team.device)

    @property
    def root_device(self) -> torch.device:
        """The device of this process: every process has one, whatever Lightning counts."""
        return self._device


def has_unused(network: nn.Module, image: Tensor) -> bool:
    """Whether a network has trained parameters that its output for an image [1, 3, H, W] does not hang on."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    modes = {module: module.training for module in network.modules()}
    try:
        output = network.eval()(image)
        tensors = [output] if isinstance(output, Tensor) else list(output)
        total = torch.stack([t.sum() for t in tensors]).sum()
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        return any(gradient is None for gradient in found)
    except (
        RuntimeError,
        TypeError,
        AttributeError,
    ):  # an output of a form of its own: look for them every step
        return True
    finally:
        for module, mode in modes.items():
            module.training = mode


def lightning_arguments(team: Team, unused: bool) -> dict[str, Any]:
    """Accelerator, devices, strategy and environment for Lightning's Trainer."""
    if team.device == "auto":
        accelerator, devices = "auto", 1
    elif team.device == "cpu":
        accelerator, devices = "cpu", 1
    else:
        accelerator, devices = "gpu", [int(team.device.removeprefix("cuda:"))]  # type: ignore[assignment]
    if team.world > 1:
        strategy = DataParallel(team, unused)
        return {"accelerator": accelerator, "devices": devices, "strategy": strategy, "plugins": []}
    # Said explicitly: from variables of a scheduler that happen to be there Lightning would conclude that it is one of many.
    return {"accelerator": accelerator, "devices": devices, "plugins": [LightningEnvironment()]}
