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
    masks: bool = True
    """Whether they have masks to be scored: of every annotation that needs one, and checked."""

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
    masks: bool | None,
    skip_bad: bool = False,
    limit: int | None = None,
    image_ids: Sequence[int] = (),
    scored: bool = False,
) -> CocoData:
    """Read and check an annotation file.

    Polygons, run lengths and compressed run lengths may be mixed: pycocotools reads each. Missing
    ``iscrowd`` is 0, missing ``area`` that of the box. Images without annotations are kept.

    Args:
        path: the annotation file.
        folder: of the images that it names.
        masks: whether each annotation needs a segmentation; None asks for them where all have one.
        skip_bad: leave out annotations that are wrong, and list them on stderr.
        limit: use only so many images, the first ones.
        image_ids: use only these images.
        scored: whether detections are scored on the data, for which crowd regions need segmentations too.

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
    images = _by_id(path, "image", content["images"], {"file_name": str, "width": int, "height": int})
    categories = _by_id(path, "category", content["categories"], {"name": object})
    annotations = _by_id(path, "annotation", content["annotations"], {"image_id": object, "category_id": object})
    unknown = [number for number in image_ids if number not in images]
    if unknown:
        raise UserError(f"{path} has no image with the id {unknown[0]}")
    chosen = [number for number in images if not image_ids or number in image_ids][:limit]
    if not chosen or not categories:
        raise UserError(f"{path} has {len(images)} images and {len(categories)} categories: at least 1 of each")
    if masks is None:
        masks = all(found.get("segmentation") for found in annotations.values())
    problems = {}
    for number, found in annotations.items():
        problem = _annotation_problem(found, images, categories)
        if not problem and masks and (scored or not found.get("iscrowd")):
            problem = _mask_problem(found.get("segmentation"), images[found["image_id"]])
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
    return CocoData(path, folder, coco, chosen, names, masks)


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


def _by_id(path: Path, what: str, entries: Sequence[Any], keys: Mapping[str, type]) -> dict[int, dict[str, Any]]:
    """Entries by their ids, each with the keys, whose values are of these types."""
    found: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            raise UserError(f"{path}: {what} at position {position} has no whole number as its id")
        missing = [key for key in keys if key not in entry]
        if missing:
            raise UserError(f"{path}: {what} {entry['id']} has no '{missing[0]}'")
        for key, kind in keys.items():
            if kind is int and isinstance(entry[key], float) and entry[key].is_integer():
                entry[key] = int(entry[key])  # tables are written so
        wrong = [key for key, kind in keys.items() if not isinstance(entry[key], kind)]
        if wrong:
            told = f"{wrong[0]} {entry[wrong[0]]!r}, which is no {'text' if keys[wrong[0]] is str else 'whole number'}"
            raise UserError(f"{path}: {what} {entry['id']} has the {told}")
        if entry["id"] in found:
            raise UserError(f"{path}: two {what} entries have the id {entry['id']}; number them anew")
        found[entry["id"]] = entry
    return found


def _annotation_problem(found: Mapping[str, Any], images: Mapping[int, Any], categories: Mapping[int, Any]) -> str:
    """What is wrong with an annotation beside its mask, or nothing."""
    wrong = [key for key in ("image_id", "category_id") if not _is_number(found[key])]
    if wrong:
        return f"{wrong[0]} {found[wrong[0]]!r} is no number"
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
    if found.get("area") is not None and not _is_number(found["area"]):
        return f"area {found['area']!r} is no number"
    return ""


def _mask_problem(mask: Any, image: Mapping[str, Any]) -> str:
    """What is wrong with the segmentation of an object on an image, or nothing."""
    if not mask:
        return "no segmentation, and a network with masks needs one; train faster_rcnn or retinanet without"
    if isinstance(mask, dict):
        size, given = [image["height"], image["width"]], mask.get("size")
        if given != size:
            return f"the run lengths are of {given} (height, width), and the image is {size}"
        counts = mask.get("counts")
        if not counts or not isinstance(counts, list | str):
            return "run lengths without counts"
        counts = _run_lengths(counts) if isinstance(counts, str) else counts
        good = all(isinstance(count, int) and count >= 0 for count in counts) and sum(counts) == math.prod(size)
        return "" if good else "the run lengths do not add up to the image"
    if not isinstance(mask, list):
        return "the segmentation is neither polygons nor run lengths"
    for polygon in mask:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_number, polygon)):
            return "a polygon is not x, y, x, y, ... of at least 3 points"
    return ""


def _run_lengths(text: str) -> list[int]:
    """The counts that COCO has written as text, empty where it is none: pycocotools decodes some of that to noise.

    A count has five bits a character, the lowest first, from the fourth on less the one before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64 or shift > 60:
            return []
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue  # there is more of it
        value -= (bits & 0x10) << (shift - 4)  # the sign
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return [] if shift else counts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _completed(found: Mapping[str, Any]) -> dict[str, Any]:
    width, height = found["bbox"][2:]
    given = {key: value for key, value in found.items() if value is not None}
    return {"area": width * height, **given, "iscrowd": int(bool(found.get("iscrowd")))}


def _named(images: Mapping[int, Any], image_id: Any) -> str:
    known = _is_number(image_id) and image_id in images
    return f"{image_id} ({images[image_id]['file_name']})" if known else str(image_id)


def object_mask(data: CocoData, found: Mapping[str, Any]) -> "np.ndarray":
    """The mask of an annotation, [h, w] uint8."""
    return np.asarray(data.coco.annToMask(found), dtype=np.uint8)
