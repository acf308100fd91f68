"""Compare `lambdaresnet-zoo validate` with timm's validate.py: the digits and the time, in pairs of runs.

timm's script is not in its packages; its path is an argument. Both are whole processes with the same options,
timed from start to end, in turns, each of the two first in every other pair. One more run of each comes before
and is not timed: timm's script tells the loss in its log alone, and logs every batch there, but not in the pairs.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from .compare import append, ratios, run_python, told, turns

__all__ = ["main"]

# timm's script has no option that imports another package's models.
RUN_SCRIPT = "import runpy, sys, lambdaresnet_zoo; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
LOSS = re.compile(r"Loss: +[\d.]+ \( *([\d.]+)\)")
LOSS_TOLERANCE = 1e-4


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line.

    Args:
        arguments: of the command line; by default those of the process. What follows ``--`` is passed to both.

    Returns:
        0; 1 if the digits differ; 2 if either fails.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, metavar="VALIDATE_PY", help="timm's, from its repository")
    parser.add_argument("--pairs", type=int, default=5, help="of runs (%(default)s)")
    parser.add_argument("--data-name", default="", metavar="TEXT", help="what the data is, for the row")
    parser.add_argument("--output", type=Path, metavar="FILE", help="append a row to a csv")
    parser.add_argument("options", nargs="+", metavar="OPTION", help="after --, for both: --model, --data-dir, ...")
    chosen = parser.parse_args(arguments)
    try:
        row = compare(chosen.script, chosen.options, chosen.pairs, chosen.data_name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    append(chosen.output, row)
    return 0 if row["same_digits"] == "yes" else 1


def compare(script: Path, options: list[str], pairs: int = 5, data_name: str = "") -> dict[str, Any]:
    """Run both in pairs.

    Args:
        script: timm's validate.py.
        options: for both.
        pairs: at least 1.
        data_name: goes into the row.

    Returns:
        A row: options, digits of both, median seconds, the ratio own / timm of the pairs (median, least, largest),
        environment.

    Raises:
        UserError: one of the two fails; with the last line of its errors.
    """
    loss = LOSS.findall(_log(script, [*options, "--log-freq", "1"]))[-1]
    _own(options)
    found = turns(pairs, partial(_timed, _own, options), partial(_timed, _timm, script, options), _tell)
    seconds = [[run[0] for run in runs] for runs in zip(*found, strict=True)]
    own, timm = (run[1] for run in found[-1])
    count = int(own["count"])
    same = all(round(float(own[key]) * count / 100) == round(timm[key] * count / 100) for key in ("top1", "top5"))
    same = same and abs(float(own["loss"]) - float(loss)) <= LOSS_TOLERANCE
    return {
        "model": own["model"],
        "data": data_name or own["data"],
        "options": told(options),
        "count": count,
        "top1": own["top1"],
        "timm_top1": f"{timm['top1']:.4f}",
        "loss": own["loss"],
        "timm_loss": loss,
        "same_digits": "yes" if same else "no",
        "pairs": pairs,
        "seconds": f"{statistics.median(seconds[0]):.2f}",
        "timm_seconds": f"{statistics.median(seconds[1]):.2f}",
        **ratios("ratio", *seconds),
        **{key: own[key] for key in ("device", "threads", "torch", "timm", "lambdaresnet_zoo", "python")},
    }


def _timed(run: Callable[..., dict[str, Any]], *arguments: Any) -> tuple[float, dict[str, Any]]:
    """Seconds, and what was found."""
    start = time.perf_counter()
    found = run(*arguments)
    return time.perf_counter() - start, found


def _tell(run: tuple[float, dict[str, Any]]) -> str:
    return f"{run[0]:.2f} s, {', '.join(f'{key} {run[1][key]}' for key in ('top1', 'top5'))}"


def _own(options: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "row.json")
        run_python(["-m", "lambdaresnet_zoo", "validate", *options, "--results", str(path)])
        row: dict[str, Any] = json.loads(path.read_text())[0]
    return row


def _timm(script: Path, options: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(_log(script, options).split("--result\n")[-1])
    return result


def _log(script: Path, options: list[str]) -> str:
    """What timm's script prints: its log, then its result."""
    done = run_python(["-c", RUN_SCRIPT, str(script), *options])
    return done.stderr + done.stdout
