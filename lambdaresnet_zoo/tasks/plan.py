"""The command `plan`: how the lambda layers of a model are contracted, and the fit of the cost model to a machine."""

import json
import math
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError, first_line
from ..layers import LambdaLayer, planned
from ..layers.plan import COSTS, NOT_MEASURED, Plan, Shape, candidates, explain_plan, features
from ..registry import check_name
from ..weights.files import write_whole
from .outputs import check_writable, writing

__all__ = ["explain", "fit"]

# (channels, side, scope, batch): the shapes of the paper's networks, and some beside them; scope 0 is global.
GRID = (
    (64, 56, 23, 1),
    (64, 56, 7, 2),
    (128, 28, 23, 1),
    (128, 28, 23, 8),
    (128, 28, 5, 8),
    (256, 14, 23, 1),
    (256, 14, 23, 8),
    (256, 14, 7, 8),
    (512, 7, 23, 1),
    (512, 7, 23, 32),
    (512, 14, 23, 8),
    (256, 16, 9, 1),
    (256, 16, 9, 16),
    (256, 20, 23, 4),
    (512, 10, 23, 16),
    (512, 32, 23, 1),
    (128, 28, 0, 2),
    (32, 8, 7, 64),
)
SAMPLES = {"cpu": 3}
MANY = 9  # of other devices, whose passes are short
LARGER = 16  # times the batches of GRID are timed too on them
SLOWEST = 0.5  # seconds predicted, beyond which a candidate is not run
FURTHEST = 2.0  # times the fastest of its order, by the costs that there are, beyond which one is not run
MOST = {"cpu": 24}  # of one order and shape that are run, those predicted to be fastest; all where nothing is
MOST_ELSEWHERE = 12
# MiB of a chunk's scores, which should stay in cache, forward and in training, and of its lambdas; and in all.
SCRATCH = {"cpu": (12, 3, 6, 256)}
OTHER = (256, 256, 256, 1024)


def explain(
    name: str, img_size: int | None, batch_size: int, training: bool, device: str, dtype: str, order: str, memory: float
) -> int:
    """Print the plan of every lambda layer of a model, once for each shape.

    Args:
        name: of a registered model.
        img_size: pixels; the model's own by default.
        batch_size: images.
        training: with the backward pass.
        device: kind of device; where it is not there, the kernel is left out.
        dtype: name of queries' and values' type.
        order: ``auto`` or the one to force.
        memory: budget in MiB; 0 for the plan's own.

    Returns:
        The exit status, 0.

    Raises:
        UserError: an unknown model, or a size or an order that cannot be.
    """
    check_name(name)
    shapes: dict[Shape, list[str]] = {}
    try:
        model = _created(name, img_size)
        for path, layer in model.named_modules():
            if isinstance(layer, LambdaLayer) and layer.position is not None:
                layer.register_forward_hook(_note(shapes, path, batch_size))
                layer.order = "convolution"  # which the device without memory has; what is planned is told below
        channels, side = model.pretrained_cfg["input_size"][0], img_size or model.pretrained_cfg["input_size"][-1]
        model(torch.empty(1, channels, side, side, device="meta"))
        told = [explain_plan(shape, getattr(torch, dtype), device, training, order, memory) for shape in shapes]
    except (ValueError, RuntimeError) as error:
        raise UserError(f"'{name}' cannot be planned: {first_line(error)}") from error
    for (shape, layers), text in zip(shapes.items(), told, strict=True):
        print(f"{', '.join(layers)}: {shape.height}x{shape.width} positions, {shape.value_depth} values a head")
        print("    " + text.replace("\n", "\n    "))
    if not shapes:
        print(f"{name} has no lambda layer with positions")
    return 0


def _created(name: str, img_size: int | None) -> Any:
    """A model without memory, for an input size; some are of no size and take no such argument."""
    try:
        return timm.create_model(name, device="meta", **({"img_size": img_size} if img_size else {})).eval()
    except TypeError:
        return timm.create_model(name, device="meta").eval()


def _note(shapes: dict[Shape, list[str]], path: str, batch: int) -> Any:
    def hook(layer: LambdaLayer, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        height, width = inputs[0].shape[2:]
        rows, columns = layer.position.table.shape[2:]  # type: ignore[union-attr]
        shape = Shape(
            batch,
            layer.num_heads,
            layer.query_depth,
            layer.value_depth,
            layer.intra_depth,
            height,
            width,
            rows,
            columns,
        )
        shapes.setdefault(shape, []).append(path.removesuffix(".self_attn"))

    return hook


def fit(path: Path, device: str = "cpu", dtype: str = "float32", progress: bool | None = None) -> int:
    """Time every order at the shapes of ``GRID`` on this machine, and write the cost model that fits.

    Sets of coefficients for other kinds of device are taken over from the file that is there, or from the package's.

    Args:
        path: the json to write; ``LAMBDARESNET_ZOO_COSTS`` names it to the layers.
        device: ``cpu``, ``cuda``, ...
        dtype: name of queries' and values' type; one fit serves all of a device, so take the one that is trained in.
        progress: a progress bar; by default if stderr is a terminal.

    Returns:
        The exit status, 0.

    Raises:
        UserError: the device cannot be used, or the file not written.
    """
    check_writable("--fit", path)
    try:
        torch.zeros(1, device=device)
        costs = json.loads((path if path.exists() else COSTS).read_text(encoding="utf-8"))
    except (RuntimeError, AssertionError, OSError, ValueError) as error:
        raise UserError(f"cannot fit for '{device}': {first_line(error)}") from error
    kind = torch.device(device).type
    forward, training, lambdas, memory = SCRATCH.get(kind, OTHER)
    found: dict[str, Any] = {
        "measured": f"on {_machine(device)}, {dtype}, torch {torch.__version__}",
        "scratch_mib": {"forward": forward, "training": training, "lambdas": lambdas},
        "memory_mib": memory,
    }
    shown = sys.stderr.isatty() if progress is None else progress
    grid = GRID if kind == "cpu" else (*GRID, *((*case[:3], LARGER * case[3]) for case in GRID))
    for mode in ("forward", "training"):
        rows: dict[str, list[tuple[dict[str, float], float]]] = {}
        for case in tqdm(grid, desc=mode, disable=not shown, dynamic_ncols=True):
            for plan, counts, seconds in _time(case, device, getattr(torch, dtype), mode == "training"):
                rows.setdefault(plan.method, []).append((counts, seconds))
        found[mode] = {method: _least_squares(rows[method]) for method in sorted(rows)}
        for method, coefficients in found[mode].items():
            errors = [
                abs(sum(coefficients[n] * c for n, c in counts.items()) * 1e-9 / s - 1) for counts, s in rows[method]
            ]
            print(f"{mode} {method}: {len(errors)} timings, median error {statistics.median(errors):.0%}")
    costs[kind] = found
    text = json.dumps(costs, indent=2) + "\n"
    with writing("--fit", path):
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    print(f"wrote {path}; LAMBDARESNET_ZOO_COSTS={path} makes the layers use it")
    return 0


def _time(
    case: tuple[int, int, int, int], device: str, dtype: torch.dtype, training: bool
) -> list[tuple[Plan, dict[str, float], float]]:
    """Every candidate of one shape: its plan, its counts, its seconds."""
    channels, side, scope, batch = case
    heads, k, v, n = 4, 16, channels // 4, side * side
    extent = scope or 2 * side - 1
    shape = Shape(batch, heads, k, v, 1, side, side, extent, extent)
    generator = torch.Generator().manual_seed(0)
    sizes = ((batch, heads, k, n), (batch, v, 1, n), (batch, k, v), (batch, heads, v, n))
    queries, values, lambdas, gradient = (torch.randn(size, generator=generator).to(device, dtype) for size in sizes)
    table = torch.randn(k, 1, extent, extent, generator=generator).to(device)
    tensors = (queries, values, table, lambdas)
    timed = []
    kind = torch.device(device).type
    found = candidates(shape, dtype, kind, training)
    found = [replace(plan, note="") for plan in found if plan.note in ("", NOT_MEASURED)]
    fastest: dict[str, float] = {}
    ran: Counter[str] = Counter()
    for plan in sorted(found, key=lambda plan: plan.seconds):
        ran[plan.method] += 1
        if ran[plan.method] > MOST.get(kind, MOST_ELSEWHERE) and (kind != "cpu" or math.isfinite(plan.seconds)):
            continue
        first = fastest.setdefault(plan.method, plan.seconds)
        if math.isfinite(plan.seconds) and plan.seconds > min(SLOWEST, FURTHEST * first):
            continue
        samples = []
        for _ in range(SAMPLES.get(kind, MANY) + 1):
            _wait(device)
            start = time.perf_counter()
            _contract(plan, tensors, gradient if training else None, side)
            _wait(device)
            samples.append(time.perf_counter() - start)
        timed.append((plan, features(shape, plan), statistics.median(samples[1:])))
    return timed


def _contract(plan: Plan, tensors: tuple[Tensor, Tensor, Tensor, Tensor], gradient: Tensor | None, side: int) -> None:
    """As the layer does it: forward, or where there is a gradient of the output, forward and backward."""
    if gradient is not None and plan.order == "kernel":  # has gradients of its own
        queries, values, table, lambdas = leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        output = planned.grid_output(queries, values, table, lambdas, side, side, "kernel")
        torch.autograd.grad(output, leaves, gradient)
        return
    planned.run(plan, *tensors, side, side, cache=gradient is None)
    if gradient is not None:
        planned.gradients(plan, gradient, *tensors, side, side)


def _least_squares(rows: Sequence[tuple[dict[str, float], float]], rounds: int = 2000) -> dict[str, float]:
    """Coefficients in nanoseconds, none negative, of least squared relative error; by coordinate descent."""
    names = list(rows[0][0])
    counts = np.array([[row[name] / seconds for name in names] for row, seconds in rows]) * 1e-9
    scale = np.linalg.norm(counts, axis=0)
    scale[scale == 0] = 1
    counts /= scale
    products, aims = counts.T @ counts, counts.sum(0)
    solution = np.zeros(len(names))
    for _ in range(rounds):
        for i in range(len(names)):
            if products[i, i] > 0:
                rest = aims[i] - products[i] @ solution + products[i, i] * solution[i]
                solution[i] = max(0.0, rest / products[i, i])
    return {name: float(f"{value:.4g}") for name, value in zip(names, solution / scale, strict=True)}


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
