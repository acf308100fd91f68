"""The part *layer*: this package's layer beside its peers, at the shapes where networks have such layers."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .measuring import (
    MEASURED,
    NO_MEMORY,
    TIMING,
    TOO_SLOW,
    Clock,
    Limits,
    OutOfMemory,
    Setting,
    interleave,
    memory_limit,
    peak_memory,
    timing,
)
from .peers import ZOO, Shape, layers_for

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
"""Evaluation without gradients; and forward and backward in training, gradients of input and all parameters."""

KEY = ("dim", "size", "scope", "batch", "mode")
FIELDS = (*KEY, "layer", "status", *TIMING, "peak_mib")


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

    def verdict(self, row: Mapping[str, Any], limits: Limits) -> str:
        """Why a peer need not be tried at this batch; empty where it is to be."""
        what, batch = self._key(row), int(row["batch"])
        if batch >= self._full.get(what, batch + 1):
            return NO_MEMORY
        if row["layer"] == ZOO:
            return ""
        return TOO_SLOW if self._seconds.get(what, 0.0) * batch > limits.pass_seconds else ""

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in ("dim", "size", "scope", "mode", "layer"))


def key_of(shape: Shape, batch: int, mode: str) -> dict[str, Any]:
    """The columns of KEY."""
    scope = "global" if shape.scope is None else shape.scope
    return {"dim": shape.dim, "size": shape.size, "scope": scope, "batch": batch, "mode": mode}


def measure(shape: Shape, batch: int, mode: str, setting: Setting, history: History) -> list[dict[str, Any]]:
    """The rows of all layers at one shape, batch and mode, timed against one another.

    ``times_zoo`` is how many times as long as this package's layer one takes: the median over the rounds, with the
    least and the largest. ``peak_mib`` is of the first pass of a new layer, so that whatever it builds and keeps
    counts. A peer that needs too much is in a row that says so.
    """
    torch.manual_seed(0)
    device, limits = setting.device, setting.limits
    x = torch.randn(batch, shape.dim, shape.size, shape.size, device=device, requires_grad=mode == "training")
    gradient = torch.randn_like(x, requires_grad=False) if mode == "training" else None
    key = key_of(shape, batch, mode)
    rows: dict[str, dict[str, Any]] = {}
    passes: dict[str, Callable[[], object]] = {}
    first: dict[str, float] = {}
    for name, build in layers_for(shape).items():
        rows[name] = {**dict.fromkeys(FIELDS, ""), **key, "layer": name}
        rows[name]["status"] = history.verdict(rows[name], limits)
        if rows[name]["status"]:
            continue
        try:
            with memory_limit(limits.memory_gib, device):
                work, peak, seconds = _first(build, x, gradient, setting)
        except OutOfMemory:
            rows[name]["status"] = NO_MEMORY
            continue
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        rows[name] |= {"status": MEASURED, "peak_mib": f"{peak / 2**20:.3f}"}
        if seconds > limits.pass_seconds and name != ZOO:
            rows[name]["status"] = TOO_SLOW
        else:
            passes[name], first[name] = work, seconds
    found = interleave(passes, Clock(device), limits.repeats, limits.round_seconds, first)
    for name, samples in found.items():
        rows[name] |= timing(samples, found.get(ZOO))
    for row in rows.values():
        history.add(row)
    return list(rows.values())


def _first(
    build: Callable[[], nn.Module], x: Tensor, gradient: Tensor | None, setting: Setting
) -> tuple[Callable[[], object], int, float]:
    """A pass of a new layer, the bytes of its first run, and the seconds of that."""
    device = setting.device
    if device.type == "cuda":  # libraries take their workspaces with the first of a kind
        one_pass(build().to(device), x, gradient, setting)()
    layer = build().to(device)
    x.grad = None  # another layer's, which this pass would seem to give back
    work = one_pass(layer, x, gradient, setting)
    clock = Clock(device)
    begin = clock()
    peak = peak_memory(work, device)
    return work, peak, clock() - begin


def one_pass(layer: nn.Module, x: Tensor, gradient: Tensor | None, setting: Setting) -> Callable[[], object]:
    """What is timed.

    Args:
        layer: on the device; its mode is set here.
        x: the input, which requires a gradient in training.
        gradient: of a loss by the output, dense as it comes from the next layer of a network; None for evaluation.
        setting: of the run.
    """
    layer.train(gradient is not None)

    def evaluate() -> None:
        with torch.inference_mode(), setting.autocast():
            layer(x)

    def train() -> None:
        assert gradient is not None
        x.grad = None
        layer.zero_grad(set_to_none=True)
        with setting.autocast():
            output = layer(x)
        output.backward(gradient.to(output.dtype))

    return evaluate if gradient is None else train
