"""From a timm network to what torchvision's detectors take: maps of several strides, of one width.

The body is timm's ``features_only`` form of the network, the pyramid torchvision's own, so weights of
torchvision's detectors fit where the body has the names of torchvision's ResNet, as timm's resnet50 has.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from timm.utils import freeze
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork

from ..models.network import lambda_layers

__all__ = ["NORMS", "Pyramid", "check_backbone", "set_norm"]

NORMS = ("live", "frozen", "sync")
"""Batch norm of a detector: of each process, of its body fixed, or of all processes together."""


class Pyramid(nn.Module):
    """The maps of a timm network at some strides, through a feature pyramid.

    Args:
        name: a registered network: of this package with local scope, or any of timm's that gives
            maps at these strides and is not bound to one size.
        strides: of the maps, in pixels, from fine to coarse.
        extra: torchvision's block that adds coarser maps.
        channels: of every map.
        pretrained: False; True for the network's public weights; or its weights, a state_dict as
            the network itself has it (its classifier is left out).
        frozen: stages that are not trained and whose batch norm is fixed: "stem", or "c2" to "c5" for
            the blocks that end at stride 4 to 32.
        grad_checkpointing: recompute the body's maps in the backward pass, which saves memory.
        **kwargs: as timm's ``create_model``: self_attn_kwargs, drop_path_rate, ...

    The forward pass takes images [B, 3, h, w] and returns maps [B, channels, h / stride, w / stride],
    rounded up, by the names "0", "1", ..., then those of ``extra``.

    Raises:
        ValueError: the network cannot be a backbone, ``frozen`` names what it does not have, or the
            weights are not its own.
        RuntimeError: from timm: there are no public weights, or they cannot be had.
    """

    def __init__(
        self,
        name: str,
        strides: tuple[int, ...],
        extra: ExtraFPNBlock,
        channels: int = 256,
        pretrained: bool | Mapping[str, Tensor] = False,
        frozen: Iterable[str] = (),
        grad_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_backbone(name, **kwargs)
        if not isinstance(pretrained, bool):
            _check_state(name, pretrained, kwargs)
            # By timm's own way, which also drops the classifier and flattens the names.
            kwargs["pretrained_cfg_overlay"] = {"state_dict": dict(pretrained)}
        levels = _levels(name, strides, kwargs)
        self.body: Any = timm.create_model(
            name, pretrained=pretrained is not False, features_only=True, out_indices=levels, **kwargs
        )
        self.body.set_grad_checkpointing(grad_checkpointing)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), channels, extra)
        self.out_channels = channels
        self._freeze(frozen)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of images."""
        maps = self.body(images)
        if self.body.output_fmt == "NHWC":
            maps = [level.permute(0, 3, 1, 2) for level in maps]
        maps = self.fpn(OrderedDict((str(index), level) for index, level in enumerate(maps)))
        return maps

    def _freeze(self, frozen: Iterable[str]) -> None:
        stages = self._stages()
        for stage in frozen:
            if stage not in stages:
                raise ValueError(f"frozen='{stage}' is no stage of this network; it has {', '.join(stages)}")
            freeze(self.body, stages[stage])

    def _stages(self) -> dict[str, list[str]]:
        """Children of the body, by the stage that they are part of."""
        ends = {str(info["module"]).replace(".", "_"): info["reduction"] for info in self.body.feature_info.info}
        names = {4: "c2", 8: "c3", 16: "c4", 32: "c5"}
        stages: dict[str, list[str]] = {}
        pending: list[str] = []
        for child, _ in self.body.named_children():
            pending.append(child)
            if child in ends:
                stages.setdefault(names.get(ends[child], "stem"), []).extend(pending)
                pending = []
        return stages


def check_backbone(name: str, **kwargs: Any) -> None:
    """Check that a network can be the backbone of a detector, whose images are of any size.

    Args:
        name: a registered network.
        **kwargs: that it is made with.

    Raises:
        ValueError: there is none of that name, or it is bound to one size of input; the message says
            why, and what to take.
    """
    if not timm.is_model(name):
        raise ValueError(f"unknown model '{name}'; lambdaresnet_zoo.list_models() and timm.list_models() name all")
    cfg: Any = timm.models.get_pretrained_cfg(name)
    is_bound = bool(cfg and cfg.fixed_input_size)
    if not is_bound and kwargs:
        network = timm.create_model(name, device="meta", **_shape(kwargs))
        is_bound = any(layer.is_global for layer in lambda_layers(network))
    if is_bound:
        raise ValueError(
            f"'{name}' cannot be the backbone of a detector: its layers have global scope, with positions of one "
            "input size, and images of a detector have many; take a network with local scope, as lambdaresnet26t "
            "or lambdaresnet50"
        )


def set_norm(model: nn.Module, norm: str) -> nn.Module:
    """A detector with its batch norm set: one of NORMS.

    Raises:
        ValueError: unknown ``norm``.
    """
    detector: Any = model
    if norm not in NORMS:
        raise ValueError(f"norm='{norm}' is unknown; there are {', '.join(NORMS)}")
    if norm == "frozen":
        detector.backbone.body = freeze_batch_norm_2d(detector.backbone.body)
    if norm == "sync":
        return convert_sync_batchnorm(model)
    return model


def _shape(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "pretrained_cfg_overlay"}


def _levels(name: str, strides: tuple[int, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The indices of the network's maps at the strides."""
    try:
        with torch.device("meta"):
            reductions = timm.create_model(name, features_only=True, **_shape(kwargs)).feature_info.reduction()
    except (AttributeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"'{name}' gives no maps of features: {error}") from error
    missing = [stride for stride in strides if stride not in reductions]
    if missing:
        raise ValueError(
            f"'{name}' has maps at strides {', '.join(map(str, reductions))}; a detector needs "
            f"{', '.join(map(str, strides))}"
        )
    # Of two maps at one stride, the later one has seen more.
    return tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides)


def _check_state(name: str, state: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> None:
    """Every weight of the body is there, in its shape: timm would pass over what is missing."""
    network: Any = timm.create_model(name, device="meta", num_classes=0, **_shape(kwargs))
    wanted = network.state_dict()
    wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise ValueError(
            f"the weights are not of '{name}': {len(wrong)} of its {len(wanted)} tensors are missing or of another "
            f"shape, the first '{wrong[0]}'"
        )
