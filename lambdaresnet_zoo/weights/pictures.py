"""Pictures by matplotlib, which is an extra, written whole."""

from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import write_whole

__all__ = ["new_figure", "save_figure"]


def new_figure(width: float, height: float, extra: str) -> Any:
    """An empty figure, of no window.

    Args:
        width: in inches.
        height: in inches.
        extra: of this package, that brings matplotlib.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f'matplotlib draws the pictures: pip install "lambdaresnet-zoo[{extra}]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, picture: Path, description: str = "") -> None:
    """Write a figure as PNG or SVG by the file's name; without date and version, so that equal data gives equal files.

    Args:
        figure: of matplotlib.
        picture: the file.
        description: kept in its metadata.

    Raises:
        UserError: the file cannot be written.
    """
    kind = picture.suffix[1:]
    metadata = {"Description": description, "Date" if kind == "svg" else "Software": None}
    try:
        write_whole(picture, lambda path: figure.savefig(path, format=kind, dpi=90, metadata=metadata))
    except OSError as error:
        raise UserError(f"{picture} cannot be written: {error.strerror}") from error
