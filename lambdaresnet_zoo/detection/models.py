"""Torchvision's detectors on a timm network.

``num_classes`` counts the background, as torchvision does: 91 for COCO's ids, 81 for its 80 classes numbered
without gaps. Options that are not named here go to torchvision's class, so all of its are there.

LambdaNetworks (I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602) has results of Mask R-CNN with
LambdaResNet-101 and -152 on COCO, at 1024x1024.

Differences from the paper
    - Its detector is another implementation; heads, anchors and losses here are torchvision's.
    - No weights are public.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import timm
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from .backbone import Pyramid, set_norm

__all__ = ["ANCHOR_SIZES", "DETECTORS", "faster_rcnn", "mask_rcnn", "retinanet"]

ANCHOR_SIZES = (32, 64, 128, 256, 512)
"""Of torchvision's anchors, one for each level, in pixels."""
RATIOS = (0.5, 1.0, 2.0)


def mask_rcnn(
    backbone: str,
    num_classes: int = 91,
    pretrained_backbone: bool | Mapping[str, Tensor] = False,
    image_size: int | tuple[int, int] = 1024,
    norm: str = "live",
    frozen: Iterable[str] = (),
    anchor_sizes: Sequence[int] = ANCHOR_SIZES,
    channels: int = 256,
    grad_checkpointing: bool = False,
    backbone_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> MaskRCNN:
    """Torchvision's Mask R-CNN on a network of this package, or of timm.

    Args:
        backbone: a registered network with maps at strides 4, 8, 16 and 32, not bound to one size.
        num_classes: classes, the background included.
        pretrained_backbone: True for the network's public weights, or its weights as a state_dict.
        image_size: pixels that the longer side of an image is scaled to, or (shorter, longest) sides as
            torchvision's ``min_size`` and ``max_size``.
        norm: batch norm "live", "frozen" (of the body, as torchvision does for pretrained weights) or
            "sync" (over all processes).
        frozen: stages of the body that are not trained: "stem", "c2", "c3", "c4", "c5".
        anchor_sizes: in pixels, one for each of five levels.
        channels: of the pyramid's maps.
        grad_checkpointing: trade time for memory in training.
        backbone_kwargs: options of the network, as timm's ``create_model``.
        **kwargs: as torchvision's MaskRCNN.

    Returns:
        The model, which takes a list of images [3, h, w] in 0..1, and in training a list of targets.

    Raises:
        ValueError: the network cannot be a backbone (one of global scope, for instance), or an option
            is wrong.
        RuntimeError: from timm: ``pretrained_backbone``, and there are no such weights.
    """
    pyramid = _pyramid(backbone, channels, pretrained_backbone, frozen, grad_checkpointing, backbone_kwargs)
    options = _options(backbone, image_size) | {"rpn_anchor_generator": _anchors(anchor_sizes)} | kwargs
    return _finished(MaskRCNN(pyramid, num_classes, **options), norm)


def faster_rcnn(
    backbone: str,
    num_classes: int = 91,
    pretrained_backbone: bool | Mapping[str, Tensor] = False,
    image_size: int | tuple[int, int] = 1024,
    norm: str = "live",
    frozen: Iterable[str] = (),
    anchor_sizes: Sequence[int] = ANCHOR_SIZES,
    channels: int = 256,
    grad_checkpointing: bool = False,
    backbone_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Torchvision's Faster R-CNN; arguments and errors as ``mask_rcnn``."""
    pyramid = _pyramid(backbone, channels, pretrained_backbone, frozen, grad_checkpointing, backbone_kwargs)
    options = _options(backbone, image_size) | {"rpn_anchor_generator": _anchors(anchor_sizes)} | kwargs
    return _finished(FasterRCNN(pyramid, num_classes, **options), norm)


def retinanet(
    backbone: str,
    num_classes: int = 91,
    pretrained_backbone: bool | Mapping[str, Tensor] = False,
    image_size: int | tuple[int, int] = 1024,
    norm: str = "live",
    frozen: Iterable[str] = (),
    anchor_sizes: Sequence[int] = ANCHOR_SIZES,
    channels: int = 256,
    grad_checkpointing: bool = False,
    backbone_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> RetinaNet:
    """Torchvision's RetinaNet, on strides 8 to 128; arguments and errors as ``mask_rcnn``."""
    extra = LastLevelP6P7(channels, channels)
    pyramid = Pyramid(
        backbone,
        (8, 16, 32),
        extra,
        channels,
        pretrained_backbone,
        frozen,
        grad_checkpointing,
        **(backbone_kwargs or {}),
    )
    octaves = tuple(tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in anchor_sizes)
    anchors = AnchorGenerator(octaves, (RATIOS,) * len(octaves))
    options = _options(backbone, image_size) | {"anchor_generator": anchors} | kwargs
    return _finished(RetinaNet(pyramid, num_classes, **options), norm)


DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "mask_rcnn": mask_rcnn,
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
}


def _pyramid(
    backbone: str,
    channels: int,
    pretrained: bool | Mapping[str, Tensor],
    frozen: Iterable[str],
    grad_checkpointing: bool,
    kwargs: Mapping[str, Any] | None,
) -> Pyramid:
    strides = (4, 8, 16, 32)
    return Pyramid(
        backbone, strides, LastLevelMaxPool(), channels, pretrained, frozen, grad_checkpointing, **(kwargs or {})
    )


def _anchors(sizes: Sequence[int]) -> AnchorGenerator:
    if len(sizes) != len(ANCHOR_SIZES):
        raise ValueError(f"{len(sizes)} anchor sizes; the pyramid has {len(ANCHOR_SIZES)} levels, one for each")
    return AnchorGenerator(tuple((size,) for size in sizes), (RATIOS,) * len(sizes))


def _options(backbone: str, image_size: int | tuple[int, int]) -> dict[str, Any]:
    """Sizes, and the mean and deviation that the network's weights were trained with."""
    shorter, longest = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not 32 <= shorter <= longest:
        raise ValueError(f"image_size={image_size} is not a size in pixels from 32, or (shorter, longest)")
    cfg: Any = timm.models.get_pretrained_cfg(backbone)
    return {"min_size": shorter, "max_size": longest, "image_mean": cfg.mean, "image_std": cfg.std}


def _finished(model: Any, norm: str) -> Any:
    return set_norm(model, norm)
