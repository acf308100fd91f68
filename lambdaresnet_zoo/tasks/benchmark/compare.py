"""Passes of several layers or networks compared: what each holds at its peak, then all timed in turns."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from timm.models import reparameterize_model
from torch import nn

from ...layers.scratch import release
from ...weights.benchmarks import MEASURED, UNFOLDED
from .graphs import captured
from .memory import OutOfMemory, memory_limit, peak_memory
from .timing import Clock, Samples, interleave

__all__ = ["COLUMNS", "NO_GRAPH", "NO_MEMORY", "TOO_SLOW", "Limits", "Setting", "compare", "prepared", "too_slow"]

NO_MEMORY, TOO_SLOW, NO_GRAPH = "out of memory", "too slow", "no CUDA graph"
"""What a row says of itself where there is nothing to compare."""
NEAR = 2.5
"""What takes at most so many times as long as the fastest peer is timed, however long that is."""
COLUMNS = (
    "status", "milliseconds", "times_zoo", "times_zoo_min", "times_zoo_max", "rounds", "iterations", "peak_mib",
)  # fmt: skip
"""Of a row of results: what one layer or network took.

``times_zoo`` is how many times as long as this package's it takes: the median over the rounds, with the least and
the largest. ``peak_mib`` is of the first pass of a new one, so that whatever it builds and keeps counts.
"""


@dataclass(frozen=True)
class Limits:
    """What a measurement may take."""

    repeats: int = 7
    """Rounds at most."""
    round_seconds: float = 12.0
    """Of the rounds of what is measured together; three are done in any case, but for what is much slower."""
    pass_seconds: float = 10.0
    """A peer whose pass takes longer is recorded as too slow, but for those that are about the fastest."""
    memory_gib: float = 8.0
    """Beyond what the process has; a peer that wants more is recorded as out of memory. On a GPU the device is
    the limit."""


@dataclass(frozen=True)
class Setting:
    """How all passes of a run compute."""

    device: torch.device
    amp: str = ""
    """``float16`` or ``bfloat16`` for autocast; float32 where empty."""
    limits: Limits = field(default_factory=Limits)
    graphs: bool = False
    """Time passes as CUDA graphs: for a GPU."""

    def autocast(self) -> AbstractContextManager[Any]:
        """For the forward pass."""
        return torch.autocast(self.device.type, getattr(torch, self.amp)) if self.amp else nullcontext()


def prepared(network: nn.Module) -> nn.Module:
    """A network or layer in evaluation, with folded what timm's ``reparameterize_model`` folds of it."""
    below = nn.Sequential(network.eval())  # which is where it looks
    folded: nn.Module = reparameterize_model(below, inplace=True)[0]
    return folded


def compare(
    zoo: str,
    builders: Mapping[str, Callable[[], Callable[[], object]]],
    setting: Setting,
    verdicts: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure passes against one another.

    Args:
        zoo: which of them is this package's; it is never too slow.
        builders: by name, what builds a new layer or network on the device and gives its pass.
        setting: of the run.
        verdicts: by name, why one is not to be tried: NO_MEMORY or TOO_SLOW, known beforehand.

    Returns:
        The columns of each, by name. One that needs too much has a status that says so, and no figures of time.
    """
    device, limits = setting.device, setting.limits
    found: dict[str, dict[str, Any]] = {}
    passes: dict[str, Callable[[], object]] = {}
    first: dict[str, float] = {}
    for name, build in builders.items():
        found[name] = dict.fromkeys(COLUMNS, "")
        if verdict := (verdicts or {}).get(name):
            found[name]["status"] = verdict
            continue
        try:
            with memory_limit(limits.memory_gib, device):
                work, peak, seconds = _first_pass(build, device)
        except OutOfMemory:
            found[name]["status"] = NO_MEMORY
            continue
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        found[name] |= {"status": MEASURED, "peak_mib": f"{peak / 2**20:.3f}"}
        if setting.graphs:
            try:
                work = captured(work, device)
            except RuntimeError:
                found[name]["status"] = NO_GRAPH
                continue
        passes[name], first[name] = work, seconds
    for name in too_slow(zoo, first, limits):
        found[name]["status"] = TOO_SLOW
        del passes[name]
    samples = interleave(passes, Clock(device), limits.repeats, limits.round_seconds, first)
    for name, each in samples.items():
        found[name] |= _columns(each, samples.get(zoo))
    return found


def too_slow(zoo: str, seconds: Mapping[str, float], limits: Limits) -> list[str]:
    """Those whose pass takes too long to time it, by name; never this package's, nor what may be the fastest peer.

    Args:
        zoo: which is this package's.
        seconds: of a pass, by name; 0 where that is not known.
        limits: of the run.
    """
    peers = {name: each for name, each in seconds.items() if name not in (zoo, UNFOLDED)}
    line = max(limits.pass_seconds, NEAR * min(peers.values(), default=0.0))
    return [name for name, each in peers.items() if each > line]


def _first_pass(
    build: Callable[[], Callable[[], object]], device: torch.device
) -> tuple[Callable[[], object], int, float]:
    """A new pass, the bytes that its first run held, and the seconds that it took."""
    if device.type == "cuda":  # libraries take their workspaces with the first of a kind
        build()()
    work = build()
    release()  # what layers before it have left, so that its own counts
    clock = Clock(device)
    begin = clock()
    peak = peak_memory(work, device)
    return work, peak, clock() - begin


def _columns(samples: Samples, zoo: Samples | None) -> dict[str, Any]:
    """The columns of a row that say how long it took, on its own and beside this package's."""
    columns: dict[str, Any] = {
        "milliseconds": f"{1e3 * samples.median:.4f}",
        "rounds": len(samples.seconds),
        "iterations": samples.iterations,
    }
    if zoo is not None:
        ratio = samples.times(zoo)
        columns |= {"times_zoo": f"{median(ratio):.4f}", "times_zoo_min": f"{min(ratio):.4f}"}
        columns |= {"times_zoo_max": f"{max(ratio):.4f}"}
    return columns
