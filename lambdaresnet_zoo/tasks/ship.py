"""Take a CIFAR-10 run into the package: the weights of `lambdaresnet32px`, and their figures.

The run is one of a study (scripts/study_lambda.py), whose csv says how and where it was trained, and whose weights are
those after the last epoch: nothing is selected on the images that are evaluated on.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..weights.cards import CIFAR10
from ..weights.documents import main as write_documents
from ..weights.files import read_rows, write_rows, write_whole
from ..weights.folder import WEIGHTS
from ..weights.shipped import shipped_file, write_digests
from .study import finished
from .study_lambda import MODELS, run_folder
from .train.export import MODEL
from .validate_run import Options, run

__all__ = ["main"]

NETWORK = MODELS[0]
ROUNDING = 0.1
"""Points between a figure of the study and that measured here: on another device a few images may fall otherwise."""


def main(arguments: list[str] | None = None) -> int:
    """Measure the network, copy weights and figures, and write digests, card and tables anew.

    Returns:
        0; 2 if nothing was taken.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="csv of the study")
    parser.add_argument("runs", type=Path, help="folder of its runs")
    parser.add_argument("--recipe", default="cifar10-28ep", metavar="NAME", help="of the run (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the run (%(default)s)")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="CIFAR-10 as parquet")
    parser.add_argument("--lossless", required=True, metavar="FOLDER", help="the test subset of original pixels")
    chosen = parser.parse_args(arguments)
    try:
        row = _row(chosen)
    except UserError as error:
        print(f"error: {error}; nothing was taken", file=sys.stderr)
        return 2
    weights = _exported(chosen) / WEIGHTS
    write_whole(Path(shipped_file(f"{NETWORK}.cifar10")), lambda path: shutil.copyfile(weights, path))
    write_rows(CIFAR10, [row])
    write_digests()
    return write_documents()


def _exported(chosen: argparse.Namespace) -> Path:
    return run_folder(chosen.runs, NETWORK, chosen.recipe, chosen.seed) / MODEL


def _row(chosen: argparse.Namespace) -> dict[str, Any]:
    """The row of the study, its figures measured anew."""
    row = finished(chosen.results, {"model": NETWORK, "recipe": chosen.recipe, "seed": chosen.seed})
    if row is None:
        told = f"{NETWORK} by the recipe {chosen.recipe}, seed {chosen.seed}"
        raise UserError(f"{chosen.results} has no finished run of {told}")
    folder = _exported(chosen)
    top1, lossless = (_top1(folder, data) for data in (chosen.data, chosen.lossless))
    if abs(top1 - float(row["top1"])) > ROUNDING:
        raise UserError(f"{folder} gives {top1:.2f} %, and {row['top1']} % in {chosen.results}: it is of another run")
    return {**row, "top1": f"{top1:.2f}", "top1_lossless": f"{lossless:.2f}"}


def _top1(folder: Path, data: str) -> float:
    """What `validate` finds, on a CPU, in per cent."""
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch, "row.csv")
        if run(Options(f"local-dir:{folder}", data, device="cpu", workers=1, results=str(results))):
            raise UserError(f"{folder} was not measured on {data}")
        return float(read_rows(results)[0]["top1"])
