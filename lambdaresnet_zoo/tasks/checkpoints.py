"""Checkpoints of a training run: written whole, read without running code, and on SIGTERM before the end.

A run's folder holds one, ``last.pt``. What a run draws at random is to depend on its seed and its step
alone, so no state of a generator is kept and a continued run ends as an uninterrupted one would.
"""

import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType, TracebackType
from typing import Any

import torch
from tqdm import tqdm

from ..errors import UserError, first_line
from ..weights.files import write_whole

__all__ = ["LAST", "Diverged", "StopSignal", "check_run", "read_state", "steps_left", "write_state"]

LAST = "last.pt"
SHOWN = 5  # differences of two runs that are told


class Diverged(Exception):
    """The loss is not a finite number; the message names the step and the last good checkpoint."""


def write_state(path: Path, state: Mapping[str, Any], advice: str = "make room") -> None:
    """Write a checkpoint; an interruption leaves the old one or the new one.

    Args:
        path: of the checkpoint.
        state: what it holds.
        advice: what to do where it cannot be written.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_whole(path, partial(torch.save, dict(state)))
    except (OSError, RuntimeError) as error:  # torch's writer raises either on a full disk
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} cannot be written ({reason}); {advice}") from error


def read_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint, its tensors on a device.

    Raises:
        UserError: it is missing, damaged, or no checkpoint.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint; check the name") from error
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is no checkpoint of a training run")
    return state


def check_run(path: Path, state: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Check that a checkpoint is of the run that is to be continued.

    Args:
        path: of the checkpoint.
        state: the checkpoint.
        run: what must be equal in it.

    Raises:
        UserError: something is not; the message names the first of what is not.
    """
    other = [
        f"{key} {state.get(key, 'not set')} there, {run.get(key, 'not set')} here"
        for key in (*run, *(key for key in state if key not in run))
        if state.get(key) != run.get(key)
    ]
    if other:
        more = f"; and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        raise UserError(f"{path} is of another run: {'; '.join(other[:SHOWN])}{more}; give another --output")


def steps_left(step: int, steps: int, progress: bool) -> tqdm:
    """The steps of a run that are still to do, on a progress bar of all of them.

    Args:
        step: the first.
        steps: of the whole run.
        progress: show the bar.
    """
    return tqdm(range(step, steps), desc="train", initial=step, total=steps, disable=not progress, dynamic_ncols=True)


class StopSignal:
    """SIGTERM as a request: the loop asks ``requested`` after a step, saves and ends.

    The handler that was there is put back at the end.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> "StopSignal":
        self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
