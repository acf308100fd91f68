"""The options of `lambdaresnet-zoo detect`, without torch."""

import argparse
from typing import Any

from ...arguments import count, keyword, number

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

        return predict(_options(PredictOptions, options))
    from . import run as commands

    if options.part == "train":
        return commands.train(_options(commands.TrainOptions, options))
    return commands.validate(_options(commands.ValidateOptions, options))


def _options(kind: Any, found: argparse.Namespace) -> Any:
    """Options of a command from those that argparse found."""
    values = {name: getattr(found, name) for name in kind.__dataclass_fields__}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _add_data(parser: argparse.ArgumentParser, what: str) -> None:
    add = parser.add_argument
    add("--annotations", required=True, metavar="FILE", help=f"COCO-format JSON of {what}")
    add("--images", required=True, metavar="FOLDER", help="where the images are that it names")
    add("--limit", type=count, metavar="N", help="only the first N images")
    add("--image-ids", type=int, nargs="+", default=[], metavar="ID", help="only these images")
    add("--skip-bad", action="store_true", help="leave out annotations and images that are wrong, and list them")
    _add_machine(parser)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workers", "-j", type=int, default=4, metavar="N", help="processes that load images (%(default)s)")
    add("--device", default="", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add("--amp", action="store_true", help="mixed precision by autocast")
    add("--amp-dtype", default="float16", choices=["float16", "bfloat16"], help="(%(default)s)")
    add("--progress", action=argparse.BooleanOptionalAction, help="a progress bar (if stderr is a terminal)")


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", required=True, metavar="FOLDER", help="of the run: checkpoint, log.csv, detector, results.csv")
    _add_data(parser, "the training images")
    add("--val-annotations", default="", metavar="FILE", help="COCO-format JSON to measure AP on")
    add("--val-images", default="", metavar="FOLDER", help="its images (--images)")
    add("--detector", default="mask_rcnn", choices=["mask_rcnn", "faster_rcnn", "retinanet"], help="(%(default)s)")
    add(
        "--backbone", "--model", default="lambdaresnet50", metavar="NAME", help="this package's or timm's (%(default)s)"
    )
    add("--model-kwargs", type=keyword, default=[], nargs="+", metavar="KEY=VALUE", help="options of the backbone")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--pretrained", action="store_true", help="start from the backbone's public weights")
    start.add_argument("--initial-checkpoint", default="", metavar="FILE", help="start from these weights of it")
    add("--freeze", nargs="+", default=[], metavar="STAGE", help="stages not to train: stem c2 c3 c4 c5")
    add("--grad-checkpointing", action="store_true", help="recompute the backbone in the backward pass: less memory")
    add("--keep-empty", action="store_true", help="train on images without annotations too (left out, as COCO's do)")
    add(
        "--recipe",
        default="paper",
        metavar="NAME",
        help="paper (130k steps of 256 at 1024 px), overfit, or a .json file of fields (%(default)s)",
    )
    add("--steps", type=count, metavar="N", help="(the recipe's, as all that follow)")
    add("--batch-size", "-b", type=count, metavar="N", help="images of a pass in each process")
    add("--grad-accum-steps", type=count, default=1, metavar="N", help="passes a step (%(default)s)")
    add("--image-size", "--img-size", type=count, metavar="N", help="pixels of the square training crop")
    add("--opt", metavar="NAME", help="optimiser, by timm's name")
    add("--lr", type=number, metavar="X", help="rate after the warm-up (the recipe's, in proportion to the batch)")
    add("--weight-decay", type=number, metavar="X", help="not of biases and norms")
    add("--warmup-steps", type=count, metavar="N", help="steps in which the rate rises")
    add("--clip-grad", type=number, metavar="X", help="largest norm of the gradient")
    add("--norm", choices=["live", "frozen", "sync"], help="batch norm; sync is over all processes, on GPUs")
    add("--seed", type=int, default=42, metavar="N", help="(%(default)s)")
    add("--resume", nargs="?", const="", metavar="FILE", help="continue from a checkpoint (that in --output)")
    add("--checkpoint-steps", type=count, default=1000, metavar="N", help="between checkpoints (%(default)s)")
    add("--eval-steps", type=int, default=0, metavar="N", help="between measurements of AP (only at the end)")
    add("--log-steps", type=count, default=20, metavar="N", help="between rows of log.csv (%(default)s)")


def _add_validate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FOLDER", help="the --output of detect train")
    _add_data(parser, "the images")
    add("--batch-size", "-b", type=count, default=1, metavar="N", help="images at once (%(default)s)")
    add("--output", default="", metavar="PATH", help="write COCO results to PATH.bbox.json and PATH.segm.json")
    add("--results", default="", metavar="FILE", help="append the figures to a csv file")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="IMAGE", help="a file, a folder to search, or a quoted glob pattern")
    add("--checkpoint", required=True, metavar="FOLDER", help="the --output of detect train")
    add("--output", required=True, metavar="FOLDER", help="for the drawings, and detections.json in COCO's format")
    add("--threshold", type=number, default=0.5, metavar="X", help="draw what scores at least this (%(default)s)")
    add("--blank", action="store_true", help="draw on an empty canvas, not on the image")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add("--progress", action=argparse.BooleanOptionalAction, help="a progress bar (if stderr is a terminal)")
