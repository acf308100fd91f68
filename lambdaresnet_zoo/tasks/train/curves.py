"""Pictures of a run: its learning curves, and which classes it takes for which."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...weights.pictures import new_figure, save_figure

__all__ = ["confused", "draw_confusion", "draw_curves"]

PANELS = (("loss", "loss"), ("top", "accuracy, %"), ("lr", "learning rate"))
"""What a column's name holds, and the label of the axis that it is drawn at."""
EXTRA = "train"
NAMED, NUMBERED = 60, 20
"""Classes up to which a confusion matrix has their names, and its numbers, in it."""


def draw_curves(rows: Sequence[Mapping[str, Any]], picture: Path) -> None:
    """Draw the learning curves of a run.

    Args:
        rows: a row for each epoch, as the csv of a run has them: ``epoch``, and columns whose names hold ``loss``,
            ``top`` (percent) or ``lr``; others are passed over, and so are empty cells.
        picture: a PNG or SVG by its name.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    panels = {label: _lines(rows, part) for part, label in PANELS}
    panels = {label: lines for label, lines in panels.items() if lines}
    figure = new_figure(4.5 * max(1, len(panels)), 3.6, EXTRA)
    for axes, (label, lines) in zip(
        np.atleast_1d(figure.subplots(1, max(1, len(panels)))), panels.items(), strict=False
    ):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=2, linewidth=1.4, label=name.replace("_", " "))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(True, linewidth=0.4, alpha=0.6)
        if len(lines) > 1:
            axes.legend(frameon=False)
    save_figure(figure, picture)


def draw_confusion(counts: Any, names: Sequence[str], picture: Path) -> None:
    """Draw a confusion matrix, the colours by the share of each true class.

    Args:
        counts: [C, C] int, images by true class (row) and predicted class (column).
        names: of the C classes.
        picture: a PNG or SVG by its name.

    Raises:
        ValueError: ``counts`` is no square, or has another number of classes than there are names.
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    counts = np.asarray(counts)
    size = len(names)
    if counts.shape != (size, size):
        raise ValueError(f"counts has the shape {counts.shape}, and there are {size} names")
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = min(14.0, max(4.5, 0.42 * size + 2))
    figure = new_figure(side + 1, side, EXTRA)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{int(np.trace(counts))} of {int(counts.sum())} right", fontsize=10)
    if size <= NAMED:
        axes.set_xticks(range(size), labels=names, rotation=90, fontsize=8)
        axes.set_yticks(range(size), labels=names, fontsize=8)
    if size <= NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, int(count), ha="center", va="center", fontsize=7, color=colour)
    save_figure(figure, picture)


def confused(counts: Any, names: Sequence[str], most: int = 10) -> list[tuple[str, str, int]]:
    """The pairs of classes that are taken for another most often: true, predicted, images.

    Args:
        counts: [C, C] int, images by true class (row) and predicted class (column).
        names: of the C classes.
        most: pairs to give at most; those that never happen are not given.
    """
    wrong = np.array(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(*np.unravel_index(place, wrong.shape), int(wrong.flat[place])) for place in order]
    return [(names[true], names[predicted], count) for true, predicted, count in pairs if count]


def _lines(rows: Sequence[Mapping[str, Any]], part: str) -> dict[str, list[tuple[float, float]]]:
    """Points of the columns whose names hold a part as a word's start."""
    names = [name for name in (rows[0] if rows else ()) if any(word.startswith(part) for word in name.split("_"))]
    lines = {
        name: [(float(row["epoch"]), float(row[name])) for row in rows if row.get(name) not in (None, "")]
        for name in names
    }
    return {name: points for name, points in lines.items() if points}
