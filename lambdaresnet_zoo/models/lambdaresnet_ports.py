"""The networks of two public PyTorch ports, so that weights trained with them load.

After LambdaNetworks: Modeling Long-Range Interactions Without Attention
(I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602), as read by d-li14 (D. Li,
https://github.com/d-li14/lambda.pytorch) and by leaderj1001 (M. Lee,
https://github.com/leaderj1001/LambdaNetworks). A lambda layer in every block, scope 23, query depth
16, 4 heads, intra-depth 1; no SE; a 7x7 stem and 1x1 shortcuts. `weights.formats` renames their
state dicts.

Differences from the paper
    - Depths 26 and 38 of d-li14, and 18 of leaderj1001 (bottlenecks, as in the others), are their own.
      The paper's deeper networks have lambda layers in some blocks alone, SE in the others, and
      another stem: see `lambdaresnet`.
    - The 3x3 average pool of both counts its padding, as zeros.
    - d-li14: a bias on the position lambdas.
    - leaderj1001: keys are batch-normalised, values are not; no max-pool, every stage begins with stride 2.

Differences from the ports
    - Any input size works; leaderj1001's head is an average pool of 7x7, so bound to 224 pixels there.
    - leaderj1001's shortcut convolutions have a bias, which the batch norm after them cancels: it is
      left out here, and folded into the norm's running mean when weights are converted.
    - No weights come with these: d-li14's, of depth 50, are a file to download from his repository.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from ..layers import LambdaLayer
from .network import LambdaModelCfg, LambdaResNet, create_network, pretrained_cfg, stage

_DLI14 = {"position_bias": True, "pool": "avg3_counted"}
_LEADERJ1001 = {"norm_k": True, "norm_v": False, "pool": "avg3_counted"}


def _network(depths: tuple[int, ...], layer: dict[str, Any], stem_pool: str) -> LambdaModelCfg:
    strides = (1 if stem_pool else 2, 2, 2, 2)
    return LambdaModelCfg(
        blocks=tuple(
            stage(depth, channels, stride, lambdas=range(1, depth + 1))
            for depth, channels, stride in zip(depths, (256, 512, 1024, 2048), strides, strict=True)
        ),
        stem_type="7x7",
        stem_chs=64,
        stem_pool=stem_pool,
        downsample="conv1x1",
        self_attn_layer=LambdaLayer,
        self_attn_kwargs=layer,
    )


NETWORKS: dict[str, LambdaModelCfg] = {
    "lambdaresnet26_dli14": _network((2, 2, 2, 2), _DLI14, "maxpool"),
    "lambdaresnet38_dli14": _network((2, 3, 5, 2), _DLI14, "maxpool"),
    "lambdaresnet50_dli14": _network((3, 4, 6, 3), _DLI14, "maxpool"),
    "lambdaresnet101_dli14": _network((3, 4, 23, 3), _DLI14, "maxpool"),
    "lambdaresnet152_dli14": _network((3, 8, 36, 3), _DLI14, "maxpool"),
    "lambdaresnet18_leaderj1001": _network((2, 2, 2, 2), _LEADERJ1001, ""),
    "lambdaresnet50_leaderj1001": _network((3, 4, 6, 3), _LEADERJ1001, ""),
    "lambdaresnet152_leaderj1001": _network((3, 8, 36, 3), _LEADERJ1001, ""),
    "lambdaresnet200_leaderj1001": _network((3, 24, 36, 3), _LEADERJ1001, ""),
    "lambdaresnet270_leaderj1001": _network((4, 29, 53, 4), _LEADERJ1001, ""),
    "lambdaresnet350_leaderj1001": _network((4, 36, 72, 4), _LEADERJ1001, ""),
    "lambdaresnet420_leaderj1001": _network((4, 44, 87, 4), _LEADERJ1001, ""),
}

default_cfgs = generate_default_cfgs(
    {
        name: pretrained_cfg(224, first_conv="stem.conv1.conv" if cfg.stem_pool else "stem.conv")
        for name, cfg in NETWORKS.items()
    }
)


@register_model
def lambdaresnet26_dli14(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The lambda_resnet26 of d-li14/lambda.pytorch: lambda layers everywhere."""
    return create_network("lambdaresnet26_dli14", NETWORKS["lambdaresnet26_dli14"], pretrained, **kwargs)


@register_model
def lambdaresnet38_dli14(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The lambda_resnet38 of d-li14/lambda.pytorch: lambda layers everywhere."""
    return create_network("lambdaresnet38_dli14", NETWORKS["lambdaresnet38_dli14"], pretrained, **kwargs)


@register_model
def lambdaresnet50_dli14(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The lambda_resnet50 of d-li14/lambda.pytorch: lambda layers everywhere."""
    return create_network("lambdaresnet50_dli14", NETWORKS["lambdaresnet50_dli14"], pretrained, **kwargs)


@register_model
def lambdaresnet101_dli14(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The lambda_resnet101 of d-li14/lambda.pytorch: lambda layers everywhere."""
    return create_network("lambdaresnet101_dli14", NETWORKS["lambdaresnet101_dli14"], pretrained, **kwargs)


@register_model
def lambdaresnet152_dli14(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The lambda_resnet152 of d-li14/lambda.pytorch: lambda layers everywhere."""
    return create_network("lambdaresnet152_dli14", NETWORKS["lambdaresnet152_dli14"], pretrained, **kwargs)


@register_model
def lambdaresnet18_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet18 of leaderj1001/LambdaNetworks: lambda layers everywhere, no max-pool."""
    return create_network("lambdaresnet18_leaderj1001", NETWORKS["lambdaresnet18_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet50_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet50 of leaderj1001/LambdaNetworks: lambda layers everywhere, no max-pool."""
    return create_network("lambdaresnet50_leaderj1001", NETWORKS["lambdaresnet50_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet152_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet152 of leaderj1001/LambdaNetworks: lambda layers everywhere, no max-pool."""
    return create_network("lambdaresnet152_leaderj1001", NETWORKS["lambdaresnet152_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet200_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet200 of leaderj1001/LambdaNetworks: lambda layers everywhere, no max-pool."""
    return create_network("lambdaresnet200_leaderj1001", NETWORKS["lambdaresnet200_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet270_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet270 of leaderj1001/LambdaNetworks: lambda layers everywhere, no max-pool."""
    return create_network("lambdaresnet270_leaderj1001", NETWORKS["lambdaresnet270_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet350_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet350 of leaderj1001/LambdaNetworks: lambda layers everywhere, no max-pool."""
    return create_network("lambdaresnet350_leaderj1001", NETWORKS["lambdaresnet350_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet420_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet420 of leaderj1001/LambdaNetworks: lambda layers everywhere, no max-pool."""
    return create_network("lambdaresnet420_leaderj1001", NETWORKS["lambdaresnet420_leaderj1001"], pretrained, **kwargs)
