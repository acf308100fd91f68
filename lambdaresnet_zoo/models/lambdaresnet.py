"""LambdaResNets, the family of the paper, and its C4 variants.

LambdaNetworks: Modeling Long-Range Interactions Without Attention
(I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602), section 5 and appendix.
The base is ResNet-RS (I. Bello et al., 2021, https://arxiv.org/abs/2103.07579): a stem of three 3x3
convolutions whose last one, strided, stands for the max-pool, average-pool shortcuts, SE.

Every c5 bottleneck has a lambda layer, and a few of c4 (all of them in the C4 variants).

Differences from the paper
    - The paper does not say which blocks keep SE. The printed parameter counts are met only if
      c2 and c3 alone have it, so they do.
    - Positions in c4 are counted from 1; the paper does not say.
    - The paper does not say how images are cropped for evaluation: crop 0.875, bicubic.
    - Rates of drop-out and stochastic depth belong to a training run: the recipe `paper-350ep`, not the
      constructor.
    - No weights are public.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from ..layers import LambdaLayer
from .network import LambdaModelCfg, LambdaResNet, create_network, pretrained_cfg, stage


def _network(depths: tuple[int, int, int, int], c4: tuple[int, ...], scope: int = 23) -> LambdaModelCfg:
    c2, c3, c4_depth, c5 = depths
    return LambdaModelCfg(
        blocks=(
            stage(c2, 256, 1, se=True),
            stage(c3, 512, 2, se=True),
            stage(c4_depth, 1024, 2, lambdas=c4),
            stage(c5, 2048, 2, lambdas=range(1, c5 + 1)),
        ),
        stem_type="",
        stem_chs=(32, 32, 64, 64),
        stem_pool="",
        downsample="avg",
        self_attn_layer=LambdaLayer,
        self_attn_kwargs={"scope": scope},
    )


def _every(step: int, count: int) -> tuple[int, ...]:
    return tuple(range(step, step * count + 1, step))


def _all(depth: int) -> tuple[int, ...]:
    return tuple(range(1, depth + 1))


NETWORKS: dict[str, LambdaModelCfg] = {
    "lambdaresnet50": _network((3, 4, 6, 3), (3,)),
    "lambdaresnet101": _network((3, 4, 23, 3), _every(6, 3)),
    "lambdaresnet152": _network((3, 8, 36, 3), _every(5, 6)),
    "lambdaresnet200": _network((3, 24, 36, 3), _every(5, 6)),
    "lambdaresnet270": _network((4, 29, 53, 4), _every(8, 6)),
    "lambdaresnet350": _network((4, 36, 72, 4), _every(10, 6)),
    "lambdaresnet420": _network((4, 44, 87, 4), _every(10, 8)),
    "lambdaresnet50_c4": _network((3, 4, 6, 3), _all(6)),
    "lambdaresnet101_c4": _network((3, 4, 23, 3), _all(23)),
    "lambdaresnet152_c4": _network((3, 8, 36, 3), _all(36)),
    "lambdaresnet200_c4": _network((3, 24, 36, 3), _all(36)),
    "lambdaresnet270_c4": _network((4, 29, 53, 4), _all(53), scope=7),
}

# The largest size of the paper's supervised results; -50-C4 has none there and takes that of -50.
default_cfgs = generate_default_cfgs(
    {
        "lambdaresnet50": pretrained_cfg(160),
        "lambdaresnet101": pretrained_cfg(192),
        "lambdaresnet152": pretrained_cfg(256),
        "lambdaresnet200": pretrained_cfg(256),
        "lambdaresnet270": pretrained_cfg(256),
        "lambdaresnet350": pretrained_cfg(320),
        "lambdaresnet420": pretrained_cfg(320),
        "lambdaresnet50_c4": pretrained_cfg(160),
        "lambdaresnet101_c4": pretrained_cfg(224),
        "lambdaresnet152_c4": pretrained_cfg(320),
        "lambdaresnet200_c4": pretrained_cfg(320),
        "lambdaresnet270_c4": pretrained_cfg(256),
    }
)


@register_model
def lambdaresnet50(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-50."""
    return create_network("lambdaresnet50", NETWORKS["lambdaresnet50"], pretrained, **kwargs)


@register_model
def lambdaresnet101(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-101."""
    return create_network("lambdaresnet101", NETWORKS["lambdaresnet101"], pretrained, **kwargs)


@register_model
def lambdaresnet152(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-152."""
    return create_network("lambdaresnet152", NETWORKS["lambdaresnet152"], pretrained, **kwargs)


@register_model
def lambdaresnet200(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-200."""
    return create_network("lambdaresnet200", NETWORKS["lambdaresnet200"], pretrained, **kwargs)


@register_model
def lambdaresnet270(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-270."""
    return create_network("lambdaresnet270", NETWORKS["lambdaresnet270"], pretrained, **kwargs)


@register_model
def lambdaresnet350(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-350."""
    return create_network("lambdaresnet350", NETWORKS["lambdaresnet350"], pretrained, **kwargs)


@register_model
def lambdaresnet420(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-420."""
    return create_network("lambdaresnet420", NETWORKS["lambdaresnet420"], pretrained, **kwargs)


@register_model
def lambdaresnet50_c4(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-50-C4: every block of c4 and c5 has a lambda layer."""
    return create_network("lambdaresnet50_c4", NETWORKS["lambdaresnet50_c4"], pretrained, **kwargs)


@register_model
def lambdaresnet101_c4(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-101-C4: every block of c4 and c5 has a lambda layer."""
    return create_network("lambdaresnet101_c4", NETWORKS["lambdaresnet101_c4"], pretrained, **kwargs)


@register_model
def lambdaresnet152_c4(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-152-C4: every block of c4 and c5 has a lambda layer."""
    return create_network("lambdaresnet152_c4", NETWORKS["lambdaresnet152_c4"], pretrained, **kwargs)


@register_model
def lambdaresnet200_c4(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-200-C4: every block of c4 and c5 has a lambda layer."""
    return create_network("lambdaresnet200_c4", NETWORKS["lambdaresnet200_c4"], pretrained, **kwargs)


@register_model
def lambdaresnet270_c4(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet-270-C4: every block of c4 and c5 has a lambda layer, scope 7."""
    return create_network("lambdaresnet270_c4", NETWORKS["lambdaresnet270_c4"], pretrained, **kwargs)
