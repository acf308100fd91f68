"""Whether the classes of the data are those of the model, and which known data set they are of."""

import pkgutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, RealLabelsImagenet
from torch import nn

from ..conversion.config import class_names
from ..errors import UserError, first_line
from ..models.lambdaresnet_small import CIFAR10_CLASSES

__all__ = [
    *("Classes", "check_real", "identify", "known_classes", "match_classes", "places_of"),
    *("read_real_labels", "read_valid_labels"),
]

SUBSETS = ("imagenet-a", "imagenet-r")
REAL_IMAGES = 50000
CIFAR10_IMAGES = (10000, 1017)  # its test set, and the part of it that this package's figures are also given for
MAP = "write the model's classes to a .txt, one a line in its order and as the data spells them: --class-map FILE"


@dataclass(frozen=True)
class Classes:
    """How the classes of data and model go together."""

    count: int
    """Classes that an image may be of."""
    valid: tuple[int, ...] = ()
    """Outputs of the model that are compared, in the order of the data's classes; all where empty."""
    dataset: str = ""
    """Known by the names of its classes: imagenet-1k, imagenet-a, imagenet-r, cifar10; empty where it is not."""
    names: tuple[str, ...] = ()
    note: str = ""


def match_classes(model: nn.Module, names: Sequence[str], valid: Sequence[int] = (), mapped: bool = False) -> Classes:
    """Match the classes of data to a model's.

    Names that the model knows (its ``label_names``, or ImageNet's synsets for 1000 classes), numbers too, must stand
    where the model has them; other numbers must run from 0; of other names only the count can be compared. The classes
    of ImageNet-A and -R are compared among themselves, as their published figures are.

    Args:
        model: timm's.
        names: of the data's classes in their order; empty where it has none.
        valid: outputs to compare, given by the user.
        mapped: the user gave the class of each name.

    Raises:
        UserError: they do not match; says how to map them.
    """
    size: Any = model.num_classes
    known = known_classes(model)
    if valid:
        if max(valid) >= size or min(valid) < 0 or (names and not mapped and len(names) != len(valid)):
            raise UserError(f"--valid-labels names {len(valid)} of {size} outputs; the data has {len(names)} classes")
        return Classes(len(valid), tuple(valid), names=tuple(known[index] for index in valid) if known else ())
    if mapped or not names:
        return Classes(size, names=tuple(known))  # of which data set, only the number of images can tell
    subset = _imagenet_subset(names) if size == 1000 else ""
    if subset:
        outputs = tuple(_synsets().index(name) for name in names)
        note = f"{subset}: compared among its {len(names)} classes, as its published figures are"
        return Classes(len(names), outputs, subset, tuple(names), note)
    places = places_of(names, known)
    _check(names, places, size)
    note = ""
    if known and not names[0].isdecimal() and not any(place is not None for place in places):
        note = f"the model does not know the names of the classes ('{names[0]}', ...): only their number was compared"
    return Classes(size, (), _dataset_of(names), tuple(names), note)


def _check(names: Sequence[str], places: Sequence[int | None], size: int) -> None:
    if len(names) != size:
        raise UserError(f"the data has {len(names)} classes ({_few(names)}) and the model {size}; to map them, {MAP}")
    for index, (name, place) in enumerate(zip(names, places, strict=True)):
        if place not in (None, index):
            raise UserError(
                f"the classes are in another order: '{name}' is number {index} of the data and {place} of the model; "
                f"to map them, {MAP}"
            )
    numbers = None in places and all(name.isdecimal() for name in names)
    if numbers and [int(name) for name in names] != list(range(size)):
        raise UserError(f"the data's classes are numbers that do not run from 0 to {size - 1}; to map them, {MAP}")


def known_classes(model: nn.Module) -> list[str]:
    """The classes of a model in its order: its ``label_names``, or ImageNet's synsets; empty where it has neither."""
    cfg: Any = model.pretrained_cfg
    size: Any = model.num_classes
    try:
        return list(class_names(cfg.get("label_names"), size))
    except ValueError:
        pass  # none, or of other classes
    return _synsets() if size == 1000 else []


def places_of(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Of each name its place among those known, None where it is not there; no two have the same place.

    It is that of the very name, or else of the only one that case and underscores alone tell from it.
    """
    exact, plain = _places(known), _places([_plain(name) for name in known])
    alone = Counter(map(_plain, names))
    return [
        exact[name] if name in exact else plain.get(_plain(name)) if alone[_plain(name)] == 1 else None
        for name in names
    ]


def _places(names: Sequence[str]) -> dict[str, int]:
    """The place of each name that is there once."""
    counts = Counter(names)
    return {name: place for place, name in enumerate(names) if counts[name] == 1}


def _plain(name: str) -> str:
    """A name of a class without what spellings differ in: case and underscores."""
    return name.strip().casefold().replace("_", " ")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@cache
def _synsets() -> list[str]:
    return list(ImageNetInfo().label_names())


def _imagenet_subset(names: Sequence[str]) -> str:
    for subset in SUBSETS:
        content = pkgutil.get_data("timm.data", f"_info/{subset.replace('-', '_')}_synsets.txt") or b""
        if list(names) == content.decode().split():
            return subset
    return ""


def _dataset_of(names: Sequence[str]) -> str:
    if len(names) == 1000 and list(names) in (_synsets(), ImageNetInfo().label_descriptions()):
        return "imagenet-1k"
    if tuple(map(_plain, names)) == CIFAR10_CLASSES:
        return "cifar10"
    return "numbered-1k" if len(names) == 1000 and all(name.isdecimal() for name in names) else ""


def identify(classes: Classes, count: int, real: bool = False) -> str:
    """The name of the data by its classes and the number of its images, empty where it is none that is known."""
    if real:
        return "imagenet-real"
    if classes.dataset == "imagenet-1k" and count == 50889:
        return "imagenet-sketch"
    if classes.dataset == "numbered-1k":  # how ImageNet-V2's folders are named
        return "imagenet-v2" if count == 10000 else "imagenet-1k" if count == REAL_IMAGES else ""
    if classes.dataset or classes.valid:
        return classes.dataset
    if (classes.count, count) == (1000, REAL_IMAGES):  # under other names of its classes
        return "imagenet-1k"
    own = tuple(map(_plain, classes.names)) == CIFAR10_CLASSES
    return "cifar10" if own and count in CIFAR10_IMAGES else ""


def check_real(classes: Classes) -> None:
    """Whether ReaL's labels can be compared, which are numbers of all 1000 outputs.

    Raises:
        UserError: only some of the outputs are compared.
    """
    if classes.valid or classes.count != 1000:
        raise UserError(
            f"--real-labels are of ImageNet's 1000 classes, and {classes.count} are compared here; "
            "leave out --real-labels, or --valid-labels"
        )


def read_valid_labels(path: str) -> tuple[int, ...]:
    """Numbers of outputs, one a line, as timm's validate.py reads them.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        numbers = tuple(int(line) for line in Path(path).read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise UserError(f"--valid-labels {path}: {first_line(error)}; give a file with a number a line") from error
    if not numbers:
        raise UserError(f"--valid-labels {path} is empty; give a file with a number a line")
    return numbers


def read_real_labels(path: str) -> dict[str, list[int]]:
    """ImageNet-ReaL's classes for each file name of ImageNet's validation images; some have none.

    Args:
        path: of real.json as its authors publish it; ``timm`` for the copy that timm has.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        return RealLabelsImagenet(range(REAL_IMAGES), None if path == "timm" else path).real_labels
    except (OSError, ValueError, TypeError, AssertionError) as error:
        raise UserError(
            f"--real-labels {path} does not hold ImageNet-ReaL's {REAL_IMAGES} lists: {first_line(error)}"
        ) from error
