"""One network in several processes: DistributedDataParallel, FSDP2, and batch norm over all of them."""

from typing import Any

import torch
import torch.distributed
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ...errors import UserError, first_line

__all__ = ["States", "shard", "synchronise_norms", "wrap"]

FULL = StateDictOptions(full_state_dict=True)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; the gradients are summed too, as each process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        total = grads[0].clone()
        torch.distributed.all_reduce(total)
        return total


class _SyncNorm(nn.Module):
    """What torch's SyncBatchNorm does, on the CPU, which that one does not take: the sums go through all_reduce."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """Normalise over the images of all processes, then timm's dropout and activation where the module has them."""
        if not self.training:
            return super().forward(x)
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))  # sums of half precision would lose most of it
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        sums = _Sum.apply(torch.cat([x.sum(dims), x.new_tensor([float(x.numel() // x.shape[1])])]))
        total = sums[-1].detach()
        if total <= 1:
            raise ValueError("Expected more than 1 value per channel when training")  # as torch's batch norm says
        mean = sums[:-1] / total
        centred = x - mean.reshape(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / total
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * total / (total - 1), momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            x = centred * (scale * self.weight).reshape(shape) + self.bias.reshape(shape)
        else:
            x = centred * scale.reshape(shape)
        x = x.to(dtype)
        if hasattr(self, "act"):
            x = self.act(self.drop(x))
        return x


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch norm over all processes: torch's on a GPU, sums through all_reduce on a CPU."""
    if device.type != "cpu":
        return convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _SyncNorm):
            kind = type(module)
            module.__class__ = type(kind.__name__, (_SyncNorm, kind), {})
    return model


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The network in DistributedDataParallel; to be called anew when other parameters are to be trained."""
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def shard(model: nn.Module, device: torch.device, processes: int) -> None:
    """Share out a network's parameters among the processes, block by block, in place (FSDP2)."""
    mesh = init_device_mesh(device.type, (processes,))
    network: Any = model
    for stage in getattr(network, "stages", None) or []:
        for block in stage if isinstance(stage, nn.Sequential) else [stage]:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


class States:
    """Reads and sets the whole states of network, average and optimiser, whoever holds which part of them.

    Args:
        sharded: whether FSDP2 has shared them out; every process must then take part.
    """

    def __init__(self, sharded: bool) -> None:
        self.sharded = sharded

    def model(self, model: nn.Module) -> dict[str, Any]:
        """The state of a network, whole."""
        return get_model_state_dict(model, options=FULL) if self.sharded else model.state_dict()

    def optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of an optimiser, whole."""
        return get_optimizer_state_dict(model, optimizer, options=FULL) if self.sharded else optimizer.state_dict()

    def set_model(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Set a network's whole state.

        Raises:
            UserError: it is of another network.
        """
        try:
            if self.sharded:
                set_model_state_dict(model, state, options=FULL)
            else:
                model.load_state_dict(state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(f"the checkpoint is of another network: {first_line(error)}") from error

    def set_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Set an optimiser's whole state.

        Raises:
            UserError: it is of another optimiser.
        """
        try:
            if self.sharded:
                set_optimizer_state_dict(model, optimizer, state, options=FULL)
            else:
                optimizer.load_state_dict(state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(f"the checkpoint is of another optimiser: {first_line(error)}") from error
