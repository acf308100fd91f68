"""What was measured, as a table and as csv, beside what the paper printed."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError, first_line
from ...weights.files import read_rows, write_rows
from ...weights.published import published_figures
from ..outputs import writing

__all__ = ["COCO", "read_report", "report", "write_report"]

COCO = "coco-val2017"
COLUMNS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
HEADINGS = ("AP", "AP50", "AP75", "small", "medium", "large")


def report(row: Mapping[str, float], title: str, images: int, beside: str = "") -> str:
    """A table of AP in per cent.

    Args:
        row: as ``score`` returns it.
        title: what was measured.
        images: how many.
        beside: where the data are COCO val2017, the backbone: the paper's table follows.
    """
    width = max(len(title), 12)
    lines = [f"{'on ' + str(images) + ' images':{width}}" + "".join(f"{heading:>9}" for heading in HEADINGS)]
    for kind in ("box", "mask"):
        if f"{kind}_ap" in row:
            cells = [_percent(row[f"{kind}_{column}"]) for column in COLUMNS]
            lines.append(f"{kind:{width}}" + "".join(f"{cell:>9}" for cell in cells))
    lines.insert(0, title)
    return "\n".join([*lines, *(_published(beside, width) if beside else [])])


def _published(backbone: str, width: int) -> list[str]:
    lines = ["", "published, at 1024x1024 (LambdaNetworks, Mask R-CNN trained from scratch):"]
    for figure in published_figures():
        if figure.dataset != COCO:
            continue
        for kind in ("box", "mask"):
            values: list[Any] = [getattr(figure, f"{kind}_ap"), None, None]
            values += [getattr(figure, f"{kind}_ap_{size}") for size in ("small", "medium", "large")]
            name = f"{figure.model}{' *' if figure.model == backbone else ''} {kind}"
            lines.append(f"{name:{width}}" + "".join(f"{'-' if value is None else value!s:>9}" for value in values))
    return lines


def read_report(path: Path, option: str = "--results") -> list[dict[str, Any]]:
    """The rows of such a csv file; none where it does not exist.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return list(read_rows(path)) if path.exists() else []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{option} {path} cannot be read: {first_line(error)}; give another") from error


def write_report(path: Path, row: Mapping[str, Any], option: str = "--results") -> None:
    """Append a row of figures to a csv file.

    Args:
        path: of the file, which need not exist.
        row: the figures, by the names of their columns.
        option: that named the file.

    Raises:
        UserError: it cannot be read, or not be written.
    """
    shown = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}
    rows: list[dict[str, Any]] = [*read_report(path, option), shown]
    columns = dict.fromkeys(key for each in rows for key in each)  # of a detector without masks there are fewer
    with writing(option, path):
        write_rows(path, [{**dict.fromkeys(columns, ""), **each} for each in rows])


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"
