"""What `lambdaresnet-zoo benchmark` measured: results/benchmark_*.csv, read, compared and set in tables.

The columns are those of tasks/benchmark; figures are quoted as ratios, which change less from machine to machine
than times do.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

from .files import read_rows
from .published import published_figure, published_figures

__all__ = [
    "BESIDE",
    "GROWTH",
    "MACHINE",
    "MEASURED",
    "TRAINING",
    "UNFOLDED",
    "ZOO",
    "Row",
    "as_built",
    "benchmark_rows",
    "benchmark_tables",
    "cells",
    "growth_table",
    "is_gpu",
    "layer_table",
    "memory_share",
    "model_table",
    "roofline_table",
    "speed_up",
    "unfolded_speed_up",
]

RESULTS = Path(__file__).parent / "results"
GROWTH = RESULTS / "benchmark_growth.csv"
ZOO = "zoo"
BESIDE = "attention narrow"
"""Measured beside the peers, and not one of them: attention with queries and keys as short as a lambda layer's."""
UNFOLDED = "zoo unfolded"
"""This package's layer or network in evaluation as it is built, its batch norms not folded; not one of the peers."""
MEASURED = "measured"
TRAINING = "training"
PARTS = ("layer", "model", "growth", "roofline")
MACHINE = ("precision", "device", "threads")

Row = dict[str, str]


def benchmark_rows(part: str) -> list[Row]:
    """The rows that ship of a part; none where it has not been measured."""
    path = RESULTS / f"benchmark_{part}.csv"
    return read_rows(path) if path.exists() else []


def cells(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows that were measured together, by the values of columns, in the file's order."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def speed_up(cell: Sequence[Row]) -> tuple[float, str] | None:
    """How many times as long as this package's layer the fastest peer takes, and which that is.

    Args:
        cell: the layers at one shape, batch and mode.

    Returns:
        None where the layer, or every peer, was not timed.
    """
    timed = [row for row in cell if row["layer"] not in (ZOO, UNFOLDED, BESIDE) and row["times_zoo"]]
    if not timed:
        return None
    fastest = min(timed, key=lambda row: float(row["times_zoo"]))  # paired ratios, not times of other moments
    return float(fastest["times_zoo"]), fastest["layer"]


def unfolded_speed_up(cell: Sequence[Row]) -> tuple[float, str] | None:
    """:func:`speed_up` of the layer as it is built; None where that was not timed, too."""
    found, own = speed_up(cell), _times(cell, UNFOLDED)
    return None if found is None or own is None else (found[0] / own, found[1])


def as_built(rows: Iterable[Row], row: Row) -> float | None:
    """How many times as long as this package's network another takes with nothing folded; None where not timed.

    Args:
        rows: of the part *model*, of one machine.
        row: of the other, in which nothing is ever folded.
    """
    measured = ("model", "size", "batch", "mode")
    own = next(
        (
            each["times_zoo"]
            for each in rows
            if each["kind"] == UNFOLDED and all(each[name] == row[name] for name in measured)
        ),
        "",
    )
    return float(row["times_zoo"]) / float(own) if own and row["times_zoo"] else None


def memory_share(cell: Sequence[Row]) -> tuple[float, str] | None:
    """The peak memory of this package's layer over that of the leanest peer, and which that is; None as above."""
    held = [row for row in cell if row["peak_mib"] and row["layer"] not in (UNFOLDED, BESIDE)]
    peaks = {row["layer"]: float(row["peak_mib"]) for row in held}
    own = peaks.pop(ZOO, None)
    if own is None or not peaks:
        return None
    leanest = min(peaks, key=lambda name: peaks[name])
    return own / peaks[leanest], leanest


def benchmark_tables() -> dict[str, str]:
    """Markdown by the name of its place in the README."""
    tables: dict[str, Callable[[Sequence[Row]], str]]
    tables = {"layer": layer_table, "model": model_table, "growth": growth_table, "roofline": roofline_table}
    found = {f"benchmark {part}": _of_machines(benchmark_rows(part), table) for part, table in tables.items()}
    folder = RESULTS.relative_to(RESULTS.parents[2]).as_posix()
    pictures = [f"![Growth of time and memory]({folder}/{path.name})" for path in sorted(RESULTS.glob("*growth*.svg"))]
    found["benchmark growth"] = "\n\n".join([found["benchmark growth"], *pictures])
    return found


def _of_machines(rows: Sequence[Row], table: Callable[[Sequence[Row]], str]) -> str:
    if not rows:
        return "Not measured yet."
    parts = []
    for machine in cells(rows, *MACHINE).values():
        first = machine[0]
        where = f"Measured on {first['device']}, {first['threads']} thread(s), {first['precision']}, "
        where += f"torch {first['torch']}, timm {first['timm']}."
        parts.append(f"{table(machine)}\n\n{where}")
    if not any(is_gpu(row) for row in rows):
        parts[-1] += " Not measured on a GPU."
    return "\n\n".join(parts)


def is_gpu(row: Row) -> bool:
    """Whether it was measured on one."""
    return row["device"].startswith(("NVIDIA", "AMD "))


def layer_table(rows: Sequence[Row]) -> str:
    """The layer beside its peers, a line for each shape, figures for each batch; peers by name at the largest timed.

    Args:
        rows: of the part *layer*, of one machine.
    """
    batches = sorted({row["batch"] for row in rows}, key=int)
    of = " / ".join(batches)
    lines = [
        f"| d | size | scope | forward, batch {of} | unfolded | forward and backward | memory of a training step |"
        " fastest peer | narrow attention |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (dim, size, scope), shape in cells(rows, "dim", "size", "scope").items():
        by_cell = cells(shape, "mode", "batch")
        ratios = []
        for figure, mode in ((speed_up, "forward"), (unfolded_speed_up, "forward"), (speed_up, TRAINING)):
            ratios.append(_each(figure(by_cell.get((mode, batch), [])) for batch in batches))
        memory = _each(memory_share(by_cell.get((TRAINING, batch), [])) for batch in batches)
        last = []
        for mode in ("forward", TRAINING):
            timed = (cell for batch in reversed(batches) if speed_up(cell := by_cell.get((mode, batch), [])))
            last.append(next(timed, []))
        names = [best[1] if (best := speed_up(cell)) else "-" for cell in last]
        beside = " / ".join(_beside(cell) for cell in last)
        line = [dim, size, scope, *ratios, memory, " / ".join(dict.fromkeys(names)), beside]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def _each(found: Iterable[tuple[float, str] | None]) -> str:
    return " / ".join("-" if one is None else f"{one[0]:.2f}" for one in found)


def _beside(cell: Sequence[Row]) -> str:
    times = _times(cell, BESIDE)
    return "-" if times is None else f"{times:.2f}"


def _times(cell: Sequence[Row], layer: str) -> float | None:
    return next((float(row["times_zoo"]) for row in cell if row["layer"] == layer and row["times_zoo"]), None)


KINDS = {
    "efficientnet": "EfficientNet",
    "resnet-rs": "ResNet-RS with SE",
    "timm layer": "same on timm's layer",
    "timm": "timm's own, same weights",
}


def model_table(rows: Sequence[Row]) -> str:
    """The networks beside others, a line for each, its size, and the batches of inference / training that figures are
    of.

    Args:
        rows: of the part *model*, of one machine.
    """
    lines = [
        "| network | size | batch | published top-1 (%) | EfficientNet | its size | its top-1 (%) | "
        "EfficientNet takes | ResNet-RS takes | on timm's layer | unfolded |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (model, size), every in cells(rows, "model", "size").items():
        lines += [_network_line(model, size, batches, case) for batches, case in _by_batch(every).items()]
    return "\n".join(lines)


MODES = ("inference", TRAINING)


def _network_line(model: str, size: str, batches: str, case: Sequence[Row]) -> str:
    kinds = cells(case, "kind")
    rival = kinds.get(("efficientnet",), [{"network": "-", "network_size": "-"}])[0]
    tops = [_top1(model, size), _top1(rival["network"], rival["network_size"])]
    timm = _modes(kinds.get(("timm layer",), [])) if ("timm",) not in kinds else _own(case, kinds[("timm",)])
    line = [f"`{model}`", size, batches, tops[0], rival["network"], rival["network_size"], tops[1]]
    line += [_modes(kinds.get((kind,), [])) for kind in ("efficientnet", "resnet-rs")]
    unfolded = _modes(kinds.get((UNFOLDED,), [])).partition(" / ")[0]  # of inference alone
    return f"| {' | '.join([*line, timm, unfolded])} |"


def _own(case: Sequence[Row], rows: Sequence[Row]) -> str:
    """The ratio to timm's own network, and what it is in inference where nothing is folded."""
    row = _of_mode(rows, "inference")
    built = row and as_built(case, row)
    return _modes(rows) + (f" ({built:.2f} as built)" if built else "")


def _by_batch(case: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of a network at the first, second, ... batch of each mode, by those batches: `4 / 2`."""
    found = {}
    counts = [sorted({int(row["batch"]) for row in case if row["mode"] == mode}) for mode in MODES]
    for batches in zip_longest(*counts):
        wanted = dict(zip(MODES, batches, strict=True))
        name = " / ".join("-" if batch is None else str(batch) for batch in batches)
        found[name] = [row for row in case if row["batch"] == str(wanted[row["mode"]])]
    return found


def _of_mode(rows: Sequence[Row], mode: str) -> Row | None:
    return next((row for row in rows if row["mode"] == mode), None)


def _modes(rows: Sequence[Row]) -> str:
    """The ratio in inference / training."""
    figures = []
    for mode in MODES:
        row = _of_mode(rows, mode)
        figures.append("-" if row is None else f"{float(row['times_zoo']):.2f}" if row["times_zoo"] else row["status"])
    return "-" if set(figures) == {"-"} else " / ".join(figures)


def _top1(model: str, size: str) -> str:
    if not size.isdecimal():
        return "-"
    figure = published_figure(model, size=int(size)) or next(
        (each for each in published_figures() if each.name.startswith(f"{model}.") and each.size == int(size)), None
    )
    return str(figure.top1) if figure and figure.top1 is not None else "-"


def growth_table(rows: Sequence[Row]) -> str:
    """How time and memory of a training step grow: at each size of the map, and each batch.

    Args:
        rows: of the part *growth*, of one machine.
    """
    training = [row for row in rows if row["mode"] == TRAINING]
    names = list(dict.fromkeys(row["layer"] for row in training))
    lines = [f"| size, batch | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for (size, batch), cell in cells(training, "size", "batch").items():
        by_name = {row["layer"]: row for row in cell}
        lines.append(f"| {size}², {batch} | {' | '.join(_grown(by_name.get(name)) for name in names)} |")
    return "\n".join(lines)


def _grown(row: Row | None) -> str:
    if row is None:
        return "-"
    if not row["times_zoo"]:
        return row["status"]
    return f"{float(row['times_zoo']):.1f}, {float(row['peak_mib']):.0f} MiB"


def roofline_table(rows: Sequence[Row]) -> str:
    """The share of the matrix-multiply rate that the layer reaches, at each shape.

    Args:
        rows: of the part *roofline*, of one machine.
    """
    lines = [
        "| d | size | scope | batch | forward, of what it runs | by the paper's count | "
        "forward and backward, of what it runs | by the paper's count |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, cell in cells(rows, "dim", "size", "scope", "batch").items():
        by_mode = {row["mode"]: row for row in cell}
        shares = [_percent(by_mode.get(mode), f"share_{of}") for mode in ("forward", TRAINING) for of in COUNTS]
        lines.append(f"| {' | '.join([*key, *shares])} |")
    return "\n".join(lines)


COUNTS = ("run", "nominal")


def _percent(row: Row | None, column: str) -> str:
    return f"{100 * float(row[column]):.0f} %" if row and row[column] else "-"
