"""The picture of growth: time and memory against the positions of the map, and against the batch."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .benchmarks import BESIDE, MACHINE, MEASURED, TRAINING, UNFOLDED, ZOO, Row, cells, is_gpu
from .files import read_rows
from .pictures import new_figure, save_figure

__all__ = ["draw", "growth_plots", "is_current"]

COLOURS = {
    ZOO: "#d62728",
    "timm": "#1f77b4",
    "timm global": "#7fb2d9",
    "lambda-networks": "#2ca02c",
    "lambda-networks global": "#8fd08f",
    "attention": "#555555",
    "attention fused": "#a0a0a0",
    BESIDE: "#c9a227",
}
PANELS = (
    ("milliseconds", "forward", "forward, ms"),
    ("milliseconds", TRAINING, "forward and backward, ms"),
    ("peak_mib", "forward", "peak of a forward pass, MiB"),
    ("peak_mib", TRAINING, "peak of a training step, MiB"),
)


def growth_plots(results: Path) -> dict[Path, list[Row]]:
    """The pictures that belong beside a csv of the part *growth*, each with its rows: PNG and SVG for each machine."""
    found: dict[Path, list[Row]] = {}
    for rows in cells(read_rows(results), *MACHINE).values():
        gpu = f"_gpu_{rows[0]['precision'].split()[0]}" if is_gpu(rows[0]) else ""
        found |= {results.with_name(f"{results.stem}{gpu}.{kind}"): rows for kind in ("png", "svg")}
    return found


def is_current(picture: Path, rows: Sequence[Row]) -> bool:
    """Whether a picture is there and was made from these rows."""
    return picture.exists() and digest_of(rows).encode() in picture.read_bytes()


def draw(rows: Sequence[Row], picture: Path) -> None:
    """Draw the growth of one machine's results; the picture names the rows that it was made from.

    Args:
        rows: of the part *growth*, of one machine; at least one.
        picture: the file, a PNG or an SVG by its name.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(9, 11.5, "benchmark")
    import matplotlib

    first = rows[0]
    where = f"d {first['dim']}, scope {first['scope']}; {first['device']}, {first['threads']} thread(s), "
    where += f"{first['precision']}, torch {first['torch']}. A curve ends where a pass needs too much memory or time."
    with matplotlib.rc_context({"svg.hashsalt": "growth", "font.size": 9, "svg.fonttype": "none"}):
        lines = figure.subplots(len(PANELS), 2)
        for line, (column, mode, label) in zip(lines, PANELS, strict=True):
            of_mode = [row for row in rows if row["mode"] == mode]
            for axes, along in zip(line, ("size", "batch"), strict=True):
                _panel(axes, of_mode, column, label, along)
        figure.legend(*lines[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
        figure.supxlabel(where, fontsize=8)
        save_figure(figure, picture, digest_of(rows))


def digest_of(rows: Sequence[Row]) -> str:
    """What a picture names its rows by."""
    text = "\n".join(",".join(row.values()) for row in rows)
    return f"sha256 of the rows: {hashlib.sha256(text.encode()).hexdigest()}"


def _panel(axes: Any, rows: Sequence[Row], column: str, label: str, along: str) -> None:
    """One panel, both axes logarithmic: a line for each layer, along the one of size and batch that grows."""
    grown = _growing(rows, along)
    for (name,), line in cells(grown, "layer").items():
        line = [row for row in line if row["status"] == MEASURED and row[column]]
        points = [(int(row["size"]) ** 2 if along == "size" else int(row["batch"]), float(row[column])) for row in line]
        style: dict[str, Any] = {"linewidth": 2.2, "zorder": 3} if name == ZOO else {"linewidth": 1.2}
        if name == BESIDE:
            style["linestyle"] = ":"
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=COLOURS.get(name), label=name, **style)
    axes.set_xscale("log")
    sides = sorted({int(row[along]) for row in grown})
    marks = {side**2: f"{side}²" for side in sides} if along == "size" else {side: str(side) for side in sides}
    axes.set_xticks(list(marks), labels=list(marks.values()))
    axes.set_xticks([], minor=True)
    axes.set_yscale("log")
    axes.grid(True, linewidth=0.4, alpha=0.6)
    axes.set_ylabel(label)
    axes.set_xlabel("positions of the map, at batch 1" if along == "size" else f"batch, at {_size(grown)}² positions")


def _growing(rows: Sequence[Row], along: str) -> list[Row]:
    """The rows of one curve: at the smallest batch, or at the size that has several batches."""
    rows = [row for row in rows if row["layer"] != UNFOLDED]
    if along == "size":
        least = min((int(row["batch"]) for row in rows), default=1)
        return [row for row in rows if int(row["batch"]) == least]
    batches = cells(rows, "size")
    size = max(batches, key=lambda size: len({row["batch"] for row in batches[size]}), default=("",))
    return batches.get(size, [])


def _size(rows: Sequence[Row]) -> str:
    return rows[0]["size"] if rows else "?"
