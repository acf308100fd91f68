"""The config.json beside weights, read as a stranger's: only what is known, only of its type."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line
from ..weights.folder import ROOT_KEY, STATEMENTS

__all__ = ["SourceConfig", "check_arguments", "class_names", "parse_config", "read_config"]

ARGUMENTS = ("num_classes", "in_chans", "img_size", "global_pool", "output_stride", "act_layer")
"""Arguments of ``timm.create_model`` that shape a network, beside those of its layers and their sharing."""
LAYER_ARGUMENTS = ("self_attn_kwargs", "share_position")

SIZES = ("input_size", "test_input_size")
FRACTIONS = ("crop_pct", "test_crop_pct")
WORDS = {
    "interpolation": ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming", "random"),
    "crop_mode": ("center", "squash", "border"),
}
LONGEST = 2000  # characters of a statement
BREAKS = ("Cc", "Zl", "Zp", "Cs")
"""Categories of characters that no line holds: controls, separators of lines, halves of a character. Others that Python
calls not printable stand in names of many languages."""


@dataclass(frozen=True)
class SourceConfig:
    """What a config.json says of weights."""

    architecture: str = ""
    tag: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of ``timm.create_model``, without classes and channels, which the weights tell."""
    label_names: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """Entries of timm's pretrained_cfg: sizes, crop, interpolation, mean, std."""
    license: str = ""
    statements: Mapping[str, str] = field(default_factory=dict)
    """What this package wrote of the weights before."""


def read_config(path: Path, name: str) -> SourceConfig:
    """Read a config.json, timm's or this package's; an absent one says nothing.

    Args:
        path: of the file.
        name: for errors, what the user named.

    Raises:
        UserError: the file cannot be read, or an entry is not what it must be.
    """
    if not path.is_file():
        return SourceConfig()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return parse_config(config)
    except (OSError, ValueError, RecursionError) as error:  # of which UnicodeDecodeError is one
        raise UserError(f"{name}: its config.json cannot be used: {first_line(error)[:200]}") from error


def parse_config(config: Any) -> SourceConfig:
    """Check and take over the entries of a config.json.

    Raises:
        ValueError: one is not what it must be; names it.
    """
    config = _mapping("config.json", config)
    cfg = _mapping("pretrained_cfg", config.get("pretrained_cfg", {}))
    arguments = _mapping("model_args", config.get("model_args", {}))
    check_arguments(arguments)
    classes = config.get("num_classes", cfg.get("num_classes"))
    names = config.get("label_names", cfg.get("label_names"))
    own = _mapping(ROOT_KEY, config.get(ROOT_KEY, {}))
    statements = _mapping(f"{ROOT_KEY}.card", own.get("card", {}) if own.get("sha256") else {})
    return SourceConfig(
        architecture=_line("architecture", config.get("architecture", "")),
        tag=_line("tag", cfg.get("tag") or ""),
        arguments={key: value for key, value in arguments.items() if key not in ("num_classes", "in_chans")},
        label_names=class_names(names, classes) if names else (),
        preprocessing=_preprocessing(cfg),
        license=_line("license", cfg.get("license") or ""),
        statements={key: _line(key, statements[key]) for key in STATEMENTS if key in statements},
    )


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check that arguments of a model shape its network, and do nothing else, such as fetch weights.

    Raises:
        ValueError: one does not, or holds more than numbers, words and lists of them.
    """
    for key, value in arguments.items():
        if key not in (*ARGUMENTS, *LAYER_ARGUMENTS):
            known = ", ".join((*ARGUMENTS, *LAYER_ARGUMENTS))
            raise ValueError(f"model argument '{str(key)[:60]}' is none of {known}")
        values = value.values() if key == "self_attn_kwargs" and isinstance(value, Mapping) else [value]
        for part in values:
            parts = part if isinstance(part, Sequence) and not isinstance(part, str) else [part]
            if not all(item is None or isinstance(item, (bool, int, float, str)) for item in parts):
                raise ValueError(f"model argument '{key}' is {str(value)[:60]}, not a number, a word or a list of them")


def class_names(names: Any, classes: Any) -> tuple[str, ...]:
    """Timm's ``label_names``, a list or a mapping of numbers to names, as a name for every class.

    Raises:
        ValueError: neither, or not of names, or not of so many classes.
    """
    if isinstance(names, Mapping):
        try:
            by_number = {int(key): name for key, name in names.items()}
        except ValueError as error:
            raise ValueError("label_names maps other things than numbers of classes") from error
        count = classes if isinstance(classes, int) else max(by_number, default=-1) + 1
        names = [by_number.get(number, str(number)) for number in range(count)]
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, (str, int)) for name in names):
        raise ValueError("label_names is no list of names")
    if isinstance(classes, int) and len(names) != classes:
        raise ValueError(f"label_names has {len(names)} names for {classes} classes")
    return tuple(_line("label_names", str(name)) for name in names)


def _preprocessing(cfg: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in (*SIZES, *FRACTIONS, *WORDS, "mean", "std"):
        value = cfg.get(key)
        if value is None:
            continue
        if key in SIZES:
            fits = _numbers(value, 3) and all(isinstance(part, int) and 0 < part < 10_000 for part in value)
        elif key in FRACTIONS:
            fits = isinstance(value, (int, float)) and 0 < value <= 2
        elif key in WORDS:
            fits = value in WORDS[key]
        else:
            fits = isinstance(value, (list, tuple)) and _numbers(value, len(value)) and len(value) > 0
        if not fits:
            raise ValueError(f"{key} is {str(value)[:60]!r}")
        found[key] = value
    return found


def _numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == count
        and all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in value)
    )


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is no mapping but a {type(value).__name__}")
    return value


def _line(key: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST or any(unicodedata.category(one) in BREAKS for one in value):
        raise ValueError(f"{key} is no line of text")
    return value
