"""What a run is, in a few lines, before it begins."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from .data import TrainData
from .options import TrainOptions
from .plan import Plan
from .records import Place

__all__ = ["describe"]

APART = ("model", "model_kwargs", "output", "resume", "recipe", "dry_run", "sources", "data", "progress")


def describe(
    model: nn.Module,
    data: TrainData,
    config: Mapping[str, Any],
    options: TrainOptions,
    plan: Plan,
    place: Place,
) -> str:
    """Model, data and steps; for a dry run also every option that is no default, and where it comes from."""
    parameters = list(model.parameters())
    every = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    part = "" if trained == every else f", {trained / 1e6:.2f} M of them trained"
    start = "pretrained" if options.is_finetuning else "from scratch"
    lines = [
        f"{options.model}: {every / 1e6:.2f} M parameters{part}, {start}; "
        f"{'x'.join(map(str, config['input_size']))}, mean {_few(config['mean'])}, std {_few(config['std'])}",
        f"{data.name}: {data.count} images, {len(data.classes)} classes ({_names(data.classes)}); {_validation(data)}",
        f"{plan.epochs} epochs of {plan.steps_per_epoch} steps of {plan.batch} images ({options.batch_size} x "
        f"{place.processes} process(es) x {options.grad_accum_steps}); {options.opt}, learning rate {plan.lr:.4g}, "
        f"{options.sched or 'constant'}; {options.half or 'float32'} on {place.device}; seed {options.seed}",
    ]
    if options.dry_run:
        defaults = TrainOptions()
        for entry in fields(TrainOptions):
            value = getattr(options, entry.name)
            if entry.name not in APART and value != getattr(defaults, entry.name):
                lines.append(f"  {entry.name} = {value}  ({options.sources.get(entry.name, 'given')})")
        lines += [f"  note: {text}" for name, text in options.sources.items() if name in ("model", "source")
                  and text != "given"]  # fmt: skip
    return "\n".join(lines)


def _few(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _names(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")


def _validation(data: TrainData) -> str:
    pseudo = f"{data.pseudo} of the images with pseudo-labels; " if data.pseudo else ""
    if data.validation is None:
        return f"{pseudo}nothing to evaluate on"
    count = data.validation.count
    shown = "a stream" if count is None else f"{count} images"
    return f"{pseudo}evaluated on {shown}{', held out of these' if data.held_out else ''}"
