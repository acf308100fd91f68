"""Recipes of detection training, as data."""

from dataclasses import dataclass, field
from typing import Any

from ...detection.models import ANCHOR_SIZES

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained; the defaults are the paper's (I. Bello, 2021, COCO).

    The paper's optimiser is taken to be SGD with momentum 0.9, and its images to be flipped at random:
    it does not say.
    """

    steps: int = 130_000
    batch_size: int = 256
    """Images a step, of all processes together."""
    image_size: int = 1024
    """Pixels of the square that images are scaled to, cropped and padded."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Of the jitter, against the scale at which the longer side is image_size."""
    crop: bool = True
    """Crop and pad to the square, at a random place; without it, images are padded to the batch's largest."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    opt: str = "momentum"
    """As timm names optimisers; this is SGD with momentum, without Nesterov's step."""
    lr: float = 0.32
    """At batch_size; scaled in proportion for another batch."""
    momentum: float = 0.9
    weight_decay: float = 4e-5
    warmup_steps: int = 1000
    decay_at: tuple[float, ...] = (0.9, 0.95, 0.975)
    """Fractions of the steps at which the rate is multiplied by decay_rate."""
    decay_rate: float = 0.1
    clip_grad: float | None = None
    """Largest norm of the gradient."""
    norm: str = "sync"
    """Batch norm: live, frozen or sync."""
    anchor_sizes: tuple[int, ...] = ANCHOR_SIZES
    options: dict[str, Any] = field(default_factory=dict)
    """Of torchvision's class in training: its sampling."""


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(),
    # A few images until they are known by heart: no augmentation, small anchors, few regions a step.
    "overfit": Recipe(
        steps=700,
        batch_size=2,
        image_size=320,
        scale=(1.0, 1.0),
        crop=False,
        hflip=0.0,
        opt="adamw",
        lr=3e-4,
        weight_decay=1e-4,
        warmup_steps=30,
        decay_at=(0.85, 0.95),
        clip_grad=5.0,
        norm="live",
        anchor_sizes=(8, 16, 32, 64, 128),
        options={
            "rpn_batch_size_per_image": 64,
            "rpn_pre_nms_top_n_train": 200,
            "rpn_post_nms_top_n_train": 100,
            "box_batch_size_per_image": 32,
        },
    ),
}
