"""The command `benchmark`: its parts one after another, what is finished, the tables and the targets."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...errors import UserError, first_line
from ..validate import Precision
from . import layer
from .compare import Limits, Setting
from .peers import Shape
from .results import ResultFile, surroundings

__all__ = ["PARTS", "Options", "run"]

PARTS = ("layer",)


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    parts: Sequence[str] = ()
    device: str = ""
    amp: bool = False
    amp_dtype: str = "bfloat16"
    batch_size: Sequence[int] = ()
    shapes: Sequence[str] = ()
    repeats: int = 7
    threads: int | None = None
    memory: float = 8.0
    quick: bool = False
    check: bool = False
    results: str = ""
    progress: bool | None = None


Unit = tuple[dict[str, Any], Callable[[], list[dict[str, Any]]]]
"""What is measured together: its key, and what gives its rows."""


def run(options: Options) -> int:
    """Measure, and print what was found.

    Returns:
        The exit status: 0; 1 if ``check`` finds a target missed.

    Raises:
        UserError: nothing can be measured.
    """
    device = _device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    limits = Limits(repeats=options.repeats, memory_gib=options.memory)
    setting = Setting(device, options.amp_dtype if options.amp else "", limits)
    where = surroundings(device, str(Precision(setting.amp)))
    parts = options.parts or PARTS
    for part in parts:
        if part not in PARTS:
            raise UserError(f"'{part}' is no part of the benchmark; there are {', '.join(PARTS)}")
    for part in parts:
        path = results_path(options.results, part, parts)
        file = ResultFile(path, layer.KEY, layer.FIELDS, where)
        _measure(part, _layer_units(options, setting, file), file, options)
    return 0


def _measure(part: str, units: list[Unit], file: ResultFile, options: Options) -> None:
    shown = options.progress if options.progress is not None else sys.stderr.isatty()
    with tqdm(units, desc=part, disable=not shown, unit="run") as bar:
        for key, work in bar:
            bar.set_postfix_str(" ".join(str(value) for value in key.values()))
            if not file.finished(key):
                file.add(key, work())


def _layer_units(options: Options, setting: Setting, file: ResultFile) -> list[Unit]:
    history = layer.History(file.here())
    shapes = _shapes(options.shapes) or (layer.QUICK_SHAPES if options.quick else layer.SHAPES)
    batches = options.batch_size or layer.BATCHES[setting.device.type][1 : 2 if options.quick else None]
    return [
        (layer.key_of(shape, batch, mode), partial(layer.measure, shape, batch, mode, setting, history))
        for shape in shapes
        for batch in sorted(batches)
        for mode in layer.MODES
    ]


def _shapes(texts: Sequence[str]) -> tuple[Shape, ...]:
    try:
        return tuple(Shape.parse(text) for text in texts)
    except ValueError as error:
        raise UserError(f"--shapes {error}") from error


def results_path(results: str, part: str, parts: Sequence[str]) -> Path | None:
    """Where the rows of a part go.

    Args:
        results: a folder, for a file of each part; or, of one part alone, a name that ends in .csv; or nothing.
        part: one of ``parts``.
        parts: all of the run.

    Raises:
        UserError: one file for several parts, or a name of another kind of file.
    """
    if not results:
        return None
    path = Path(results)
    if path.suffix == ".csv":
        if len(parts) > 1:
            raise UserError(f"--results {results} is one file, and each part has its own: name a folder, or one part")
        return path
    if path.suffix or path.is_file():
        raise UserError(f"--results {results}: give a folder, or a name that ends in .csv")
    return path / f"benchmark_{part}.csv"


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device '{name}' cannot be used: {first_line(error)}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' cannot be used: its memory cannot be measured; take cpu or cuda")
    return device
