"""The 1x1 projection of a lambda layer, on a CPU a matrix product for each image.

The convolution that it equals copies its maps into a layout of its own there, and takes up to one and a half times as
long. Elsewhere, and in graphs that are scripted, exported or compiled, it is that convolution.

Shapes: B batch, N positions, D input channels, O output channels. On a grid of h x w, N = h * w.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Projection"]


class Projection(nn.Conv2d):
    """1x1 convolution, [B, D, h, w] -> [B, O, h, w]; its parameters are those of nn.Conv2d.

    Args:
        in_channels: D.
        out_channels: O.
        bias: add a learned [O].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, O, h, w]."""
        return project(x, self.weight, self.bias)


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:class:`Projection` as a function, so that torch.fx can hold it as one node."""
    if torch.jit.is_scripting():
        return F.conv2d(x, weight, bias)
    else:  # TorchScript must not look beyond
        graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if graph or x.device.type != "cpu" or x.ndim != 4:
            return F.conv2d(x, weight, bias)
        if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:  # as it casts for a convolution
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        product = _Product.apply if torch.is_grad_enabled() else _product
        maps: Tensor = product(x.flatten(2), weight.flatten(1), bias)
        return maps.unflatten(2, x.shape[2:])


torch.fx.wrap("project")


class _Product(torch.autograd.Function):
    """:func:`_product`; torch's own gradient of the matrix holds one matrix for each image."""

    @staticmethod
    def forward(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, matrix, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, matrix, _ = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, matrix)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        of_x, of_matrix, of_bias = None, None, None
        if ctx.needs_input_grad[0]:
            of_x = _product(gradient, matrix.T, None)
        if ctx.needs_input_grad[1]:
            of_matrix = gradient[0] @ x[0].T if len(x) else gradient.new_zeros(matrix.shape)
            for image, its in zip(x[1:], gradient[1:], strict=True):
                of_matrix.addmm_(its, image.T)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2))
        return of_x, of_matrix, of_bias


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """[B, D, N] by [O, D] to [B, O, N]."""
    matrices = matrix.expand(x.shape[0], -1, -1)
    return torch.bmm(matrices, x) if bias is None else torch.baddbmm(bias[:, None], matrices, x)
