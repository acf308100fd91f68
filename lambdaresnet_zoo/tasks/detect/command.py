"""The options of `lambdaresnet-zoo detect`, without torch."""

import argparse
from typing import Any

from ...arguments import Adder, count, keyword, number
from .options import TrainOptions, ValidateOptions, resolve

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands and their options."""
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    for name, summary, add in (
        ("train", "train a detector on any model of this package or of timm", _add_train),
        ("validate", "measure box and mask AP by pycocotools", _add_validate),
        ("predict", "draw what a detector finds on images, and write it in COCO's format", _add_predict),
    ):
        part = parts.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        add(part)


def run(options: argparse.Namespace) -> int:
    """Run a subcommand; returns the exit status."""
    if getattr(options, "workers", 0) < 0:
        options.parser.error(f"--workers {options.workers} is less than 0")
    if options.part == "predict":
        from .predict import PredictOptions, predict

        return predict(PredictOptions(**_given(PredictOptions, options)))
    from . import run as commands

    if options.part == "train":
        return commands.train(resolve(_given(TrainOptions, options)))
    return commands.validate(ValidateOptions(**_given(ValidateOptions, options)))


def _given(kind: Any, found: argparse.Namespace) -> dict[str, Any]:
    """Options of a command, by name, of those that argparse found."""
    values = {name: getattr(found, name) for name in kind.__dataclass_fields__ if hasattr(found, name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _add_data(add: Adder, what: str, required: bool) -> None:
    add("--annotations", required=required, metavar="FILE", help=f"COCO-format JSON of {what}")
    add("--images", required=required, metavar="FOLDER", help="where the images are that it names")
    add("--limit", type=count, metavar="N", help="only the first N images")
    add("--image-ids", type=int, nargs="+", metavar="ID", help="only these images")
    add.flag("--skip-bad", help="leave out annotations and images that are wrong, and list them")
    add("--workers", "-j", type=int, metavar="N", help="processes that load images")
    add("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add.flag("--amp", help="mixed precision by autocast")
    add("--amp-dtype", choices=["float16", "bfloat16"], help="its type")
    add.flag("--progress", help="a progress bar (if stderr is a terminal)")


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = Adder(parser, TrainOptions())
    add("--output", required=True, metavar="FOLDER", help="of the run: checkpoint, log.csv, detector, results.csv")
    _add_data(add, "the training images", required=False)
    add("--val-annotations", metavar="FILE", help="COCO-format JSON to measure AP on")
    add("--val-images", metavar="FOLDER", help="its images (--images)")
    add("--detector", choices=["mask_rcnn", "faster_rcnn", "retinanet"], help="its kind")
    add("--backbone", "--model", metavar="NAME", help="this package's or timm's")
    add("--model-kwargs", type=_keyword, nargs="+", metavar="KEY=VALUE", help="options of the backbone")
    start = Adder(parser.add_mutually_exclusive_group(), TrainOptions())
    start("--pretrained", action="store_true", help="start from the backbone's public weights")
    start("--initial-checkpoint", metavar="FILE", help="start from these weights of it")
    add("--freeze", nargs="+", metavar="STAGE", help="stages not to train: stem c2 c3 c4 c5")
    add.flag("--grad-checkpointing", help="recompute the backbone in the backward pass: less memory")
    add.flag("--keep-empty", help="train on images without annotations too (left out, as COCO's do)")
    add(
        "--recipe",
        metavar="NAME",
        help="paper (130k steps of 256 at 1024 px), overfit, or a .json file of fields",
    )
    add("--steps", type=count, metavar="N", help="(the recipe's, as all that follow)")
    add("--batch-size", "-b", type=count, metavar="N", help="images of a pass in each process")
    add("--grad-accum-steps", type=count, metavar="N", help="passes a step (1)")
    add("--image-size", "--img-size", type=count, metavar="N", help="pixels of the square training crop")
    add("--opt", metavar="NAME", help="optimiser, by timm's name")
    add("--lr", type=number, metavar="X", help="rate after the warm-up (the recipe's, in proportion to the batch)")
    add("--weight-decay", type=number, metavar="X", help="not of biases and norms")
    add("--warmup-steps", type=count, metavar="N", help="steps in which the rate rises")
    add("--clip-grad", type=number, metavar="X", help="largest norm of the gradient")
    add("--norm", choices=["live", "frozen", "sync"], help="batch norm; sync is over all processes, on GPUs")
    add("--seed", type=int, metavar="N", help="of initialisation, order and augmentation")
    add("--resume", nargs="?", const="", metavar="FILE", help="continue from a checkpoint (that in --output)")
    add("--checkpoint-steps", type=count, metavar="N", help="between checkpoints")
    add("--eval-steps", type=int, metavar="N", help="between measurements of AP (only at the end)")
    add("--log-steps", type=count, metavar="N", help="between rows of log.csv")


def _add_validate(parser: argparse.ArgumentParser) -> None:
    add = Adder(parser, ValidateOptions())
    add("--checkpoint", required=True, metavar="FOLDER", help="the --output of detect train")
    _add_data(add, "the images", required=True)
    add("--batch-size", "-b", type=count, metavar="N", help="images at once (1)")
    add("--output", metavar="PATH", help="write COCO results to PATH.bbox.json and PATH.segm.json")
    add("--results", metavar="FILE", help="append the figures to a csv file")


def _keyword(text: str) -> str:
    """KEY=VALUE as it is, looked at."""
    keyword(text)
    return text


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="IMAGE", help="a file, a folder to search, or a quoted glob pattern")
    add("--checkpoint", required=True, metavar="FOLDER", help="the --output of detect train")
    add("--output", required=True, metavar="FOLDER", help="for the drawings, and detections.json in COCO's format")
    add("--threshold", type=number, default=0.5, metavar="X", help="draw what scores at least this (%(default)s)")
    add("--blank", action="store_true", help="draw on an empty canvas, not on the image")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add("--progress", action=argparse.BooleanOptionalAction, help="a progress bar (if stderr is a terminal)")
