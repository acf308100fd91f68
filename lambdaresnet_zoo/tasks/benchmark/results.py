"""The files of results: rows that were measured together, kept whole, and found again by a later run."""

import contextlib
import csv
import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ... import layers
from ...errors import UserError, first_line
from ...weights.files import read_rows, write_rows
from ..outputs import writing
from ..validation_report import environment

__all__ = ["MACHINE", "VERSIONS", "ResultFile", "surroundings"]

MACHINE = ("precision", "device", "threads")
"""Columns that tell results of one machine from those of another; both are kept."""
VERSIONS = ("torch", "timm", "lambda_networks", "lambdaresnet_zoo", "code", "python")
"""Columns that may change on a machine; results of other versions are measured anew."""


def surroundings(device: torch.device, precision: str) -> dict[str, str]:
    """Where and with what it was measured: the columns of MACHINE and VERSIONS.

    ``code`` is the start of a digest of the layers' sources, so that results name what they measured.
    """
    found = {key: str(value) for key, value in environment(device, 1).items()}
    found |= {"precision": precision, "lambda_networks": "", "code": _code()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["lambda_networks"] = metadata.version("lambda-networks")
    return {key: found[key] for key in (*MACHINE, *VERSIONS)}


def _code() -> str:
    digest = hashlib.sha256()
    folder = Path(layers.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


class ResultFile:
    """Rows of a csv file, which is whole at any moment; without a path they are kept in memory.

    Args:
        path: of the file, which need not exist; None for none.
        key: columns that name what was measured; the rows of one key are measured together.
        fields: all columns but those of the surroundings.
        where: the surroundings of this run.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """

    def __init__(self, path: Path | None, key: Sequence[str], fields: Sequence[str], where: Mapping[str, str]):
        self.path = path
        self.key = tuple(key)
        self.columns = (*fields, *MACHINE, *VERSIONS)
        self.where = dict(where)
        self.rows: list[dict[str, str]] = self._read()

    def finished(self, key: Mapping[str, Any]) -> bool:
        """Whether a run with the same surroundings has measured it."""
        return bool(self.of(key))

    def of(self, key: Mapping[str, Any]) -> list[dict[str, str]]:
        """The rows of a key, of the same surroundings."""
        return [row for row in self.here() if self._named(row, key)]

    def here(self) -> list[dict[str, str]]:
        """All rows of the same surroundings."""
        return [row for row in self.rows if all(row[name] == value for name, value in self.where.items())]

    def add(self, key: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of a key, in place of those that this machine had.

        Raises:
            UserError: the file cannot be written.
        """
        self.rows = self._read() if self.path else self.rows  # another run may have added its own
        rest = [row for row in self.rows if not (self._named(row, key) and self._of_this_machine(row))]
        new = [{**{name: str(value) for name, value in row.items()}, **self.where} for row in rows]
        self.rows = [*rest, *({name: row[name] for name in self.columns} for row in new)]
        if self.path is None:
            return
        with writing("--results", self.path):
            write_rows(self.path, self.rows)

    def _named(self, row: Mapping[str, str], key: Mapping[str, Any]) -> bool:
        return all(row[name] == str(key[name]) for name in self.key)

    def _of_this_machine(self, row: Mapping[str, str]) -> bool:
        return all(row[name] == self.where[name] for name in MACHINE)

    def _read(self) -> list[dict[str, str]]:
        if self.path is None or not self.path.exists():
            return []
        try:
            rows = read_rows(self.path)
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"--results {self.path} cannot be read: {first_line(error)}; give another file") from error
        if any(set(row) != set(self.columns) for row in rows):
            raise UserError(f"--results {self.path} holds other columns than this part writes; give another file")
        return rows
