"""Splits of data: the folders and the tars of one, by its name or by what is wanted where none is named."""

import re
from pathlib import Path

from ..errors import UserError

__all__ = ["SPLITS", "TRAINING", "check_tar", "first_known", "option", "split_folder", "split_tars"]

VALIDATION = ("validation", "val", "valid", "eval", "evaluation")
SPLITS = (*VALIDATION, "test")  # what is looked for, in this order
TRAINING = ("train", "training")
WHOLE = (*VALIDATION, *TRAINING)
"""What timm takes for all of the data where this has no splits; its scripts name one by default."""


def option(split: str = "") -> str:
    """How a split is named."""
    return f"--split {split}".rstrip() + " (train: --train-split, --val-split)"


def first_known(path: object, splits: list[str], wanted: tuple[str, ...]) -> str:
    """The first of the wanted splits that data has.

    Raises:
        UserError: it has none of them.
    """
    known = [split for split in wanted if split in splits]
    if not known:
        given = "--train-split" if wanted == TRAINING else "--split"
        raise UserError(f"{path} has the splits {', '.join(splits) or 'none'}: name one with {given}")
    return known[0]


def split_folder(path: Path, split: str, wanted: tuple[str, ...]) -> tuple[Path, str]:
    """The folder of a split where the root has such, and its name; timm would take the whole root otherwise.

    Raises:
        UserError: there is no such split, or several and none of the wanted.
    """
    folders = {child.name for child in path.iterdir() if child.is_dir()}
    if split in folders:
        return path / split, split
    if not folders & {*SPLITS, *TRAINING}:
        if split and split not in WHOLE:
            there = f"its folders are classes ({_few(sorted(folders))})" if folders else "it has no folders at all"
            raise UserError(f"{path} has no folder '{split}' and no splits, {there}; leave out {option()}")
        return path, split
    known = [name for name in (_synonyms(split) if split else wanted) if name in folders]
    if known:
        return path / known[0], known[0]
    told = ", ".join(sorted(folders))
    if split:
        raise UserError(f"{path} has no folder '{split}' but {told}")
    purpose = "train" if wanted == TRAINING else "validate"
    raise UserError(f"{path} has {told}: give the folder with the images to {purpose} on")


def check_tar(path: Path, split: str) -> None:
    """Check that a single tar is what a split may mean.

    Raises:
        UserError: its name has not the words of the split.
    """
    if split and split not in WHOLE and not set(_words(split)) <= set(_words(path.name)):
        raise UserError(f"{path} is one tar, which has no split '{split}'; leave out {option()}")


def split_tars(path: Path, tars: list[str], split: str, wanted: tuple[str, ...], by_class: bool) -> list[str]:
    """The tars of a split by the words in their names; all where the names tell of no splits.

    Raises:
        UserError: there is no such split, or several and none of the wanted.
    """
    splits = {name: _split_words(name) for name in tars}
    if split:
        named, words = _split_words(split), set(_words(split))
        chosen = [name for name in tars if (splits[name] == named if named else words <= set(_words(name)))]
        if not chosen:
            raise UserError(f"{path} has no tar of the split '{split}' by its name; there are {_few(tars)}")
        return chosen
    found = set(splits.values())
    if found == {""} or (by_class and len(found) == 2 and "" in found):  # of a class that is called bullet train
        return tars
    known = [name for name in wanted if name in found]
    if "" not in found and known:
        return [name for name in tars if splits[name] == known[0]]
    raise UserError(f"{path} has tars that are not all of one split ({_few(tars)}): name a split with {option()}")


def _split_words(name: str) -> str:
    """The splits that a name tells of, each by its first synonym."""
    groups = (VALIDATION, ("test",), TRAINING)
    return " ".join(group[0] for group in groups if set(group) & set(_words(name)))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", name.removesuffix(".tar").lower())


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _synonyms(split: str) -> tuple[str, ...]:
    """The names that a split goes by, in the order in which they are looked for."""
    return next((names for names in (VALIDATION, TRAINING) if split in names), (split,))
