"""Errors that a user can mend, told in one line."""

__all__ = ["UserError", "first_line"]


class UserError(Exception):
    """What is wrong and what to do, in one line; the command line prints it and exits with 2."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
