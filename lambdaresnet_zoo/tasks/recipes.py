"""Recipes of training as data: YAML files that ship with the package, or a user's own.

A file holds ``summary``, ``source``, ``options`` (by the names of timm's train.py, with underscores), ``notes`` (on
an option, where the source is silent), and what depends on the network: ``models`` (name, size in pixels, options)
and ``like`` (a name whose values another network takes). A user's file may name a recipe to start from in ``base``.
The args.yaml of a run is a recipe too, for another one like it.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import timm
import yaml
from timm.models import is_model

from ..errors import UserError
from .train.options import TrainOptions

__all__ = ["KINDS", "apply_set", "load_recipe", "recipe_names", "recipe_sizes"]

FOLDER = Path(__file__).parent.parent / "recipes"
SUFFIXES = (".yaml", ".yml")
PARTS = ("base", "summary", "source", "options", "notes", "models", "like")

OF_A_RUN = (
    *("model", "model_kwargs", "output", "resume", "recipe", "dry_run", "sources", "progress", "data", "dataset"),
    *("train_split", "val_split", "val_data", "class_map", "input_key", "target_key", "num_classes"),
    *("train_num_samples", "val_num_samples", "pseudo_labels", "pseudo_data", "initial_checkpoint", "device"),
    "workers",
)
"""Options that a recipe does not set: what is trained, on what, where."""


def _kinds() -> dict[str, tuple[type, bool]]:
    found = {}
    for name, hint in get_type_hints(TrainOptions).items():
        choices = (
            [choice for choice in get_args(hint) if choice is not type(None)] if type(None) in get_args(hint) else []
        )
        kind = choices[0] if choices else hint
        several = get_origin(kind) is list
        if name not in OF_A_RUN:
            found[name] = (get_args(kind)[0] if several else kind, several)
    return found


KINDS: dict[str, tuple[type, bool]] = _kinds()
"""Of each option that a recipe may set: its type, and whether it is a list of such."""
EMPTY = {name: value for name, value in vars(TrainOptions()).items() if name in KINDS and value in (None, "", [])}
"""What stands for none, in the options that may be none."""

WORDS: dict[str, bool] = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
TOLD = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
NOTHING = ("", "none", "null", "~")


def recipe_names() -> list[str]:
    """The recipes that ship, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_sizes(name: str) -> dict[str, tuple[int, ...]]:
    """The networks that a recipe has values for, and the sizes in pixels of each.

    Raises:
        UserError: there is no such recipe.
    """
    return {model: tuple(sizes) for model, sizes in _read(name)["models"].items()}


def load_recipe(name: str | Path, model: str | None = None, img_size: int | None = None) -> dict[str, Any]:
    """The options of a recipe for a network.

    Args:
        name: of ``recipe_names()``, or a file that ends in .yaml: a recipe, or the args.yaml of a run.
        model: the network, with or without a tag; without it, the options that depend on it stay the recipe's own.
        img_size: pixels of the training images; by default the network's own.

    Returns:
        Options by name, each of its type in ``KINDS`` or None, and under ``notes`` a dictionary of what the recipe
        has to say, by option: on ``model`` where the recipe has no values for just this network and size.

    Raises:
        UserError: there is no such recipe, or the file is none; the message names what is wrong with it.
    """
    recipe = _read(str(name))
    options, notes = dict(recipe["options"]), dict(recipe["notes"])
    if recipe["source"]:
        notes["source"] = recipe["source"]
    if model is not None and recipe["models"]:
        changes, note = _of_model(recipe, model.partition(".")[0], img_size)
        options |= changes
        notes |= {"model": note} if note else {}
    if img_size is not None:
        options["img_size"] = img_size
    return {**options, "notes": notes}


def apply_set(options: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Options with some of them set anew.

    Args:
        options: by name.
        assignments: KEY=VALUE, the key with underscores or hyphens; the value true or false, a number, a word,
            several with commas between them, or none.

    Returns:
        A new dictionary.

    Raises:
        UserError: an assignment is none, names no option, or its value is not of the option's type.
    """
    changed = dict(options)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip().lstrip("-").replace("-", "_")
        if not equals or not key:
            raise UserError(f"--set {assignment}: not KEY=VALUE")
        changed[key] = _typed(key, text.strip(), f"--set {assignment}")
    return changed


def _read(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A whole recipe, with what its base gives."""
    if name in seen:
        raise UserError(f"recipe {name} is based on itself; give 'base' another name")
    if Path(name).suffix in SUFFIXES:
        path = Path(name)
    elif name in recipe_names():
        path = FOLDER / f"{name}.yaml"
    else:
        raise UserError(f"unknown recipe '{name}'; there are {', '.join(recipe_names())}, or give a .yaml file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"recipe {name}: no such file; there are also {', '.join(recipe_names())}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"recipe {name} cannot be read: {' '.join(str(error).split())}") from error
    if isinstance(content, dict) and {"model", "output", "sources"} <= set(content):  # of a run
        content = {"options": {key: value for key, value in content.items() if key in KINDS}}
    _check(name, content)
    base = _read(str(content["base"]), (*seen, name)) if content.get("base") else {}
    own = {
        "options": {key: _typed(key, value, f"recipe {name}") for key, value in (content.get("options") or {}).items()},
        "notes": {str(key): str(value).strip() for key, value in (content.get("notes") or {}).items()},
        "models": {model: _rows(name, rows) for model, rows in (content.get("models") or {}).items()},
        "like": content.get("like") or {},
    }
    merged: dict[str, Any] = {part: base.get(part, {}) | values for part, values in own.items()}
    # What the file sets itself holds for every network, against what its base has for some.
    for rows in base.get("models", {}).values():
        for row in rows.values():
            row.update({key: own["options"][key] for key in row if key in own["options"]})
    merged["source"] = " ".join(str(content.get("source") or base.get("source", "")).split())
    return merged


def _check(name: str, content: Any) -> None:
    if not isinstance(content, dict) or not set(content) & set(PARTS):
        raise UserError(f"recipe {name} is none: it has no 'options' with a value for each name")
    unknown = [key for key in content if key not in PARTS]
    if unknown:
        raise UserError(f"recipe {name}: a recipe has no '{unknown[0]}'; it has {', '.join(PARTS)}")
    for part in ("options", "notes", "models", "like"):
        if not isinstance(content.get(part) or {}, dict):
            raise UserError(f"recipe {name}: '{part}' is not a mapping of names to values")


def _rows(name: str, rows: Any) -> dict[int, dict[str, Any]]:
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UserError(f"recipe {name}: in 'models', each network has sizes in pixels, and each size its options")
    return {
        int(_typed("img_size", size, f"recipe {name}")): {
            key: _typed(key, value, f"recipe {name}") for key, value in row.items()
        }
        for size, row in rows.items()
    }


def _of_model(recipe: Mapping[str, Any], model: str, img_size: int | None) -> tuple[dict[str, Any], str]:
    """What depends on the network, and what is to be said of it."""
    known = recipe["like"].get(model, model)
    rows = recipe["models"].get(known)
    if not rows:
        return {}, f"The recipe has no values for {model}: its options are taken as they stand."
    size = img_size or _own_size(model) or max(rows)
    nearest = min(rows, key=lambda row: (abs(row - size), row))
    same = known == model and nearest == size
    note = "" if same else f"No values for {model} at {size} pixels: those of {known} at {nearest} were chosen."
    return {"img_size": size, **rows[nearest]}, note


def _own_size(model: str) -> int | None:
    if not is_model(model):
        return None
    cfg: Any = timm.get_pretrained_cfg(model)
    return int(cfg.input_size[-1])


def _typed(key: str, value: Any, where: str) -> Any:
    """A value as its option has it."""
    if key not in KINDS:
        close = difflib.get_close_matches(str(key), KINDS, 1)
        hint = f"; is {close[0]} meant?" if close else f"; there are {', '.join(sorted(KINDS))}"
        raise UserError(f"{where}: no option '{key}'{hint}")
    kind, several = KINDS[key]
    if value is None or (isinstance(value, str) and value.lower() in NOTHING):
        if key == "sched":  # where it is a word
            return "none"
        if key not in EMPTY:
            raise UserError(f"{where}: {key} cannot be none; give {TOLD[kind]}, or leave it out")
        return EMPTY[key]
    if not several:
        return _convert(key, kind, value, where)
    values = value.strip("[]()").split(",") if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)):
        values = [values]
    return [_convert(key, kind, entry.strip() if isinstance(entry, str) else entry, where) for entry in values]


def _convert(key: str, kind: type, value: Any, where: str) -> Any:
    wrong = UserError(f"{where}: {key} is {TOLD[kind]}, and '{value}' is not")
    if kind is bool:
        if isinstance(value, str):
            value = WORDS.get(value.lower())
        if not isinstance(value, bool):
            raise wrong
        return value
    if isinstance(value, (bool, list, dict, tuple)):
        raise wrong
    try:
        number = kind(value) if not (kind is int and isinstance(value, float)) else int(str(value))
    except (TypeError, ValueError) as error:
        raise wrong from error
    if kind is float and number != number:
        raise wrong
    return number
