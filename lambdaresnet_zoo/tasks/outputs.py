"""Outputs that a user names: tried before long work, and told in one line where they cannot be written."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError, first_line
from ..weights.files import try_write

__all__ = ["check_writable", "writing"]


def check_writable(option: str, path: str | Path, folder: bool = False) -> None:
    """Try whether an output can be written; folders are made for it and removed again.

    Args:
        option: that names it, such as ``--results``.
        path: of the file; empty where there is none to write.
        folder: it is a folder that files are written into.

    Raises:
        UserError: it cannot.
    """
    if not str(path):
        return
    with writing(option, path, "folder" if folder else "file"):
        try_write(Path(path) / ".probe" if folder else Path(path))


@contextmanager
def writing(option: str, path: str | Path, kind: str = "file") -> Iterator[None]:
    """Tell in one line what keeps an output from being written.

    Args:
        option: that names it.
        path: of it.
        kind: what to give instead, a file or a folder.

    Raises:
        UserError: for an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        remedy = "make room" if error.errno == errno.ENOSPC else f"give another {kind}"
        raise UserError(f"{option} {path} cannot be written: {reason}; {remedy}") from error
