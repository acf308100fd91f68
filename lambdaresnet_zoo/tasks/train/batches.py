"""The batches of a run, from any step on."""

import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from ..sampling import Numbers
from .data import TrainData
from .options import TrainOptions
from .plan import Plan
from .samples import TrainBatch, TrainCollate, TrainSamples, TrainStream

__all__ = ["batches"]


def batches(
    data: TrainData,
    transform: Any,
    options: TrainOptions,
    plan: Plan,
    step: int,
    process: int = 0,
    processes: int = 1,
    pinned: bool = False,
) -> Iterator[TrainBatch]:
    """What one process sees from a step to the end, ``grad_accum_steps`` batches for each update.

    Args:
        data: that is open.
        transform: of an image.
        options: of loader and seed.
        plan: of the run.
        step: the first, from 0.
        process: number of this process.
        processes: that share each update.
        pinned: load into pinned memory.
    """
    common: dict[str, Any] = {
        "batch_size": options.batch_size,
        "collate_fn": TrainCollate(len(data.classes)),
        "pin_memory": pinned,
        "worker_init_fn": _leave_signals,
    }
    if data.images is not None:
        samples = TrainSamples(data.images, plan.steps_per_epoch * plan.batch, transform, options.seed)
        numbers = Numbers(step, plan.steps, plan.batch, process, processes)
        yield from DataLoader(samples, sampler=numbers, num_workers=options.workers, **common)
        return
    shards = len(data.reader.split_info.filenames) // processes
    workers = min(options.workers, shards)  # each has shards of its own
    while step < plan.steps:
        epoch, done = divmod(step, plan.steps_per_epoch)
        # The loader asks its workers in turn, from the first on: all pass over as many, and the rest is dropped here.
        skip, rest = divmod(done * options.grad_accum_steps, max(1, workers))
        stream = TrainStream(data.reader, transform, options.seed, options.batch_size, epoch, skip)
        data.reader.set_loader_cfg(num_workers=workers)
        loader = DataLoader(stream, num_workers=workers, **common)
        yield from islice(loader, rest, rest + (plan.steps_per_epoch - done) * options.grad_accum_steps)
        step = (epoch + 1) * plan.steps_per_epoch


def _leave_signals(worker: int) -> None:
    """Signals are the main process's to handle, which then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
