"""Peak memory of one pass, and a limit to it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["OutOfMemory", "memory_limit", "peak_memory"]


class OutOfMemory(Exception):
    """A pass needs more memory than it may have."""


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that one pass holds at its peak, above what is held before it.

    On a GPU, of torch's allocator there. On a CPU, the running sum of all that torch's allocator gives out and
    takes back, which its profiler records: exact, and independent of what the process held and freed before. What
    libraries below torch keep for themselves is in neither.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorder:
        work()
    assert recorder.profiler is not None and recorder.profiler.kineto_results is not None
    changes = [event for event in recorder.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library writes its own log to stderr whatever Python says."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def memory_limit(gib: float, device: torch.device) -> Iterator[None]:
    """Let a pass take so much more memory than the process has now.

    On Linux's CPU the limit is the kernel's; on a GPU the device is the limit, and elsewhere there is none.

    Raises:
        OutOfMemory: it wanted more.
    """
    statm = Path("/proc/self/statm")
    limited = device.type == "cpu" and statm.exists()
    if limited:
        import resource

        before = resource.getrlimit(resource.RLIMIT_AS)
        size = int(statm.read_text().split()[0]) * resource.getpagesize() + int(gib * 2**30)
        if before[1] == resource.RLIM_INFINITY or size < before[1]:
            resource.setrlimit(resource.RLIMIT_AS, (size, before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _of_memory(error):
            raise
        raise OutOfMemory from None  # the traceback would hold the tensors
    finally:
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # Of torch's allocator on a CPU, of C++, and of oneDNN, which does not say why.
    words = ("can't allocate memory", "bad_alloc", "could not create a memory object", "could not create a primitive")
    return any(word in str(error) for word in words)
