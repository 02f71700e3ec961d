"""Networks whose weights, gradients and optimiser states are shared out over ranks (FSDP2).

Each rank holds a slice of every tensor; a block's whole weights come together for its forward and its
backward pass alone. What looks at whole tensors, such as a norm, asks here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from histo_ssl.parallel.distributed import all_reduce_sum

BLOCKS = "blocks"  # timm's name of a transformer's layers


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy, with all ranks sharing the data, and a checkpoint as it is without sharing.

    Its own way with states of optimisers wants one for every parameter, which one that is frozen for a while
    has not; here a state is what the optimiser says it is, with whole tensors in place of shared ones.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether states of optimisers go through `load_optimizer_state_dict`."""
        return True

    @property
    def mesh(self) -> DeviceMesh:
        """All ranks."""
        return self.device_mesh["data_parallel"]

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        self._data_parallel_size = self.world_size  # not known before

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state with whole tensors, on the CPU; all ranks take part."""
        state = optimizer.state_dict()
        wholes = {
            number: {name: _whole(value) for name, value in of.items()}
            for number, of in state["state"].items()
        }
        return {**state, "state": wholes}

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What the checkpoint's own reader makes of it."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every rank its part of the whole weights that it holds."""
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.lightning_module, checkpoint["state_dict"], options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """The same for the states of optimisers."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                number: {name: _shared_as(params[number], value) for name, value in of.items()}
                for number, of in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


def check(trainer: Trainer, *, compile: bool, has_online: bool) -> None:
    """Stop at what goes wrong with shared weights.

    Args:
        trainer: as it is set up.
        compile: whether networks are to be compiled.
        has_online: whether the encoder is to be scored while training goes on.

    Raises:
        ValueError: names what has to be switched off.
    """
    if not isinstance(trainer.strategy, FullySharded):
        return
    if has_online:
        raise ValueError(
            "trainer=fsdp: scores while training goes on need the whole encoder on each rank; say online=none"
        )
    if compile:
        raise ValueError("trainer=fsdp: compile=true was never tried with shared weights; say compile=false")


def shard(method: nn.Module, mesh: DeviceMesh) -> None:
    """Share out the weights of a method's networks, block by block.

    Args:
        method: its networks are its children, each of which is called as a whole.
        mesh: the ranks that share.
    """
    for network in method.children():
        if next(network.parameters(), None) is not None:
            for block in _blocks(network):
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
            fully_shard(network, mesh=mesh, reshard_after_forward=True)


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor, in the same memory; all of one that is not shared out."""
    if not isinstance(x, DTensor):
        return x
    part: Tensor = x.to_local()
    return part


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norms of whole tensors, (n,), the same on every rank.

    Args:
        tensors: n > 0, all of them shared out or none. One of [3] here and [4] there has a norm of 5.
    """
    parts = torch.stack(torch._foreach_norm([local(x) for x in tensors]))
    if not isinstance(tensors[0], DTensor):
        return parts
    return all_reduce_sum(parts.square()).sqrt()


@torch.no_grad()
def gather_weights(method: nn.Module) -> None:
    """Put whole parameters, on the CPU, in the places of those that are shared out; all ranks take part."""
    for module in method.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if isinstance(p, DTensor):
                whole = nn.Parameter(p.full_tensor().cpu(), requires_grad=p.requires_grad)
                setattr(module, name, whole)


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's parts of several tensors."""
    return [local(x) for x in tensors]


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    for module in network.modules():
        for name, child in module.named_children():
            if name == BLOCKS:
                yield from child.children()


def _whole(x: Any) -> Any:
    return x.full_tensor().cpu() if isinstance(x, DTensor) else x


def _shared_as(p: Tensor, x: Any) -> Any:
    """A value of an optimiser's state as the parameter is shared out, if it has its shape."""
    if not isinstance(p, DTensor) or not isinstance(x, Tensor) or x.shape != p.shape:
        return x
    return distribute_tensor(x.to(p.device), p.device_mesh, p.placements)
