"""Studies: the same training over several seeds, a row for each run in a csv, and what the rows say together.

A study that is run again leaves out the runs whose rows are there, and continues the one that was interrupted.
"""

import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import UserError
from ..weights.files import read_rows, write_rows
from .checkpoints import LAST
from .train.options import resolve
from .train.records import SUMMARY
from .train.run import train
from .validation_report import environment

__all__ = ["Stopped", "conduct", "finished", "interval", "run_once", "top1_columns", "write_table"]


class Stopped(Exception):
    """A signal ended a run, which has saved what it had."""


def conduct(
    runs: Callable[[], None], results: Path, summary: Callable[[list[dict[str, str]]], list[dict[str, Any]]]
) -> tuple[int, list[dict[str, Any]]]:
    """Carry out a study, and print and write what its rows say together, beside the csv.

    Args:
        runs: calls ``run_once`` for each run.
        results: csv of the runs.
        summary: of its rows.

    Returns:
        The exit status, and the summary: 0 and empty after SIGTERM, 1 if a run failed, 2 if it could not begin, 130
        after Ctrl-C; but for Ctrl-C stderr tells why.
    """
    try:
        runs()
        table = summary(read_rows(results))
        write_table(results.with_name(f"{results.stem}_summary.csv"), table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2, []
    except Stopped as error:
        print(error, file=sys.stderr)
        return 0, []
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1, []
    except KeyboardInterrupt:
        return 130, []
    return 0, table


def finished(path: Path, key: Mapping[str, Any]) -> dict[str, str] | None:
    """The row of a run that is done.

    Args:
        path: of the csv; it need not exist.
        key: columns that tell the run from others.
    """
    rows = read_rows(path) if path.exists() else []
    return next((row for row in rows if all(row.get(name) == str(value) for name, value in key.items())), None)


def run_once(
    path: Path, key: Mapping[str, Any], options: Mapping[str, Any], assignments: Sequence[str]
) -> dict[str, str]:
    """Train once, evaluate after the last epoch, and add a row to the csv; or give the row that is there.

    Nothing is selected on the images that are evaluated on: the figure is that of the last epoch.

    Args:
        path: of the csv.
        key: columns that tell the run from others.
        options: of train, by name, with ``output``; a run that is found there is continued.
        assignments: KEY=VALUE each, in place of values of the recipe.

    Returns:
        The row: the key, the figures, what was set, the environment.

    Raises:
        UserError: it cannot be trained.
        Stopped: SIGTERM ended it.
        RuntimeError: the loss is no number, which train has told.
    """
    row = finished(path, key)
    if row is not None:
        print(f"{_told(key)}: finished, top-1 {row['top1']} %")
        return row
    output = Path(str(options["output"]))
    print(f"{_told(key)}: in {output}")
    resumed = {"resume": ""} if (output / LAST).exists() else {}
    first = resolve(options, list(assignments))
    chosen = resolve({**options, **resumed, "val_interval": first.epochs}, list(assignments))
    if train(chosen):
        raise RuntimeError(f"{_told(key)} did not end well")
    last = read_rows(output / SUMMARY)[-1] if (output / SUMMARY).exists() else {}
    if int(last.get("epoch", 0)) < chosen.epochs or not last.get("eval_top1"):
        raise Stopped(f"{_told(key)} was stopped; run the same command to go on")
    import timm
    import torch

    model = timm.create_model(f"local-dir:{output / 'model'}")
    device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    fresh: dict[str, Any] = {
        **key,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "top1": f"{float(last['eval_top1']):.2f}",
        "train_loss": last["train_loss"],
        "epochs": chosen.epochs,
        "steps": last["step"],
        "train_seconds": last["seconds"],
        "img_size": chosen.img_size,
        "recipe": chosen.recipe or "",
        "set": " ".join(assignments),
        **{name: value for name, value in environment(device, 1).items() if name != "processes"},
    }
    with FileLock(path.with_name(f".{path.name}.lock")):  # the seeds may be shared out among several commands
        write_rows(path, [*(read_rows(path) if path.exists() else []), fresh])
    return {name: str(value) for name, value in fresh.items()}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t; infinite for one value.

    Raises:
        UserError: scipy is not installed.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    try:
        from scipy.stats import t
    except ImportError as error:
        raise UserError('intervals need scipy: pip install "lambdaresnet-zoo[train]"') from error
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def top1_columns(values: Sequence[float]) -> dict[str, str]:
    """Mean, and the ends of its 95 % interval, as the columns of a summary."""
    return {
        f"top1_{which}": f"{value:.2f}" for which, value in zip(("mean", "low", "high"), interval(values), strict=True)
    }


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows, and write them as csv."""
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    write_rows(path, rows)


def _told(key: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" if name == "seed" else str(value) for name, value in key.items())
