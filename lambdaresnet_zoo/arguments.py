"""Values on command lines, for argparse: each takes a text, or says what is wrong with it."""

import argparse
import ast
import math
from collections.abc import Callable
from typing import Any

__all__ = ["Adder", "count", "fraction", "keyword", "natural", "number", "points", "positive", "share"]


class Adder:
    """Adds options that are absent where they are not given, and tells their defaults.

    Args:
        group: a parser, or a group of its arguments.
        defaults: of the options that have one, by their names.
    """

    def __init__(self, group: Any, defaults: object) -> None:
        self.group, self.defaults = group, defaults

    def __call__(self, *names: str, help: str, **options: Any) -> None:
        """Add an option, as ``add_argument`` does."""
        dest = options.get("dest") or next(name for name in names if name.startswith("--"))[2:].replace("-", "_")
        default = getattr(self.defaults, dest, None)
        if default not in (None, "", [], (), {}, False, True):
            shown = " ".join(map(str, default)) if isinstance(default, list) else default
            help = f"{help} ({shown})"
        self.group.add_argument(*names, help=help, default=argparse.SUPPRESS, **options)

    def flag(self, name: str, help: str) -> None:
        """An option with a --no- twin."""
        self.group.add_argument(name, help=help, default=argparse.SUPPRESS, action=argparse.BooleanOptionalAction)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def number(text: str) -> float:
    """A number of at least 0."""
    return _float(text, lambda value: 0 <= value < math.inf, "a number of at least 0")


def positive(text: str) -> float:
    """A number above 0."""
    return _float(text, lambda value: 0 < value < math.inf, "a number above 0")


def points(text: str) -> float:
    """A number from 0 to 100."""
    return _float(text, lambda value: 0 <= value <= 100, "a number from 0 to 100")


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _float(text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def fraction(text: str) -> float:
    """A number above 0 and up to 1."""
    return _float(text, lambda value: 0 < value <= 1, "a number above 0 and up to 1")


def keyword(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value a Python literal or else a word."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value  # a word


def _float(text: str, fits: Callable[[float], bool], told: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan  # fits nowhere
    if not fits(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {told}")
    return value
