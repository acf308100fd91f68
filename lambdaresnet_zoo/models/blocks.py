"""timm's building blocks as the LambdaResNets use them: batch norms that fold, and sums in place.

Their modules, parameters and outputs are timm's; :func:`adapt` turns those of a network into these.
"""

from typing import Any

import torch
from timm.layers import ConvNormAct
from timm.models.byobnet import BottleneckBlock, DownsampleAvg, SelfAttnBlock
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from ..layers import CeilAvgPool2d
from ..layers.folding import check_evaluation, folds

__all__ = ["FusibleConvNormAct", "InPlaceBottleneckBlock", "InPlaceSelfAttnBlock", "adapt"]


class FusibleConvNormAct(ConvNormAct):
    """timm's convolution, batch norm and activation, whose batch norm folds into the convolution."""

    @torch.jit.ignore
    def fuse(self) -> "FusibleConvNormAct":
        """Fold the batch norm, for evaluation alone, and return the module; timm's ``reparameterize_model`` calls it.

        Raises:
            ValueError: the module is in training mode.
        """
        check_evaluation(self)
        own: Any = self  # timm's module has no types
        if folds(own.bn):
            own.conv = fuse_conv_bn_eval(own.conv, own.bn)
            own.bn = nn.Sequential(own.bn.drop, own.bn.act)
        return self


class InPlaceBottleneckBlock(BottleneckBlock):
    """timm's bottleneck block, [B, D, h, w] -> [B, O, h', w'], which adds its shortcut in place, as timm's ResNets do.

    A sum of its own is the largest map of a block, and on a CPU memory that the system hands out anew at every pass:
    networks took up to 8 % longer in evaluation.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        maps = self.conv2b_kxk(self.conv2_kxk(self.conv1_1x1(x)))
        maps = self.drop_path(self.attn_last(self.conv3_1x1(self.attn(maps))))
        if self.shortcut is not None:
            maps += self.shortcut(x)
        return self.act(maps)


class InPlaceSelfAttnBlock(SelfAttnBlock):
    """timm's bottleneck block around a lambda layer, which adds its shortcut in place, too."""

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, [B, D, h, w] -> [B, O, h', w']."""
        maps = self.self_attn(self.conv2_kxk(self.conv1_1x1(x)))
        maps = self.drop_path(self.conv3_1x1(self.post_attn(maps)))
        if self.shortcut is not None:
            maps += self.shortcut(x)
        return self.act(maps)


ADAPTED: dict[type[nn.Module], type[nn.Module]] = {
    ConvNormAct: FusibleConvNormAct,  # which timm's blocks make themselves
    BottleneckBlock: InPlaceBottleneckBlock,
    SelfAttnBlock: InPlaceSelfAttnBlock,
}


def adapt(network: nn.Module) -> None:
    """Turn timm's modules within a network into those above, and its 2x2 average pools into a form that exports."""
    for module in network.modules():
        if isinstance(module, DownsampleAvg) and type(module.pool) is nn.AvgPool2d and module.pool.stride == 2:
            module.pool = CeilAvgPool2d()  # the same averages
        module.__class__ = ADAPTED.get(type(module), type(module))
