"""Writing files so that an interruption at any moment leaves the old one or the new one, whole."""

import csv
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["read_rows", "write_rows", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, and give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by the process's number: on a shared disk, that of another machine may have the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
