"""What follows from options and data before the first step: steps, rate, optimiser, schedule."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from torch import nn

from ...errors import UserError, first_line
from .data import TrainData
from .options import TrainOptions

__all__ = ["Plan", "fit_batch", "make_optimizer", "make_plan", "make_schedule"]

SCHEDULES = ("cosine", "tanh", "step", "multistep", "plateau", "poly", "wsd", "rsqrt", "constant")  # timm's
AVERAGED = ("ada", "lamb")  # names of optimisers whose rate follows the root of the batch, as in timm's train.py


@dataclass(frozen=True)
class Plan:
    """The steps of a run."""

    batch: int
    """Images of an update, over all processes and passes."""
    steps_per_epoch: int
    epochs: int
    """With those that the schedule adds."""
    lr: float

    @property
    def steps(self) -> int:
        """Updates of the run."""
        return self.steps_per_epoch * self.epochs


def fit_batch(options: TrainOptions, count: int, processes: int) -> TrainOptions:
    """The options with a batch that the data fills, where the user has named none."""
    parts = processes * options.grad_accum_steps
    if options.sources.get("batch_size") in ("given", "--set") or options.batch_size * parts <= count:
        return options
    size = max(1, count // parts)
    size -= size % 2 if options.mixes and size > 1 else 0
    return replace(options, batch_size=size, sources={**options.sources, "batch_size": "what the data fills"})


def make_plan(options: TrainOptions, data: TrainData, processes: int) -> Plan:
    """The steps of a run.

    Raises:
        UserError: the data does not fill one batch, a batch cannot be mixed, or the rate is 0.
    """
    batch = options.batch_size * processes * options.grad_accum_steps
    if batch > data.count:
        parts = [options.told("batch_size")]
        parts += [f"{processes} processes"] if processes > 1 else []
        parts += [options.told("grad_accum_steps")] if options.grad_accum_steps > 1 else []
        raise UserError(
            f"{' x '.join(parts)}: an update takes {batch} images, and {data.name} has {data.count}; "
            "give a smaller --batch-size"
        )
    if options.mixes and options.batch_size % 2:
        raise UserError(f"{options.told('batch_size')} is odd, and mixup pairs the images of a batch; give an even one")
    lr = options.lr
    if lr is None:
        ratio = batch / options.lr_base_size
        scale = options.lr_base_scale or ("sqrt" if any(name in options.opt.lower() for name in AVERAGED) else "linear")
        lr = options.lr_base * (ratio**0.5 if scale == "sqrt" else ratio)
    if not lr:
        zero = options.told("lr_base" if options.lr is None else "lr")
        raise UserError(f"{zero} trains nothing; give a learning rate above 0")
    steps = data.count // batch
    stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)  # the schedule alone knows how long it is
    _, epochs = make_schedule(stand_in, options, steps)
    return Plan(batch, steps, epochs, lr)


def make_optimizer(model: nn.Module, options: TrainOptions, plan: Plan) -> torch.optim.Optimizer:
    """Timm's optimiser of the parameters that are ever trained.

    Raises:
        UserError: timm has none of this name, or it does not take an option.
    """
    arguments: dict[str, Any] = {**optimizer_kwargs(options), "lr": plan.lr}
    try:
        return create_optimizer_v2(model, **arguments)
    except (ValueError, AssertionError, TypeError, AttributeError) as error:
        raise UserError(f"{options.told('opt')}: {first_line(error)}") from error


def make_schedule(
    optimizer: torch.optim.Optimizer, options: TrainOptions, steps_per_epoch: int, evaluated: bool = True
) -> tuple[Any, int]:
    """Timm's schedule of the learning rate, None where it stays as it is, and the epochs of a run by it.

    Args:
        optimizer: whose rate it sets.
        options: of the schedule.
        steps_per_epoch: updates.
        evaluated: whether there are figures for ``plateau`` to look at; else it looks at the training loss.

    Raises:
        UserError: timm has none of this name, or it is longer than the run.
    """
    if options.sched.lower() in ("", "none"):
        return None, options.epochs
    arguments = scheduler_kwargs(options, decreasing_metric=None if evaluated else True)
    if options.sched == "plateau":  # it looks at each epoch's figures
        arguments["step_on_epochs"] = True
    if options.warmup_epochs >= options.epochs and not options.warmup_prefix:
        raise UserError(
            f"{options.told('warmup_epochs')} leave nothing of {options.told('epochs')}; "
            f"give more --epochs, or --warmup-epochs below {options.epochs}, such as 0"
        )
    if options.sched not in SCHEDULES:
        raise UserError(f"{options.told('sched')} is no schedule; there are {', '.join(SCHEDULES)}, none")
    try:
        schedule, epochs = create_scheduler_v2(optimizer, updates_per_epoch=steps_per_epoch, **arguments)
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(f"{options.told('sched')}: {first_line(error)}") from error
    return schedule, int(epochs)
