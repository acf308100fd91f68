"""Which data a user means: a folder, a tar, parquet, webdataset or what timm's names stand for, opened by timm."""

import json
import logging
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import ImageDataset, IterableImageDataset, create_dataset
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from ..errors import UserError, first_line
from .passed_over import read_folder
from .splits import SPLITS, TRAINING, check_tar, first_known, option, split_folder, split_tars
from .validation_images import IndexedImages, StreamedImages

__all__ = ["STREAMS", "Source", "Validation", "is_hidden", "open_source", "resolve_source"]

STREAMS = ("wds", "hfids")


@dataclass(frozen=True)
class Source:
    """What a user says of the data; the names are those of timm's validate.py."""

    data: str = ""
    """A folder or a tar; may be empty where ``dataset`` names all."""
    dataset: str = ""
    """As timm's ``create_dataset``: ``hfds/NAME``, ``hfids/NAME``, ``wds/``, ``torch/NAME``; found out where empty."""
    split: str = ""
    """By default ``validation``, by any of its names, or else ``test``."""
    class_map: str = ""
    """A file that gives the class of each folder or label."""
    input_key: str | None = None
    target_key: str | None = None
    num_samples: int | None = None
    """Of a stream, whose length may not be known."""


@dataclass(frozen=True)
class Validation:
    """Data that is open."""

    images: IndexedImages | StreamedImages
    """The share of this process."""
    kind: str
    """``folder``, ``tar``, or the prefix of timm's name."""
    split: str
    classes: tuple[str, ...]
    """Names of the classes in the order of their numbers, empty where the data has none or a class map is given."""
    count: int | None
    """Images over all processes, where it is known before they are read."""


def resolve_source(source: Source, training: bool = False) -> tuple[str, str, str]:
    """What a user means: the data's name for timm, its root and its split.

    Raises:
        UserError: there is no such data, or no such split of it.
    """
    return _resolve(source, TRAINING if training else SPLITS)


def open_source(
    source: Source,
    process: int = 0,
    processes: int = 1,
    named: bool = False,
    training: bool = False,
    labelled: bool = True,
) -> Validation:
    """Open data through timm's readers.

    Args:
        source: what to open.
        process: number of this process.
        processes: that share the images.
        named: whether every image's file name is wanted.
        training: whether the split for training is meant where none is named.
        labelled: whether the images are to have classes.

    Raises:
        UserError: there is no such data, no image in it, one that is of no class, or a package to read it is missing.
    """
    name, root, split = resolve_source(source, training)
    kind = name.partition("/")[0].lower()
    try:
        if kind in ("hfds", "hfids"):
            _quiet()
        dataset = _open(source, kind, name, root, split, labelled)
    except ImportError as error:
        package = "webdataset" if kind == "wds" else "datasets"
        raise UserError(f'{source.data or name} needs {package}: pip install "lambdaresnet-zoo[data]"') from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # timm's readers and those below them raise anything
        raise UserError(f"{source.data or name} cannot be read as {kind}: {first_line(error)}") from error
    if kind in STREAMS:
        declared = source.num_samples or getattr(getattr(dataset.reader, "split_info", None), "num_samples", None)
        return Validation(StreamedImages(dataset.reader), kind, split, (), declared or None)
    if isinstance(dataset, IterableImageDataset):
        raise UserError(f"--dataset {source.dataset}: of the streams, only wds/ and hfids/ are counted exactly here")
    if not len(dataset):
        raise UserError(f"{source.data or name} has no images in split '{split}'")
    classes = () if source.class_map else _class_names(dataset)
    return Validation(IndexedImages(dataset, process, processes, named), kind, split, classes, len(dataset))


def _open(source: Source, kind: str, name: str, root: str, split: str, labelled: bool) -> Any:
    if source.class_map and not Path(source.class_map).is_file():
        raise UserError(f"--class-map {source.class_map}: no such file; give a .txt with a class name a line")
    if source.class_map and kind == "torch":  # timm would ignore it
        raise UserError(f"--class-map does not go with --dataset {name}: give its folder with --data")
    if kind in ("folder", "tar", "tars"):
        return ImageDataset(root, reader=_labelled(source, kind, root, split, labelled))
    if kind == "wds":
        import webdataset  # noqa: F401  timm's reader says how to install an old one
    return create_dataset(
        name,
        root=root or None,
        split=split,
        class_map=source.class_map,
        num_samples=(source.num_samples or 1) if kind == "hfids" else None,  # unknown is no obstacle here
        input_key=source.input_key,
        target_key=source.target_key,
    )


def _labelled(source: Source, kind: str, root: str, split: str, checked: bool) -> Any:
    """Open a folder or tars with timm's reader, and number the classes.

    Given a class map, timm would leave out images of other classes; without one it sorts a set, and names that tie, as
    Cat and cat or 1 and 01, would come in another order in every process.
    """
    if kind == "folder":
        reader = read_folder(root, source.input_key)
        targets, names = [target for _, target in reader.samples], list(reader.class_to_idx)
        paths = [path[len(os.path.join(root, "")) :] for path, _ in reader.samples]
    else:
        reader = ReaderImageInTar(root)
        if kind == "tars" and split:  # of some tars of the folder
            keep = np.isin([parent for _, parent, _ in reader.samples], split.split("::"))
            reader.samples, reader.targets = reader.samples[keep], reader.targets[keep]
        used, places = np.unique(reader.targets, return_inverse=True)
        targets, names = places.tolist(), [reader.class_idx_to_name[number] for number in used]
        paths = [os.path.join((parent or "").removesuffix(".tar"), info.path) for info, parent, _ in reader.samples]
    if checked:
        _check_folders(root, paths)
    order = sorted(names, key=lambda name: (natural_key(name), name))
    numbers = {name: number for number, name in enumerate(order)}
    if source.class_map:
        numbers = load_class_map(source.class_map)
        missing = next((name for name in names if name not in numbers), None)
        if missing is not None:
            raise UserError(
                f"--class-map {source.class_map} has no class '{missing}', and {source.data} has images of it"
            )
    targets = [numbers[names[target]] for target in targets]
    if kind == "folder":
        reader.samples = [(path, target) for (path, _), target in zip(reader.samples, targets, strict=True)]
        reader.class_to_idx = numbers
    else:
        reader.targets, reader.class_name_to_idx = targets, numbers
        reader.class_idx_to_name = {number: name for name, number in numbers.items()}
    return reader


def is_hidden(name: str) -> bool:
    """Whether a folder is what a system or a program keeps beside a user's own: .ipynb_checkpoints, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def _check_folders(root: str, paths: Iterable[str]) -> None:
    """Whether every image, by its path within the data, is in the folder of a class."""
    found = {os.path.dirname(path): path for path in paths}
    for folder, path in found.items():
        *_, last = parts = folder.split("/")
        if last in ("", "."):  # timm would call the class so
            raise UserError(f"{os.path.join(root, path)}: the image is in no class's folder; move it into one, or away")
        if any(is_hidden(part) for part in parts if part.strip(".")):
            raise UserError(f"{os.path.join(root, folder)}: the folder holds images, and is no class; remove it")


def _resolve(source: Source, wanted: tuple[str, ...]) -> tuple[str, str, str]:
    """Name for timm, root and split."""
    if source.dataset:
        split = source.split or _hub_split(source.dataset, wanted) or wanted[0]
        return source.dataset, source.data, split
    if not source.data:
        raise UserError("give the images with --data PATH, or name them with --dataset")
    path = Path(source.data)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give the folder, the tar or the parquet with the images")
    if path.is_file():
        return _of_file(path, source.split)
    if (path / "_info.json").is_file() or (path / "info.json").is_file():
        return "wds/", str(path), source.split or _declared_split(path, wanted)
    if any(file for pattern in ("*.parquet", "*/*.parquet") for file in path.glob(pattern)):  # no deeper: ImageNet
        name = f"hfds/{path}"
        return name, "", source.split or _hub_split(name, wanted) or wanted[0]
    tars = sorted(file.name for file in path.glob("*.tar"))
    if tars:
        neighbours = _is_webdataset(path / tars[0])
        chosen = split_tars(path, tars, source.split, wanted, by_class=not neighbours)
        if neighbours:
            return "wds/", str(path), "::".join(chosen)
        if len(tars) > 1 and len(chosen) == 1:
            return "tar", str(path / chosen[0]), source.split
        return "tars", str(path), "" if chosen == tars else "::".join(chosen)
    folder, split = split_folder(path, source.split, wanted)
    return "folder", str(folder), split


def _of_file(path: Path, split: str) -> tuple[str, str, str]:
    if path.suffix == ".parquet":
        raise UserError(f"{path} is one file: give the folder that it is in, and {option(path.stem.split('-')[0])}")
    if path.suffix != ".tar":
        raise UserError(f"{path}: neither a folder nor a .tar; give one of these, or name the data with --dataset")
    check_tar(path, split)
    if _is_webdataset(path):
        return "wds/", str(path.parent), path.name
    return "tar", str(path), split


def _is_webdataset(path: Path) -> bool:
    """Whether images and their classes are neighbours in a tar, as webdataset has them."""
    try:
        with tarfile.open(path) as tar:
            for number, member in enumerate(tar):
                if member.name.endswith((".cls", ".json")):
                    return True
                if number > 20:
                    break
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path} is no readable tar ({first_line(error)}); get it again") from error
    return False


def _declared_split(path: Path, wanted: tuple[str, ...]) -> str:
    file = next(file for name in ("_info.json", "info.json") if (file := path / name).is_file())
    try:
        return first_known(path, list(json.loads(file.read_text(encoding="utf-8")).get("splits", {})), wanted)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} is not what webdataset's info is: {first_line(error)}") from error


def _hub_split(name: str, wanted: tuple[str, ...]) -> str:
    """The split of what Hugging Face datasets reads, empty for other names."""
    kind, _, rest = name.partition("/")
    if kind.lower() not in ("hfds", "hfids"):
        return ""
    try:
        _quiet()
        import datasets

        return first_known(rest, [str(split) for split in datasets.get_dataset_split_names(rest)], wanted)
    except ImportError:
        return ""  # told on opening
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} cannot be read: {first_line(error)}") from error


def _quiet() -> None:
    """Hugging Face datasets tells errors twice, and shows bars of its own."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)


def _class_names(dataset: Any) -> tuple[str, ...]:
    reader = getattr(dataset, "reader", dataset)
    numbers = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return tuple(str(name) for name in sorted(numbers, key=numbers.__getitem__))
