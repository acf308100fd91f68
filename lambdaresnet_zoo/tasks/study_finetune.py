"""Fine-tuning against training from scratch, on few images of a task that the weights were not trained on.

The network is `lambdaresnet32px`, the weights those that ship, of CIFAR-10. The tasks are a folder of images, as ants
and bees, at 64 pixels, and scikit-learn's 8x8 digits at 32, a few of each to train on and all others to evaluate on.
Fine-tuning follows the recipe `finetune` without frozen epochs and slower first layers, as both tasks are far from
CIFAR-10; from scratch the same is followed for as many epochs, with a learning rate of its own for each task. All that
was chosen, for both, by cross-validation on the training images alone, with weights of half as many epochs, which
shipped before. What a seed gives is the figure after the last epoch.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..weights.files import write_whole
from .study import conduct, run_once, top1_columns

__all__ = ["main", "write_digits"]

MODEL = "lambdaresnet32px"
SIZE, SIZE_OF_DIGITS = 64, 32
"""Pixels. The network's own 32 show little of an insect that is a part of a photograph. At 32 pixels five-fold
cross-validation on the training images of ants and bees gave 76.8 % fine-tuned and 72.7 % from scratch; at 64, see
SCRATCH_RATE."""
STARTS: dict[str, dict[str, Any]] = {
    "fine-tuned": {"model": f"{MODEL}.cifar10", "pretrained": True, "recipe": "finetune"},
    "from scratch": {"model": MODEL, "recipe": "finetune"},
}
MOVING = ("freeze_epochs=0", "layer_decay=none")
SCRATCH_RATE = 2e-3
"""Top-1 in five-fold cross-validation on the training images of ants and bees at 64 pixels: 71.9 %, with 4e-3 69.4 %,
with 1e-3 71.5 %. Fine-tuning gave 78.4 %, with the rate of the recipe, the only one that was tried."""
OF_DIGITS = ("hflip=0", "color_jitter=0", "aa=none", "reprob=0", "scale=0.7,1")
SCRATCH_RATE_OF_DIGITS = 8e-3
"""Top-1 in five-fold cross-validation on the 100 training digits, folds taken in turn: 97 %, and with 4e-3 93 % (85 %
with RandAugment and erasing); folds in blocks: 98 %, and with 16e-3 95 %. Fine-tuning gave 97 and 98 % with the rate of
the recipe (98 and 96 % with RandAugment and erasing)."""


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0, after SIGTERM too; 1 if a run fails or fine-tuning does not pay; 2 if it cannot begin; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="an ImageFolder with train and val; without it, digits"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for the runs, and the digits")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="csv with a row for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N", help="(0 1 2 3 4)")
    parser.add_argument(
        "--img-size", type=int, metavar="N", help=f"pixels ({SIZE} of the folder, {SIZE_OF_DIGITS} of digits)"
    )
    parser.add_argument("--digits", type=int, default=10, metavar="N", help="of each to train on (%(default)s)")
    parser.add_argument(
        "--scratch-lr", type=float, metavar="X", help=f"its rate ({SCRATCH_RATE}; digits: {SCRATCH_RATE_OF_DIGITS})"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe, for both")
    parser.add_argument("--device", default="", help="(a GPU if there is one)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load images (%(default)s)")
    chosen = parser.parse_args(arguments)

    def runs() -> None:
        tasks: list[tuple[str, Path, int, tuple[str, ...], float]] = []
        if chosen.data:
            tasks.append((chosen.data.name, chosen.data, SIZE, (), SCRATCH_RATE))
        digits = f"digits-{chosen.digits}-of-each"
        folder = write_digits(chosen.output / digits, chosen.digits)
        tasks.append((digits, folder, SIZE_OF_DIGITS, OF_DIGITS, SCRATCH_RATE_OF_DIGITS))
        for seed in chosen.seeds:
            for task, data, size, changes, rate in tasks:
                scratch = f"lr={rate if chosen.scratch_lr is None else chosen.scratch_lr}"
                for start, given in STARTS.items():
                    assignments = [*MOVING, *changes, *chosen.set, *([] if "pretrained" in given else [scratch])]
                    options = {
                        **given,
                        "data": str(data),
                        "img_size": chosen.img_size or size,
                        "seed": seed,
                        "output": str(chosen.output / f"{task}-{start.replace(' ', '-')}-seed{seed}"),
                        "device": chosen.device,
                        "workers": chosen.workers,
                        "skip_bad": True,
                    }
                    key = {"task": task, "start": start, "seed": seed}
                    run_once(chosen.results, key, options, assignments)

    status, table = conduct(runs, chosen.results, summary)
    if status or not table:
        return status
    lost = [row["task"] for row in table if row["start"] == "difference" and -math.inf < float(row["top1_low"]) <= 0]
    for task in lost:
        print(f"missed: on {task} fine-tuning is not better than training from scratch", file=sys.stderr)
    return 1 if lost else 0


def summary(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """For each task: mean top-1 and its 95 % interval of both, and of the difference, seed by seed."""
    table = []
    for task in dict.fromkeys(row["task"] for row in rows):
        figures = {
            start: {row["seed"]: float(row["top1"]) for row in rows if (row["task"], row["start"]) == (task, start)}
            for start in STARTS
        }
        tuned, scratch = figures.values()
        pairs = [tuned[seed] - scratch[seed] for seed in tuned if seed in scratch]
        every = {**{start: list(found.values()) for start, found in figures.items()}, "difference": pairs}
        for start, values in every.items():
            if values:
                table.append({"task": task, "start": start, "seeds": len(values), **top1_columns(values)})
    return table


def write_digits(folder: Path, each: int) -> Path:
    """Write scikit-learn's digits as an ImageFolder: the first ``each`` of every class to train on, others in ``val``.

    Returns:
        The folder; what is there already stays.

    Raises:
        UserError: scikit-learn is not installed, there are not so many, or the folder cannot be written.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError('the digits need scikit-learn: pip install "lambdaresnet-zoo[train]"') from error
    images, labels = load_digits(return_X_y=True)
    fewest = int(np.bincount(labels).min())
    if not 0 < each < fewest:
        raise UserError(f"--digits {each}: there are {fewest} of the rarest; give a number from 1 to {fewest - 1}")
    seen = dict.fromkeys(range(10), 0)
    try:
        for number, (pixels, label) in enumerate(zip(images.reshape(-1, 8, 8), labels.tolist(), strict=True)):
            seen[label] += 1
            path = folder / ("train" if seen[label] <= each else "val") / str(label) / f"{number:04d}.png"
            if not path.exists():
                image = Image.fromarray((pixels * 255 / 16).round().astype(np.uint8))
                write_whole(path, partial(image.save, format="PNG"))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    return folder
