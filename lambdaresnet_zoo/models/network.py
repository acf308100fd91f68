"""The network under every LambdaResNet: timm's ByobNet, with stages written as data.

A stage is a tuple of bottleneck blocks (1x1, spatial layer, 1x1); the spatial layer is a 3x3
convolution or a lambda layer. timm's `self_attn` block is that bottleneck for any layer class:
lambda, batch norm, activation, which is where the public ports put them too (open in the paper).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import register_notrace_function, to_2tuple
from timm.models import build_model_with_cfg
from timm.models._input import update_model_input_size  # no public name; timm's own set_input_size calls it
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

from ..layers import LambdaLayer
from ..layers.lambda_layer import lambda_grid
from .blocks import adapt
from .pretrained import check_weights, resample_tables

__all__ = ["LambdaModelCfg", "LambdaResNet", "create_network", "lambda_layers", "pretrained_cfg", "stage"]

# The contraction picks its order by shape: one node to torch.fx, not a trace of one choice.
register_notrace_function(lambda_grid)


@dataclass
class LambdaModelCfg(ByoModelCfg):
    """timm's ByoModelCfg, and whether the lambda layers of a stage share their position embeddings."""

    share_position: bool = False


def stage(
    depth: int,
    channels: int,
    stride: int,
    lambdas: Iterable[int] = (),
    se: bool = False,
) -> tuple[ByoBlockCfg, ...]:
    """One stage of bottleneck blocks with ratio 1/4.

    Args:
        depth: blocks.
        channels: output channels of each block.
        stride: of the first block.
        lambdas: the blocks, counted from 1, whose spatial layer is a lambda layer.
        se: squeeze-and-excitation (ratio 1/4, after the last 1x1) in the convolutional blocks;
            the paper puts none in a block with a lambda layer.

    Raises:
        ValueError: a position in ``lambdas`` that the stage does not have.
    """
    positions = set(lambdas)
    if not positions <= set(range(1, depth + 1)):
        raise ValueError(f"lambdas {sorted(positions)} are not all within 1..{depth}")
    squeeze: dict[str, Any] = {}
    if se:
        squeeze = {"attn_layer": "se", "attn_kwargs": {"rd_ratio": 0.25}, "block_kwargs": {"attn_last": True}}
    shape = {"d": 1, "c": channels, "gs": 0, "br": 0.25}
    blocks = []
    for position in range(1, depth + 1):
        s = stride if position == 1 else 1
        if position in positions:
            blocks.append(ByoBlockCfg(type="self_attn", s=s, **shape))
        else:
            blocks.append(ByoBlockCfg(type="bottle", s=s, **shape, **squeeze))
    return tuple(blocks)


class LambdaResNet(ByobNet):
    """timm's ByobNet with lambda layers that can share embeddings and be given another input size.

    Args:
        cfg: the network as data.
        img_size: input size (h, w) in pixels; a network with global-scope layers needs it, the
            others take any size and ignore it.
        **kwargs: as timm's ByobNet: num_classes, in_chans, global_pool, output_stride, drop_rate,
            drop_path_rate, zero_init_last, device, dtype, and any field of ``cfg``, of which
            ``self_attn_kwargs``, the options of the lambda layers, changes those it names and keeps the
            others. Unknown ones raise TypeError.
    """

    def __init__(self, cfg: LambdaModelCfg, img_size: int | tuple[int, int] | None = None, **kwargs: Any) -> None:
        share_position = kwargs.get("share_position", cfg.share_position)
        cfg = _with_layer_options(cfg, kwargs.pop("self_attn_kwargs", None) or {})
        super().__init__(cfg, img_size=img_size, **kwargs)
        adapt(self)
        if share_position:
            for blocks in self.stages:
                owners: dict[Any, LambdaLayer] = {}  # by shape: a strided global layer sees a larger map
                for layer in lambda_layers(blocks):
                    owner = owners.setdefault(layer.position.table.shape if layer.position else None, layer)
                    if owner is not layer and layer.position is not None:
                        layer.share_position(owner)
        if img_size is not None and self._global_layers():
            self._resize(img_size)  # ByobNet floors where its convolutions ceil
            for layer, _ in self._global_layers():
                layer.reset_parameters()

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample the tables of global-scope lambda layers for another input size, in pixels.

        A network without such layers takes any size and is left as it is.
        """
        if self._global_layers():
            self._resize(img_size)
            update_model_input_size(self, img_size)  # timm saves it with the model

    def _resize(self, img_size: int | tuple[int, int]) -> None:
        height, width = to_2tuple(img_size)
        for layer, reduction in self._global_layers():
            layer.set_feat_size((-(-height // reduction), -(-width // reduction)))

    def _global_layers(self) -> list[tuple[LambdaLayer, int]]:
        """Global-scope layers, each with the reduction of its input."""
        layers = []
        reductions = {info["stage"]: info["reduction"] for info in self.feature_info}
        before = getattr(self.stem, "stride", 2)  # a stem of one convolution does not say, and halves
        for index, blocks in enumerate(self.stages, start=1):
            for position, block in enumerate(blocks):
                layer = getattr(block, "self_attn", None)
                if isinstance(layer, LambdaLayer) and layer.is_global:
                    layers.append((layer, before if position == 0 else reductions[index]))
            before = reductions[index]
        return layers


def _with_layer_options(cfg: LambdaModelCfg, options: dict[str, Any]) -> LambdaModelCfg:
    """The network with some options of its lambda layers changed, in every block."""

    def changed(part: Any) -> Any:
        return replace(part, **{"self_attn_kwargs": {**(part.self_attn_kwargs or {}), **options}})

    blocks = tuple(
        tuple(block if block.self_attn_kwargs is None else changed(block) for block in blocks) for blocks in cfg.blocks
    )
    return replace(changed(cfg), **{"blocks": blocks}) if options else cfg


def lambda_layers(network: nn.Module) -> list[LambdaLayer]:
    """The lambda layers of any network, in order."""
    return [module for module in network.modules() if isinstance(module, LambdaLayer)]


def pretrained_cfg(size: int, **overrides: Any) -> dict[str, Any]:
    """A pretrained_cfg, as timm takes it, of a network for square inputs of ``size`` pixels and stride 32."""
    pool = -(-size // 32)
    return {
        "input_size": (3, size, size),
        "pool_size": (pool, pool),
        "num_classes": 1000,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2102.08602",
        "paper_name": "LambdaNetworks: Modeling Long-Range Interactions Without Attention",
    } | overrides


def create_network(
    variant: str,
    cfg: LambdaModelCfg,
    pretrained: bool = False,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    **kwargs: Any,
) -> LambdaResNet:
    """Build a LambdaResNet by timm's conventions: weights, features_only, overrides.

    Args:
        variant: its name.
        cfg: the network as data.
        pretrained: load weights.
        rename: puts a state dict of other names under ours, and one under ours unchanged.
        **kwargs: as timm's ``create_model``.

    Raises:
        RuntimeError: ``pretrained``, and there are no weights, they cannot be had, or they are damaged.
    """
    if pretrained:
        check_weights(variant, **kwargs)
    # One level from the stem and one from each stage; timm's default is five, whatever there is.
    feature_cfg = {"flatten_sequential": True, "out_indices": tuple(range(len(cfg.blocks) + 1))}
    return build_model_with_cfg(
        LambdaResNet,
        variant,
        pretrained,
        model_cfg=cfg,
        feature_cfg=feature_cfg,
        # Two arguments, neither optional: timm answers a TypeError by calling with one, which then fails too.
        pretrained_filter_fn=lambda state_dict, model: resample_tables(rename(state_dict), model),
        **kwargs,
    )
