"""Compare `lambdaresnet-zoo train` with timm's train.py: time and memory of a step, in pairs of runs.

timm's script is not in its packages; its path is an argument. Both are whole processes with the same options, in turns,
each of the two first in every other pair. Both are measured from outside by the same hook, which torch calls after
every step of an optimiser: a step lasts from one such call to the next, so loading, augmentation, the average of the
weights, the schedule and the log count, and the first steps of each epoch and its evaluation do not. Memory is the
largest at any step: of the process, without those that load images, or what is allocated on the GPU.
"""

import argparse
import json
import os
import runpy
import statistics
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..errors import UserError
from .compare import append, ratios, run_python, told, turns
from .validation_report import environment, peak_memory

__all__ = ["main", "run_measured"]

MEASURED = "from lambdaresnet_zoo.tasks.compare_train import run_measured; run_measured()"
WARM_UP = 5
"""Steps of an epoch that are not timed."""
PAUSE = 10
"""A step that takes this many times the usual is not one: an epoch's end lies in it."""


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line.

    Args:
        arguments: of the command line; by default those of the process. What follows ``--`` is passed to both.

    Returns:
        0; 1 if a step of this package's costs more than ``--allowed`` times timm's; 2 if either fails.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, metavar="TRAIN_PY", help="timm's, from its repository")
    parser.add_argument("--pairs", type=int, default=5, help="of runs (%(default)s)")
    parser.add_argument("--data-name", default="", metavar="TEXT", help="what the data is, for the row")
    parser.add_argument("--own-options", default="", metavar="TEXT", help="more, for this package's command alone")
    parser.add_argument("--timm-options", default="", metavar="TEXT", help="more, for timm's script alone")
    parser.add_argument("--allowed", type=float, default=1.05, help="ratio of time and of memory (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="append a row to a csv")
    parser.add_argument("options", nargs="+", metavar="OPTION", help="after --, for both: --model, --data-dir, ...")
    chosen = parser.parse_args(arguments)
    apart = (chosen.own_options.split(), chosen.timm_options.split())
    try:
        row = compare(chosen.script, chosen.options, chosen.pairs, chosen.data_name, *apart)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    append(chosen.output, row)
    return 0 if max(float(row["ratio"]), float(row["memory_ratio"])) <= chosen.allowed else 1


def compare(
    script: Path,
    options: list[str],
    pairs: int = 5,
    data_name: str = "",
    own_options: list[str] | None = None,
    timm_options: list[str] | None = None,
) -> dict[str, Any]:
    """Run both in pairs.

    Args:
        script: timm's train.py.
        options: for both.
        pairs: at least 1.
        data_name: goes into the row.
        own_options: for this package's command alone.
        timm_options: for timm's script alone.

    Returns:
        A row: options, steps, median milliseconds a step and peak MiB of both, the ratios own / timm of the pairs
        (median, least, largest), environment.

    Raises:
        UserError: one of the two fails, with the last line of its errors; or there are too few steps.
    """
    if not script.is_file():
        raise UserError(f"{script}: no such file; give timm's train.py, from its repository")
    own = partial(_measure, "own", [*options, *(own_options or [])])
    timm = partial(_measure, str(script), [*options, *(timm_options or [])])
    found = turns(pairs, own, timm, lambda run: f"{run['milliseconds']:.1f} ms a step, {run['peak']:.0f} MiB")
    ours, theirs = zip(*found, strict=True)
    values = vars(_shared(options))
    row: dict[str, Any] = {
        "model": values["model"],
        "data": data_name or Path(values["data"]).name,
        "options": told(options),
        "own_options": told(own_options or []),
        "timm_options": told(timm_options or []),
        "steps": ours[-1]["steps"],
        "timm_steps": theirs[-1]["steps"],
        "pairs": pairs,
    }
    for name, key, digits in (("ratio", "milliseconds", 2), ("memory_ratio", "peak", 1)):
        both = [[run[key] for run in runs] for runs in (ours, theirs)]
        column = {"milliseconds": "milliseconds", "peak": "peak_mib"}[key]
        row |= {column: f"{statistics.median(both[0]):.{digits}f}"}
        row |= {f"timm_{column}": f"{statistics.median(both[1]):.{digits}f}", **ratios(name, *both)}
    row |= {"peak_of": ours[-1]["peak_of"]}
    return {**row, **{key: value for key, value in ours[-1]["environment"].items() if key != "processes"}}


def run_measured() -> None:
    """In a process of its own: run one of the two with the hook, and write what it saw.

    The arguments of the process are the file to write, ``own`` or the path of timm's script, and their options.
    """
    path, which, *options = sys.argv[1:]
    stamps: list[float] = []
    peaks: list[tuple[float, str]] = [(0.0, "")]

    def after_step(optimizer: Any, arguments: Any, options: Any) -> None:
        stamps.append(time.perf_counter())
        peaks[0] = peak_memory(_device())

    register_optimizer_step_post_hook(after_step)
    sys.argv = [which, *options]
    try:
        if which == "own":
            sys.argv[1:1] = ["train"]
            runpy.run_module("lambdaresnet_zoo", run_name="__main__", alter_sys=True)
        else:
            if not torch.cuda.is_available():
                _without_gpu()
            runpy.run_path(which, run_name="__main__")
    finally:
        content = {"stamps": stamps, "peak": peaks[0], "environment": environment(_device(), 1)}
        Path(path).write_text(json.dumps(content), encoding="utf-8")


def _measure(which: str, options: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "steps.json")
        output = ["--output", os.path.join(folder, "run")]
        run_python(["-c", MEASURED, str(path), which, *options, *output])
        found = json.loads(path.read_text(encoding="utf-8"))
    lengths = step_lengths(found["stamps"])
    if not lengths:
        raise UserError(f"{len(found['stamps'])} steps are too few to time: give more images, or more --epochs")
    return {
        "steps": len(lengths),
        "milliseconds": 1000 * statistics.fmean(lengths),
        "peak": found["peak"][0],
        "peak_of": found["peak"][1],
        "environment": found["environment"],
    }


def step_lengths(stamps: list[float]) -> list[float]:
    """Seconds of the steps that count, from the times at which steps ended.

    Left out are the first steps of each epoch, and what lies between epochs; an epoch ends where a step takes
    ``PAUSE`` times the median.
    """
    lengths = [after - before for before, after in pairwise(stamps)]
    if not lengths:
        return []
    usual = statistics.median(lengths)
    counted, since = [], 0
    for length in lengths:
        since = 0 if length > PAUSE * usual else since + 1
        if since >= WARM_UP:
            counted.append(length)
    return counted


def _shared(options: list[str]) -> argparse.Namespace:
    """Of the options for both, those that the row names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", default="")
    parser.add_argument("--data-dir", dest="data", default="")
    return parser.parse_known_args(options)[0]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _without_gpu() -> None:
    """Let a train.py of before ``--device``, which takes a GPU for granted, run on a CPU."""
    import timm.utils

    set_up = timm.utils.init_distributed_device

    def on_cpu(args: argparse.Namespace) -> torch.device:
        args.device = getattr(args, "device", "cpu")
        device: torch.device = set_up(args)
        return device

    timm.utils.init_distributed_device = on_cpu
    torch.cuda.synchronize = lambda device=None: None  # which its validate() calls
