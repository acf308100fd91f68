"""The networks of two public PyTorch ports, so that weights trained with them load.

After LambdaNetworks: Modeling Long-Range Interactions Without Attention
(I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602), as read by d-li14 (D. Li,
https://github.com/d-li14/lambda.pytorch) and by leaderj1001 (M. Lee,
https://github.com/leaderj1001/LambdaNetworks). A lambda layer in every block, scope 23, query depth
16, 4 heads, intra-depth 1; no SE; a 7x7 stem and 1x1 shortcuts. `conversion.formats` renames their
state dicts.

leaderj1001's repository has had two generations of networks, of the same depths and names. The later
one, which it ended with, is `lambdaresnet*_leaderj1001`; the earlier one, `lambdaresnet*_leaderj1001_v0`:

    earlier                                          later
    keys are batch-normalised, values are not        values are batch-normalised, keys are not
    no max-pool, every stage begins with stride 2    a max-pool, the first stage has stride 1, and its
                                                     first block has the 3x3 average pool all the same
    `linear` is the classifier                       `fc.1` is the classifier, after dropout of 0.3

In their state dicts `keys.1` and `values.weight` are of the earlier one, `values.0` and `values.1` of the later.
The later network of depth 50 has the tensors of `lambdaresnet50_llll`: their average pools alone differ.

Differences from the paper
    - Depths 26 and 38 of d-li14, and 18 of leaderj1001 (bottlenecks, as in the others), are their own.
      The paper's deeper networks have lambda layers in some blocks alone, SE in the others, and
      another stem: see `lambdaresnet`.
    - The 3x3 average pool of both counts its padding, as zeros.
    - d-li14: a bias on the position lambdas.
    - leaderj1001: each generation as above.

Differences from the ports
    - Any input size works; the head of leaderj1001's earlier networks is an average pool of 7x7, so
      bound to 224 pixels there.
    - leaderj1001's shortcut convolutions have a bias, which the batch norm after them cancels: it is
      left out here, and folded into the norm's running mean when weights are converted.
    - leaderj1001's dropout is left to `drop_rate`, which is 0 unless given.
    - No weights come with these: d-li14's, of depth 50, are a file to download from his repository.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from ..layers import LambdaLayer
from .network import LambdaModelCfg, LambdaResNet, create_network, pretrained_cfg, stage

_DLI14 = {"position_bias": True, "pool": "avg3_counted"}
_LEADERJ1001 = {"pool": "avg3_counted"}
_LEADERJ1001_V0 = {"norm_k": True, "norm_v": False, "pool": "avg3_counted"}


def _network(
    depths: tuple[int, ...], layer: dict[str, Any], stem_pool: str = "maxpool", pool_first: bool = False
) -> LambdaModelCfg:
    """The network of both ports.

    Args:
        depths: blocks of each stage.
        layer: options of the lambda layers.
        stem_pool: of the stem; without one, the first stage has stride 2 instead.
        pool_first: the first block of all pools although its stride is 1.
    """
    strides = (1 if stem_pool else 2, 2, 2, 2)
    blocks = tuple(
        stage(depth, channels, stride, lambdas=range(1, depth + 1))
        for depth, channels, stride in zip(depths, (256, 512, 1024, 2048), strides, strict=True)
    )
    if pool_first:
        blocks[0][0].self_attn_kwargs = layer | {"pool_always": True}
    return LambdaModelCfg(
        blocks=blocks,
        stem_type="7x7",
        stem_chs=64,
        stem_pool=stem_pool,
        downsample="conv1x1",
        self_attn_layer=LambdaLayer,
        self_attn_kwargs=layer,
    )


_LEADERJ1001_DEPTHS = {
    18: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}

NETWORKS: dict[str, LambdaModelCfg] = {
    "lambdaresnet26_dli14": _network((2, 2, 2, 2), _DLI14),
    "lambdaresnet38_dli14": _network((2, 3, 5, 2), _DLI14),
    "lambdaresnet50_dli14": _network((3, 4, 6, 3), _DLI14),
    "lambdaresnet101_dli14": _network((3, 4, 23, 3), _DLI14),
    "lambdaresnet152_dli14": _network((3, 8, 36, 3), _DLI14),
    **{
        f"lambdaresnet{depth}_leaderj1001": _network(depths, _LEADERJ1001, pool_first=True)
        for depth, depths in _LEADERJ1001_DEPTHS.items()
    },
    **{
        f"lambdaresnet{depth}_leaderj1001_v0": _network(depths, _LEADERJ1001_V0, stem_pool="")
        for depth, depths in _LEADERJ1001_DEPTHS.items()
    },
}

default_cfgs = generate_default_cfgs(
    {
        # Neither repository states an interpolation: assumed is torchvision's default, bilinear.
        name: pretrained_cfg(
            224, first_conv="stem.conv1.conv" if cfg.stem_pool else "stem.conv", interpolation="bilinear"
        )
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
    """The LambdaResNet18 of leaderj1001/LambdaNetworks: lambda layers everywhere."""
    return create_network("lambdaresnet18_leaderj1001", NETWORKS["lambdaresnet18_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet50_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet50 of leaderj1001/LambdaNetworks: lambda layers everywhere."""
    return create_network("lambdaresnet50_leaderj1001", NETWORKS["lambdaresnet50_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet152_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet152 of leaderj1001/LambdaNetworks: lambda layers everywhere."""
    return create_network("lambdaresnet152_leaderj1001", NETWORKS["lambdaresnet152_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet200_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet200 of leaderj1001/LambdaNetworks: lambda layers everywhere."""
    return create_network("lambdaresnet200_leaderj1001", NETWORKS["lambdaresnet200_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet270_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet270 of leaderj1001/LambdaNetworks: lambda layers everywhere."""
    return create_network("lambdaresnet270_leaderj1001", NETWORKS["lambdaresnet270_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet350_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet350 of leaderj1001/LambdaNetworks: lambda layers everywhere."""
    return create_network("lambdaresnet350_leaderj1001", NETWORKS["lambdaresnet350_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet420_leaderj1001(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The LambdaResNet420 of leaderj1001/LambdaNetworks: lambda layers everywhere."""
    return create_network("lambdaresnet420_leaderj1001", NETWORKS["lambdaresnet420_leaderj1001"], pretrained, **kwargs)


@register_model
def lambdaresnet18_leaderj1001_v0(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The earlier LambdaResNet18 of leaderj1001/LambdaNetworks: batch-normalised keys, no max-pool."""
    return create_network(
        "lambdaresnet18_leaderj1001_v0", NETWORKS["lambdaresnet18_leaderj1001_v0"], pretrained, **kwargs
    )


@register_model
def lambdaresnet50_leaderj1001_v0(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The earlier LambdaResNet50 of leaderj1001/LambdaNetworks: batch-normalised keys, no max-pool."""
    return create_network(
        "lambdaresnet50_leaderj1001_v0", NETWORKS["lambdaresnet50_leaderj1001_v0"], pretrained, **kwargs
    )


@register_model
def lambdaresnet152_leaderj1001_v0(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The earlier LambdaResNet152 of leaderj1001/LambdaNetworks: batch-normalised keys, no max-pool."""
    return create_network(
        "lambdaresnet152_leaderj1001_v0", NETWORKS["lambdaresnet152_leaderj1001_v0"], pretrained, **kwargs
    )


@register_model
def lambdaresnet200_leaderj1001_v0(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The earlier LambdaResNet200 of leaderj1001/LambdaNetworks: batch-normalised keys, no max-pool."""
    return create_network(
        "lambdaresnet200_leaderj1001_v0", NETWORKS["lambdaresnet200_leaderj1001_v0"], pretrained, **kwargs
    )


@register_model
def lambdaresnet270_leaderj1001_v0(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The earlier LambdaResNet270 of leaderj1001/LambdaNetworks: batch-normalised keys, no max-pool."""
    return create_network(
        "lambdaresnet270_leaderj1001_v0", NETWORKS["lambdaresnet270_leaderj1001_v0"], pretrained, **kwargs
    )


@register_model
def lambdaresnet350_leaderj1001_v0(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The earlier LambdaResNet350 of leaderj1001/LambdaNetworks: batch-normalised keys, no max-pool."""
    return create_network(
        "lambdaresnet350_leaderj1001_v0", NETWORKS["lambdaresnet350_leaderj1001_v0"], pretrained, **kwargs
    )


@register_model
def lambdaresnet420_leaderj1001_v0(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The earlier LambdaResNet420 of leaderj1001/LambdaNetworks: batch-normalised keys, no max-pool."""
    return create_network(
        "lambdaresnet420_leaderj1001_v0", NETWORKS["lambdaresnet420_leaderj1001_v0"], pretrained, **kwargs
    )
