"""The command `benchmark`: its parts one after another, what is finished, the tables and the targets."""

import fnmatch
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...errors import UserError, first_line
from ...weights.benchmark_plot import draw, growth_plots, is_current
from ...weights.benchmarks import Row, growth_table, layer_table, model_table, roofline_table
from ..outputs import check_writable
from ..validate import Precision
from . import growth, layer, model, roofline
from .compare import Limits, Setting
from .peers import Shape
from .results import ResultFile, surroundings
from .targets import verdicts

__all__ = ["PARTS", "Options", "run"]


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    parts: Sequence[str] = ()
    device: str = ""
    amp: bool = False
    amp_dtype: str = "bfloat16"
    cuda_graphs: bool = False
    batch_size: Sequence[int] = ()
    shapes: Sequence[str] = ()
    models: Sequence[str] = ()
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
    parts = options.parts or tuple(PARTS)
    for part in parts:
        if part not in PARTS:
            raise UserError(f"'{part}' is no part of the benchmark; there are {', '.join(PARTS)}")
    device = _device(options.device)
    if options.cuda_graphs and device.type != "cuda":
        raise UserError(f"--cuda-graphs is for a GPU, and the device is {device}")
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = Setting(
        device,
        options.amp_dtype if options.amp else "",
        Limits(repeats=options.repeats, memory_gib=options.memory),
        options.cuda_graphs,
    )
    where = surroundings(device, str(Precision(setting.amp)) + (", CUDA graphs" if setting.graphs else ""))
    paths = {part: results_path(options.results, part, parts) for part in parts}
    for path in paths.values():
        check_writable("--results", path or "")
    files = {part: ResultFile(paths[part], *PARTS[part].columns, where) for part in parts}
    work = {part: PARTS[part].units(options, setting, files[part]) for part in parts}
    for part in parts:
        _measure(part, work[part], files[part], options)
        print(PARTS[part].table(files[part].here()), end="\n\n")
        path = paths[part]
        if part == "growth" and path:
            for picture, rows in growth_plots(path).items():
                if not is_current(picture, rows):
                    draw(rows, picture)
    if not options.check:
        return 0
    found = verdicts({part: files[part].here() for part in parts}, device.type == "cuda")
    for verdict in found:
        print(verdict)
    return 0 if all(verdict.reached for verdict in found) else 1


def _measure(part: str, units: list[Unit], file: ResultFile, options: Options) -> None:
    shown = options.progress if options.progress is not None else sys.stderr.isatty()
    with tqdm(units, desc=part, disable=not shown, unit="run") as bar:
        for key, work in bar:
            bar.set_postfix_str(" ".join(str(value) for value in key.values()))
            if not file.finished(key):
                file.add(key, work())


def _layer_units(options: Options, setting: Setting, file: ResultFile) -> list[Unit]:
    shapes = _shapes(options.shapes) or (layer.QUICK_SHAPES if options.quick else layer.SHAPES)
    every = layer.BATCHES[setting.device.type]
    batches = options.batch_size or (every[1:2] if options.quick else every)
    grid = [(shape, batch) for shape in shapes for batch in sorted(batches)]
    return _layers(grid, setting, file)


def _growth_units(options: Options, setting: Setting, file: ResultFile) -> list[Unit]:
    setting = replace(setting, limits=growth.limits(setting.limits))
    return _layers(growth.growing(options.quick), setting, file)


def _layers(grid: list[tuple[Shape, int]], setting: Setting, file: ResultFile) -> list[Unit]:
    history = layer.History(file.here())
    return [
        (layer.key_of(shape, batch, mode), partial(layer.measure, shape, batch, mode, setting, history))
        for shape, batch in grid
        for mode in layer.MODES
    ]


def _roofline_units(options: Options, setting: Setting, file: ResultFile) -> list[Unit]:
    shapes = _shapes(options.shapes) or (layer.QUICK_SHAPES if options.quick else layer.SHAPES)
    batches = options.batch_size or roofline.BATCHES[setting.device.type][: 1 if options.quick else None]
    return [
        (layer.key_of(shape, batch, mode), partial(roofline.measure, shape, batch, mode, setting))
        for shape in shapes
        for batch in batches
        for mode in layer.MODES
    ]


def _model_units(options: Options, setting: Setting, file: ResultFile) -> list[Unit]:
    setting = replace(setting, limits=model.limits(setting.limits))
    known = {str(case): case for case in model.cases()}
    wanted = options.models or (model.QUICK if options.quick else tuple(known))
    for name in wanted:
        if not any(fnmatch.fnmatchcase(each, name) for each in known):
            raise UserError(f"--models {name} is like none of {', '.join(known)}")
    chosen = [case for each, case in known.items() if any(fnmatch.fnmatchcase(each, name) for name in wanted)]
    return [
        (model.key_of(case, batch, mode), partial(model.measure, case, batch, mode, setting))
        for case in chosen
        for mode in model.MODES
        for batch in options.batch_size or [model.BATCHES[setting.device.type][mode]]
    ]


@dataclass(frozen=True)
class Part:
    """A part of the benchmark."""

    columns: tuple[Sequence[str], Sequence[str]]
    """Those that name what is measured together, and all."""
    units: Callable[[Options, Setting, ResultFile], list[Unit]]
    table: Callable[[Sequence[Row]], str]


PARTS = {
    "layer": Part((layer.KEY, layer.FIELDS), _layer_units, layer_table),
    "model": Part((model.KEY, model.FIELDS), _model_units, model_table),
    "growth": Part((growth.KEY, growth.FIELDS), _growth_units, growth_table),
    "roofline": Part((roofline.KEY, roofline.FIELDS), _roofline_units, roofline_table),
}


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
