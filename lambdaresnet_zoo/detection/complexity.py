"""Parameters and operations of a detector."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Complexity", "complexity"]

REGIONS, DETECTIONS = 1000, 100  # that torchvision's R-CNNs look at by default, at the most


@dataclass(frozen=True)
class Complexity:
    """Of one square image; a multiply-add counts as two operations, as torch counts them."""

    params: int
    trainable: int
    size: int
    """Of the image, in pixels."""
    backbone_gflops: float
    """Body and pyramid."""
    heads_gflops: float
    """Of an R-CNN with 1000 regions and 100 masks, so that it does not depend on what is found."""

    @property
    def gflops(self) -> float:
        """Of the whole detector."""
        return self.backbone_gflops + self.heads_gflops

    def __str__(self) -> str:
        return (
            f"{self.params / 1e6:.2f} M parameters, {self.trainable / 1e6:.2f} M trained, {self.gflops:.1f} GFLOPs "
            f"at {self.size}x{self.size}, {self.backbone_gflops:.1f} of them in the backbone"
        )


def complexity(model: nn.Module, size: int = 1024) -> Complexity:
    """Parameters and operations of a detector of this package in inference, without running it.

    Args:
        model: of ``mask_rcnn``, ``faster_rcnn`` or ``retinanet``; left as it is.
        size: of the image in pixels, height and width.
    """
    parameters = list(model.parameters())
    network: Any = copy.deepcopy(model).to("meta").eval()
    images = torch.empty(1, 3, size, size, device="meta")
    maps: dict[str, Tensor] = {}
    backbone = _gflops(lambda: maps.update(network.backbone(images)))
    levels = list(maps.values())
    return Complexity(
        params=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        size=size,
        backbone_gflops=backbone,
        heads_gflops=_gflops(lambda: _heads(network, levels)),
    )


def _heads(network: Any, levels: list[Tensor]) -> None:
    if not hasattr(network, "roi_heads"):
        network.head(levels)
        return
    network.rpn.head(levels)
    heads, channels = network.roi_heads, network.backbone.out_channels
    boxes = torch.empty(REGIONS, channels, *heads.box_roi_pool.output_size, device="meta")
    heads.box_predictor(heads.box_head(boxes))
    if heads.has_mask():
        masks = torch.empty(DETECTIONS, channels, *heads.mask_roi_pool.output_size, device="meta")
        heads.mask_predictor(heads.mask_head(masks))


@torch.no_grad()
def _gflops(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9
