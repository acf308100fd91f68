"""The commands `detect train` and `detect validate`: data, detector, loop, report; alone or under torchrun."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...arguments import keyword
from ...detection import DETECTORS, complexity
from ...errors import UserError
from ..checkpoints import LAST, Diverged
from ..outputs import check_writable, writing
from ..processes import SharedError, gather, take_part, together
from ..train.options import write_args
from .data import CocoData, check_images, read_coco
from .detector import DetectorConfig, build, load_detector, save_detector, write_config
from .options import DataOptions, TrainOptions, ValidateOptions
from .recipe import Recipe, read_recipe
from .report import read_report, report, write_report
from .samples import Samples
from .score import detect, result_files, score, write_results
from .train import Loop, Training

__all__ = ["train", "validate"]


def train(options: TrainOptions) -> int:
    """Train a detector; write checkpoints, log and weights into a folder, and its AP where asked.

    Returns:
        The exit status: 0, after SIGTERM too, with a checkpoint; 1 if the loss is no number.

    Raises:
        UserError: training cannot begin.
    """
    with take_part(options.device) as (device, process, processes):
        try:
            training, validation = together(partial(_prepare, options, device, process, processes))
        except SharedError:
            if process:
                return 2  # the first one tells
            raise
        output = Path(options.output)

        def evaluate(step: int) -> None:
            if validation is not None:
                row = _measure(training.model, validation, options, device, process, processes, options.batch_size)
                if not process:
                    write_report(output / "results.csv", {"step": step, **row}, "--output")
                    title = f"{options.detector} on {options.backbone}, step {step}"
                    beside = options.backbone if is_coco_val(validation) else ""
                    print(report(row, title, len(validation.ids), beside))

        try:
            finished = training.finish(options.eval_steps, evaluate)
        except Diverged as error:
            if not process:
                print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            if not process:
                again = f"--resume continues from step {training.saved}" if training.saved else "no checkpoint yet"
                print(f"interrupted at step {training.step}; {again}", file=sys.stderr)
            raise
        if not finished:
            if not process:
                print(
                    f"stopped at step {training.step}; --resume continues from {training.checkpoint}", file=sys.stderr
                )
            return 0
        if not process:
            save_detector(output, training.model)
            print(f"trained {training.step} steps; the detector is in {output}")
        if not (options.eval_steps and training.step % options.eval_steps == 0):
            evaluate(training.step)
        return 0


def resolve_recipe(options: TrainOptions, processes: int) -> Recipe:
    """The recipe with what the options change; the rate follows the batch where it is not given.

    Raises:
        UserError: unknown recipe, or a batch that does not divide.
    """
    recipe = read_recipe(options.recipe)
    names = ("steps", "image_size", "opt", "lr", "weight_decay", "warmup_steps", "clip_grad", "norm")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    parts = processes * options.grad_accum_steps
    batch = options.batch_size * parts if options.batch_size else recipe.batch_size
    if batch % parts:
        raise UserError(
            f"the recipe's batch of {batch} images does not divide among {processes} processes and "
            f"{options.grad_accum_steps} passes; give --batch-size, of each pass"
        )
    if "lr" not in given:
        given["lr"] = recipe.lr * batch / recipe.batch_size
    recipe = replace(recipe, batch_size=batch, **given)
    if recipe.image_size < 32:
        raise UserError(f"--image-size {recipe.image_size} is less than 32")
    return recipe


def _prepare(
    options: TrainOptions, device: torch.device, process: int, processes: int
) -> tuple[Training, CocoData | None]:
    """Data, detector and loop: all that can be wrong before the first step."""
    output = Path(options.output)
    if options.resume is None and (output / LAST).exists() and not process:
        raise UserError(f"{output} holds a run; continue it with --resume, or give another --output")
    if not process:  # which writes
        check_writable("--output", output, folder=True)
    recipe = resolve_recipe(options, processes)
    if options.detector not in DETECTORS:
        raise UserError(f"unknown detector '{options.detector}'; there are {', '.join(DETECTORS)}")
    masks = options.detector == "mask_rcnn"
    data = read_coco(options.annotations, options.images, masks, options.skip_bad, options.limit, options.image_ids)
    if not options.keep_empty:
        data = replace(data, ids=[number for number in data.ids if data.objects(number)])
    if not data.ids:
        raise UserError(f"{data.path}: no image has an annotation that is not a crowd region")
    data = _sound(data, options, process, processes)
    validation = None
    if options.val_annotations:
        folder = options.val_images or options.images
        validation = read_coco(options.val_annotations, folder, masks, options.skip_bad, scored=True)
        check_categories(validation, data.categories)
        validation = _sound(validation, options, process, processes)
    config = DetectorConfig(
        options.detector,
        options.backbone,
        data.categories,
        recipe.image_size,
        recipe.anchor_sizes,
        dict(map(keyword, options.model_kwargs)),
        recipe.options,
    )
    norm = recipe.norm
    if norm == "sync" and (processes == 1 or device.type == "cpu"):
        norm = "live"  # the same in one process; torch has none for the CPU
        if processes > 1 and not process:
            print("sync batch norm needs GPUs: each process normalises its own images", file=sys.stderr)
    torch.manual_seed(options.seed)
    model = build(
        config,
        _weights(options),
        norm=norm,
        frozen=options.freeze,
        grad_checkpointing=options.grad_checkpointing,
    ).to(device)
    run = {
        "detector": config.kind,
        "backbone": config.backbone,
        "category": config.categories,
        "images": len(data.ids),
        "image_ids": hashlib.sha256(repr(data.ids).encode()).hexdigest()[:12],
        "keep_empty": options.keep_empty,
        "model_kwargs": {key: repr(value) for key, value in config.backbone_kwargs.items()},
        "freeze": " ".join(sorted(options.freeze)) or "nothing",
        "seed": options.seed,
        "recipe": {key: repr(value) for key, value in asdict(recipe).items()},
    }
    loop = Loop(
        output,
        device,
        process,
        processes,
        options.grad_accum_steps,
        options.half,
        options.workers,
        options.checkpoint_steps,
        options.log_steps,
        options.shows and not process,
    )
    training = Training(model, Samples(data, data.ids, recipe, options.seed, masks), recipe, options.seed, run, loop)
    if options.resume is not None:
        training.resume(Path(options.resume) if options.resume else None)
    if not process:
        write_config(output, config)
        with writing("--output", output, "folder"):
            write_args(output, options)
        print(f"{config.kind} on {config.backbone}: {complexity(model, recipe.image_size)}")
        print(f"{len(data.ids)} images, {len(data.categories)} categories; {recipe.steps} steps of {recipe.batch_size}")
    return training, validation


def validate(options: ValidateOptions) -> int:
    """Measure the AP of a detector on COCO-format data.

    Returns:
        The exit status: 0.

    Raises:
        UserError: nothing can be measured.
    """
    with take_part(options.device) as (device, process, processes):

        def prepare() -> tuple[nn.Module, DetectorConfig, CocoData]:
            if not process:
                check_writable("--results", options.results)
                if options.results:
                    read_report(Path(options.results))
                for path in result_files(options.output, masks=True):
                    check_writable("--output", path)
            model, config = load_detector(options.checkpoint, device)
            masks = None if config.has_masks else False
            chosen = (options.skip_bad, options.limit, options.image_ids)
            data = read_coco(options.annotations, options.images, masks, *chosen, scored=True)
            check_categories(data, config.categories)
            if config.has_masks and not data.masks and not process:
                print(f"{data.path}: not every annotation has a segmentation: boxes alone are scored", file=sys.stderr)
            return model, config, _sound(data, options, process, processes)

        try:
            model, config, data = together(prepare)
        except SharedError:
            if process:
                return 2
            raise
        row = _measure(model, data, options, device, process, processes, options.batch_size, options.output)
        if not process:
            title = f"{config.kind} on {config.backbone}, {options.checkpoint}"
            print(report(row, title, len(data.ids), config.backbone if is_coco_val(data) else ""))
            if options.results:
                shown: dict[str, Any] = {"checkpoint": options.checkpoint, "data": str(data.path)}
                write_report(Path(options.results), {**shown, **row, "images": len(data.ids)})
        return 0


def _measure(
    model: nn.Module,
    data: CocoData,
    options: DataOptions,
    device: torch.device,
    process: int,
    processes: int,
    batch_size: int | None,
    output: str = "",
) -> dict[str, float]:
    """AP of a model on data; every process has the detections, and the first one scores them."""
    found = detect(
        model,
        data,
        device,
        batch_size or 1,
        options.workers,
        options.half,
        options.shows and not process,
        process,
        processes,
    )
    if process:
        return {}
    masks = hasattr(getattr(model, "roi_heads", None), "mask_head") and model.roi_heads.has_mask()  # type: ignore
    if output:
        for path in write_results(output, found, masks):
            print(f"wrote {path}", file=sys.stderr)
    return score(data, found, masks and data.masks)


def check_categories(data: CocoData, known: Mapping[int, str]) -> None:
    """Data to measure on may have fewer categories than the detector, and no others.

    Raises:
        UserError: it has one that the detector does not, or under another name.
    """
    for number, name in data.categories.items():
        if known.get(number) != name:
            there = f"'{known[number]}'" if number in known else "not known"
            raise UserError(f"{data.path}: category {number} is '{name}', and to the detector it is {there}")


def is_coco_val(data: CocoData) -> bool:
    """Whether the data are COCO's val2017, whole."""
    return len(data.ids) == len(data.coco.imgs) == 5000 and len(data.categories) == 80 and "val2017" in data.path.name


def _sound(data: CocoData, options: DataOptions, process: int, processes: int) -> CocoData:
    """The data without images that cannot be used; each process looks at its share."""
    share = data.ids[process::processes]
    good = together(partial(check_images, data, share, options.skip_bad, options.shows and not process))
    kept = {number for part in gather(good) for number in part}
    if not kept:
        raise UserError(f"{data.path}: no image can be used")
    return replace(data, ids=[number for number in data.ids if number in kept])


def _weights(options: TrainOptions) -> bool | Mapping[str, Tensor]:
    if not options.initial_checkpoint:
        return options.pretrained
    from ..loading import load_model

    return load_model(options.backbone, options.initial_checkpoint).state_dict()
