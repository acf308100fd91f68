"""Recipes of detection training, as data."""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ...detection.models import ANCHOR_SIZES
from ...errors import UserError, first_line

__all__ = ["RECIPES", "Recipe", "read_recipe"]


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
    fix_norm_at: float | None = None
    """Fraction of the steps after which batch norm keeps its statistics, and trains as it will infer."""
    anchor_sizes: tuple[int, ...] = ANCHOR_SIZES
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of the detector: torchvision's, or ``channels``."""


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(),
    # A few images until they are known by heart: no augmentation, small anchors, few regions a step.
    "overfit": Recipe(
        steps=500,
        batch_size=2,
        image_size=320,
        scale=(1.0, 1.0),
        crop=False,
        hflip=0.0,
        opt="adamw",
        lr=3e-4,
        weight_decay=1e-4,
        warmup_steps=30,
        decay_at=(0.95, 0.98),
        clip_grad=5.0,
        norm="live",
        fix_norm_at=0.84,  # of two images, one's own statistics are half of the batch's
        anchor_sizes=(8, 16, 32, 64, 128),
        options={
            "rpn_batch_size_per_image": 64,
            "rpn_pre_nms_top_n_train": 200,
            "rpn_post_nms_top_n_train": 100,
            "box_batch_size_per_image": 32,
        },
    ),
}


def read_recipe(name: str) -> Recipe:
    """A recipe by name, or from a JSON file.

    Args:
        name: in RECIPES, or a file with fields of ``Recipe``, and in ``base`` the recipe that gives
            the others (the paper's).

    Raises:
        UserError: neither, or the file holds something else.
    """
    if name in RECIPES:
        return RECIPES[name]
    if not name.endswith(".json"):
        raise UserError(f"unknown recipe '{name}'; there are {', '.join(RECIPES)}, or give a .json file")
    try:
        given = json.loads(Path(name).read_text(encoding="utf-8"))
        base = RECIPES[given.pop("base", "paper")]
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{name} is no recipe: {type(error).__name__}: {first_line(error)}") from error
    known = {entry.name for entry in fields(Recipe)}
    unknown = [key for key in given if key not in known]
    if unknown:
        raise UserError(f"{name}: a recipe has no '{unknown[0]}'; it has {', '.join(sorted(known))}")
    changes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return replace(base, **changes)
