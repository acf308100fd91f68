"""Lambda layers against 3x3 convolutions on CIFAR-10: the same network and recipe, over several seeds.

`lambdaresnet32px_conv` is `lambdaresnet32px` with a 3x3 convolution for every lambda layer, at the same depth and
width, as models/lambdaresnet_small.py defines both. What a seed gives is the figure after the last epoch. Where weights
ship that a recipe gave, every seed of that recipe is to give what weights/results/cifar10.csv has of them, nearly.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from ..weights.cards import CIFAR10
from ..weights.files import read_rows
from .study import conduct, run_once, top1_columns

__all__ = ["MODELS", "main", "run_folder", "summary"]

MODELS = ("lambdaresnet32px", "lambdaresnet32px_conv")
DIFFERENCE = "difference"
ALLOWED = 0.5
"""Points between the figure of weights that ship and that of another run of their recipe."""


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
    parser.add_argument("--recipe", default="cifar10", metavar="NAME", help="(%(default)s)")
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
                    "recipe": chosen.recipe,
                    "seed": seed,
                    "output": str(run_folder(chosen.output, model, chosen.recipe, seed)),
                    "device": chosen.device,
                    "workers": chosen.workers,
                }
                key = {"model": model, "recipe": chosen.recipe, "seed": seed}
                run_once(chosen.results, key, options, chosen.set)

    status, table = conduct(runs, chosen.results, summary)
    if status or not table:
        return status
    missed = [row for row in table if row["difference"] and abs(float(row["difference"])) > ALLOWED]
    for row in missed:
        told = f"missed: a run of {row['model']} by {row['recipe']} differs by {row['difference']} points"
        print(f"{told} from the weights that ship", file=sys.stderr)
    return 1 if missed else 0


def run_folder(output: Path, model: str, recipe: str, seed: int) -> Path:
    """Where the study leaves a run."""
    return output / f"{model}-{Path(recipe).stem}-seed{seed}"


def summary(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """For each recipe and network: parameters, mean top-1 with its 95 % interval, and time.

    Where the network ships with weights of that recipe, also their figure, and by how much the run that is farthest
    from it differs. Where both networks are there, a last row has lambda's top-1 less the convolutions', seed by seed.
    """
    shipped = {(row["model"], row["recipe"], row["set"]): row["top1"] for row in read_rows(CIFAR10)}
    table: list[dict[str, Any]] = []
    for recipe, setting in dict.fromkeys((row["recipe"], row["set"]) for row in rows):
        alike = [row for row in rows if (row["recipe"], row["set"]) == (recipe, setting)]
        for model in dict.fromkeys(row["model"] for row in alike):
            own = [row for row in alike if row["model"] == model]
            figures = [float(row["top1"]) for row in own]
            known = shipped.get((model, recipe, setting), "")
            apart = max((figure - float(known) for figure in figures), key=abs) if known else None
            table.append(
                {
                    "recipe": recipe,
                    "model": model,
                    "params": own[0]["params"],
                    "seeds": len(own),
                    "epochs": own[0]["epochs"],
                    **top1_columns(figures),
                    "train_seconds": f"{statistics.fmean(float(row['train_seconds']) for row in own):.0f}",
                    "shipped_top1": known,
                    "difference": "" if apart is None else f"{apart:+.2f}",
                }
            )
        if pairs := _pairs(alike):
            columns = {"recipe": recipe, "model": DIFFERENCE, "seeds": len(pairs), **top1_columns(pairs)}
            table.append({**dict.fromkeys(table[0], ""), **columns})
    return table


def _pairs(rows: list[dict[str, str]]) -> list[float]:
    """The difference of both networks, of seeds that both have."""
    own, other = ({row["seed"]: float(row["top1"]) for row in rows if row["model"] == model} for model in MODELS)
    return [own[seed] - other[seed] for seed in own if seed in other]
