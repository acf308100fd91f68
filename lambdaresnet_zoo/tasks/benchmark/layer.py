"""The part *layer*: this package's layer beside its peers, at the shapes where networks have such layers."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...weights.benchmarks import MEASURED, UNFOLDED, ZOO
from .compare import COLUMNS, NO_MEMORY, TOO_SLOW, Limits, Setting, compare, prepared, too_slow
from .peers import Shape, layers_for

__all__ = ["BATCHES", "FIELDS", "KEY", "MODES", "QUICK_SHAPES", "SHAPES", "History", "key_of", "measure", "one_pass"]

SHAPES = (
    # ResNet-50 at 224 pixels, c2 to c5, and c5 before its stride
    *(Shape(64, 56, 23), Shape(128, 28, 23), Shape(256, 14, 23), Shape(512, 7, 23), Shape(512, 14, 23)),
    # timm's c4 and c5 at 256; c4 and c5 at 320; c4 and c5 at 1024, for detection
    *(Shape(256, 16, 9), Shape(512, 16, 9), Shape(256, 20, 23), Shape(512, 10, 23)),
    *(Shape(256, 64, 23), Shape(512, 32, 23)),
    *(Shape(256, 14, None), Shape(128, 28, None)),
)
QUICK_SHAPES = (Shape(256, 14, 23), Shape(512, 7, 23))
BATCHES = {"cpu": (1, 8, 32), "cuda": (1, 8, 32, 256)}
MODES = ("forward", "training")
"""Evaluation without gradients, batch norms folded where a layer lets timm do it; and forward and backward in training,
gradients of input and all parameters."""

KEY = ("dim", "size", "scope", "batch", "mode")
FIELDS = (*KEY, "layer", *COLUMNS)


class History:
    """What smaller batches took, to tell what a larger one will."""

    def __init__(self, rows: list[dict[str, str]]):
        self._seconds: dict[tuple[str, ...], float] = {}
        self._full: dict[tuple[str, ...], int] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a finished row in."""
        what, batch = self._key(row), int(row["batch"])
        if row["status"] == MEASURED:
            self._seconds[what] = float(row["milliseconds"]) / 1e3 / batch
        elif row["status"] == NO_MEMORY:
            self._full[what] = min(batch, self._full.get(what, batch))
        else:
            self._seconds[what] = math.inf

    def verdicts(self, key: Mapping[str, Any], names: Iterable[str], limits: Limits) -> dict[str, str]:
        """Why layers need not be tried at the batch of a key, by name; those that are to be are not in it."""
        batch, what = int(key["batch"]), {name: self._key({**key, "layer": name}) for name in names}
        found = {name: NO_MEMORY for name, its in what.items() if batch >= self._full.get(its, batch + 1)}
        expected = {name: self._seconds.get(its, 0.0) * batch for name, its in what.items() if name not in found}
        return found | dict.fromkeys(too_slow(ZOO, expected, limits), TOO_SLOW)

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in ("dim", "size", "scope", "mode", "layer"))


def key_of(shape: Shape, batch: int, mode: str) -> dict[str, Any]:
    """The columns of KEY."""
    scope = "global" if shape.scope is None else shape.scope
    return {"dim": shape.dim, "size": shape.size, "scope": scope, "batch": batch, "mode": mode}


def measure(shape: Shape, batch: int, mode: str, setting: Setting, history: History) -> list[dict[str, Any]]:
    """The rows of all layers at one shape, batch and mode, timed against one another."""
    torch.manual_seed(0)
    training = mode == "training"
    x = torch.randn(batch, shape.dim, shape.size, shape.size, device=setting.device, requires_grad=training)
    gradient = torch.randn_like(x, requires_grad=False) if training else None
    key = key_of(shape, batch, mode)
    layers = layers_for(shape, training)
    verdicts = history.verdicts(key, layers, setting.limits)
    builders = {
        name: partial(_build, build, x, gradient, setting, fold=name != UNFOLDED) for name, build in layers.items()
    }
    rows = [{**key, "layer": name, **columns} for name, columns in compare(ZOO, builders, setting, verdicts).items()]
    for row in rows:
        history.add(row)
    return rows


def _build(
    build: Callable[[], nn.Module], x: Tensor, gradient: Tensor | None, setting: Setting, fold: bool
) -> Callable[[], None]:
    x.grad = None  # another layer's, which the first pass of this one would seem to give back
    return one_pass(build().to(setting.device), x, gradient, setting, fold)


def one_pass(
    layer: nn.Module, x: Tensor, gradient: Tensor | None, setting: Setting, fold: bool = True
) -> Callable[[], None]:
    """What is timed.

    Args:
        layer: on the device; its mode is set here.
        x: the input, which requires a gradient in training.
        gradient: of a loss by the output, dense as it comes from the next layer of a network; None for evaluation.
        setting: of the run.
        fold: in evaluation, first fold what the layer lets timm fold.
    """
    layer.train(gradient is not None)
    ready = prepared(layer) if fold and gradient is None else layer

    def evaluate() -> None:
        with torch.inference_mode(), setting.autocast():
            ready(x)

    def train() -> None:
        assert gradient is not None
        x.grad = None
        layer.zero_grad(set_to_none=True)
        with setting.autocast():
            output = layer(x)
        output.backward(gradient.to(output.dtype))

    return evaluate if gradient is None else train
