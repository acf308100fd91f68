"""The 1x1 projection of a lambda layer, on a CPU a matrix product for each image.

The convolution that it equals copies its maps into a layout of its own there, and takes up to one and a half times as
long. Elsewhere, and in graphs that are scripted, exported or compiled, it is that convolution.

Shapes: B batch, N positions. On a grid of h x w, N = h * w.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Projection"]


class Projection(nn.Conv2d):
    """1x1 convolution, [B, in_channels, h, w] -> [B, out_channels, h, w]; its parameters are those of nn.Conv2d.

    Args:
        in_channels: of the input.
        out_channels: of all that is projected to.
        bias: add a learned [out_channels].
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
        """[B, in_channels, h, w] -> [B, out_channels, h, w]."""
        return project(x, self.weight, self.bias)


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:class:`Projection` as a function, so that torch.fx can hold it as one node."""
    if torch.jit.is_scripting():
        return F.conv2d(x, weight, bias)
    else:  # TorchScript must not look beyond
        graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if graph or x.device.type != "cpu" or x.ndim != 4:
            return F.conv2d(x, weight, bias)
        batch, _, height, width = x.shape
        matrices = weight.flatten(1).expand(batch, -1, -1)
        if bias is None:
            maps = torch.bmm(matrices, x.flatten(2))
        else:
            maps = torch.baddbmm(bias[:, None], matrices, x.flatten(2))
        return maps.view(batch, -1, height, width)


torch.fx.wrap("project")
