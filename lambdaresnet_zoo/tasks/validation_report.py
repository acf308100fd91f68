"""What `validate` measured: figures with intervals, the table, and the file of results."""

import csv
import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..errors import UserError, first_line
from ..weights.cards import CIFAR10
from ..weights.files import read_rows, write_rows, write_whole
from ..weights.published import published_figure
from .outputs import writing

__all__ = [
    "FIELDS",
    "Results",
    "environment",
    "has_figure",
    "peak_memory",
    "reference",
    "table",
    "wilson",
    "write_classes",
]

Z = 1.959963984540054  # of the normal distribution, for 95 %

KEY = ("model", "checkpoint", "data", "options")
FIELDS = (
    *KEY[:1], "top1", "top1_low", "top1_high", "top5", "loss", "count", "status", "bad", "published_top1",
    "difference", "published_source", "dataset", *KEY[1:], "split", "img_size", "crop_pct", "crop_mode",
    "interpolation", "precision", "images_per_second", "seconds", "peak_memory_mb", "peak_memory_of",
    "batch_size", "workers", "processes", "device", "threads", "params_m", "torch", "timm", "lambdaresnet_zoo",
    "python",
)  # fmt: skip
MATCHED = "imagenetv2-matched-frequency"
COUNTS = {"imagenet-1k": 50000, MATCHED: 10000}
"""Images of a data set."""
COMPLETE = "complete"
LOCKED = 60  # seconds to wait for another run that writes


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, in percent; the whole range where nothing was counted."""
    if not count:
        return 0.0, 100.0
    share, scale = correct / count, 1 + Z**2 / count
    centre = (share + Z**2 / (2 * count)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, 100 * (centre - half)), min(100.0, 100 * (centre + half))


def has_figure(model: str, tag: str) -> bool:
    """Whether any figure was published or recorded for weights of this name."""
    return bool(published_figure(model, tag, dataset=None)) or bool(_recorded(model, tag))


def reference(
    model: str, tag: str, dataset: str, count: int, size: int, crop_pct: float | None = None
) -> dict[str, str]:
    """The figure that weights should give on a data set, at the size and crop that it was published with.

    Args:
        model: registered name, without its tag.
        tag: of the weights; empty for weights that the user brings, which are held against the paper's or
            the port's figures.
        dataset: as ``validation_classes.identify`` names it.
        count: images of it.
        size: of the input, in pixels.
        crop_pct: of the input; None where it is the model's own.

    Returns:
        ``top1`` (percent), ``source`` and ``note``; without ``top1`` where what was published is of another
        size, crop or number of images, which the note then tells; empty where nothing was.
    """
    version = dataset == "imagenet-v2"  # whose three variants look alike
    named = MATCHED if version else dataset
    figure = published_figure(model, tag, named, size) or published_figure(model, tag, named)
    if figure and figure.top1 is not None:
        notes = ["published on ImageNet-V2's matched-frequency variant"] if version else []
        differs = []
        if figure.size not in (None, size):
            differs.append(f"at {figure.size} pixels")
        if None not in (figure.crop_pct, crop_pct) and float(figure.crop_pct or 0) != crop_pct:
            differs.append(f"with crop {figure.crop_pct}")
        if COUNTS.get(named, count) != count:
            differs.append(f"on {COUNTS[named]} images, these are {count}")
        if differs:
            return {"note": f"{figure.top1} % is published {', '.join(differs)}: not compared"}
        return {"top1": str(figure.top1), "source": figure.source, "note": "; ".join(notes)}
    column = {10000: "top1", 1017: "top1_lossless"}.get(count)
    record = _recorded(model, tag) if dataset == "cifar10" and column and size == 32 else {}
    if not record or not column:
        return {}
    note = "recorded on the JPEG re-encoding of the test images" if count == 10000 else ""
    return {"top1": record[column], "source": "recorded by this project, weights/results/cifar10.csv", "note": note}


def _recorded(model: str, tag: str) -> Mapping[str, str]:
    rows = read_rows(CIFAR10) if tag == "cifar10" else []
    return next((row for row in rows if row["model"] == model), {})


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Where it was measured."""
    from .. import __version__

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "processes": processes,
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "lambdaresnet_zoo": __version__,
        "python": platform.python_version(),
    }


def peak_memory(device: torch.device) -> tuple[float, str]:
    """MiB, and of what: CUDA's allocator, or this process at its largest, without the loader's workers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20, "allocated on the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return 0.0, "not measured"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, "resident in the process"


def table(row: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The figures of a row for a terminal."""
    partial = "" if row["status"] == COMPLETE else f"  [{row['status']}]"
    title = f"{row['model']} on {row['dataset'] or 'unnamed data'} ({row['data']} {row['split']}".rstrip()
    lines = [
        f"{title}){partial}",
        f"  top-1        {row['top1']} %   (95 %: {row['top1_low']} to {row['top1_high']})",
        f"  published    {_published(row)}",
        f"  difference   {row['difference'] or '-'}",
        f"  top-5        {row['top5']} %",
        f"  loss         {row['loss']}",
        f"  images       {row['count']}" + (f", and {row['bad']} left out as damaged" if int(row["bad"]) else ""),
        f"  input        {row['img_size']} pixels, crop {row['crop_pct']} {row['crop_mode']}, {row['interpolation']}, "
        f"{row['precision']}",
        f"  throughput   {row['images_per_second']} images/s in {row['processes']} process(es), {row['device']}",
        f"  peak memory  {row['peak_memory_mb']} MiB {row['peak_memory_of']}",
    ]
    return "\n".join([*lines, *(f"  note: {note}" for note in notes if note)])


def _published(row: Mapping[str, Any]) -> str:
    return f"{row['published_top1']} %   ({row['published_source']})" if row["published_top1"] else "none for this data"


def write_classes(path: str, per_class: Tensor, names: Sequence[str]) -> None:
    """Write the figures of each class as csv.

    Args:
        path: of the file.
        per_class: [3, classes] int64, as ``Measurement`` has it.
        names: of the classes; may be fewer.

    Raises:
        UserError: it cannot be written.
    """
    rows = []
    for index, (count, top1, top5) in enumerate(per_class.T.tolist()):
        low, high = wilson(top1, count)
        share = [f"{100 * right / count:.4f}" if count else "" for right in (top1, top5)]
        name = names[index] if index < len(names) else ""
        row: dict[str, Any] = {"class": index, "name": name, "count": count, "top1": share[0], "top5": share[1]}
        rows.append(row | {"top1_low": f"{low:.3f}", "top1_high": f"{high:.3f}"})
    with writing("--per-class", path):
        write_rows(Path(path), rows)


class Results:
    """A file of rows, csv or JSON by its name, which is whole at any moment.

    Args:
        path: of the file; it need not exist.

    Raises:
        UserError: the name ends otherwise, or the file holds something else.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".json"):
            raise UserError(f"--results {path}: give a name that ends in .csv or .json")
        try:
            self.rows: list[dict[str, Any]] = self._read() if self.path.exists() else []
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"--results {path} cannot be read: {first_line(error)}; give another file") from error
        if any(not isinstance(row, dict) or set(row) != set(FIELDS) for row in self.rows):
            raise UserError(f"--results {path} holds other columns than this command writes; give another file")

    def finished(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of a run that scored every image with the same model, weights, data and options."""
        return next((row for row in self.rows if _same(row, key) and row["status"] == COMPLETE), None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, in place of one of the same run; of several runs that share the file, one after another.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCKED):
                self._add(row)
        except (OSError, ValueError, csv.Error) as error:
            reason = f"another run has locked it for {LOCKED} s" if isinstance(error, Timeout) else _reason(error)
            raise UserError(f"--results {self.path} cannot be written: {reason}") from error

    def _add(self, row: Mapping[str, Any]) -> None:
        if self.path.exists():
            self.rows = self._read()  # another run may have added its own
        self.rows = [*(old for old in self.rows if not _same(old, row)), {field: row[field] for field in FIELDS}]
        if self.path.suffix == ".csv":
            write_rows(self.path, self.rows)
        else:
            text = json.dumps(self.rows, indent=2) + "\n"
            write_whole(self.path, lambda path: path.write_text(text, encoding="utf-8"))

    def _read(self) -> list[dict[str, Any]]:
        if self.path.suffix == ".csv":
            return list(read_rows(self.path))
        rows = json.loads(self.path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("it holds no list of rows")
        return rows


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _same(row: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    return all(str(row[field]) == str(key[field]) for field in KEY)
