"""MobileNetV2 with two lightweight lambda blocks.

LambdaNetworks: Modeling Long-Range Interactions Without Attention
(I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602), appendix, on MobileNetV2
(M. Sandler et al., 2018, https://arxiv.org/abs/1801.04381). The 10th and 16th inverted bottlenecks
use a lambda convolution with scope 5x5 for their depthwise convolution, and their first pointwise
convolution keeps its channel count.

Differences from the paper
    - The paper prints k = 32, h = 4 and 3.21M parameters, 563M FLOPs. A query depth of 32 in each of
      4 heads gives 3.24M and 577M; 32 over the 4 heads together, 8 each, gives 3.21M and 564M
      (torch's FlopCounterMode, convolution order). So: query depth 8, 4 heads.
    - Batch norm and ReLU6 follow the lambda convolution, as they followed the depthwise one (open).
    - No weights are public.
"""

from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.efficientnet import EfficientNet, decode_arch_def
from torch import Tensor, nn

from ..layers import LambdaLayer
from .network import pretrained_cfg
from .pretrained import check_weights

_ARCHITECTURE = [
    ["ds_r1_k3_s1_c16"],
    ["ir_r2_k3_s2_e6_c24"],
    ["ir_r3_k3_s2_e6_c32"],
    ["ir_r4_k3_s2_e6_c64"],
    ["ir_r3_k3_s1_e6_c96"],
    ["ir_r3_k3_s2_e6_c160"],
    ["ir_r1_k3_s1_e6_c320"],
]
LAMBDA_BLOCKS = (10, 16)  # counted from 1, over all stages
LAMBDA_LAYER: dict[str, Any] = {"num_heads": 4, "query_depth": 8, "scope": 5}


class LightweightLambdaBlock(nn.Module):
    """Pointwise, lambda convolution, pointwise, with a residual; [B, C, h, w] -> [B, C, h, w].

    Args:
        channels: C.
        drop_path: stochastic depth of the residual branch.
    """

    def __init__(self, channels: int, drop_path: nn.Module | None = None, device: Any = None, dtype: Any = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.conv_pw = nn.Conv2d(channels, channels, 1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(channels, **dd)
        self.act1 = nn.ReLU6(inplace=True)
        self.self_attn = LambdaLayer(channels, **LAMBDA_LAYER, **dd)
        self.bn2 = nn.BatchNorm2d(channels, **dd)
        self.act2 = nn.ReLU6(inplace=True)
        self.conv_pwl = nn.Conv2d(channels, channels, 1, bias=False, **dd)
        self.bn3 = nn.BatchNorm2d(channels, **dd)
        self.drop_path = nn.Identity() if drop_path is None else drop_path
        for conv in (self.conv_pw, self.conv_pwl):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        shortcut = x
        x = self.act1(self.bn1(self.conv_pw(x)))
        x = self.act2(self.bn2(self.self_attn(x)))
        x = self.bn3(self.conv_pwl(x))
        return self.drop_path(x) + shortcut


class LambdaMobileNetV2(EfficientNet):
    """timm's MobileNetV2 whose 10th and 16th blocks are lightweight lambda blocks.

    Args:
        **kwargs: as timm's EfficientNet: num_classes, in_chans, global_pool, output_stride,
            drop_rate, drop_path_rate, device, dtype. Unknown ones raise TypeError.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            block_args=decode_arch_def(_ARCHITECTURE),
            stem_size=32,
            num_features=1280,
            norm_layer=partial(nn.BatchNorm2d),
            act_layer=nn.ReLU6,
            **kwargs,
        )
        places = [(stage, index) for stage, blocks in enumerate(self.blocks) for index in range(len(blocks))]
        dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        for number in LAMBDA_BLOCKS:
            stage, index = places[number - 1]
            replaced = self.blocks[stage][index]
            self.blocks[stage][index] = LightweightLambdaBlock(
                replaced.conv_pwl.out_channels, drop_path=replaced.drop_path, **dd
            )


default_cfgs = generate_default_cfgs(
    {"lambda_mobilenetv2_100": pretrained_cfg(224, first_conv="conv_stem", classifier="classifier")}
)


@register_model
def lambda_mobilenetv2_100(pretrained: bool = False, **kwargs: Any) -> LambdaMobileNetV2:
    """MobileNetV2 with two lightweight lambda blocks."""
    if pretrained:
        check_weights("lambda_mobilenetv2_100", **kwargs)
    return build_model_with_cfg(
        LambdaMobileNetV2,
        "lambda_mobilenetv2_100",
        pretrained,
        feature_cfg={"flatten_sequential": True},
        **kwargs,
    )
