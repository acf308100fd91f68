"""Take the weights and results of finished CIFAR-10 runs into the package."""

import argparse
import shutil
import sys
from pathlib import Path

from .cards import CIFAR10
from .documents import main as write_documents
from .files import read_rows, write_rows
from .shipped import shipped_file, write_digests

__all__ = ["main"]

MODELS = ["lambdaresnet32px", "lambdaresnet32px_conv"]


def main(arguments: list[str] | None = None) -> int:
    """Copy weights of the first run, results of both, and write digests, card and tables anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="output folder of the network that ships")
    parser.add_argument("baseline", type=Path, help="output folder of the convolutional network")
    options = parser.parse_args(arguments)
    rows: list[dict[str, str]] = []
    for run in (options.run, options.baseline):
        if not (run / "result.csv").is_file():
            print(f"error: {run} holds no finished run: no result.csv", file=sys.stderr)
            return 2
        rows += read_rows(run / "result.csv")
    if [row["model"] for row in rows] != MODELS:
        print(f"error: these runs are of {rows[0]['model']} and {rows[1]['model']}, not of {MODELS}", file=sys.stderr)
        return 2
    weights = Path(shipped_file(f"{MODELS[0]}.cifar10"))
    weights.parent.mkdir(exist_ok=True)
    shutil.copyfile(options.run / "model.safetensors", weights)
    write_rows(CIFAR10, rows)
    write_digests()
    return write_documents()
