"""Batch norms folded into the convolution before them, for evaluation: what timm's ``reparameterize_model`` asks of a
module's ``fuse``.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

Convolution = TypeVar("Convolution", bound=nn.Conv2d)

__all__ = ["check_evaluation", "folded", "folds"]


def check_evaluation(module: nn.Module) -> None:
    """Refuse to fold in training, where batch norms normalise by the batch.

    Raises:
        ValueError: the module is in training mode.
    """
    if module.training:
        raise ValueError("batch norms are folded for evaluation alone: call eval() first")


def folds(norm: nn.Module) -> bool:
    """Whether a module is a batch norm with statistics of its own."""
    return getattr(norm, "running_mean", None) is not None


@torch.no_grad()
def folded(convolution: Convolution, norms: Sequence[Any], channels: Sequence[int]) -> Convolution:
    """A copy of the convolution with the batch norms of its parts folded in, and a bias; itself if there are none.

    Args:
        convolution: in evaluation mode. What shares its weights is left as it is.
        norms: one for each part; those that do not fold change nothing.
        channels: of each part, together those of the output.
    """
    if not any(map(folds, norms)):
        return convolution
    weight = convolution.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)  # rounded once, in the product
    joint = nn.BatchNorm2d(len(weight), eps=0.0, device=weight.device, dtype=dtype).eval()  # the identity as it is made
    assert joint.running_mean is not None and joint.running_var is not None
    first = 0
    for norm, size in zip(norms, channels, strict=True):
        part = slice(first, first + size)
        first += size
        if folds(norm):
            joint.running_mean[part] = norm.running_mean
            joint.running_var[part] = norm.running_var.to(dtype) + norm.eps
            if norm.weight is not None:
                joint.weight[part], joint.bias[part] = norm.weight, norm.bias
    return fuse_conv_bn_eval(convolution, joint)
