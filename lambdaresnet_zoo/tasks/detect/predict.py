"""The command `detect predict`: what a detector finds, drawn on the images and written in COCO's format."""

import colorsys
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks
from tqdm import tqdm

from ...errors import UserError
from ...weights.files import write_whole
from ..images import find_images, image_problem, open_image
from ..outputs import check_writable, writing
from ..processes import take_part
from .data import need_pycocotools
from .detector import load_detector
from .score import Detection, coco_results

__all__ = ["PredictOptions", "draw", "predict"]

DETECTIONS = "detections.json"
BLANK = 245  # grey


@dataclass(frozen=True)
class PredictOptions:
    """Options of `detect predict`."""

    inputs: tuple[str, ...]
    checkpoint: str
    output: str
    threshold: float = 0.5
    blank: bool = False
    device: str = "cpu"
    progress: bool | None = None


def predict(options: PredictOptions) -> int:
    """Detect on images; write a PNG for each and all detections in one file.

    Detections are COCO results, with the image's name beside its number. The file has all, the drawings
    those that reach the threshold.

    Returns:
        The exit status: 0; 1 if some images failed; 2 if all did.

    Raises:
        UserError: the detector cannot be used, or the folder cannot be written.
    """
    need_pycocotools()
    output = Path(options.output)
    check_writable("--output", output, folder=True)
    with take_part(options.device) as (device, _, processes):
        if processes > 1:
            raise UserError("detect predict runs in one process; start it without torchrun")
        model, config = load_detector(options.checkpoint, device)
        paths, problems = find_images(options.inputs)
        names = _output_names(paths)
        found: list[Detection] = []
        done = 0
        shown = options.progress if options.progress is not None else sys.stderr.isatty()
        for number, path in enumerate(tqdm(paths, desc="detect", disable=not shown, leave=False), start=1):
            try:
                image = open_image(path)
            except Exception as error:  # whatever Pillow's decoders raise
                problems.append((str(path), image_problem(error)))
                continue
            results = _detections(model, image, number, list(config.categories), device)
            found += [{"file_name": str(path), **result} for result in results.detections]
            canvas = Image.new("RGB", image.size, (BLANK,) * 3) if options.blank else image
            picture = draw(canvas, results.output, list(config.categories.values()), options.threshold)
            with writing("--output", output, "folder"):
                write_whole(output / names[path], lambda file, picture=picture: picture.save(file, "PNG"))  # type: ignore[misc]
            count = int((results.output["scores"] >= options.threshold).sum())
            print(f"{path}: {count} object{'' if count == 1 else 's'}, {output / names[path]}")
            done += 1
        if done:
            with writing("--output", output, "folder"):
                write_whole(output / DETECTIONS, lambda file: file.write_text(json.dumps(found), encoding="utf-8"))
    for name, problem in problems:
        print(f"error: {name}: {problem}", file=sys.stderr)
    return 0 if not problems else 1 if done else 2


@dataclass(frozen=True)
class _Found:
    output: dict[str, Tensor]
    detections: list[Detection]


@torch.inference_mode()
def _detections(
    model: nn.Module, image: Image.Image, number: int, categories: list[int], device: torch.device
) -> _Found:
    output = model([pil_to_tensor(image).to(device).float() / 255])[0]
    output = {key: value.cpu() for key, value in output.items()}
    return _Found(output, coco_results(number, output, categories))


def draw(image: Image.Image, output: Mapping[str, Tensor], names: list[str], threshold: float) -> Image.Image:
    """Boxes, masks, names and scores on an image.

    Args:
        image: to draw on; left as it is.
        output: of torchvision's detector.
        names: of the labels, which begin with 1.
        threshold: smallest score that is drawn.
    """
    kept = output["scores"] >= threshold
    labels = [int(label) - 1 for label in output["labels"][kept]]
    picture = pil_to_tensor(image)
    if not labels:
        return image.copy()
    colors: Any = [_color(label, len(names)) for label in labels]
    if "masks" in output:
        # One by one, the surest last: of masks drawn together, torchvision blackens what two share.
        for mask, color in reversed(list(zip(output["masks"][kept, 0] > 0.5, colors, strict=True))):
            picture = draw_segmentation_masks(picture, mask, alpha=0.5, colors=[color])
    texts = [
        f"{names[label]} {score:.2f}" for label, score in zip(labels, output["scores"][kept].tolist(), strict=True)
    ]
    width = max(1, round(max(image.size) / 400))
    picture = draw_bounding_boxes(picture, output["boxes"][kept], texts, colors=colors, width=width)
    return to_pil_image(picture)


def _color(label: int, labels: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label / labels, 0.85, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def _output_names(paths: list[Path]) -> dict[Path, str]:
    """A file for each image, by its name; numbered where two have the same."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        name, number = f"{path.stem}.png", 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}.png"
        taken.add(name)
        names[path] = name
    return names
