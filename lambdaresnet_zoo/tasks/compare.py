"""Comparisons with scripts of timm, which its packages do not hold: whole processes, in pairs, in turns."""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from ..weights.files import read_rows, write_rows

__all__ = ["append", "ratios", "run_python", "told", "turns"]

T = TypeVar("T")


def run_python(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run Python, and keep what it prints.

    Raises:
        UserError: it fails; with the last line of its errors.
    """
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"{' '.join(arguments[:3])} failed with {done.returncode}: {lines[-1]}")
    return done


def turns(pairs: int, own: Callable[[], T], timm: Callable[[], T], tell: Callable[[T], str]) -> list[tuple[T, T]]:
    """Run both in pairs, each of the two first in every other pair.

    Args:
        pairs: at least 1.
        own: runs this package's.
        timm: runs timm's.
        tell: what to print of a run on stderr.

    Returns:
        What both gave, own first, for each pair.
    """
    found = []
    for pair in range(pairs):
        pairs_of = {}
        for which in ("timm", "own") if pair % 2 == 0 else ("own", "timm"):
            pairs_of[which] = own() if which == "own" else timm()
            print(f"pair {pair + 1}/{pairs} {which}: {tell(pairs_of[which])}", file=sys.stderr)
        found.append((pairs_of["own"], pairs_of["timm"]))
    return found


def ratios(name: str, own: Sequence[float], timm: Sequence[float]) -> dict[str, str]:
    """Columns of the ratio own / timm of the pairs: median, least and largest."""
    every = [ours / theirs for ours, theirs in zip(own, timm, strict=True)]
    middle = statistics.median(every)
    return {name: f"{middle:.3f}", f"{name}_min": f"{min(every):.3f}", f"{name}_max": f"{max(every):.3f}"}


def told(options: Sequence[str]) -> str:
    """Options as a column, without the folders of paths, which say nothing elsewhere."""
    return " ".join(Path(option).name if os.sep in option and Path(option).exists() else option for option in options)


def append(path: Path | None, row: dict[str, Any]) -> None:
    """Print a row, and append it to a csv where there is one."""
    for key, value in row.items():
        print(f"{key:22} {value}")
    if path:
        write_rows(path, [*(read_rows(path) if path.exists() else []), row])
