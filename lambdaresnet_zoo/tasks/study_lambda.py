"""Lambda layers against 3x3 convolutions on CIFAR-10: the same network and recipe, over several seeds.

`lambdaresnet32px_conv` is `lambdaresnet32px` with a 3x3 convolution for every lambda layer, at the same depth and
width, as models/lambdaresnet_small.py defines both; the recipe is `cifar10`, by which the weights that ship were
trained. What a seed gives is the figure after the last epoch. weights/results/cifar10.csv has an earlier run of both,
and where weights ship, the same seed is to give what they give.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from ..weights.cards import CIFAR10
from ..weights.files import read_rows
from ..weights.shipped import shipped_names
from .study import conduct, run_once, top1_columns

__all__ = ["MODELS", "main", "run_folder", "summary"]

MODELS = ("lambdaresnet32px", "lambdaresnet32px_conv")
DIFFERENCE = "difference"
ALLOWED = 0.5
"""Points between the figure of weights that ship and that of the same seed here."""


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0, after SIGTERM too; 1 if a run fails or the shipped figure is not met; 2 if it cannot begin; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="CIFAR-10 as parquet")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for the runs")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="csv with a row for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(0 1 2)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="(both)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--device", default="", help="(a GPU if there is one)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that load images (%(default)s)")
    chosen = parser.parse_args(arguments)

    def runs() -> None:
        for seed in chosen.seeds:
            for model in chosen.models:
                options: dict[str, Any] = {
                    "model": model,
                    "data": chosen.data,
                    "recipe": "cifar10",
                    "seed": seed,
                    "output": str(run_folder(chosen.output, model, seed)),
                    "device": chosen.device,
                    "workers": chosen.workers,
                }
                run_once(chosen.results, {"model": model, "seed": seed}, options, chosen.set)

    status, table = conduct(runs, chosen.results, summary)
    if status or not table:
        return status
    ships = {name.split(".")[0] for name in shipped_names()}
    held = [row for row in table if row["model"] in ships and row["difference"]]
    missed = [row for row in held if abs(float(row["difference"])) > ALLOWED]
    for row in missed:
        print(f"missed: {row['model']} of the shipped seed differs by {row['difference']} points", file=sys.stderr)
    return 1 if missed else 0


def run_folder(output: Path, model: str, seed: int) -> Path:
    """Where the study leaves a run."""
    return output / f"{model}-seed{seed}"


def summary(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """For each network: parameters, mean top-1 with its 95 % interval, time, and the recorded figure of one seed.

    Where both networks are there, a last row has lambda's top-1 less the convolutions', seed by seed.
    """
    shipped = {row["model"]: row for row in read_rows(CIFAR10)}
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        known = shipped.get(model, {})
        same = [row for row in own if (row["seed"], row["epochs"]) == (known.get("seed"), known.get("epochs"))]
        table.append(
            {
                "model": model,
                "params": own[0]["params"],
                "seeds": len(own),
                "epochs": own[0]["epochs"],
                **top1_columns([float(row["top1"]) for row in own]),
                "train_seconds": f"{statistics.fmean(float(row['train_seconds']) for row in own):.0f}",
                "shipped_top1": known.get("top1", ""),
                "difference": f"{float(same[0]['top1']) - float(known['top1']):+.2f}" if same else "",
            }
        )
    pairs = _pairs(rows)
    if pairs:
        columns = {"model": DIFFERENCE, "seeds": len(pairs), **top1_columns(pairs)}
        table.append({**dict.fromkeys(table[0], ""), **columns})
    return table


def _pairs(rows: list[dict[str, str]]) -> list[float]:
    """The difference of both networks, of seeds that both have with as many epochs."""
    own, other = (
        {(row["seed"], row["epochs"]): float(row["top1"]) for row in rows if row["model"] == model} for model in MODELS
    )
    return [own[key] - other[key] for key in own if key in other]
