"""Average pools that halve any size, odd ones too, and that export with symbolic sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CeilAvgPool2d"]


class CeilAvgPool2d(nn.Module):
    """2x2 average pool, stride 2, [B, C, h, w] -> [B, C, ceil(h / 2), ceil(w / 2)]; padding not counted.

    What ``nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)`` computes. torch.export
    cannot prove the bound that ceil_mode checks when sizes are symbolic, so an exported graph gets
    the same averages by repeating the last row and column instead.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool a map of any size."""
        if torch.jit.is_scripting():  # apart: TorchScript compiles the whole of any other condition
            return F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        elif torch.compiler.is_exporting():
            return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 2)
        return F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
