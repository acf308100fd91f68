"""One task in several processes, as torchrun starts them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from timm.utils.distributed import init_distributed_device_so, is_distributed_env

from ..errors import UserError, first_line

__all__ = ["SharedError", "gather", "is_first", "take_part", "together"]

T = TypeVar("T")

PATIENCE = timedelta(days=7)  # torch's own is minutes; one process may have all the shards, and the others wait
_patient: Any = None  # the group that waits so long, on CPUs; None for that of torch.distributed itself


class SharedError(UserError):
    """An error that every process has raised; the first one is to tell it."""


@contextmanager
def take_part(device: str) -> Iterator[tuple[torch.device, int, int]]:
    """Device, number of this process and of all; sets up torch.distributed under torchrun."""
    global _patient
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device '{device}' cannot be used: {first_line(error)}") from error
    if not is_distributed_env():
        yield torch.device(device), 0, 1
        return
    try:
        found = init_distributed_device_so(device)
        _patient = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"device '{device}' cannot be used by these processes: {first_line(error)}") from error
    try:
        yield torch.device(found["device"]), found["global_rank"], found["world_size"]
    finally:
        _patient = None
        torch.distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that tells what all know: the first of several, or alone."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def gather(value: T) -> list[T]:
    """The values of all processes in their order; of this one alone where there is one."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group=_patient)
    return values


def together(work: Callable[[], T]) -> T:
    """Do work in every process; what stops one of them stops all.

    Raises:
        SharedError: in all, where ``work`` raised a UserError in any.
    """
    result, problem = None, ""
    try:
        result = work()
    except UserError as error:
        problem = str(error)
    problems = [text for text in gather(problem) if text]
    if problems:
        raise SharedError(problems[0])
    return result  # type: ignore[return-value]
