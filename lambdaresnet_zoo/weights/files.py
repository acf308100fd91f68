"""Writing files so that an interruption at any moment leaves the old one or the new one, whole."""

import csv
import errno
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["read_rows", "try_write", "write_rows", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, and give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        write(temporary)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def try_write(path: Path) -> None:
    """Try whether ``write_whole`` could write a file, and leave nothing behind.

    Folders that are missing are made in a temporary one, under their own names: another run may be about to use
    those of the path itself.

    Raises:
        OSError: it could not.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    path = Path(os.path.abspath(path))
    there = next(folder for folder in path.parents if os.path.lexists(folder))
    if there == path.parent:
        probe = _beside(path)
        probe.touch()
        probe.unlink()
        return
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=there) as made:
        write_whole(Path(made) / path.relative_to(there), Path.touch)


def _beside(path: Path) -> Path:
    """A name for what is to get that of ``path``."""
    # Not by the process's number: on a shared disk, that of another machine may have the same.
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file, by the names of its columns."""
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of the same columns, at least one, as a csv file, whole."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)
