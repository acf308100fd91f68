"""Ctrl-C while the package is imported, which takes seconds: torch is. The command has no code running then."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["INTERRUPTED", "interruptible"]

INTERRUPTED = 130  # 128 and the number of the signal, as a shell reports it


@contextmanager
def interruptible() -> Iterator[None]:
    """End a process of the command with its status and one line on Ctrl-C; others get the KeyboardInterrupt.

    Raises:
        SystemExit: on Ctrl-C, in a process of the command.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not _is_command():
            raise
        print("interrupted before anything was done", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _is_command() -> bool:
    """Whether this process is `lambdaresnet-zoo`, or `python -m lambdaresnet_zoo`."""
    package, (started, *_) = __name__.partition(".")[0], sys.argv or [""]
    if started == "-m":  # the package is imported before its __main__ is known
        return any(argument.removeprefix("-m") == package for argument in sys.orig_argv)
    return Path(started).stem == package.replace("_", "-")
