"""The command `label`: the teacher, the images, the loop; in one job, several, or under torchrun."""

import hashlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import UserError
from ...startup import INTERRUPTED
from ..loading import load_model
from ..outputs import check_writable
from ..processes import SharedError, gather, take_part, together
from ..validate import Loading, Precision, image_loader, resolve_input
from ..validation_classes import known_classes
from ..validation_data import STREAMS, Source, open_source
from ..validation_images import Batch, IndexedImages
from .files import LABELS, Choice, LabelStore, Said

__all__ = ["LabelOptions", "UnlabelledImages", "label", "open_images"]

ALL_CLASSES = 100
"""Classes up to which all probabilities are kept, where the user says nothing."""


@dataclass(frozen=True)
class LabelOptions:
    """The options of the command; the names are those of validate's where it has them."""

    teacher: str
    out: str
    checkpoint: str = ""
    data: str = ""
    dataset: str = ""
    split: str = ""
    input_key: str | None = None
    hard: bool = False
    topk: int | None = None
    threshold: float = 0.0
    per_class: int | None = None
    repeat: bool = False
    shard: tuple[int, int] = (0, 1)
    img_size: int | None = None
    crop_pct: float | None = None
    batch_size: int = 256
    workers: int = 4
    device: str = ""
    amp: bool = False
    amp_dtype: str = "float16"
    channels_last: bool = False
    skip_bad: bool = False
    progress: bool | None = None


class UnlabelledImages(IndexedImages):
    """Images of a data set by their places; the place stands where a class would be.

    Args:
        dataset: timm's, with random access; classes that it may have are passed over.
        indices: places of the images to give, in this order.
    """

    upright = True  # as `train` and `predict` see images

    def __init__(self, dataset: Any, indices: Sequence[int]):
        super().__init__(dataset)
        self.indices = indices

    def open(self, number: int) -> Any:
        """The image at a place of ``indices``, before any transform; reading it may raise anything."""
        read, _ = self._read(int(self.indices[number]))
        return read()

    def path(self, number: int) -> str:
        """Its name within the data, as timm's reader has it."""
        name = self._name(int(self.indices[number]))
        root = str(getattr(getattr(self.dataset, "reader", None), "root", "") or "")
        inside = os.path.join(root, "")
        if root and name.startswith(inside):  # of a folder, however it was named
            return name[len(inside) :]
        return os.path.relpath(name, root) if root and os.path.isabs(name) else name

    def _target(self, index: int, target: Any) -> int:
        return index


def label(options: LabelOptions) -> int:
    """Label images with a teacher, and once all are labelled, choose what to keep.

    Args:
        options: of the command.

    Returns:
        The exit status: 0; 130 after Ctrl-C.

    Raises:
        UserError: nothing can be labelled, or it cannot go on.
    """
    with take_part(options.device) as (device, process, processes):
        try:
            return _label(options, device, process, processes)
        except SharedError:
            if process:
                return 2  # the first one tells
            raise


def open_images(data: str, dataset: str, split: str, input_key: str | None) -> Any:
    """Timm's data set of images with random access, their classes not needed.

    Raises:
        UserError: there is no such data, or it can only be read from start to end.
    """
    # Of parquet without labels, timm's reader would miss their column.
    source = Source(data, dataset, split, input_key=input_key, target_key=input_key or "image")
    found = open_source(source, labelled=False)
    if found.kind in STREAMS:
        raise UserError(
            f"{data or dataset} can only be read from start to end; label needs a folder, tar or parquet, "
            "whose images it can find again"
        )
    assert isinstance(found.images, IndexedImages)
    return found.images.dataset


def _label(options: LabelOptions, device: torch.device, process: int, processes: int) -> int:
    model, config, images, store, run = together(partial(_prepare, options, device))
    together(partial(_begin, store, run, process))
    job, jobs = options.shard[0] * processes + process, options.shard[1] * processes
    own = [part for part in store.missing() if part % jobs == job]
    shown = options.progress if options.progress is not None else sys.stderr.isatty()
    loading = Loading(options.batch_size, options.workers, options.skip_bad, shown and not process)
    precision = Precision(options.amp_dtype if options.amp else "", options.channels_last)
    try:
        together(partial(_work, model, config, images, store, own, run["topk"], device, loading, precision))
    except KeyboardInterrupt:
        if not process:
            there = len(store.parts) - len(store.missing())
            print(
                f"interrupted: {there} of {len(store.parts)} parts are in {options.out}; run the same command to go on",
                file=sys.stderr,
            )
        return INTERRUPTED
    gather(None)  # all have written what is theirs
    if process:
        return 0
    missing = store.missing()
    if missing:
        print(f"{len(store.parts) - len(missing)} of {len(store.parts)} parts are in {options.out}; the other shards "
              "have yet to end")  # fmt: skip
        return 0
    _finish(options, store, run)
    return 0


def _prepare(
    options: LabelOptions, device: torch.device
) -> tuple[nn.Module, dict[str, Any], Any, LabelStore, dict[str, Any]]:
    """Teacher, preprocessing, images, folder, and what makes the run what it is."""
    check_writable("--out", options.out, folder=True)
    model = load_model(options.teacher, options.checkpoint or None, device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    classes: Any = model.num_classes
    topk = min(classes, options.topk or (classes if classes <= ALL_CLASSES else 10))
    config = resolve_input(model, options.img_size, options.crop_pct)
    images = open_images(options.data, options.dataset, options.split, options.input_key)
    store = LabelStore(Path(options.out), len(images))
    run = {
        "teacher": options.teacher,
        "checkpoint": options.checkpoint,
        "weights_sha256": _digest(model),
        "num_classes": classes,
        "classes": known_classes(model),
        "data": os.path.abspath(options.data) if options.data else "",
        "dataset": options.dataset,
        "split": options.split,
        "input_key": options.input_key,
        "images": len(images),
        "input_size": list(config["input_size"]),
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
        "upright": UnlabelledImages.upright,
        "precision": str(Precision(options.amp_dtype if options.amp else "")),
        "topk": topk,
    }
    return model, config, images, store, run


def _begin(store: LabelStore, run: dict[str, Any], process: int) -> None:
    if not process:
        store.begin(run)


def _digest(model: nn.Module) -> str:
    """sha256 of the names and the values of all weights."""
    state = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def _work(
    model: nn.Module,
    config: dict[str, Any],
    images: Any,
    store: LabelStore,
    parts: Sequence[int],
    topk: int,
    device: torch.device,
    loading: Loading,
    precision: Precision,
) -> None:
    """Label the images of some parts, and write each part once it is whole."""
    indices = [index for part in parts for index in store.images(part)]
    if not indices:
        return
    unlabelled = UnlabelledImages(images, indices)
    loader = image_loader(unlabelled, config, device, loading)
    shown = tqdm(total=len(indices), unit="image", disable=not loading.progress, dynamic_ncols=True)
    waiting = list(parts)
    rows: list[Said] = []
    bad: list[tuple[str, str]] = []
    place = 0
    try:
        with torch.inference_mode(), shown as bar:
            for pixels, batch in loader:
                _check(batch, loading.skip_bad)
                said = iter(_said(model, pixels, topk, precision))
                good, problems = set(batch.target.tolist()), iter(batch.problems)
                taken = indices[place : place + len(good) + len(batch.problems)]
                for number, index in enumerate(taken, start=place):
                    if index in good:
                        rows.append(Said(index, unlabelled.path(number), *next(said)))
                    else:
                        bad.append(next(problems))
                    if index == store.images(waiting[0])[-1]:  # a batch may end one part and begin the next
                        store.write_part(waiting.pop(0), rows, bad)
                        rows, bad = [], []
                place += len(taken)
                bar.update(len(taken))
    except torch.OutOfMemoryError as error:
        raise UserError(f"device '{device}' is out of memory; use a smaller --batch-size") from error


def _check(batch: Batch, skip: bool) -> None:
    if batch.problems and not skip:
        name, problem = batch.problems[0]
        raise UserError(f"{name}: {problem}; or leave such images out with --skip-bad")
    if batch.broken:
        raise UserError(batch.broken)


def _said(model: nn.Module, pixels: Tensor, topk: int, precision: Precision) -> list[tuple[list[int], list[float]]]:
    """What the teacher says of images [B, C, h, w]: classes and their probabilities, best first."""
    if not len(pixels):
        return []
    if precision.channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    dtype = getattr(torch, precision.amp) if precision.amp else None
    with torch.autocast(pixels.device.type, dtype=dtype) if dtype else nullcontext():
        logits = model(pixels)
    probabilities, classes = logits.float().softmax(1).topk(topk)
    if not probabilities.isfinite().all():
        raise UserError("the teacher gives no finite numbers; check its weights, or --amp-dtype")
    return list(zip(classes.tolist(), probabilities.tolist(), strict=True))


def _finish(options: LabelOptions, store: LabelStore, run: dict[str, Any]) -> None:
    """Choose, write, and tell."""
    choice = Choice(options.hard, options.threshold, options.per_class, options.repeat)
    rows = store.finish(run, choice)
    for name, problem in store.bad():
        print(f"left out: {name}: {problem}", file=sys.stderr)
    kept = sum(row["kept"] for row in rows)
    print(f"{kept} labels of {store.count} images in {Path(options.out) / LABELS}, "
          f"{'hard' if choice.hard else 'soft'}, by {options.teacher}")  # fmt: skip
    none = [str(row["name"]) for row in rows if not row["kept"]]
    if none:
        told = ", ".join(none[:5]) + (", ..." if len(none) > 5 else "")
        print(f"note: no image of {len(none)} of {len(rows)} classes is kept: {told}", file=sys.stderr)
