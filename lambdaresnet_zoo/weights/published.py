"""Figures that others published: of the paper, of timm, of the ports.

They live in results/published.csv, a row for one model on one dataset at one size; an empty field was
not published. "LambdaNetworks" among its sources is I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602.
Figures that this project measured are elsewhere.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from .files import read_rows

__all__ = ["IMAGENET", "PUBLISHED", "Figure", "public_weights", "published_figure", "published_figures"]

PUBLISHED = Path(__file__).parent / "results" / "published.csv"
IMAGENET = "imagenet-1k"


@dataclass(frozen=True)
class Figure:
    """A row of published.csv. Numbers keep the digits that were printed; None was not published."""

    model: str
    """Registered here; of a baseline, what it is."""
    tag: str
    """Of public weights that have one."""
    kind: str
    """``zoo``: a model of this package; ``baseline``: another one that a source prints beside it."""
    options: str
    """Of the lambda layer, where they are not the model's own, as ``self_attn_kwargs`` takes them."""
    extra_data: str
    """Trained on besides the dataset."""
    epochs: int | None
    dataset: str
    """Evaluated on: its validation images, or the test images of cifar10."""
    size: int | None
    """Of the square input, in pixels."""
    crop_pct: Decimal | None
    top1: Decimal | None
    """Per cent, as top5."""
    top5: Decimal | None
    box_ap: Decimal | None
    """COCO's average precision in per cent, as the seven that follow."""
    box_ap_small: Decimal | None
    box_ap_medium: Decimal | None
    box_ap_large: Decimal | None
    mask_ap: Decimal | None
    mask_ap_small: Decimal | None
    mask_ap_medium: Decimal | None
    mask_ap_large: Decimal | None
    params_m: Decimal | None
    """Parameters in millions, which the same source may print in another of its tables."""
    gmacs: Decimal | None
    """Multiply-adds of one image in thousand millions."""
    gflops: Decimal | None
    """Where the source prints FLOPs; the paper counts two for a multiply-add (see lambda_mobilenetv2)."""
    memory_gb: Decimal | None
    """Of embeddings or attention maps by the paper's formula, batch 128, float32."""
    infer_img_s: Decimal | None
    """Images a second on 8 TPUv3 cores, float32 if the note does not say otherwise."""
    train_img_s: Decimal | None
    """Images a second in training on 8 TPUv3 cores."""
    train_step_s: Decimal | None
    """Seconds a training step of 1024 images, 8 TPUv3 cores, bfloat16."""
    license: str
    """Of the weights."""
    weights: str
    """Where public weights are; empty if there are none, and for baselines, whose were not looked up."""
    source: str
    """Who published it, and in which table."""
    note: str
    checked: str
    """What this project checked of the weights."""

    @property
    def name(self) -> str:
        """The model with its tag."""
        return f"{self.model}.{self.tag}" if self.tag else self.model


_NUMBERS: dict[Any, Callable[[str], Any]] = {Decimal | None: Decimal, int | None: int}


@lru_cache
def published_figures() -> tuple[Figure, ...]:
    """Every row, in the file's order."""
    return tuple(_figure(row) for row in read_rows(PUBLISHED))


def _figure(row: dict[str, str]) -> Figure:
    values: dict[str, Any] = dict(row)
    for field in dataclasses.fields(Figure):
        if number := _NUMBERS.get(field.type):
            values[field.name] = number(row[field.name]) if row[field.name] else None
    return Figure(**values)


def published_figure(
    model: str, tag: str = "", dataset: str | None = IMAGENET, size: int | None = None
) -> Figure | None:
    """What is published of a model as it is registered, trained on the dataset's own images alone.

    Args:
        model: registered name, without its tag.
        tag: of public weights; without one, the figure is that of the paper or the port which the
            model is from, and whose weights, if public at all, have no tag.
        dataset: evaluated on, as timm's results files spell it, or coco-val2017, cifar10; None for any.
        size: of the input in pixels; by default the first that there is.

    Returns:
        The first such row, or None. (LambdaResNet-152 at 256 has two: the paper prints 83.8 in the
        table of the family, which comes first, and 83.4 in another; each row's note says so.)
    """
    wanted = (model, tag, "", "")
    for figure in published_figures():
        found = (figure.model, figure.tag, figure.options, figure.extra_data)
        if found == wanted and dataset in (None, figure.dataset) and size in (None, figure.size):
            return figure
    return None


def public_weights() -> list[Figure]:
    """The ImageNet figures of models that have public weights."""
    return [figure for figure in published_figures() if figure.weights and figure.dataset == IMAGENET]
