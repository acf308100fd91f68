"""What a run leaves: a folder that timm loads, its curves and its confusion matrix as pictures."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ...errors import UserError, first_line
from ...weights.cards import Card
from ...weights.files import read_rows, write_rows
from ...weights.folder import write_folder, write_model
from .data import TrainData
from .options import TrainOptions
from .records import SUMMARY

__all__ = ["CONFUSION", "CURVES", "MODEL", "draw", "export_model"]

MODEL, CURVES, CONFUSION = "model", "curves.png", "confusion"


def export_model(
    output: Path,
    model: nn.Module,
    data: TrainData,
    config: Mapping[str, Any],
    options: TrainOptions,
    row: Mapping[str, float],
    count: int,
) -> Path:
    """Write the network into a folder that timm, `predict` and `publish` take.

    Args:
        output: of the run.
        model: with the weights to export.
        data: what it was trained on.
        config: preprocessing.
        options: of the run.
        row: figures of the epoch that the weights are of; may be empty.
        count: images that these are of.

    Returns:
        The folder, in ``output``; one that is there is replaced.

    Raises:
        UserError: it cannot be written.
    """
    name = options.model.rsplit("/", 1)[-1]
    source = Path(options.data.rstrip("/")).name or options.dataset
    held = "a part held out of the training images" if data.held_out else "its validation split"
    figures = [
        {
            "dataset": f"{source}, {held}",
            "metric": metric,
            "value": f"{row[f'eval_{column}']:.2f}",
            "count": str(count),
            "note": f"epoch {int(row['epoch'])}, the best by {options.eval_metric}",
        }
        for metric, column in (("top-1", "top1"), ("top-5", "top5"))
        if row and (column == "top1" or len(data.classes) > 5)
    ]
    start = "fine-tuned from its pretrained weights" if options.is_finetuning else "from scratch"
    network: Any = model.to(memory_format=torch.contiguous_format).eval()  # as safetensors has it
    card = Card(
        f"{name}, trained on {source}",
        network.pretrained_cfg["architecture"],
        data=f"{source}: {data.count} images, {len(data.classes)} classes.",
        recipe=f"lambdaresnet-zoo train, {start}; recipe {options.recipe or 'none'}, {options.epochs} epochs, "
        f"seed {options.seed}, {options.opt}, {config['input_size'][-1]} pixels; args.yaml of the run has all of it.",
        origin=f"Trained by lambdaresnet-zoo train, {start}.",
        measured=figures,
    )
    cfg = {key: config[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")}
    # Size and crop for evaluation were those of the weights that it began with.
    cfg |= dict.fromkeys(("tag", "test_input_size", "test_pool_size", "test_crop_pct"))
    cfg["num_classes"] = len(data.classes)
    folder = output / MODEL
    fresh = output / f".{MODEL}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        write_folder(fresh, lambda path: write_model(path, network, card, torch.float32, data.classes, cfg))
    except SafetensorError as error:
        raise UserError(f"{folder} cannot be written ({first_line(error)}); make room, then --resume") from error
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return folder


def draw(output: Path, confusion: torch.Tensor | None, classes: tuple[str, ...]) -> list[str]:
    """Draw the curves and the confusion matrix, where matplotlib is installed; the matrix as csv too.

    Returns:
        Names of what could not be drawn, and why.
    """
    from .curves import draw_confusion, draw_curves

    problems = []
    rows = read_rows(output / SUMMARY) if (output / SUMMARY).exists() else []
    try:
        if rows:
            draw_curves(rows, output / CURVES)
        if confusion is not None:
            table = [
                {"true / predicted": name, **dict(zip(classes, counts, strict=True))}
                for name, counts in zip(classes, confusion.tolist(), strict=True)
            ]
            write_rows(output / f"{CONFUSION}.csv", table)
            draw_confusion(confusion.numpy(), classes, output / f"{CONFUSION}.png")
    except (UserError, OSError) as error:  # a picture is not worth a run
        problems.append(first_line(error))
    return problems
