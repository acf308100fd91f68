"""Time in interleaved rounds.

Times of one machine at different moments do not compare, so everything that is compared runs in turns (A B C,
B C A, ...), and a ratio is taken within each round before the median is. What is timed is the steady state: the first
few passes after another's find its data in the caches and its holes in the heap, take up to twice as long, and are
not timed.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Clock", "Samples", "interleave"]

SAMPLE_SECONDS = 0.03
"""A sample is as many passes as take this long, at least one, after as many that are not timed."""
WARM_SECONDS = 1.0
"""A pass that takes so long needs no other before it."""
LEAST_ROUNDS = 3
LONG = 3
"""Where rounds take so many times as long as they should, one fewer."""
SLOW, SLOW_ROUNDS = 5.0, 3
"""What takes this many times as long as the fastest gets no more rounds than that; its ratio is plain."""
VERY_SLOW, VERY_SLOW_ROUNDS = 20.0, 1


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
    """Time passes against one another, each warmed up first, and again before each sample unless it is slow.

    Args:
        passes: what to time, by name.
        clock: gives seconds.
        repeats: rounds at most; those that are much slower than the fastest get fewer, always the first ones.
        seconds: after so many no round begins once there are three, or two after three times as many; what is much
            slower is left out at once.
        first: seconds that a first pass has taken; one of a second or more counts as the warm-up.
        sample: seconds that a sample takes at least, and what comes before it.
    """
    known = {name: took for name, took in (first or {}).items() if took >= WARM_SECONDS}
    best = {name: known.get(name) or _warm_up(work, clock, sample) for name, work in passes.items()}
    counts = {name: max(1, math.ceil(sample / max(each, 1e-9))) for name, each in best.items()}
    found: dict[str, list[float]] = {name: [] for name in passes}
    names = list(passes)
    start = clock()
    for turn in range(repeats if passes else 0):
        spent = clock() - start
        late = spent >= seconds
        if late and (turn >= LEAST_ROUNDS or (turn >= LEAST_ROUNDS - 1 and spent >= LONG * seconds)):
            break
        ahead = turn % len(names)
        for name in (*names[ahead:], *names[:ahead]):
            slower = best[name] / max(min(best.values()), 1e-9)
            if turn >= _rounds(slower, repeats) or (turn and late and slower >= SLOW):
                continue
            if slower < SLOW and best[name] < WARM_SECONDS:
                _run(passes[name], counts[name])
            begin = clock()
            _run(passes[name], counts[name])
            found[name].append((clock() - begin) / counts[name])
            best[name] = min(best[name], found[name][-1])
    return {name: Samples(times, counts[name]) for name, times in found.items()}


def _warm_up(work: Callable[[], object], clock: Callable[[], float], sample: float) -> float:
    """Run until a sample's time has gone by; returns the shortest pass in seconds."""
    best, spent = math.inf, 0.0
    while spent < sample:
        begin = clock()
        work()
        took = clock() - begin
        best, spent = min(best, took), spent + max(took, 1e-6)
    return best


def _run(work: Callable[[], object], count: int) -> None:
    for _ in range(count):
        work()


def _rounds(ratio: float, repeats: int) -> int:
    if ratio >= VERY_SLOW:
        return min(repeats, VERY_SLOW_ROUNDS)
    return min(repeats, SLOW_ROUNDS) if ratio >= SLOW else repeats
