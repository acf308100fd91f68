"""Evaluation within a run, by the code of `validate`."""

import math
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn

from ..validate import Loading, Measurement, Precision, measure
from ..validation_classes import Classes
from .data import TrainData
from .options import TrainOptions

__all__ = ["evaluate", "figures"]

MOST = 1000  # classes of which a confusion matrix is counted


def evaluate(
    network: nn.Module,
    data: TrainData,
    config: Mapping[str, Any],
    options: TrainOptions,
    device: torch.device,
    progress: bool,
) -> Measurement | None:
    """Measure a network on the validation images of all processes.

    Args:
        network: whole, in eval mode.
        data: with its validation.
        config: preprocessing.
        options: batch size, workers, precision.
        device: of the network.
        progress: show a bar.

    Returns:
        The counts; None where SIGTERM ended it. Of several processes, which must end together, none ends it: the
        checkpoint before it is written, and the run stops after it.

    Raises:
        UserError: an image cannot be decoded.
        KeyboardInterrupt: Ctrl-C ended it.
    """
    assert data.validation is not None
    terminated = []

    def stop(number: int, frame: FrameType | None) -> None:
        terminated.append(number)
        raise KeyboardInterrupt  # which measure takes for the end

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        signal.signal(signal.SIGTERM, stop)
    try:
        found = measure(
            network,
            data.validation,
            Classes(len(data.classes), names=data.classes),
            config,
            device,
            Loading(options.validation_batch_size or options.batch_size, options.workers, options.skip_bad, progress),
            Precision(options.half, options.channels_last),
            confusion=len(data.classes) <= MOST,
        )
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if found.partial:
        if terminated:
            return None
        raise KeyboardInterrupt
    return found


def figures(found: Measurement) -> dict[str, float]:
    """A row of figures, in percent, by the names of the run's csv; NaN, which is never the best, of no image."""
    if not found.count:
        return dict.fromkeys(("eval_loss", "eval_top1", "eval_top5"), math.nan)
    return {
        "eval_loss": found.loss,
        "eval_top1": 100 * found.top1 / found.count,
        "eval_top5": 100 * found.top5 / found.count,
    }
