"""The images to train and to evaluate on, opened by timm's readers and checked before the first step."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data.readers.class_map import load_class_map

from ...errors import UserError
from ..validation_data import STREAMS, Source, Validation, is_hidden, open_source, resolve_source
from ..validation_images import IndexedImages
from .options import TrainOptions
from .samples import IndexedPairs, Pairs

__all__ = ["TrainData", "add_pseudo_labels", "check_left", "open_data"]

HELD_OUT = 0.1


@dataclass
class TrainData:
    """Data that is open."""

    name: str
    """What the user named, and its split."""
    kind: str
    """``folder``, ``tar``, or the prefix of timm's name."""
    classes: tuple[str, ...]
    """Names in the order of their numbers, the numbers themselves where the data has none."""
    images: Pairs | None
    """All images to train on; None for a stream."""
    reader: Any
    """timm's reader of a stream."""
    count: int
    """Images to train on."""
    validation: Validation | None = None
    """The share of this process; None where there is nothing to evaluate on."""
    held_out: bool = False
    soft: bool = False
    """Whether targets are soft labels."""
    pseudo: int = 0
    """Of the images, those with pseudo-labels."""


def open_data(options: TrainOptions, process: int = 0, processes: int = 1) -> TrainData:
    """Open the data.

    Args:
        options: which data.
        process: number of this process.
        processes: that share the images.

    Raises:
        UserError: there is no such data, a class is without images or alone, or one of validation is unknown.
    """
    own = (options.class_map, options.input_key, options.target_key)
    source = Source(options.data, options.dataset, options.train_split, *own, options.train_num_samples)
    found = open_source(source, process, processes, training=True)
    name = f"{options.data or options.dataset} {found.split}".strip()
    if found.kind in STREAMS:
        return _open_stream(options, found, name, process, processes)
    assert isinstance(found.images, IndexedImages)
    dataset = found.images.dataset
    if found.kind == "folder":
        _check_folders(Path(dataset.reader.root))
    targets = _targets(dataset)
    classes = _names(options, found.classes, targets)
    indices: Sequence[int] = range(len(dataset))
    _check_targets(name, classes, targets)
    validation, held_out = None, False
    if options.val_fraction != 0:
        other = None if options.val_fraction else _validation_source(options, source)
        if other is not None:
            validation = _open_validation(options, other, classes, process, processes)
        elif targets is not None:
            indices, kept = _hold_out(targets, options.val_fraction or HELD_OUT)
            if kept:  # none where each class has one image
                images = IndexedPairs(dataset, kept, None, process, processes)
                validation, held_out = Validation(images, found.kind, found.split, classes, len(kept)), True
    pairs = IndexedPairs(dataset, indices)
    return TrainData(name, found.kind, classes, pairs, None, len(pairs), validation, held_out)


def _open_stream(
    options: TrainOptions, found: Validation, name: str, process: int, processes: int
) -> TrainData:  # fmt: skip
    if found.kind != "wds":
        raise UserError(f"{name}: streams of Hugging Face cannot be trained on here; download them: --dataset hfds/...")
    if options.pseudo_labels:
        raise UserError(
            "--pseudo-labels cannot be mixed with a stream; give the labelled images as a folder or parquet"
        )
    reader: Any = found.images.reader  # type: ignore[union-attr]
    shards = len(reader.split_info.filenames)
    if shards < processes:
        raise UserError(f"{name} has {shards} shards for {processes} processes; start fewer, or write more shards")
    if found.count is None:
        raise UserError(f"{name}: how many images the shards hold is not known; give --train-num-samples N")
    classes = _names(options, (), None)
    if not classes:
        raise UserError(
            f"{name}: how many classes a stream has is not known; give --num-classes N, or --class-map FILE"
        )
    own = (options.class_map, options.input_key, options.target_key)
    source = Source(options.data, options.dataset, options.train_split, *own)
    other = None if options.val_fraction == 0 else _validation_source(options, source)
    validation = _open_validation(options, other, classes, process, processes) if other else None
    return TrainData(name, found.kind, classes, None, reader, found.count, validation)


def _validation_source(options: TrainOptions, training: Source) -> Source | None:
    """Where there are images to evaluate on, if the user named them, or the data has a split of them."""
    own = (options.class_map, options.input_key, options.target_key)
    source = Source(options.val_data or options.data, options.dataset, options.val_split, *own, options.val_num_samples)
    if options.val_data or options.val_split:
        return source
    try:
        same = resolve_source(source) == resolve_source(training, training=True)
    except UserError:  # there is no such split
        return None
    return None if same else source


def _open_validation(
    options: TrainOptions, source: Source, classes: tuple[str, ...], process: int, processes: int
) -> Validation:
    found = open_source(source, process, processes)
    if not isinstance(found.images, IndexedImages):
        found.images.upright = True  # as those to train on
        return found
    dataset = found.images.dataset
    name = f"{source.data or source.dataset} {found.split}".strip()
    places = None
    if found.classes:
        known = {label: number for number, label in enumerate(classes)}
        targets = _targets(dataset)
        _check_labels(name, targets)
        used = set(range(len(found.classes)) if targets is None else targets)
        missing = next((label for n, label in enumerate(found.classes) if n in used and label not in known), None)
        if missing is not None:
            raise UserError(f"{name}: the training images have no class '{missing}'; add some, or leave it out here")
        places = [known.get(label, -1) for label in found.classes]
    else:
        targets = _targets(dataset)
        _check_labels(name, targets)
        if targets and max(targets) >= len(classes):
            raise UserError(f"{name} has a class {max(targets)}, and those trained on run from 0 to {len(classes) - 1}")
    images = IndexedPairs(dataset, range(len(dataset)), places, process, processes)
    return Validation(images, found.kind, found.split, classes, len(dataset))


def add_pseudo_labels(data: TrainData, options: TrainOptions) -> None:
    """Mix in the images that ``label`` gave labels to.

    Raises:
        UserError: the folder holds no such labels, or of other classes.
    """
    from .pseudo import mixed_dataset, read_pseudo_labels

    assert data.images is not None
    labels = read_pseudo_labels(options.pseudo_labels, data.classes, options.pseudo_data)
    mixed = mixed_dataset(data.images, labels, options.pseudo_ratio, options.seed)
    data.images, data.soft, data.pseudo = mixed, labels.soft, len(mixed) - data.count
    data.count = len(mixed)


def check_left(data: TrainData) -> None:
    """Check that every class has an image after some were left out.

    Raises:
        UserError: one has none.
    """
    assert isinstance(data.images, IndexedPairs)
    targets = _targets(data.images.dataset)
    if targets is not None:
        left = [targets[index] for index in data.images.indices]
        _check_targets(f"{data.name}, without damaged images", data.classes, left)


def _targets(dataset: Any) -> list[int] | None:
    """The class of every image, where it is known without reading them."""
    reader: Any = getattr(dataset, "reader", None)
    if hasattr(reader, "samples") and hasattr(reader, "class_to_idx"):  # a folder
        return [int(target) for _, target in reader.samples]
    found = getattr(reader, "targets", None)
    if found is None and hasattr(reader, "label_key"):  # Hugging Face
        plain = not reader.remap_class and reader.label_key in reader.dataset.column_names
        found = reader.dataset[reader.label_key] if plain else reader.iter_targets()
    if found is None:
        found = getattr(dataset, "targets", None)
    try:
        return None if found is None else [int(target) for target in found]
    except (TypeError, ValueError) as error:
        raise UserError("the labels of the data are no class numbers; --class-map FILE maps names") from error


def _names(options: TrainOptions, names: tuple[str, ...], targets: list[int] | None) -> tuple[str, ...]:
    if options.class_map:
        numbers = load_class_map(options.class_map)
        names = tuple(str(name) for name in sorted(numbers, key=numbers.__getitem__))
    size = options.num_classes or len(names) or (1 + max(targets, default=-1) if targets else 0)
    if names and size < len(names):
        raise UserError(f"--num-classes {size}, and the data has {len(names)} classes")
    return (*names, *map(str, range(len(names), size)))


def _check_folders(root: Path) -> None:
    """Every folder of a class holds an image."""
    for folder in sorted(child for child in root.iterdir() if child.is_dir() and not is_hidden(child.name)):
        if not any(path.suffix.lower() in (".png", ".jpg", ".jpeg") for path in folder.rglob("*")):
            raise UserError(f"{folder}: the class '{folder.name}' has no image; add some, or remove the folder")


def _check_labels(name: str, targets: list[int] | None) -> None:
    if targets and min(targets) < 0:
        raise UserError(f"{name}: an image has the class {min(targets)}: this split has no labels; name another")


def _check_targets(name: str, classes: tuple[str, ...], targets: list[int] | None) -> None:
    _check_labels(name, targets)
    if len(classes) == 1 or (targets is not None and len(set(targets)) == 1):
        only = classes[targets[0] if targets and targets[0] < len(classes) else 0]
        raise UserError(f"{name} has only one class ('{only}'); a classifier needs at least 2")
    if targets is None:
        return
    if max(targets) >= len(classes):
        raise UserError(f"{name}: an image has the class {max(targets)}; there are {len(classes)}: see --num-classes")
    counts = Counter(targets)
    empty = [label for number, label in enumerate(classes) if not counts[number]]
    if empty and not all(label.isdecimal() for label in empty):  # numbers that --num-classes adds have no name
        raise UserError(f"{name}: the class '{empty[0]}' has no image; add some, or take it out of the classes")


def _hold_out(targets: list[int], fraction: float) -> tuple[list[int], list[int]]:
    """Indices to train and to evaluate on, the same for every seed; of each class at least one to train on."""
    by_class: dict[int, list[int]] = {}
    for index, target in enumerate(targets):
        by_class.setdefault(target, []).append(index)
    held: list[int] = []
    for target, indices in sorted(by_class.items()):
        wanted = min(len(indices) - 1, max(1, round(fraction * len(indices))))
        held += random.Random(target).sample(indices, wanted)
    apart = set(held)
    return [index for index in range(len(targets)) if index not in apart], sorted(held)
