"""The options of `lambdaresnet-zoo label`, without torch."""

import argparse
import re
from dataclasses import fields

from ...arguments import count, share

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options."""
    add = parser.add_argument
    add("--teacher", "--model", dest="teacher", required=True, metavar="NAME", help="as predict's --model")
    add("--checkpoint", default="", metavar="FILE", help="weights to use instead of the model's own")
    add("--data", "--data-dir", dest="data", default="", metavar="PATH", help="folder of images, tar or parquet")
    add("--dataset", default="", metavar="NAME", help="timm's name of the data: hfds/..., torch/...")
    add("--split", default="", metavar="NAME", help="of the data, where it has splits")
    add("--input-key", metavar="KEY", help="where the data has its images")
    add("--out", "--output", dest="out", required=True, metavar="FOLDER", help="for the labels; continues what it has")
    add("--hard", action="store_true", help="the most probable class alone, not the probabilities")
    add("--topk", type=count, metavar="N", help="probabilities to keep of an image (all up to 100)")
    add("--threshold", type=share, default=0.0, metavar="X", help="leave out what is less sure (%(default)s)")
    add("--per-class", type=count, metavar="N", help="keep at most N images of a class, the surest")
    add("--repeat", action="store_true", help="and repeat those of a class that has fewer, until they are N")
    add("--shard", type=_shard, default=(0, 1), metavar="I/N", help="part I of N, from 0: one for each job")
    add("--img-size", type=count, metavar="N", help="pixels of the input (the model's)")
    add("--crop-pct", type=share, metavar="X", help="centre crop (the model's)")
    add("--batch-size", "-b", type=count, default=256, metavar="N", help="images at once (%(default)s)")
    add("--workers", "-j", type=int, default=4, metavar="N", help="processes that load images (%(default)s)")
    add("--device", default="", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add("--amp", action="store_true", help="mixed precision by autocast")
    add("--amp-dtype", default="float16", choices=["float16", "bfloat16"], help="(%(default)s)")
    add("--channels-last", action="store_true", help="memory format of images and weights")
    add("--skip-bad", action="store_true", help="leave damaged images out, and list them")
    add("--progress", action=argparse.BooleanOptionalAction, help="a progress bar (if stderr is a terminal)")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if options.workers < 0:
        options.parser.error(f"--workers {options.workers} is less than 0")
    if options.repeat and not options.per_class:
        options.parser.error("--repeat goes with --per-class N")
    from .run import LabelOptions, label

    return label(LabelOptions(**{field.name: getattr(options, field.name) for field in fields(LabelOptions)}))


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with I from 0 to N-1")
    return int(found[1]), int(found[2])
