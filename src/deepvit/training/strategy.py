"""What Lightning is told of the processes: they are there already, and who is who."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from deepvit.errors import UserError
from deepvit.runs.place import Place
from deepvit.training.config import TrainConfig
from deepvit.training.processes import Team
from deepvit.training.sharding import share, whole_state


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


class Sharded(ModelParallelStrategy):
    """``--strategy fsdp``: each process holds its share of weights, gradients and moments.

    Lightning's strategy shards; ``Trainee.configure_model`` says what. Checkpoints are those of every other strategy (whole
    tensors by plain names), so that a run goes on in any number of processes with any of them.

    Args:
        team: the processes.
    """

    def __init__(self, team: Team) -> None:
        super().__init__(
            data_parallel_size=team.world, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
        self.cluster_environment = Here(team.place)
        self._device = torch.device(team.device)

    @property
    def root_device(self) -> torch.device:
        """The device of this process: every process has one, whatever Lightning counts."""
        return self._device

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Its state is in the checkpoint that was read."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors in the first process, nothing in the others; all take part."""
        assert self.lightning_module is not None
        return whole_state(self.lightning_module.state_dict(), keep=self.global_rank == 0)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As ``lightning_module_state_dict``, in the form that the optimizer gives by itself."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        parts = {
            number: whole_state(part, keep=self.global_rank == 0) for number, part in state["state"].items()
        }
        return {**state, "state": parts}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every process reads the file."""
        return dict(Strategy.load_checkpoint(self, checkpoint_path, weights_only))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each process keeps its share."""
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.lightning_module, checkpoint["state_dict"], options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each process keeps its share."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                number: {name: share(value, parameters[number]) for name, value in part.items()}
                for number, part in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


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


def check_strategy(config: TrainConfig, team: Team) -> None:
    """Refuse a strategy that there is nothing for, or that other options do not go with.

    Raises:
        UserError: in one line.
    """
    asked = config.run.strategy
    if asked == "auto":
        return
    if team.world == 1:
        raise UserError(
            f"--strategy {asked} shares a run out to several processes, and this is one: add --devices 2 (or cpu:2), or "
            "leave it out"
        )
    if asked == "fsdp" and config.run.compile:
        raise UserError(
            "--strategy fsdp gathers weights block by block, which --compile does not see: leave one out"
        )
    if asked == "fsdp" and config.optim.precision == "16":
        raise UserError("--strategy fsdp has no loss scaling for --precision 16: take bf16 or 32")


def lightning_arguments(config: TrainConfig, team: Team, unused: bool) -> dict[str, Any]:
    """Accelerator, devices, strategy and environment for Lightning's Trainer."""
    if team.device == "auto":
        accelerator, devices = "auto", 1
    elif team.device == "cpu":
        accelerator, devices = "cpu", 1
    else:
        accelerator, devices = "gpu", [int(team.device.removeprefix("cuda:"))]  # type: ignore[assignment]
    arguments: dict[str, Any] = {"accelerator": accelerator, "devices": devices}
    if team.world == 1:
        # Said explicitly: from variables of a scheduler that happen to be there Lightning would conclude that it is one of
        # many.
        return {**arguments, "plugins": [LightningEnvironment()]}
    if config.run.strategy == "fsdp":
        # What is gathered in inference mode could not be trained with afterwards.
        return {**arguments, "strategy": Sharded(team), "plugins": [], "inference_mode": False}
    return {**arguments, "strategy": DataParallel(team, unused), "plugins": []}
