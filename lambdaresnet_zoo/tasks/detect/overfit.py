"""Eight COCO images learnt by heart: the check of the whole detector that the README shows, its row and its picture."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from ...errors import UserError
from ...weights.files import read_rows, write_rows, write_whole
from ..validation_report import environment
from .recipe import RECIPES

__all__ = ["DRAWN", "IMAGES", "RESULTS", "main", "montage"]

RESULTS = Path(__file__).parents[2] / "weights" / "results"
IMAGES = (156904, 149974, 154068, 153038, 201899, 434381, 518305, 99598)
DRAWN = IMAGES[:4]
THRESHOLD = "0.8"
TILE, MARGIN = (640, 480), 8


def montage(pictures: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Pictures side by side on white, each in the middle of a tile and no larger than that."""
    width, height = (side + 2 * MARGIN for side in TILE)
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail(TILE)
        left, top = i % columns * width, i // columns * height
        whole.paste(small, (left + (width - small.width) // 2, top + (height - small.height) // 2))
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Train, or go on with a run; measure on the same images; write the row and draw. Returns the exit status."""
    from ...cli import main as command  # the commands as a user gives them

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="minicoco40's labels/train.json")
    parser.add_argument("--images", type=Path, required=True, help="its folder of images")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; one that is there goes on")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder for the csv and the picture (%(default)s)"
    )
    options = parser.parse_args(arguments)
    data = ["--annotations", str(options.annotations), "--images", str(options.images)]
    data += ["--image-ids", *map(str, IMAGES), "--workers", "0"]
    recipe = ["--recipe", "overfit", "--backbone", "lambdaresnet50", "--seed", "0"]
    run = ["detect", "train", *recipe, *data, "--output", str(options.output)]
    status = command([*run, "--resume"] if options.output.exists() else run)
    if status:
        return status
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        status = command(
            ["detect", "validate", "--checkpoint", str(options.output), *data, "--results", str(folder / "ap.csv")]
        )
        files = [options.images / name for name in _names(options.annotations)]
        draw = ["detect", "predict", "--blank", "--threshold", THRESHOLD, "--checkpoint", str(options.output)]
        status = status or command([*draw, "--output", str(folder / "drawn"), *map(str, files)])
        if status:
            return status
        (found,) = read_rows(folder / "ap.csv")
        pictures = [Image.open(folder / "drawn" / f"{file.stem}.png") for file in files]
        whole = montage(pictures)
    made = RECIPES["overfit"]
    row: dict[str, Any] = {"detector": "mask_rcnn", "backbone": "lambdaresnet50", "images": len(IMAGES)}
    row |= {"image_size": made.image_size, "steps": made.steps, "batch_size": made.batch_size}
    row |= {name: value for name, value in found.items() if name.startswith(("box_ap", "mask_ap"))}
    row |= {"command": " ".join(["detect", "train", *recipe, "--image-ids", *map(str, IMAGES)])}
    write_rows(options.results / "detection_overfit.csv", [row | environment(torch.device("cpu"), 1)])
    write_whole(options.results / "detection_overfit.png", lambda file: whole.save(file, "PNG", optimize=True))
    return 0


def _names(annotations: Path) -> list[str]:
    """File names of the images that are drawn, in their order."""
    try:
        images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
        names = {image["id"]: image["file_name"] for image in images}
        return [names[each] for each in DRAWN]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{annotations} has not the images of minicoco40: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
