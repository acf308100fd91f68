"""Images of the user: found on the disk and opened as RGB."""

import glob
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from timm.data import get_img_extensions, is_img_extension
from tqdm import tqdm

from ..errors import UserError, first_line
from .passed_over import count_passed, tell_passed

__all__ = [
    *("convert_image", "demo_image", "find_images", "image_problem", "image_problems", "is_turned", "open_image"),
    "tell_problems",
]

SHOWN = 10
CHECKERS = 8  # threads that decode images to see whether they can be
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What shows an image as it is meant to be seen, by its EXIF orientation. Pillow's exif_transpose writes the metadata
anew, and fails where another entry is damaged."""
METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Of Pillow's ``info``, where an orientation may be; a TIFF's Pillow itself minds."""


def find_images(arguments: Iterable[str | Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """The images that files, folders and glob patterns stand for.

    Folders are searched to the bottom for the extensions that timm takes for images; how many of other kinds
    are passed over is told on stderr. A pattern is expanded where no file has its name, for shells that
    do not do so or were told not to.

    Args:
        arguments: files, folders and patterns, as a user types them.

    Returns:
        The paths, sorted and each once, and for each argument that gave none its name and the
        reason. A missing file is such an argument; whether a file is an image shows on opening it.
    """
    paths: dict[str, Path] = {}
    problems: list[tuple[str, str]] = []
    passed: Counter[str] = Counter()
    for argument in arguments:
        found, problem = _expand(str(argument), passed)
        for path in found:
            # Not resolved: two links to one image are two images.
            paths.setdefault(os.path.abspath(path), path)
        if problem:
            problems.append((str(argument), problem))
    tell_passed(passed)
    return sorted(paths.values()), problems


def _expand(argument: str, passed: Counter[str]) -> tuple[list[Path], str]:
    if os.path.isdir(argument):
        found = _search(argument, passed)
        extensions = ", ".join(get_img_extensions())
        return found, "" if found else f"a folder without images; give one with {extensions} in it"
    if os.path.lexists(argument):
        return [Path(argument)], ""
    if not glob.has_magic(argument):
        return [], "no such file or folder; check the name"
    found = []
    for match in glob.glob(argument, recursive=True):
        found += _search(match, passed) if os.path.isdir(match) else [Path(match)]
    return found, "" if found else "a pattern that matches no image; check it"


def _search(folder: str, passed: Counter[str]) -> list[Path]:
    found = []
    for parent, _, names in os.walk(folder):
        found += [Path(parent, name) for name in names if is_img_extension(os.path.splitext(name)[1].lower())]
        passed += count_passed(names)
    return found


def open_image(path: str | Path, upright: bool = True) -> Image.Image:
    """Read an image as RGB.

    Args:
        path: a file in any format and mode that Pillow reads; of an animation the first frame.
            Transparency is dropped, 16 bits are scaled to 8, and fractions from 0 to 1.
        upright: turn it as its EXIF orientation says.

    Raises:
        Exception: what Pillow's decoder raises on what is missing, damaged or no image: OSError,
            but on some damaged files others. ``image_problem`` words it for a user.
    """
    with warnings.catch_warnings():
        # On odd metadata, and on large images well before they become an error.
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            return convert_image(image, upright=upright)


def convert_image(image: Image.Image, mode: str = "RGB", upright: bool = True) -> Image.Image:
    """An open image in a mode of 8 bits, by Pillow's conversion but for modes that it would clip.

    Args:
        image: in any mode. 16 bits are scaled to 8, fractions from 0 to 1 to whole numbers from 0 to 255.
        mode: as Pillow names it; where empty, its own, unless that is wider.
        upright: turn it as its EXIF orientation says.

    Raises:
        Exception: as ``open_image``.
    """
    image.load()  # what is damaged is to raise here, not where metadata are read
    turn = TURNS.get(_orientation(image)) if upright else None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    image = image.convert(mode) if mode else image
    if turn is None:
        return image
    image = image.transpose(turn)
    for key in METADATA:  # or whoever saves it, and looks at it then, turns it again
        image.info.pop(key, None)
    return image


def is_turned(image: Image.Image) -> bool:
    """Whether an image's EXIF orientation asks for it to be turned, before and after a conversion."""
    return _orientation(image) in TURNS


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none that can be read: metadata may be damaged where pixels are not."""
    if not any(key in image.info for key in METADATA):
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of whatever is damaged
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of wider numbers in mode L; Pillow would clip these at 255, which leaves a white image."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    highest = values.max(initial=0)
    scale = 1 / 257 if highest > 255 or image.mode.startswith("I;16") else 1
    if image.mode == "F" and highest <= 1:
        scale = 255
    narrow = Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
    narrow.info = dict(image.info)  # the orientation is in it
    return narrow


def image_problem(error: Exception) -> str:
    """What kept an image from being read, and what to do, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file; check the name"
    if isinstance(error, IsADirectoryError):
        return "a folder; give the images in it"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow reads; convert it to JPEG or PNG"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels to be safe to decode; make the image smaller"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror}); check the file"
    return f"cannot be decoded ({first_line(error)}); the file is damaged, get it again"


def image_problems(check: Callable[[int], str], numbers: Sequence[int], progress: bool) -> list[str]:
    """What is wrong with each image, in the order of their numbers; empty where nothing is.

    Args:
        check: says it of a number, in several threads at once, or raises what keeps the image from being read.
        numbers: of the images.
        progress: show a bar on stderr.
    """

    def problem(number: int) -> str:
        try:
            return check(number)
        except UserError as error:
            return str(error)
        except Exception as error:  # whatever Pillow's decoders raise
            return image_problem(error)

    with ThreadPoolExecutor(CHECKERS) as pool:
        found = pool.map(problem, numbers)
        return list(tqdm(found, total=len(numbers), desc="check images", disable=not progress, leave=False))


def tell_problems(data: object, problems: Sequence[str], skip_bad: bool) -> None:
    """Raise the first problem, or with ``skip_bad`` list them on stderr."""
    if not problems:
        return
    if not skip_bad:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise UserError(f"{data}: {problems[0]}{more}; --skip-bad leaves out what is wrong")
    for problem in problems[:SHOWN]:
        print(f"left out: {data}: {problem}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"left out: {data}: {len(problems) - SHOWN} more", file=sys.stderr)


def demo_image() -> tuple[str, Image.Image]:
    """The photograph of a cat that scikit-image carries, with a name to show.

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        from skimage import data

        return "skimage.data.cat()", Image.fromarray(data.cat())
    except ImportError as error:
        raise UserError('--demo needs scikit-image: pip install "lambdaresnet-zoo[demo]"') from error
