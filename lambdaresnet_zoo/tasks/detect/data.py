"""COCO-format data: an annotation file, checked, beside a folder of images."""

import contextlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...errors import UserError, first_line
from ..images import image_problems, open_image, tell_problems

if TYPE_CHECKING:
    from pycocotools.coco import COCO

__all__ = ["CocoData", "check_images", "need_pycocotools", "object_mask", "read_coco"]


@dataclass
class CocoData:
    """Annotations as pycocotools indexes them, and where the images are."""

    path: Path
    """The annotation file."""
    folder: Path
    """Of the images."""
    coco: "COCO"
    ids: list[int]
    """Of the images in use, in the file's order."""
    categories: dict[int, str]
    """Names by id, which may have gaps; sorted by id."""

    def file(self, image_id: int) -> Path:
        """Where an image is."""
        return self.folder / self.coco.imgs[image_id]["file_name"]

    def open(self, image_id: int) -> Image.Image:
        """An image as RGB, as large as the annotations say, else as it is stored.

        Annotators see an image as its EXIF orientation says or as it is stored; its size tells which.
        """
        path = self.file(image_id)
        image = open_image(path, upright=False)
        if image.size != self.size(image_id):
            upright = open_image(path)
            return upright if upright.size == self.size(image_id) else image
        return image

    def size(self, image_id: int) -> tuple[int, int]:
        """Width and height that the annotation file gives."""
        image = self.coco.imgs[image_id]
        return image["width"], image["height"]

    def objects(self, image_id: int) -> list[dict[str, Any]]:
        """Annotations of an image to train on: crowd regions are left out, as COCO's references do."""
        return [found for found in self.coco.imgToAnns[image_id] if not found.get("iscrowd")]


def read_coco(
    path: str | Path,
    folder: str | Path,
    masks: bool,
    skip_bad: bool = False,
    limit: int | None = None,
    image_ids: Sequence[int] = (),
) -> CocoData:
    """Read and check an annotation file.

    Polygons, run lengths and compressed run lengths may be mixed: pycocotools reads each. Missing
    ``iscrowd`` is 0, missing ``area`` that of the box. Images without annotations are kept.

    Args:
        path: the annotation file.
        folder: of the images that it names.
        masks: whether each annotation needs a segmentation.
        skip_bad: leave out annotations that are wrong, and list them on stderr.
        limit: use only so many images, the first ones.
        image_ids: use only these images.

    Raises:
        UserError: pycocotools is missing, the file is not COCO's format, or something in it is wrong;
            the message names file and id.
    """
    need_pycocotools()
    from pycocotools.coco import COCO

    path, folder = Path(path), Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images; check the name")
    content = _parse(path)
    images = _by_id(path, "image", content["images"], ("file_name", "width", "height"))
    categories = _by_id(path, "category", content["categories"], ("name",))
    annotations = _by_id(path, "annotation", content["annotations"], ("image_id", "category_id"))
    unknown = [number for number in image_ids if number not in images]
    if unknown:
        raise UserError(f"{path} has no image with the id {unknown[0]}")
    chosen = [number for number in images if not image_ids or number in image_ids][:limit]
    if not chosen or not categories:
        raise UserError(f"{path} has {len(images)} images and {len(categories)} categories: at least 1 of each")
    problems = {}
    for number, found in annotations.items():
        problem = _annotation_problem(found, images, categories, masks)
        if problem:
            problems[number] = f"annotation {number} of image {_named(images, found['image_id'])}: {problem}"
    tell_problems(path, list(problems.values()), skip_bad)
    coco = COCO()
    coco.dataset = {
        **content,
        "annotations": [_completed(found) for number, found in annotations.items() if number not in problems],
    }
    if 0 in annotations:
        # COCOeval takes a match with annotation 0 for no match.
        for number, found in enumerate(coco.dataset["annotations"], start=1):
            found["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    names = {number: str(categories[number]["name"]) for number in sorted(categories)}
    return CocoData(path, folder, coco, chosen, names)


def need_pycocotools() -> None:
    """Raise UserError where pycocotools, which an extra brings, is not installed."""
    try:
        import pycocotools  # noqa: F401
    except ImportError as error:
        raise UserError('detect needs pycocotools: pip install "lambdaresnet-zoo[detection]"') from error


def check_images(data: CocoData, ids: Iterable[int], skip_bad: bool, progress: bool) -> list[int]:
    """Open and decode images; the ids of those that are sound, in order.

    Raises:
        UserError: one is missing, damaged, or of another size than the annotation file says, and not
            ``skip_bad``; the message names file and id.
    """
    ids = list(ids)

    def problem(image_id: int) -> str:
        size = data.open(image_id).size
        width, height = data.size(image_id)
        if size == (width, height):
            return ""
        return f"has {size[0]}x{size[1]} pixels, and {data.path.name} says {width}x{height}; correct one of them"

    found = image_problems(problem, ids, progress)
    problems = [f"image {_named(data.coco.imgs, ids[index])}: {text}" for index, text in enumerate(found) if text]
    tell_problems(data.path, problems, skip_bad)
    return [image_id for image_id, text in zip(ids, found, strict=True) if not text]


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such annotation file; check the name") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    parts = ("images", "categories", "annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise UserError(f"{path} is not in COCO's format: it needs the lists images, categories and annotations")
    return content


def _by_id(path: Path, what: str, entries: Sequence[Any], keys: tuple[str, ...]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            raise UserError(f"{path}: {what} at position {position} has no whole number as its id")
        missing = [key for key in keys if key not in entry]
        if missing:
            raise UserError(f"{path}: {what} {entry['id']} has no '{missing[0]}'")
        if entry["id"] in found:
            raise UserError(f"{path}: two {what} entries have the id {entry['id']}; number them anew")
        found[entry["id"]] = entry
    return found


def _annotation_problem(
    found: Mapping[str, Any], images: Mapping[int, Any], categories: Mapping[int, Any], masks: bool
) -> str:
    """What is wrong with an annotation, or nothing."""
    if found["image_id"] not in images:
        return "there is no such image"
    if found["category_id"] not in categories:
        known = ", ".join(map(str, list(categories)[:5])) + (", ..." if len(categories) > 5 else "")
        return f"category_id {found['category_id']} is not among the categories ({known})"
    box = found.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"bbox {box} is not [x, y, width, height]"
    if box[2] <= 0 or box[3] <= 0:
        return f"the box has width {box[2]} and height {box[3]}; both must be above 0"
    if masks and not found.get("iscrowd"):
        image = images[found["image_id"]]
        return _mask_problem(found.get("segmentation"), (image["height"], image["width"]))
    return ""


def _mask_problem(mask: Any, size: tuple[int, int]) -> str:
    if not mask:
        return "no segmentation, and a network with masks needs one; train faster_rcnn or retinanet without"
    if isinstance(mask, dict):
        if list(mask.get("size", ())) != list(size):
            return f"the run lengths are of {mask.get('size')} (height, width), and the image is {list(size)}"
        counts = mask.get("counts")
        if isinstance(counts, list):
            good = all(isinstance(count, int) and count >= 0 for count in counts) and sum(counts) == math.prod(size)
            return "" if good else "the run lengths do not add up to the image"
        return "" if isinstance(counts, str) and counts else "run lengths without counts"
    if not isinstance(mask, list):
        return "the segmentation is neither polygons nor run lengths"
    for polygon in mask:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_number, polygon)):
            return "a polygon is not x, y, x, y, ... of at least 3 points"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _completed(found: Mapping[str, Any]) -> dict[str, Any]:
    width, height = found["bbox"][2:]
    return {"iscrowd": 0, "area": width * height, **found}


def _named(images: Mapping[int, Any], image_id: int) -> str:
    return f"{image_id} ({images[image_id]['file_name']})" if image_id in images else str(image_id)


def object_mask(data: CocoData, found: Mapping[str, Any]) -> "np.ndarray":
    """The mask of an annotation, [h, w] uint8."""
    return np.asarray(data.coco.annToMask(found), dtype=np.uint8)
