"""Time in interleaved rounds, peak memory of one pass, and limits on both.

Times of one machine at different moments do not compare, so everything that is compared runs in turns (A B C,
B C A, ...), and a ratio is taken within each round before the median is.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = [
    "MEASURED",
    "NO_MEMORY",
    "TIMING",
    "TOO_SLOW",
    "Clock",
    "Limits",
    "OutOfMemory",
    "Samples",
    "Setting",
    "interleave",
    "memory_limit",
    "peak_memory",
    "timing",
]

SAMPLE_SECONDS = 0.03
"""A sample is as many passes as take this long, at least one."""
WARM_SECONDS = 1.0
LEAST_ROUNDS = 3
SLOW, SLOW_ROUNDS = 5.0, 3
"""What takes this many times as long as the fastest gets no more rounds than that; its ratio is plain."""
VERY_SLOW, VERY_SLOW_ROUNDS = 20.0, 1


MEASURED, NO_MEMORY, TOO_SLOW = "measured", "out of memory", "too slow"
"""What a row says of itself."""
TIMING = ("milliseconds", "times_zoo", "times_zoo_min", "times_zoo_max", "rounds", "iterations")
"""Columns of a row."""


@dataclass(frozen=True)
class Limits:
    """What a measurement may take."""

    repeats: int = 7
    """Rounds at most."""
    round_seconds: float = 12.0
    """Of the rounds of what is measured together; three are done in any case, but for what is much slower."""
    pass_seconds: float = 10.0
    """A peer whose pass is expected to take longer is recorded as too slow."""
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

    def autocast(self) -> AbstractContextManager[Any]:
        """For the forward pass."""
        return torch.autocast(self.device.type, getattr(torch, self.amp)) if self.amp else nullcontext()


class OutOfMemory(Exception):
    """A pass needs more memory than it may have."""


@dataclass(frozen=True)
class Clock:
    """Seconds, read when the device has done what it was given."""

    device: torch.device

    def __call__(self) -> float:
        """Now."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class Samples:
    """Seconds a pass, one figure for each round."""

    seconds: list[float]
    iterations: int
    """Passes in each sample."""

    @property
    def median(self) -> float:
        """Of the rounds, in seconds."""
        return statistics.median(self.seconds)

    def times(self, other: "Samples") -> list[float]:
        """How many times as long as the other it takes, in each round that both have; at least one."""
        return [own / its for own, its in zip(self.seconds, other.seconds, strict=False)]


def interleave(
    passes: Mapping[str, Callable[[], object]],
    clock: Callable[[], float],
    repeats: int = 7,
    seconds: float = 12.0,
    first: Mapping[str, float] | None = None,
    sample: float = SAMPLE_SECONDS,
) -> dict[str, Samples]:
    """Time passes against one another, each warmed up first.

    Args:
        passes: what to time, by name.
        clock: gives seconds.
        repeats: rounds at most; those that are much slower than the fastest get fewer, always the first ones.
        seconds: after so many no round begins once there are three, and what is much slower is left out at once.
        first: seconds that a first pass has taken; one of a second or more counts as the warm-up.
        sample: seconds that a sample takes at least.
    """
    known = {name: took for name, took in (first or {}).items() if took >= WARM_SECONDS}
    best = {name: known.get(name) or _warm_up(work, clock, sample) for name, work in passes.items()}
    counts = {name: max(1, math.ceil(sample / max(each, 1e-9))) for name, each in best.items()}
    found: dict[str, list[float]] = {name: [] for name in passes}
    names = list(passes)
    start = clock()
    for turn in range(repeats):
        late = clock() - start >= seconds
        if turn >= LEAST_ROUNDS and late:
            break
        ahead = turn % len(names)
        for name in (*names[ahead:], *names[:ahead]):
            slower = best[name] / max(min(best.values()), 1e-9)
            if turn >= _rounds(slower, repeats) or (turn and late and slower >= SLOW):
                continue
            begin = clock()
            for _ in range(counts[name]):
                passes[name]()
            found[name].append((clock() - begin) / counts[name])
            best[name] = min(best[name], found[name][-1])
    return {name: Samples(times, counts[name]) for name, times in found.items()}


def timing(samples: Samples, zoo: Samples | None) -> dict[str, Any]:
    """The columns of a row that say how long it took, on its own and beside this package's."""
    columns: dict[str, Any] = {
        "milliseconds": f"{1e3 * samples.median:.4f}",
        "rounds": len(samples.seconds),
        "iterations": samples.iterations,
    }
    if zoo is not None:
        ratio = samples.times(zoo)
        columns |= {"times_zoo": f"{statistics.median(ratio):.4f}", "times_zoo_min": f"{min(ratio):.4f}"}
        columns |= {"times_zoo_max": f"{max(ratio):.4f}"}
    return columns


def _warm_up(work: Callable[[], object], clock: Callable[[], float], sample: float) -> float:
    """Run until a sample's time has gone by; returns the shortest pass in seconds."""
    best, spent = math.inf, 0.0
    while spent < sample:
        begin = clock()
        work()
        took = clock() - begin
        best, spent = min(best, took), spent + max(took, 1e-6)
    return best


def _rounds(ratio: float, repeats: int) -> int:
    if ratio >= VERY_SLOW:
        return min(repeats, VERY_SLOW_ROUNDS)
    return min(repeats, SLOW_ROUNDS) if ratio >= SLOW else repeats


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that one pass holds at its peak, above what is held before it.

    On a GPU, of torch's allocator there. On a CPU, the running sum of all that torch's allocator gives out and
    takes back, which its profiler records: exact, and independent of what the process held and freed before. What
    libraries below torch keep for themselves is in neither.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorder:
        work()
    assert recorder.profiler is not None and recorder.profiler.kineto_results is not None
    changes = [event for event in recorder.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library writes its own log to stderr whatever Python says."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def memory_limit(gib: float, device: torch.device) -> Iterator[None]:
    """Let a pass take so much more memory than the process has now.

    On Linux's CPU the limit is the kernel's; on a GPU the device is the limit, and elsewhere there is none.

    Raises:
        OutOfMemory: it wanted more.
    """
    statm = Path("/proc/self/statm")
    limited = device.type == "cpu" and statm.exists()
    if limited:
        import resource

        before = resource.getrlimit(resource.RLIMIT_AS)
        size = int(statm.read_text().split()[0]) * resource.getpagesize() + int(gib * 2**30)
        if before[1] == resource.RLIM_INFINITY or size < before[1]:
            resource.setrlimit(resource.RLIMIT_AS, (size, before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _of_memory(error):
            raise
        raise OutOfMemory from None  # the traceback would hold the tensors
    finally:
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # Of torch's allocator on a CPU, of C++, and of oneDNN, which does not say why.
    words = ("can't allocate memory", "bad_alloc", "could not create a memory object", "could not create a primitive")
    return any(word in str(error) for word in words)
