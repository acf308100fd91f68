"""Images in folders that are passed over, as timm takes no such kinds for images: told, not left in silence."""

import os
import sys
from collections import Counter
from collections.abc import Iterable

from timm.data import get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder

from ..errors import UserError
from .processes import is_first

__all__ = ["count_passed", "read_folder", "tell_passed"]

KINDS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".pgm", ".ppm", ".tif", ".tiff"),
    *(".webp", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf"),
)
"""Extensions of images, the last ones of cameras' own formats, that are not among timm's unless a user adds them."""


def count_passed(names: Iterable[str]) -> Counter[str]:
    """How many files have the name of an image that timm does not take for one, by their extensions."""
    kinds = _kinds()
    passed = (name.lower() for name in names)
    return Counter(os.path.splitext(name)[1] for name in passed if name.endswith(kinds))


def tell_passed(passed: Counter[str], where: object = "") -> None:
    """Say on stderr, once of all processes, how many images of which kinds were passed over, if any were.

    Args:
        passed: as ``count_passed`` gives it.
        where: the folder.
    """
    if passed.total() and is_first():
        print(f"{where}{': ' if where else ''}passed over {_text(passed)}", file=sys.stderr)


def read_folder(root: str, input_key: str | None = None) -> ReaderImageFolder:
    """Timm's reader of a folder; says what is passed over, in one walk over the files.

    Args:
        root: of the folder.
        input_key: the extensions to read, with semicolons between; nothing else is looked for then.

    Raises:
        UserError: all of the images are passed over.
        RuntimeError: from timm: there is no image.
    """
    if input_key:
        return ReaderImageFolder(root, input_key=input_key)
    reader = ReaderImageFolder(root, input_key=";".join((*get_img_extensions(), *_kinds())))
    passed = count_passed(path for path, _ in reader.samples)
    if passed:
        kinds, names = _kinds(), list(reader.class_to_idx)
        reader.samples = [sample for sample in reader.samples if not sample[0].lower().endswith(kinds)]
        if not reader.samples:
            raise UserError(f"{root} has no images that can be read; passed over {_text(passed)}")
        numbers = sorted({number for _, number in reader.samples})
        places = {number: place for place, number in enumerate(numbers)}
        reader.samples = [(path, places[number]) for path, number in reader.samples]
        reader.class_to_idx = {names[number]: place for number, place in places.items()}
        tell_passed(passed, root)
    return reader


def _kinds() -> tuple[str, ...]:
    known = get_img_extensions()
    return tuple(kind for kind in KINDS if kind not in known)


def _text(passed: Counter[str]) -> str:
    count, told = passed.total(), ", ".join(f"{count} {kind}" for kind, count in passed.most_common())
    return f"{count} file{'s' * (count > 1)} of kinds that are not read: {told}; convert such to JPEG or PNG"
