"""The paper's study on a plain ResNet-50: which stages use lambda layers, and how.

LambdaNetworks: Modeling Long-Range Interactions Without Attention
(I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602), section 4, tables 3, 4 and placement.

Names read from c2 to c5, `c` for 3x3 convolutions and `l` for lambda layers: `lambdaresnet50_cccl`
has lambda layers in its last stage alone. No SE; a 7x7 stem and a max-pool; 1x1 shortcuts.

Differences from the paper
    - Padding of the 3x3 average pool that follows a strided lambda layer is open: 1, not counted.
    - Batch norm and ReLU follow the lambda layer, as they followed the convolution (open).
    - CCLL is printed with 15.4M parameters; it computes to 15.56M.
    - No weights are public.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from ..layers import LambdaLayer
from .network import LambdaModelCfg, LambdaResNet, create_network, pretrained_cfg, stage

_STAGES = ((3, 256, 1), (4, 512, 2), (6, 1024, 2), (3, 2048, 2))  # depth, channels, stride


def _network(placement: str, **options: Any) -> LambdaModelCfg:
    return LambdaModelCfg(
        blocks=tuple(
            stage(depth, channels, stride, lambdas=range(1, depth + 1) if kind == "l" else ())
            for kind, (depth, channels, stride) in zip(placement, _STAGES, strict=True)
        ),
        stem_type="7x7",
        stem_chs=64,
        stem_pool="maxpool",
        downsample="conv1x1",
        self_attn_layer=LambdaLayer,
        **options,
    )


NETWORKS: dict[str, LambdaModelCfg] = {
    f"lambdaresnet50_{placement}": _network(placement)
    for placement in ("cccc", "lccc", "llcc", "lllc", "llll", "clll", "ccll", "cccl")
} | {
    "lambdaresnet50_llll_k8": _network("llll", self_attn_kwargs={"query_depth": 8}),
    "lambdaresnet50_llll_u4": _network("llll", self_attn_kwargs={"intra_depth": 4, "scope": 7}),
    "lambdaresnet50_llll_shared": _network("llll", share_position=True),
    "lambdaresnet50_llll_r7": _network("llll", self_attn_kwargs={"scope": 7}),
}

default_cfgs = generate_default_cfgs({name: pretrained_cfg(224) for name in NETWORKS})


@register_model
def lambdaresnet50_cccc(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, 3x3 convolutions everywhere: the plain ResNet-50, the baseline."""
    return create_network("lambdaresnet50_cccc", NETWORKS["lambdaresnet50_cccc"], pretrained, **kwargs)


@register_model
def lambdaresnet50_lccc(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers in c2."""
    return create_network("lambdaresnet50_lccc", NETWORKS["lambdaresnet50_lccc"], pretrained, **kwargs)


@register_model
def lambdaresnet50_llcc(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers in c2 and c3."""
    return create_network("lambdaresnet50_llcc", NETWORKS["lambdaresnet50_llcc"], pretrained, **kwargs)


@register_model
def lambdaresnet50_lllc(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers in c2, c3 and c4."""
    return create_network("lambdaresnet50_lllc", NETWORKS["lambdaresnet50_lllc"], pretrained, **kwargs)


@register_model
def lambdaresnet50_llll(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers everywhere."""
    return create_network("lambdaresnet50_llll", NETWORKS["lambdaresnet50_llll"], pretrained, **kwargs)


@register_model
def lambdaresnet50_clll(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers in c3, c4 and c5."""
    return create_network("lambdaresnet50_clll", NETWORKS["lambdaresnet50_clll"], pretrained, **kwargs)


@register_model
def lambdaresnet50_ccll(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers in c4 and c5."""
    return create_network("lambdaresnet50_ccll", NETWORKS["lambdaresnet50_ccll"], pretrained, **kwargs)


@register_model
def lambdaresnet50_cccl(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers in c5."""
    return create_network("lambdaresnet50_cccl", NETWORKS["lambdaresnet50_cccl"], pretrained, **kwargs)


@register_model
def lambdaresnet50_llll_k8(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers everywhere, query depth 8."""
    return create_network("lambdaresnet50_llll_k8", NETWORKS["lambdaresnet50_llll_k8"], pretrained, **kwargs)


@register_model
def lambdaresnet50_llll_u4(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers everywhere, intra-depth 4, scope 7."""
    return create_network("lambdaresnet50_llll_u4", NETWORKS["lambdaresnet50_llll_u4"], pretrained, **kwargs)


@register_model
def lambdaresnet50_llll_shared(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers everywhere, embeddings shared within a stage."""
    return create_network("lambdaresnet50_llll_shared", NETWORKS["lambdaresnet50_llll_shared"], pretrained, **kwargs)


@register_model
def lambdaresnet50_llll_r7(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """ResNet-50, lambda layers everywhere, scope 7."""
    return create_network("lambdaresnet50_llll_r7", NETWORKS["lambdaresnet50_llll_r7"], pretrained, **kwargs)
