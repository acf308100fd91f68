"""What keeps a run from going on, where an error tells it in its own words."""

from ...errors import UserError, first_line
from .state import TrainState

__all__ = ["explained"]

LOST = ("gloo", "nccl", "connection", "peer", "timed out", "socket")
"""Words of errors that another process's end causes."""


def explained(error: Exception, training: TrainState) -> Exception:
    """What kept a run from going on, in one line; the error itself where that is not known."""
    text = first_line(error)
    known = text.lower()
    if "more than 1 value per channel" in known:
        size = training.options.told("batch_size")
        return UserError(f"{size}: batch norm takes more than one value of each channel; give 2, or --freeze-bn")
    if "dataloader worker" in known:
        return UserError(f"a process that loads images has ended ({text}); use fewer --workers, then --resume")
    if training.place.processes > 1 and any(word in known for word in LOST):
        again = f"--resume continues from step {training.saved}" if training.saved else "no checkpoint yet"
        return UserError(f"another process of the run has stopped ({text}); {again}")
    return error
