"""Every image of data of a few thousand is decoded before training begins."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...errors import UserError
from ..images import image_problems, tell_problems
from ..processes import gather, together
from .data import TrainData, check_left
from .options import TrainOptions
from .samples import IndexedPairs

__all__ = ["check_images"]

FEW = 5000  # images that are all decoded before training


def check_images(data: TrainData, options: TrainOptions, process: int, processes: int, progress: bool) -> None:
    """Decode the images; leave out of training those that cannot be, or stop at the first.

    Those to evaluate on are left out and counted by the evaluation itself.

    Raises:
        UserError: one cannot be decoded, and not ``skip_bad``; the message names it. A class is left without any.
    """
    few = data.count <= FEW
    if not isinstance(data.images, IndexedPairs) or not (few if options.check_images is None else options.check_images):
        return
    share = range(process, len(data.images), processes)
    bad = gather(together(lambda: _problems(data.images, share, progress and not process)))
    problems = [] if process else [f"{name}: {text}" for part in bad for _, name, text in part]
    together(lambda: tell_problems(data.name, problems, options.skip_bad))
    wrong = {number for part in bad for number, _, _ in part}
    data.images.indices = [index for number, index in enumerate(data.images.indices) if number not in wrong]
    data.count = len(data.images)
    if not data.count:
        raise UserError(f"{data.name}: no image can be decoded")
    if wrong:
        together(lambda: check_left(data))
    if data.validation is not None and isinstance(data.validation.images, IndexedPairs) and not options.skip_bad:
        images = data.validation.images
        found = gather(together(lambda: _problems(images, range(len(images)), False)))
        problems = [f"{name}: {text}" for part in found for _, name, text in part]
        together(lambda: tell_problems(f"{data.name}, to evaluate on", problems, False))


def _problems(images: Any, numbers: Sequence[int], progress: bool) -> list[tuple[int, str, str]]:
    """Number, name and problem of each image that cannot be decoded."""

    def problem(number: int) -> str:
        images.pair(number)
        return ""

    with _own_handles(images):
        found = image_problems(problem, numbers, progress)
    return [(number, images.name(number), text) for number, text in zip(numbers, found, strict=True) if text]


@contextmanager
def _own_handles(images: Any) -> Iterator[None]:
    """Timm keeps tars open, and the loader's workers, which come later, would share the handles."""
    reader: Any = getattr(images.dataset, "reader", None)
    keeps = getattr(reader, "cache_tarfiles", False)
    if keeps:
        reader.cache_tarfiles = False
    try:
        yield
    finally:
        if keeps:
            reader.cache_tarfiles = True
