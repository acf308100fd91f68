"""What is told of a run while it goes on: where it is, how far, and the rows of its csv files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from ...weights.files import read_rows, write_rows

__all__ = ["BEST", "STEPS", "SUMMARY", "Place", "Progress", "append_row", "is_better"]

STEPS, SUMMARY, BEST = "steps.csv", "summary.csv", "best.pt"


@dataclass(frozen=True)
class Place:
    """Where a run is carried out."""

    output: Path
    device: torch.device
    process: int = 0
    processes: int = 1
    progress: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.process == 0


@dataclass
class Progress:
    """What a checkpoint holds beside weights and optimiser."""

    step: int = 0
    seconds: float = 0.0
    evaluated: bool = True
    """Whether the epoch that ended last has been evaluated."""
    best: dict[str, float] = field(default_factory=dict)
    """Row of the best epoch."""
    epoch_sum: float = 0.0
    epoch_count: int = 0
    window_sum: float = 0.0
    window_count: int = 0


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a csv of a run, in place of those that followed, when steps are run again.

    Args:
        path: of the file.
        row: its first column counts.

    Raises:
        UserError: it cannot be written.
    """
    key = next(iter(row))
    try:
        before = read_rows(path) if path.exists() else []
        write_rows(path, [*(old for old in before if int(old[key]) < row[key]), row])
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room, then --resume") from error


def is_better(row: Mapping[str, float], best: Mapping[str, float], metric: str) -> bool:
    """Whether an epoch's figures are to take the place of the best so far.

    Args:
        row: ``eval_loss``, ``eval_top1``, ...
        best: of an earlier epoch; empty where there is none. One without a loss, of an older state, loses ties.
        metric: ``loss``, ``top1`` or ``top5``. A tie is settled by the lower loss, then by the later epoch.
    """
    name = f"eval_{metric}"
    if not math.isfinite(row[name]) or name not in best:
        return math.isfinite(row[name])
    if row[name] != best[name]:
        return row[name] < best[name] if metric == "loss" else row[name] > best[name]
    return row["eval_loss"] <= best.get("eval_loss", math.inf)
