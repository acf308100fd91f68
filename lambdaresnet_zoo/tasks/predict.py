"""Predict the classes of images."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import UserError
from .images import demo_image, find_images, image_problem, open_image
from .loading import fit_input, label_names, load_model

__all__ = ["Prediction", "Result", "load_model", "predict", "run"]

FEW = 8  # images that need no progress bar


@dataclass(frozen=True)
class Prediction:
    """A class and its probability."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Result:
    """An image's name and its most probable classes, best first; or what is wrong with it."""

    path: str
    predictions: list[Prediction]
    error: str = ""


def predict(
    images: Iterable[str | Path | tuple[str, Image.Image]],
    model: nn.Module,
    topk: int = 5,
    device: str | torch.device | None = None,
    batch_size: int = 16,
) -> Iterator[Result]:
    """Predict the classes of images, with the preprocessing that the model's own config asks for.

    One batch of images is held at a time, so any number of them can be given.

    Args:
        images: files, or pairs of a name and an image in mode RGB.
        model: a timm model; it is put in eval mode.
        topk: classes to give for each image, at most all.
        device: to move the model to; by default it stays where it is.
        batch_size: images that the model sees at once.

    Returns:
        An iterator over one result for each image, in their order. An image that cannot be read
        gives a result with ``error`` and without predictions.

    Raises:
        ValueError: ``topk`` or ``batch_size`` is less than 1.
    """
    if topk < 1 or batch_size < 1:
        raise ValueError(f"topk {topk} and batch_size {batch_size} must be at least 1")
    if device is not None:
        model.to(device)
    return _predict(iter(images), model.eval(), topk, batch_size)


def _predict(
    images: Iterator[str | Path | tuple[str, Image.Image]], model: nn.Module, topk: int, batch_size: int
) -> Iterator[Result]:
    transform = create_transform(**fit_input(model), is_training=False)
    labels = label_names(model)
    device = next(model.parameters()).device
    while batch := list(islice(images, batch_size)):
        pixels: list[Tensor] = []
        results: list[Result] = []
        for item in batch:
            name = item[0] if isinstance(item, tuple) else str(item)
            try:
                pixels.append(transform(item[1] if isinstance(item, tuple) else open_image(item)))
                results.append(Result(name, []))
            except Exception as error:  # a decoder may raise anything on a damaged file
                results.append(Result(name, [], image_problem(error)))
        tops = iter(_top(model, torch.stack(pixels).to(device), topk) if pixels else ())
        for result in results:
            if not result.error:
                result = _named(result.path, *next(tops), labels)
            yield result


def _named(path: str, probabilities: Tensor, indices: Tensor, labels: list[str]) -> Result:
    if not probabilities.isfinite().all():  # JSON could not hold them either
        return Result(path, [], "the model gives no finite numbers; check its weights")
    pairs = zip(indices.tolist(), probabilities.tolist(), strict=True)
    return Result(path, [Prediction(labels[index], index, probability) for index, probability in pairs])


@torch.inference_mode()
def _top(model: nn.Module, pixels: Tensor, topk: int) -> list[tuple[Tensor, Tensor]]:
    probabilities = model(pixels).float().softmax(1).cpu()
    values, indices = probabilities.topk(min(topk, probabilities.shape[1]))
    return list(zip(values, indices, strict=True))


def run(
    images: Iterable[str],
    model: str,
    checkpoint: str | None = None,
    topk: int = 5,
    device: str = "cpu",
    batch_size: int = 16,
    as_json: bool = False,
    demo: bool = False,
    progress: bool | None = None,
) -> int:
    """The command `predict`: results on stdout, problems on stderr.

    Args:
        images: files, folders and patterns.
        model: as ``load_model``.
        checkpoint: as ``load_model``.
        topk: as ``predict``.
        device: as ``load_model``.
        batch_size: as ``predict``.
        as_json: write one JSON object a line.
        demo: predict scikit-image's cat first.
        progress: show a bar, if there are more than a few images; by default on a terminal only.

    Returns:
        The exit status: 0, or 1 if any image could not be predicted.

    Raises:
        UserError: the model, the weights, the device or the demo image cannot be had.
    """
    first = [demo_image()] if demo else []
    network = load_model(model, checkpoint, device)
    paths, problems = find_images(images)
    items: list[Path | tuple[str, Image.Image]] = [*first, *paths]
    shown = progress if progress is not None else sys.stderr.isatty()
    failed = False
    results = chain(
        (Result(name, [], problem) for name, problem in problems), predict(items, network, topk, None, batch_size)
    )
    total = len(problems) + len(items)
    with tqdm(total=total, unit="image", file=sys.stderr, disable=not shown or total <= FEW) as bar:
        try:
            for result in results:
                if result.error:
                    failed = True
                    bar.write(f"error: {result.path}: {result.error}", file=sys.stderr)
                if as_json or not result.error:
                    bar.write(_json(result) if as_json else _text(result), file=sys.stdout)
                bar.update()
        except torch.OutOfMemoryError as error:
            raise UserError(f"device '{device}' is out of memory; use a smaller --batch-size") from error
    return 1 if failed else 0


def _json(result: Result) -> str:
    if result.error:
        return json.dumps({"path": result.path, "error": result.error})
    return json.dumps({"path": result.path, "predictions": [asdict(row) for row in result.predictions]})


def _text(result: Result) -> str:
    return "\n".join([result.path, *(f"  {100 * row.probability:6.2f}%  {row.label}" for row in result.predictions)])
