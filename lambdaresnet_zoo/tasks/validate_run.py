"""The command `validate`: models by name, the data, the loop, the report; alone or under torchrun."""

import fnmatch
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..errors import UserError
from ..registry import list_models
from ..startup import INTERRUPTED
from ..weights import hub
from ..weights.shipped import digest
from .loading import HUB_SOURCES, SOURCES, load_model
from .outputs import check_writable
from .processes import SharedError, take_part, together
from .validate import Loading, Measurement, Precision, measure, resolve_input
from .validation_classes import Classes, check_real, identify, match_classes, read_real_labels, read_valid_labels
from .validation_data import Source, Validation, open_source
from .validation_report import Results, environment, has_figure, peak_memory, reference, table, wilson, write_classes

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """The options of the command; the names are those of timm's validate.py where it has them."""

    model: str
    data: str = ""
    dataset: str = ""
    split: str = ""
    class_map: str = ""
    input_key: str | None = None
    target_key: str | None = None
    num_samples: int | None = None
    checkpoint: str = ""
    use_ema: bool = False
    num_classes: int | None = None
    img_size: int | None = None
    crop_pct: float | None = None
    crop_mode: str = ""
    interpolation: str = ""
    upright: bool = False
    batch_size: int = 256
    workers: int = 4
    device: str = ""
    amp: bool = False
    amp_dtype: str = "float16"
    channels_last: bool = False
    torchcompile: str = ""
    reparam: bool = False
    real_labels: str = ""
    valid_labels: str = ""
    skip_bad: bool = False
    per_class: str = ""
    tolerance: float | None = None
    results: str = ""
    progress: bool | None = None

    def told(self) -> str:
        """What the figures depend on beside model, weights, data and split, as one short text."""
        names: tuple[str, ...] = ("dataset", "split", "class_map", "input_key", "target_key", "img_size", "crop_pct")
        names += ("crop_mode", "interpolation", "channels_last", "torchcompile", "real_labels", "valid_labels")
        names += ("skip_bad", "use_ema", "reparam", "upright")
        given = [(name, getattr(self, name)) for name in names]
        told = [f"{name}={_content(value)}" for name, value in given if value not in ("", None, False)]
        return " ".join([*told, f"amp={self.amp_dtype}"] if self.amp else told)


def run(options: Options) -> int:
    """Measure models and print, and where asked write, what was found.

    Args:
        options: ``model`` may be a pattern over the names of this package's weights.

    Returns:
        The exit status: 0; 1 if a figure misses the tolerance, or one of several models failed; 130 after Ctrl-C.

    Raises:
        UserError: nothing can be measured.
    """
    with take_part(options.device) as (device, process, processes):
        try:
            together(partial(_check, options, process))
        except SharedError:
            if process:
                return 2  # the first one tells
            raise
        names = _names(options)
        results = Results(options.results) if options.results else None
        status = 0
        for name in names:
            try:
                row, measured = _one(name, options, device, process, processes, results)
                _comparable(row, options)
            except UserError as error:
                shared = isinstance(error, SharedError)
                if process and shared and len(names) == 1:
                    return 2
                if len(names) == 1 or (processes > 1 and not shared):  # the others are elsewhere: no going on
                    raise
                if not process:
                    print(f"error: {name}: {error}", file=sys.stderr)
                status = 1
                continue
            if measured is not None and not process:
                if results:
                    results.add(row)
                if options.per_class:
                    write_classes(options.per_class, measured[0].per_class, measured[1].names)
                for path, problem in measured[0].bad:
                    print(f"left out: {path}: {problem}", file=sys.stderr)
                if measured[0].unturned:
                    print(f"warning: {_unturned(measured[0].unturned)}", file=sys.stderr)
            if not process:
                status = max(status, _verdict(row, options))
            if row["status"] == "partial":
                return INTERRUPTED
        return status


def _check(options: Options, process: int) -> None:
    """What can be told before the first model is loaded."""
    if not process:  # which writes
        check_writable("--results", options.results)
        check_writable("--per-class", options.per_class)
    if options.use_ema and not options.checkpoint:
        raise UserError("--use-ema is of a checkpoint; name it with --checkpoint FILE, or leave the option out")
    if options.data and not os.path.exists(options.data):
        raise UserError(f"{options.data}: no such file or folder")
    if options.torchcompile and options.torchcompile not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise UserError(f"--torchcompile {options.torchcompile} is no backend of torch.compile; there are {known}")


def _names(options: Options) -> list[str]:
    if options.model.startswith(SOURCES) or not set(options.model) & set("*?["):
        return [options.model]
    if options.checkpoint or options.per_class:
        option = "--checkpoint" if options.checkpoint else "--per-class"
        raise UserError(f"{option} is of one model, and '{options.model}' is a pattern: name the model")
    known = timm.list_models(list_models(pretrained=True), pretrained=True)
    found = [name for name in known if fnmatch.fnmatch(name, options.model)]
    if not found:
        raise UserError(f"no model with weights is like '{options.model}'; there are {', '.join(known)}")
    return found


def _one(
    name: str, options: Options, device: torch.device, process: int, processes: int, results: Results | None
) -> tuple[dict[str, Any], tuple[Measurement, Classes] | None]:
    """The row of one model, and what was measured; nothing where the results have it already.

    Raises:
        SharedError: it cannot begin, and all processes know.
        UserError: it cannot go on.
    """
    key = together(partial(_key, name, options))
    finished = results.finished(key) if results and not options.per_class else None
    if finished:
        if not process:
            print(f"{name}: finished in {options.results}, top-1 {finished['top1']} %")
        return finished, None
    model, config, data, classes, real = together(partial(_prepare, name, options, device, process, processes))
    if device.type == "cuda":  # as timm's validate.py, for the same digits
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.cuda.reset_peak_memory_stats(device)
    shown = options.progress if options.progress is not None else sys.stderr.isatty()
    found = measure(
        model,
        data,
        classes,
        config,
        device,
        Loading(options.batch_size, options.workers, options.skip_bad, shown and not process),
        Precision(
            options.amp_dtype if options.amp else "", options.channels_last, options.torchcompile, options.reparam
        ),
        real,
    )
    if not found.count and not found.partial:
        raise UserError(f"{options.data or options.dataset} has no image that could be scored")
    row, notes = _row(name, key, options, model, config, data, classes, found, device, processes)
    if not process:  # the others compute; the first one tells
        print(table(row, notes))
    return row, (found, classes)


def _prepare(
    name: str, options: Options, device: torch.device, process: int, processes: int
) -> tuple[nn.Module, dict[str, Any], Validation, Classes, dict[str, list[int]] | None]:
    """Model, preprocessing, data, classes and ReaL's labels: all that can be wrong before the first batch."""
    model = load_model(name, options.checkpoint or None, device, options.use_ema)
    if options.tolerance is not None and not has_figure(*_weights(name, options)):
        raise UserError(f"--tolerance compares with a published figure, and '{name}' has none; leave the option out")
    size: Any = model.num_classes
    if options.num_classes not in (None, size):
        raise UserError(f"--num-classes {options.num_classes}, and '{name}' has {size} classes")
    config = resolve_input(model, options.img_size, options.crop_pct, options.crop_mode, options.interpolation)
    source = Source(**{field.name: getattr(options, field.name) for field in fields(Source)})
    real = read_real_labels(options.real_labels) if options.real_labels else None
    data = open_source(source, process, processes, named=real is not None)
    data.images.upright = options.upright
    valid = read_valid_labels(options.valid_labels) if options.valid_labels else ()
    classes = match_classes(model, data.classes, valid, mapped=bool(options.class_map))
    if real is not None:
        check_real(classes)
    return model, config, data, classes, real


def _row(
    name: str,
    key: Mapping[str, str],
    options: Options,
    model: nn.Module,
    config: Mapping[str, Any],
    data: Validation,
    classes: Classes,
    found: Measurement,
    device: torch.device,
    processes: int,
) -> tuple[dict[str, Any], list[str]]:
    """A row of the results, and what is to be said with it."""
    dataset = identify(classes, found.count + len(found.bad), bool(options.real_labels))
    figure = reference(*_weights(name, options), dataset, found.count, config["input_size"][-1], config["crop_pct"])
    notes = [classes.note, figure.get("note", "")]
    short = data.count is not None and found.seen + len(found.bad) != data.count and not found.partial
    if short:
        notes.append(f"the data declares {data.count} images and holds {found.seen + len(found.bad)}")
    if found.partial:
        part = f"the part of the first of {processes} processes alone, without the others' images"
        notes.append(f"interrupted: {part if processes > 1 else 'what was measured'}")
    memory, what = peak_memory(device)
    low, high = wilson(found.top1, found.count)
    top1, top5 = (100 * right / max(1, found.count) for right in (found.top1, found.top5))
    row = {
        **key,
        "top1": f"{top1:.4f}",
        "top1_low": f"{low:.3f}",
        "top1_high": f"{high:.3f}",
        "top5": f"{top5:.4f}",
        "loss": f"{found.loss:.6f}",
        "count": found.count,
        "status": "partial" if found.partial else "incomplete" if found.bad or short else "complete",
        "bad": len(found.bad),
        "published_top1": figure.get("top1", ""),
        "difference": f"{top1 - float(figure['top1']):+.4f}" if figure.get("top1") else "",
        "published_source": figure.get("source", ""),
        "dataset": dataset,
        "split": data.split,
        "img_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
        "interpolation": config["interpolation"],
        "precision": str(Precision(options.amp_dtype if options.amp else "")),
        "images_per_second": f"{found.seen / found.seconds:.1f}",
        "seconds": f"{found.seconds:.2f}",
        "peak_memory_mb": f"{memory:.0f}",
        "peak_memory_of": f"{what}, the first of {processes}" if processes > 1 else what,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "params_m": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}",
        **environment(device, processes),
    }
    return row, notes


def _key(name: str, options: Options) -> dict[str, str]:
    data = os.path.abspath(options.data) if options.data else options.dataset
    folder = Path(name.removeprefix("local-dir:")).absolute() if name.startswith("local-dir:") else None
    return {
        "model": f"local-dir:{folder}" if folder else name,
        "checkpoint": _content(str(folder / "model.safetensors") if folder else options.checkpoint)
        or _hub_content(name),
        "data": data,
        "options": options.told(),
    }


def _hub_content(name: str) -> str:
    """The weights of a repository with the start of their digest, as a branch may move; empty for other names."""
    if not name.startswith(HUB_SOURCES):
        return ""
    repo_id, _, revision = name.split(":", 1)[1].partition("@")
    try:
        path = hub.fetch(repo_id, revision=revision or None)
    except hub.MissingFileError:
        return ""  # under a name of its own; the model's config tells which
    return f"{path.name}@{digest(path)[:12]}"


def _content(value: Any) -> str:
    """An option; a file with the start of its digest, as a rerun may find another one of that name."""
    try:
        is_file = isinstance(value, str) and value and Path(value).is_file()
        return f"{value}@{digest(Path(value))[:12]}" if is_file else str(value)
    except OSError as error:
        raise UserError(f"{value} cannot be read: {error.strerror}") from error


def _unturned(count: int) -> str:
    have = "1 image has" if count == 1 else f"{count} images have"
    return (
        f"{have} an EXIF orientation and stayed as stored, as timm leaves them; train, label and predict turn such, "
        "and so does validate --upright"
    )


def _weights(name: str, options: Options) -> tuple[str, str]:
    """Registered name and tag of weights; no tag for weights of one's own, nor a name for those of a folder."""
    if name.startswith(SOURCES):
        return "", ""
    cfg: Any = timm.models.get_pretrained_cfg(name)
    return cfg.architecture, "" if options.checkpoint else cfg.tag or ""


def _comparable(row: Mapping[str, Any], options: Options) -> None:
    """Refuse a tolerance where nothing was published for this data, size and crop."""
    if options.tolerance is not None and row["status"] != "partial" and not row["difference"]:
        raise UserError(
            f"--tolerance compares with a published figure; there is none of '{row['model']}' on this data, "
            "at this size and crop"
        )


def _verdict(row: Mapping[str, Any], options: Options) -> int:
    """1 where the figure is not what was published, and says so."""
    if not math.isfinite(float(row["loss"])) and row["status"] != "partial":
        print(f"error: {row['model']} gives no finite numbers; check its weights, or --amp-dtype", file=sys.stderr)
        return 1
    if options.tolerance is None or row["status"] == "partial":
        return 0
    if abs(float(row["difference"])) <= options.tolerance:
        return 0
    print(
        f"missed: {row['model']} gives {row['top1']} %, published {row['published_top1']} %, "
        f"a difference of {row['difference']} where {options.tolerance} is allowed",
        file=sys.stderr,
    )
    return 1
