"""Print the published figures."""

import csv
import dataclasses
import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..errors import UserError
from ..weights.published import Figure, published_figures

__all__ = ["run", "select"]

HEADINGS = (
    *("model", "kind", "with", "dataset", "size", "crop"),
    *("top-1", "top-5", "box/mask AP", "params", "MACs", "weights"),
)
"""Before the source, which ends the line."""
RIGHT = {"size", "crop", "top-1", "top-5", "params", "MACs"}


def run(patterns: Sequence[str], dataset: str = "", as_csv: bool = False, as_json: bool = False) -> int:
    """The command `published`: a table on stdout, or the file's columns for a program to read.

    Args:
        patterns: as ``select``.
        dataset: as ``select``.
        as_csv: write the rows as csv, digits as printed.
        as_json: write one JSON object a line, null for what was not published.

    Returns:
        The exit status, 0.

    Raises:
        UserError: as ``select``.
    """
    figures = select(patterns, dataset)
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Figure))
        writer.writerows(dataclasses.astuple(figure) for figure in figures)
    elif as_json:
        for figure in figures:
            print(json.dumps(dataclasses.asdict(figure), default=float))
    else:
        print(_table(figures))
    return 0


def select(patterns: Sequence[str] = (), dataset: str = "") -> list[Figure]:
    """The published figures of some models, in the file's order.

    Args:
        patterns: of models' names, with or without tag, as the shell's; none for all.
        dataset: evaluated on; by default any.

    Raises:
        UserError: a pattern matches no model, or nothing is published of these models on the dataset.
    """
    figures = published_figures()
    for pattern in patterns:
        if not any(_matches(figure, pattern) for figure in figures):
            close = difflib.get_close_matches(pattern, _unique(figure.model for figure in figures))
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise UserError(f"no published figure of a model '{pattern}'{hint}")
    datasets = _unique(figure.dataset for figure in figures)
    if dataset and dataset not in datasets:
        raise UserError(f"no published figure on a dataset '{dataset}'; there are {', '.join(datasets)}")
    chosen = [
        figure
        for figure in figures
        if dataset in ("", figure.dataset) and (not patterns or any(_matches(figure, text) for text in patterns))
    ]
    if not chosen:
        raise UserError(f"no published figure of {', '.join(patterns)} on {dataset}")
    return chosen


def _matches(figure: Figure, pattern: str) -> bool:
    return fnmatchcase(figure.model, pattern) or fnmatchcase(figure.name, pattern)


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _table(figures: Sequence[Figure]) -> str:
    rows = [HEADINGS, *(_cells(figure) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sources = ["source", *("; ".join(filter(None, (figure.source, figure.note))) for figure in figures)]
    lines = []
    for row, source in zip(rows, sources, strict=True):
        cells = [
            cell.rjust(width) if heading in RIGHT else cell.ljust(width)
            for heading, cell, width in zip(HEADINGS, row, widths, strict=True)
        ]
        lines.append("  ".join([*cells, source]))
    return "\n".join(lines)


def _cells(figure: Figure) -> tuple[str, ...]:
    aps = (figure.box_ap, figure.mask_ap)
    return (
        figure.name,
        figure.kind,
        "; ".join(filter(None, (figure.options, figure.extra_data))) or "-",
        figure.dataset,
        *map(_number, (figure.size, figure.crop_pct, figure.top1, figure.top5)),
        "/".join(map(str, aps)) if None not in aps else "-",
        _number(figure.params_m, " M"),
        _number(figure.gflops, " GFLOPs") if figure.gmacs is None else _number(figure.gmacs, " G"),
        "-" if figure.kind == "baseline" else "public" if figure.weights else "none",
    )


def _number(value: Any, unit: str = "") -> str:
    return "-" if value is None else f"{value}{unit}"
