"""What became of every tensor of a source, and where every tensor of a network is from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..weights.files import write_rows

__all__ = ["Report", "Row", "write_report"]

STATUSES = ("mapped", "folded", "filled", "initialised", "left")
SHOWN = 10  # of each, in the summary


@dataclass(frozen=True)
class Row:
    """One tensor."""

    status: str
    """``mapped``, ``folded`` into another, ``filled`` (a counter that the source lacks), ``initialised``, ``left``;
    of weights that do not fit, ``misshapen``, ``missing``, ``unknown``."""
    source: str
    """Its name in the source, empty where it has none."""
    key: str
    """Its name in the network, or what became of it."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """One conversion."""

    source: str
    format: str
    entry: str
    """Of the checkpoint, that held the weights."""
    model: str
    """The registered model, or the layer."""
    arguments: Mapping[str, Any]
    rows: Sequence[Row]
    is_model: bool = True
    """Not so for a single layer."""

    def summary(self) -> str:
        """Counts, and the tensors that did not simply come over."""
        entry = f", its {self.entry}" if self.entry else ""
        arguments = "".join(f", {key}={value}" for key, value in self.arguments.items())
        counts = Counter(row.status for row in self.rows)
        told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        lines = [f"{self.source}: {self.format}{entry}", f"model: {self.model}{arguments}", f"tensors: {told}"]
        for status in STATUSES[1:]:
            rows = [row for row in self.rows if row.status == status]
            for row in rows[:SHOWN]:
                lines.append(f"  {status}: {f'{row.source}, ' if row.source else ''}{row.key} {row.shape}")
            if len(rows) > SHOWN:
                lines.append(f"  {status}: {len(rows) - SHOWN} more; --report FILE writes a row for each")
        return "\n".join(lines)


def write_report(path: Path, rows: Sequence[Row]) -> None:
    """Write every row as csv."""
    columns = ("status", "source", "key", "shape")
    values = ((row.status, row.source, row.key, "x".join(map(str, row.shape))) for row in rows)
    write_rows(path, [dict(zip(columns, row, strict=True)) for row in values])
