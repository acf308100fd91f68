"""Small LambdaResNets: one for 32x32 images, whose weights ship with the package, and one for tests.

After LambdaNetworks (I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602).

Differences from the paper
    - The paper has no network for 32x32 images. This one keeps the paper's bottleneck and shortcut,
      with a stem that brings 32 pixels to 8 and two stages, at 8x8 and 4x4, all lambda layers whose
      scope covers every pair of positions there (15 and 7).
    - `lambdaresnet32px_conv` is the same network with a 3x3 convolution for every lambda layer: the
      baseline that the shipped weights were trained beside.
    - `test_lambdaresnet` is a tiny network for tests, as timm has; it classifies nothing.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.byobnet import ByoBlockCfg

from ..layers import LambdaLayer
from ..weights.shipped import shipped_file
from .network import LambdaModelCfg, LambdaResNet, create_network, pretrained_cfg, stage


def _network_32px(lambdas: bool) -> LambdaModelCfg:
    def blocks(depth: int, channels: int, stride: int, scope: int) -> tuple[ByoBlockCfg, ...]:
        cfgs = stage(depth, channels, stride, lambdas=range(1, depth + 1) if lambdas else ())
        for cfg in cfgs:
            cfg.self_attn_kwargs = {"scope": scope}
        return cfgs

    return LambdaModelCfg(
        blocks=(blocks(4, 192, 1, 15), blocks(3, 384, 2, 7)),
        stem_type="",
        stem_chs=(24, 32, 64),
        stem_pool="",
        downsample="avg",
        self_attn_layer=LambdaLayer,
    )


NETWORKS: dict[str, LambdaModelCfg] = {
    "lambdaresnet32px": _network_32px(lambdas=True),
    "lambdaresnet32px_conv": _network_32px(lambdas=False),
    "test_lambdaresnet": LambdaModelCfg(
        blocks=(stage(1, 32, 1, se=True), stage(1, 32, 2), stage(2, 48, 2, (2,)), stage(1, 64, 2, (1,))),
        stem_type="",
        stem_chs=(8, 16),
        stem_pool="",
        downsample="avg",
        self_attn_layer=LambdaLayer,
        self_attn_kwargs={"scope": 5, "query_depth": 4, "num_heads": 2},
    ),
}

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CIFAR10 = pretrained_cfg(
    32,
    pool_size=(4, 4),
    num_classes=10,
    crop_pct=1.0,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

default_cfgs = generate_default_cfgs(
    {
        "lambdaresnet32px.cifar10": _CIFAR10
        | {"file": shipped_file("lambdaresnet32px.cifar10"), "label_names": CIFAR10_CLASSES},
        "lambdaresnet32px_conv": _CIFAR10,
        "test_lambdaresnet": pretrained_cfg(96),
    }
)


@register_model
def lambdaresnet32px(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """LambdaResNet for 32x32 images, lambda layers at 8x8 and 4x4."""
    return create_network("lambdaresnet32px", NETWORKS["lambdaresnet32px"], pretrained, **kwargs)


@register_model
def lambdaresnet32px_conv(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """`lambdaresnet32px` with 3x3 convolutions for its lambda layers, for comparison."""
    return create_network("lambdaresnet32px_conv", NETWORKS["lambdaresnet32px_conv"], pretrained, **kwargs)


@register_model
def test_lambdaresnet(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """A tiny LambdaResNet, for tests."""
    return create_network("test_lambdaresnet", NETWORKS["test_lambdaresnet"], pretrained, **kwargs)


test_lambdaresnet.__test__ = False  # pytest would collect the name
