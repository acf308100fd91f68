"""The options of `train`, without torch: their names, defaults, and how recipes and the user's words add up.

Names are those of timm's train.py wherever it has the option; so are the defaults, but that the schedule follows
updates, not epochs, and the final learning rate is 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError, first_line
from ...weights.files import write_whole

__all__ = ["ARGS", "TrainOptions", "begun_with", "read_args", "resolve", "write_args"]

ARGS = "args.yaml"
"""The resolved options, in the folder of the run."""
ANEW = ("resume", "dry_run", "progress")
"""Options that a run that goes on does not take from its folder."""
FINETUNE = "finetune"

# How a run is carried out; what it learns does not depend on it, but for rounding.
CONDITIONS = (
    *(
        "output",
        "resume",
        "recipe",
        "sources",
        "dry_run",
        "workers",
        "device",
        "progress",
        "log_interval",
        "tensorboard",
    ),
    *(
        "checkpoint_steps",
        "val_interval",
        "validation_batch_size",
        "eval_metric",
        "skip_bad",
        "check_images",
    ),
    *("data", "val_data", "pseudo_labels", "pseudo_data", "grad_checkpointing", "channels_last", "torchcompile"),
    *("batch_size", "grad_accum_steps", "initial_checkpoint", "lr_base", "lr_base_size", "lr_base_scale"),
)


@dataclass(frozen=True)
class TrainOptions:
    """The options of the command."""

    model: str = ""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    output: str = ""
    resume: str | None = None
    """A checkpoint; empty for that in ``output``; None to begin anew."""
    recipe: str | None = None
    """None for ``finetune`` where pretrained weights are the start; empty for none."""
    dry_run: bool = False
    sources: dict[str, str] = field(default_factory=dict)
    """Where each option comes from that is not a default."""

    data: str = ""
    dataset: str = ""
    train_split: str = ""
    val_split: str = ""
    val_data: str = ""
    val_fraction: float | None = None
    """Held out of the training images of each class; None for a tenth where there is no validation split."""
    class_map: str = ""
    input_key: str | None = None
    target_key: str | None = None
    num_classes: int | None = None
    train_num_samples: int | None = None
    val_num_samples: int | None = None
    pseudo_labels: str = ""
    pseudo_data: str = ""
    """Where the images of the labels are now; by default where they were."""
    pseudo_ratio: float = 1.0
    """Pseudo-labelled images for each labelled one."""
    skip_bad: bool = False
    check_images: bool | None = None
    """Decode every image before training; None for data of a few thousand."""

    pretrained: bool = False
    initial_checkpoint: str = ""
    freeze: list[str] = field(default_factory=list)
    freeze_epochs: int = 0
    freeze_bn: bool = False
    gp: str = ""
    drop: float = 0.0
    drop_path: float | None = None
    drop_block: float | None = None
    img_size: int | None = None
    crop_pct: float | None = None
    crop_mode: str = ""
    interpolation: str = ""
    mean: list[float] | None = None
    std: list[float] | None = None

    batch_size: int = 128
    validation_batch_size: int | None = None
    grad_accum_steps: int = 1
    epochs: int = 300
    workers: int = 4

    opt: str = "sgd"
    opt_eps: float | None = None
    opt_betas: list[float] | None = None
    momentum: float = 0.9
    weight_decay: float = 2e-5
    clip_grad: float | None = None
    clip_mode: str = "norm"
    layer_decay: float | None = None

    sched: str = "cosine"
    sched_on_updates: bool = True
    lr: float | None = None
    lr_base: float = 0.1
    lr_base_size: int = 256
    lr_base_scale: str = ""
    lr_noise: list[float] | None = None
    lr_noise_pct: float = 0.67
    lr_noise_std: float = 1.0
    lr_cycle_mul: float = 1.0
    lr_cycle_decay: float = 0.5
    lr_cycle_limit: int = 1
    lr_k_decay: float = 1.0
    warmup_lr: float = 1e-5
    warmup_epochs: float = 5.0
    warmup_prefix: bool = False
    min_lr: float = 0.0
    decay_milestones: list[int] = field(default_factory=lambda: [90, 180, 270])
    decay_epochs: float | None = None
    """timm's: 90, and for wsd and rsqrt a fifth of the schedule."""
    decay_rate: float = 0.1
    cooldown_epochs: int = 0
    patience_epochs: int = 10

    no_aug: bool = False
    train_crop_mode: str = ""
    train_crop_padding: int = 4
    scale: list[float] | None = None
    ratio: list[float] | None = None
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    color_jitter_prob: float | None = None
    grayscale_prob: float = 0.0
    gaussian_blur_prob: float = 0.0
    aa: str | None = None
    train_interpolation: str = "random"
    reprob: float = 0.0
    remode: str = "pixel"
    recount: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_minmax: list[float] | None = None
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: str = "batch"
    mixup_off_epoch: int = 0
    smoothing: float = 0.1
    bce_loss: bool = False
    bce_target_thresh: float | None = None

    amp: bool = False
    amp_dtype: str = "float16"
    channels_last: bool = False
    torchcompile: str = ""
    grad_checkpointing: bool = False
    sync_bn: bool = False
    fsdp: bool = False
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    model_ema_warmup: bool = False

    seed: int = 42
    deterministic: bool = False
    device: str = ""
    log_interval: int = 50
    checkpoint_steps: int = 0
    """Updates between checkpoints within an epoch; 0 for one at the end of each."""
    val_interval: int = 1
    eval_metric: str = "top1"
    tensorboard: bool = False
    progress: bool | None = None

    @property
    def half(self) -> str:
        """The type of mixed precision, if any."""
        return self.amp_dtype if self.amp else ""

    @property
    def is_finetuning(self) -> bool:
        """Whether trained weights are the start."""
        return self.pretrained or bool(self.initial_checkpoint)

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None

    def told(self, name: str) -> str:
        """An option with its value as messages name it, and where that comes from if the user has not given it."""
        value = getattr(self, name)
        shown = (
            " ".join(map(str, value))
            if isinstance(value, list)
            else f"{value:g}"
            if isinstance(value, float)
            else value
        )
        text = f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')} {shown}"
        source = self.sources.get(name, "the default")
        if source in ("given", "--set"):
            return text
        return f"{text} ({f'recipe {self.recipe}' if self.recipe and source.startswith(self.recipe) else source})"

    def identity(self) -> dict[str, str]:
        """What makes the run the run that it is: a checkpoint of another one cannot be continued."""
        return {
            entry.name: repr(_as_written(value)) for entry in fields(self) if entry.name not in CONDITIONS
            if (value := getattr(self, entry.name)) not in (None, "", [], {})
        }  # fmt: skip


def _as_written(value: Any) -> Any:
    """A value as it comes back from the file of a run."""
    if isinstance(value, dict):
        return {key: _as_written(item) for key, item in value.items()}
    return [_as_written(item) for item in value] if isinstance(value, (list, tuple)) else value


def resolve(given: Mapping[str, Any], assignments: list[str] | None = None) -> TrainOptions:
    """Options from what the user gave, ``--set`` and the recipe, each before the next, and then the defaults.

    A run that goes on takes what it was begun with in place of a recipe, from its folder.

    Args:
        given: options by name; those that were not given are absent.
        assignments: KEY=VALUE each, as ``--set`` takes them.

    Raises:
        UserError: unknown recipe or option, or a value that is none of it.
    """
    from ..recipes import apply_set, load_recipe

    base = begun_with(given)
    sources: dict[str, str] = base.pop("sources", {})
    if not base:
        starts = given.get("pretrained") or given.get("initial_checkpoint")
        recipe = given.get("recipe")
        recipe = FINETUNE if recipe is None and starts else recipe or ""
        if recipe:
            base = load_recipe(recipe, given.get("model"), given.get("img_size"))
            notes = base.pop("notes", {})
            sources = {name: f"{recipe}: {notes[name]}" if name in notes else recipe for name in base}
            sources |= {name: f"{recipe}: {note}" for name, note in notes.items() if name not in base}
            base["recipe"] = recipe
    if assignments:
        before = dict(base)
        base = apply_set(base, assignments)
        sources |= {name: "--set" for name in base if base[name] != before.get(name) or name not in before}
    base |= given
    sources |= dict.fromkeys(given, "given")
    known = {entry.name: entry for entry in fields(TrainOptions)}
    unknown = [name for name in base if name not in known]
    if unknown:
        raise UserError(f"'{unknown[0]}' is no option of train; see lambdaresnet-zoo train --help")
    return replace(TrainOptions(), **base, sources={key: value for key, value in sources.items() if key != "resume"})


def begun_with(given: Mapping[str, Any], kind: type = TrainOptions) -> dict[str, Any]:
    """What a run was begun with that is to go on in its folder; nothing where it does not, or the folder holds none.

    Args:
        given: options by name, as the user gave them.
        kind: the dataclass of the command's options.

    Raises:
        UserError: the file is not what ``write_args`` wrote.
    """
    args = Path(str(given.get("output", "")), ARGS)
    if given.get("resume") != "" or not args.is_file():
        return {}
    return {name: value for name, value in read_args(args, kind).items() if name not in ANEW}


def write_args(folder: Path, options: Any) -> None:
    """Write a command's resolved options, a dataclass, into the folder of a run; tuples become lists."""
    values = {entry.name: getattr(options, entry.name) for entry in fields(options)}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    write_whole(folder / ARGS, lambda path: path.write_text(text, encoding="utf-8"))


def read_args(path: Path, kind: type = TrainOptions) -> dict[str, Any]:
    """The options of a run, of a command whose dataclass ``kind`` is.

    Raises:
        UserError: the file is not what ``write_args`` wrote.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    known = {entry.name for entry in fields(kind)}
    if not isinstance(values, dict) or not set(values) <= known:
        raise UserError(f"{path} does not hold the options of a run; give them all, and --resume FILE")
    return values
