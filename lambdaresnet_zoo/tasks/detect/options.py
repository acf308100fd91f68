"""The options of `detect train` and `detect validate`, without torch."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from ..train.options import ARGS, begun_with

__all__ = ["DataOptions", "TrainOptions", "ValidateOptions", "resolve"]


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are read."""

    annotations: str = ""
    images: str = ""
    limit: int | None = None
    image_ids: tuple[int, ...] = ()
    skip_bad: bool = False
    workers: int = 4
    device: str = ""
    amp: bool = False
    amp_dtype: str = "float16"
    progress: bool | None = None

    @property
    def half(self) -> str:
        """The type of mixed precision, if any."""
        return self.amp_dtype if self.amp else ""

    @property
    def shows(self) -> bool:
        """Whether progress is shown."""
        return self.progress if self.progress is not None else sys.stderr.isatty()


@dataclass(frozen=True)
class TrainOptions(DataOptions):
    """Options of `detect train`; names are those of timm's train.py where it has them."""

    output: str = ""
    val_annotations: str = ""
    val_images: str = ""
    detector: str = "mask_rcnn"
    backbone: str = "lambdaresnet50"
    model_kwargs: tuple[str, ...] = ()
    """KEY=VALUE each."""
    pretrained: bool = False
    initial_checkpoint: str = ""
    freeze: tuple[str, ...] = ()
    grad_checkpointing: bool = False
    keep_empty: bool = False
    recipe: str = "paper"
    steps: int | None = None
    batch_size: int | None = None
    grad_accum_steps: int = 1
    image_size: int | None = None
    opt: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    warmup_steps: int | None = None
    clip_grad: float | None = None
    norm: str | None = None
    seed: int = 42
    resume: str | None = None
    checkpoint_steps: int = 1000
    eval_steps: int = 0
    log_steps: int = 20


@dataclass(frozen=True)
class ValidateOptions(DataOptions):
    """Options of `detect validate`."""

    checkpoint: str = ""
    batch_size: int = 1
    output: str = ""
    results: str = ""


def resolve(given: Mapping[str, Any]) -> TrainOptions:
    """Options from what the user gave, then what a run that goes on was begun with, and then the defaults.

    Args:
        given: options by name; those that were not given are absent.

    Raises:
        UserError: there is no run to go on with, or it does not tell where its data are.
    """
    base = begun_with(given, TrainOptions)
    together = (base | dict(given)).items()
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in together}
    lacking = " and ".join(f"--{name}" for name in ("annotations", "images") if not values.get(name))
    if not lacking:
        return TrainOptions(**values)
    if given.get("resume") != "":
        raise UserError(f"give {lacking}, or --resume to continue the run in --output FOLDER")
    raise UserError(
        f"--output {given['output']} holds no {ARGS} of a run to continue; check the name, or give {lacking} too"
    )
