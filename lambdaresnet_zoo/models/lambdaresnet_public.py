"""The three lambda networks with public ImageNet weights, on this package's layer.

Architectures of timm's `lambda_resnet26t`, `lambda_resnet26rpt_256` and `lambda_resnet50ts`
(R. Wightman, pytorch-image-models, Apache-2.0), after LambdaNetworks (I. Bello, ICLR 2021,
https://arxiv.org/abs/2102.08602). Equal weights give equal outputs; `from_timm` renames a state dict.
The weights are those of timm's own repositories on the Hugging Face Hub, renamed as they are loaded.

Differences from the paper
    - Hybrids of timm's own: a tiered stem of 24, 32 and 64 channels and a max-pool, 1x1 shortcuts,
      no SE, SiLU in 50ts; lambda layers in the second of every pair of blocks or so.
    - Scope 9 with a bias on the position lambdas; global relative embeddings in 26rpt; a 2x2 average
      pool after a strided lambda layer.

Differences from timm
    - Odd input sizes work: the 2x2 pool rounds up and does not count padding, as its shortcut does.
    - `lambdaresnet26rpt_256` can be given another size (`img_size`, `set_input_size`).
"""

import re
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..layers import LambdaLayer
from .network import LambdaModelCfg, LambdaResNet, create_network, pretrained_cfg, stage

_LOCAL = {"scope": 9, "position_bias": True, "pool": "avg2"}
_GLOBAL = {"scope": None, "pool": "avg2"}


def _network(
    lambdas: tuple[tuple[int, ...], ...], depths: tuple[int, ...], layer: dict[str, Any], act: str = "relu"
) -> LambdaModelCfg:
    shapes = zip(depths, (256, 512, 1024, 2048), (1, 2, 2, 2), lambdas, strict=True)
    return LambdaModelCfg(
        blocks=tuple(stage(*shape) for shape in shapes),
        stem_type="tiered",
        stem_chs=64,
        stem_pool="maxpool",
        downsample="conv1x1",
        act_layer=act,
        self_attn_layer=LambdaLayer,
        self_attn_kwargs=layer,
    )


NETWORKS: dict[str, LambdaModelCfg] = {
    "lambdaresnet26t": _network(((), (), (2,), (1, 2)), (2, 2, 2, 2), _LOCAL),
    "lambdaresnet26rpt_256": _network(((), (), (2,), (1, 2)), (2, 2, 2, 2), _GLOBAL),
    "lambdaresnet50ts": _network(((), (4,), (2, 4, 6), (2,)), (3, 4, 6, 3), _LOCAL, act="silu"),
}

default_cfgs = generate_default_cfgs(
    {
        "lambdaresnet26t.c1_in1k": pretrained_cfg(256, crop_pct=0.94, hf_hub_id="timm/lambda_resnet26t.c1_in1k"),
        "lambdaresnet26rpt_256.c1_in1k": pretrained_cfg(
            256, crop_pct=0.94, fixed_input_size=True, hf_hub_id="timm/lambda_resnet26rpt_256.c1_in1k"
        ),
        "lambdaresnet50ts.a1h_in1k": pretrained_cfg(256, crop_pct=0.95, hf_hub_id="timm/lambda_resnet50ts.a1h_in1k"),
    }
)


def from_timm(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm's three lambda nets, under this package's names.

    The local convolution's kernel [K, 1, r, r, 1] and the global embeddings [2h-1, 2w-1, K] both
    become the relative table [K, 1, Rh, Rw]. Other tensors pass unchanged, and so does a state dict
    under this package's names.
    """
    renamed = {}
    for key, value in state_dict.items():
        key = key.replace("conv_lambda.weight", "position.table").replace("conv_lambda.bias", "position.bias")
        if key.endswith("position.table") and value.ndim == 5:
            value = value.squeeze(-1)
        if key.endswith(".pos_emb"):
            key = re.sub(r"pos_emb$", "position.table", key)
            value = value.permute(2, 0, 1).unsqueeze(1)
        renamed[key] = value.contiguous()
    return renamed


def _create(variant: str, pretrained: bool, **kwargs: Any) -> LambdaResNet:
    return create_network(variant, NETWORKS[variant], pretrained, rename=from_timm, **kwargs)


@register_model
def lambdaresnet26t(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The Lambda-ResNet-26-T of timm: local scope 9 in c4 and c5."""
    return _create("lambdaresnet26t", pretrained, **kwargs)


@register_model
def lambdaresnet26rpt_256(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The Lambda-ResNet-26-RP-T of timm: global relative embeddings in c4 and c5, for 256 pixels."""
    kwargs.setdefault("img_size", 256)
    return _create("lambdaresnet26rpt_256", pretrained, **kwargs)


@register_model
def lambdaresnet50ts(pretrained: bool = False, **kwargs: Any) -> LambdaResNet:
    """The Lambda-ResNet-50-TS of timm: SiLU, local scope 9 in c3, c4 and c5."""
    return _create("lambdaresnet50ts", pretrained, **kwargs)
