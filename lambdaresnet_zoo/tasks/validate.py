"""Measure a model on labelled images: the loop, over one process or several.

The digits are those of timm's validate.py: its readers, transform, loader, warm-up, autocast and loss. What differs:
images are counted as whole numbers, losses summed in float64, and over several processes each image counts once.
"""

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import create_loader
from timm.models import reparameterize_model
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import UserError, first_line
from .loading import fit_input
from .processes import gather
from .validation_classes import Classes
from .validation_data import Validation
from .validation_images import Batch, Collate

__all__ = ["Loading", "Measurement", "Precision", "image_loader", "measure", "resolve_input"]

TOP = 5
REFRESH = 0.5  # seconds between two looks at the running figure, which waits for a GPU


@dataclass(frozen=True)
class Loading:
    """How images reach the model."""

    batch_size: int = 256
    workers: int = 4
    skip_bad: bool = False
    """Go on after an image that cannot be decoded."""
    progress: bool = False


@dataclass(frozen=True)
class Precision:
    """How the model computes."""

    amp: str = ""
    """``float16`` or ``bfloat16`` for autocast; float32 without it where empty."""
    channels_last: bool = False
    compile: str = ""
    """Backend of torch.compile; none where empty."""
    reparam: bool = False
    """Fold what timm's ``reparameterize_model`` folds, batch norms of a LambdaResNet."""

    def __str__(self) -> str:
        return f"{self.amp} autocast" if self.amp else "float32"


@dataclass
class Measurement:
    """What was counted, over all processes unless it is partial."""

    count: int = 0
    """Images that were scored: all, but with ReaL labels those that have any."""
    top1: int = 0
    top5: int = 0
    seen: int = 0
    loss_sum: float = 0.0
    per_class: Tensor = field(default_factory=lambda: torch.zeros((3, 0), dtype=torch.int64))
    """[3, classes] int64: images scored, right in the first, right in the first five."""
    confusion: Tensor | None = None
    """[classes, classes] int64, images by their class (row) and the predicted one, where it was asked for."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Images that were left out, and why."""
    unturned: int = 0
    """Images as they are stored, while their EXIF orientation asks for them to be turned."""
    seconds: float = 0.0
    partial: bool = False

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.loss_sum / self.seen if self.seen else float("nan")


def resolve_input(
    model: nn.Module,
    img_size: int | None = None,
    crop_pct: float | None = None,
    crop_mode: str = "",
    interpolation: str = "",
) -> dict[str, Any]:
    """The preprocessing of a model's own config with what the user overrides, as timm's validate.py resolves it.

    A model that is bound to a size is given the one that the user asks for, as ``fit_input`` does.

    Returns:
        timm's dictionary: ``input_size``, ``interpolation``, ``mean``, ``std``, ``crop_pct``, ``crop_mode``.
    """
    wanted = {"img_size": img_size, "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    return fit_input(model, wanted, use_test_size=True)


def measure(
    model: nn.Module,
    data: Validation,
    classes: Classes,
    config: Mapping[str, Any],
    device: torch.device,
    loading: Loading | None = None,
    precision: Precision | None = None,
    real: Mapping[str, Sequence[int]] | None = None,
    confusion: bool = False,
) -> Measurement:
    """Measure a model on this process's share of the data, and add up over the processes.

    Args:
        model: in eval mode on the device.
        data: as ``open_source`` gives it.
        classes: as ``match_classes`` gives it.
        config: preprocessing, as ``resolve_input`` gives it.
        device: of the model.
        loading: batch size, workers, what to do with damaged images.
        precision: autocast, memory format, compilation, folding.
        real: ImageNet-ReaL's classes by file name; images without any are not scored.
        confusion: count which class is taken for which, too.

    Returns:
        The counts. After Ctrl-C those of this process so far, with ``partial`` set.

    Raises:
        UserError: an image cannot be decoded, a class is out of range, or memory runs out.
    """
    loading, precision = loading or Loading(), precision or Precision()
    if precision.reparam:
        model = reparameterize_model(model)
    if precision.channels_last:
        model = model.to(memory_format=torch.channels_last)
    network: Any = torch.compile(model, backend=precision.compile) if precision.compile else model
    loop = _Loop(network, classes, device, precision, real, confusion)
    loader = image_loader(data.images, config, device, loading)
    total = data.count if data.kind in ("wds", "hfids") else len(data.images)  # type: ignore[arg-type]
    shown = tqdm(total=total, unit="image", disable=not loading.progress, dynamic_ncols=True)
    start = time.perf_counter()
    partial = False
    try:
        with torch.inference_mode(), shown as bar:
            if device.type != "cpu" or precision.compile:
                loop.warm_up((loading.batch_size, *config["input_size"]))
            start = looked = time.perf_counter()
            for images, batch in loader:
                loop.leave_out(batch, loading.skip_bad)
                if len(images):
                    loop.step(images, batch)
                bar.update(len(images))
                if loading.progress and time.perf_counter() - looked > REFRESH:
                    looked = time.perf_counter()
                    bar.set_postfix_str(f"top-1 {loop.running():.2f} %")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # torchrun passes it on, to what the terminal told already
        partial = True
    except torch.OutOfMemoryError as error:
        raise UserError(f"device '{device}' is out of memory; use a smaller --batch-size") from error
    found = loop.result(time.perf_counter() - start)
    found.partial = partial
    return found if partial else _over_processes(found)


def image_loader(images: Any, config: Mapping[str, Any], device: torch.device, loading: Loading) -> Any:
    """Timm's loader over images for evaluation; a damaged one is told by its ``Batch``.

    Args:
        images: ``IndexedImages`` or ``StreamedImages``.
        config: preprocessing, as ``resolve_input`` gives it.
        device: where the batches are put.
        loading: batch size and workers.
    """
    return create_loader(
        images,
        input_size=config["input_size"],
        batch_size=loading.batch_size,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=loading.workers,
        device=device,
        collate_fn=Collate(tuple(config["input_size"])),
        worker_seeding=_leave_interrupts,
        persistent_workers=False,
    )


class _Loop:
    """The sums of one process, kept on the device."""

    def __init__(
        self,
        network: Any,
        classes: Classes,
        device: torch.device,
        precision: Precision,
        real: Mapping[str, Sequence[int]] | None,
        confusion: bool = False,
    ):
        self.network = network
        self.classes = classes
        self.device = device
        self.precision = precision
        self.real = real
        self.valid = torch.tensor(classes.valid, device=device) if classes.valid else None
        self.totals = torch.zeros((3, classes.count), dtype=torch.int64, device=device)
        pairs = classes.count**2 if confusion else 0
        self.pairs = torch.zeros(pairs, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        self.seen = 0
        self.bad: list[tuple[str, str]] = []
        self.unturned = 0

    def warm_up(self, shape: tuple[int, ...]) -> None:
        """One batch of noise, so that compilation and the choice of kernels are not timed."""
        self._logits(torch.randn(shape, device=self.device))

    def leave_out(self, batch: Batch, skip: bool) -> None:
        """Take note of damaged images, or stop at the first; stop at a class that the model has not."""
        if batch.problems and not skip:
            name, problem = batch.problems[0]
            raise UserError(f"{name}: {problem}; or leave such images out with --skip-bad")
        if batch.broken:
            raise UserError(batch.broken)
        self.bad += batch.problems
        self.unturned += batch.unturned
        if batch.lowest < 0:
            raise UserError(f"an image has the class {batch.lowest}: this split has no labels; choose another --split")
        if batch.highest >= self.classes.count:
            raise UserError(
                f"an image has the class {batch.highest}, and classes run from 0 to {self.classes.count - 1}; "
                "map them with --class-map FILE"
            )

    def step(self, images: Tensor, batch: Batch) -> None:
        """Count a batch of images [B, C, h, w]."""
        output, loss = self._logits(images, batch.target)
        places = min(TOP, output.shape[1])
        predicted = output.topk(places, 1, True, True).indices  # as timm.utils.accuracy ranks them
        if self.real is None:
            right = predicted == batch.target[:, None]
            scored = torch.ones_like(batch.target)
        else:
            right, scored = self._real(predicted, batch.names)
        rows = torch.stack([scored, right[:, 0].long(), right.any(1).long()])
        self.totals.index_add_(1, batch.target, rows)
        if len(self.pairs):
            self.pairs.index_add_(0, batch.target * self.classes.count + predicted[:, 0], scored)
        self.loss += loss.to(self.loss.device).double() * len(images)
        self.seen += len(images)

    def _logits(self, images: Tensor, target: Tensor | None = None) -> Any:
        if self.precision.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        dtype = getattr(torch, self.precision.amp) if self.precision.amp else None
        with torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext():
            output = self.network(images)
            if self.valid is not None:
                output = output[:, self.valid]
            return output if target is None else (output, F.cross_entropy(output, target))

    def _real(self, predicted: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        assert self.real is not None
        labels = []
        for name in names:
            short = name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(": ", 1)[-1]
            known = self.real.get(short, self.real.get(f"{short}.JPEG"))  # webdataset's keys have no suffix
            if known is None:
                raise UserError(f"ReaL has no labels for '{short}': its images are named ILSVRC2012_val_00000001.JPEG")
            labels.append(known)
        right = [[place in known for place in row] for row, known in zip(predicted.tolist(), labels, strict=True)]
        scored = [int(bool(known)) for known in labels]
        return torch.tensor(right, device=self.device), torch.tensor(scored, device=self.device)

    def running(self) -> float:
        """Top-1 so far, in percent."""
        count, top1, _ = self.totals.sum(1).tolist()
        return 100 * top1 / max(1, count)

    def result(self, seconds: float) -> Measurement:
        """The sums as a measurement."""
        totals = self.totals.cpu()
        count, top1, top5 = totals.sum(1).tolist()
        pairs = self.pairs.cpu().reshape(self.classes.count, -1) if len(self.pairs) else None
        told = (self.bad, self.unturned, seconds)
        return Measurement(count, top1, top5, self.seen, float(self.loss), totals, pairs, *told)


def _over_processes(own: Measurement) -> Measurement:
    try:
        gathered = gather(own)
    except KeyboardInterrupt:  # while waiting for the others
        own.partial = True
        return own
    except RuntimeError as error:
        raise UserError(f"another process has stopped: {first_line(error)}") from error
    return Measurement(
        count=sum(part.count for part in gathered),
        top1=sum(part.top1 for part in gathered),
        top5=sum(part.top5 for part in gathered),
        seen=sum(part.seen for part in gathered),
        loss_sum=sum(part.loss_sum for part in gathered),
        per_class=torch.stack([part.per_class for part in gathered]).sum(0),
        confusion=_total([part.confusion for part in gathered]),
        bad=[entry for part in gathered for entry in part.bad],
        unturned=sum(part.unturned for part in gathered),
        seconds=max(part.seconds for part in gathered),
    )


def _total(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.stack(known).sum(0) if known else None


def _leave_interrupts(worker: Any) -> int:
    """For the loader's workers: Ctrl-C is the main process's to handle. Returns timm's own seed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _hang_up
    return worker.seed


def _hang_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A worker whose reader is gone, after Ctrl-C, has nothing to report; all else is told as ever."""
    if not issubclass(kind, (OSError, EOFError)):
        sys.__excepthook__(kind, error, trace)
