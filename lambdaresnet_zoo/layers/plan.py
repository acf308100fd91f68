"""The plan: which order contracts a lambda layer of given shapes, in which tiles, and why not another.

A cost model, linear in what each order does (products, elements written, calls), predicts the time of every
candidate; the fastest whose memory fits the budget is taken. Its coefficients are data, `costs.json`, one set for
each kind of device, and are fitted anew on another machine by `lambdaresnet-zoo plan --fit FILE`.

    LAMBDARESNET_ZOO_IMPL    force an order: lambda, query, convolution or kernel
    LAMBDARESNET_ZOO_COSTS   read the coefficients from this file, once in a process
    LAMBDARESNET_ZOO_MEMORY  memory budget in MiB

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import kernels
from .scratch import KEPT_BYTES
from .tiles import Axis, Tiling, make_axis

__all__ = [
    "COSTS", "IMPLEMENTATIONS", "Plan", "Shape", "candidates", "explain_plan", "features", "forced_order", "make_plan",
]  # fmt: skip

COSTS = Path(__file__).with_name("costs.json")
IMPLEMENTATIONS = ("lambda", "query", "convolution", "kernel")
TILES = (1, 2, 4, 7, 8, 16)
MIB = 2**20
NEEDED = {"measured", "scratch_mib", "memory_mib", "forward", "training"}  # of each set of costs
SCRATCH = {"forward", "training"}  # of scratch_mib; that of lambdas may be left out
NOT_MEASURED = "not measured on this kind of device"
FAR = KEPT_BYTES // 4
"""Elements of a block of embeddings beyond which it is neither in a cache nor in scratch that is kept."""
SHARE = 3
"""Scratch of a chunk in training may be one part in so many of queries, values and output, where that is more than what
the costs say: of many images at once it is little beside them, and fewer chunks take less time."""
ALIKE = 0.005
"""Of two predicted times, which are told as one."""
NEAR = 1.1
"""In training of several images, of plans that take at most so many times as long as the fastest, the leanest is taken:
predictions are no more exact than that, and memory is."""


class Shape(NamedTuple):
    """The sizes that a contraction depends on."""

    batch: int
    heads: int
    query_depth: int
    value_depth: int
    intra_depth: int
    height: int
    width: int
    rows: int
    """Rh, the extent of the relative table."""
    columns: int

    @property
    def n(self) -> int:
        """Positions of the grid."""
        return self.height * self.width


@dataclass(frozen=True)
class Plan:
    """How to contract."""

    order: str
    tiling: Tiling | None
    """Of the query order."""
    chunk: int
    """Images at once."""
    seconds: float
    """Predicted; infinite where the cost model has no coefficients."""
    memory: int
    """Bytes of the largest scratch, beside inputs and outputs."""
    note: str = ""

    @property
    def method(self) -> str:
        """Which coefficients it has: those of its order, or ``offset``, of the query order by offset."""
        return "offset" if self.tiling is not None and self.tiling.by_offset else self.order

    def __str__(self) -> str:
        name = self.order + (" by offset" if self.method == "offset" else "")
        if self.tiling is not None and not self.tiling.whole:
            name += f" in tiles of {self.tiling.y.tile}x{self.tiling.x.tile}"
            name += "" if self.tiling.shared else ", clipped"
        time = f"{self.seconds * 1e3:.3g} ms" if math.isfinite(self.seconds) else "no prediction"
        return f"{name}, {self.chunk} at once: {time}, {self.memory / MIB:.3g} MiB"


def make_plan(
    shape: Shape, dtype: torch.dtype, device: str, training: bool = False, order: str = "auto", memory: float = 0.0
) -> Plan:
    """The fastest plan that fits, or the one that is forced.

    Args:
        shape: of the contraction.
        dtype: of queries and values.
        device: kind of device, as ``cpu`` or ``cuda``.
        training: the backward pass is counted in.
        order: ``auto``, or one of ``IMPLEMENTATIONS``, which comes before ``LAMBDARESNET_ZOO_IMPL``.
        memory: budget of scratch in MiB; 0 for ``LAMBDARESNET_ZOO_MEMORY`` or else that of the costs. Where nothing
            fits, what needs least is taken.

    Raises:
        ValueError: an unknown order, or a kernel that cannot serve.
    """
    order = forced_order(order)
    if order == "kernel" and (reason := kernels.unavailable(torch.device(device), dtype)):
        raise ValueError(f"order='kernel' cannot be used: {reason}")
    return _pick(shape, dtype, device, training, order, memory, *_environment())


def forced_order(order: str) -> str:
    """The order that is forced by an argument or else by ``LAMBDARESNET_ZOO_IMPL``, or ``auto``.

    Raises:
        ValueError: an unknown order.
    """
    if order == "auto":
        order = os.environ.get("LAMBDARESNET_ZOO_IMPL", "") or "auto"
    if order not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"LAMBDARESNET_ZOO_IMPL must be one of {', '.join(IMPLEMENTATIONS)}, got {order!r}")
    return order


@lru_cache(maxsize=4096)
def _pick(
    shape: Shape, dtype: torch.dtype, device: str, training: bool, order: str, memory: float, *environment: str
) -> Plan:
    """Once for each shape; the environment is named so that another one is another plan."""
    if not shape.n:
        raise ValueError(f"a map of {shape.height}x{shape.width} has no position to contract over")
    budget = _budget(device, memory)
    found = [plan for plan in candidates(shape, dtype, device, training, budget / MIB) if order in ("auto", plan.order)]
    if order == "auto":
        found = [plan for plan in found if not plan.note]
    fitting = [plan for plan in found if plan.memory <= budget]
    if fitting:
        fastest = min(fitting, key=lambda plan: (plan.seconds, plan.memory))
        near = [plan for plan in fitting if training and shape.batch > 1 and plan.seconds <= NEAR * fastest.seconds]
        return min(near, key=lambda plan: (plan.memory, plan.seconds), default=fastest)
    return min(found, key=lambda plan: plan.memory)


def explain_plan(
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    training: bool = False,
    order: str = "auto",
    memory: float = 0.0,
) -> str:
    """What is chosen and why the others are not, a line each, the fastest first.

    Args and errors are those of :func:`make_plan`.
    """
    chosen = make_plan(shape, dtype, device, training, order, memory)
    forced = forced_order(order)
    budget = _budget(device, memory)
    costs = _costs(device)
    over = f"over the memory budget of {budget / MIB:.3g} MiB"
    why = "" if chosen.memory <= budget else f"; {over}, as all are, but it needs least"
    mode = "training" if training else "forward"
    lines = [f"{mode} on {device}, costs {costs['measured']}", f"chosen: {chosen}{why}"]
    for plan in sorted(candidates(shape, dtype, device, training, memory), key=lambda plan: plan.seconds):
        if plan == chosen:
            continue
        if forced not in ("auto", plan.order):
            reason = f"{forced} is forced"
        elif plan.note:
            reason = plan.note
        elif plan.memory > budget:
            reason = over
        elif math.isfinite(plan.seconds) and math.isfinite(chosen.seconds):
            ratio = plan.seconds / chosen.seconds if chosen.seconds else 1.0
            reason = "as long" if abs(ratio - 1) < ALIKE else f"{ratio:.3g} times as long"
            if ratio < 1 or (ratio == 1 and plan.memory > chosen.memory):
                reason += ", for more memory"
        else:
            reason = "no prediction"
        lines.append(f"not {plan}: {reason}")
    return "\n".join(lines)


def candidates(
    shape: Shape, dtype: torch.dtype, device: str, training: bool = False, memory: float = 0.0
) -> list[Plan]:
    """Every plan that is considered, with its predicted time and its memory."""
    costs = _costs(device)
    # Half precision is contracted in float32 on a CPU, which has no fast products of it.
    size = 4 if device == "cpu" else dtype.itemsize
    scratch = costs["scratch_mib"]["training" if training else "forward"] * MIB
    if training:
        scratch = max(scratch, _tensors(shape) * size / SHARE)
    scratch = min(scratch, _budget(device, memory))
    lambdas = min(scratch, costs["scratch_mib"].get("lambdas", math.inf) * MIB)  # which are read more often than scores
    plans = []
    for order in IMPLEMENTATIONS:
        for tiling in _tilings(shape, size, scratch, training) if order == "query" else (None,):
            chunk = tiling.chunk if tiling else _chunk(shape, order, size, lambdas)
            keeps = device == "cpu" and not training
            plan = Plan(order, tiling, chunk, math.inf, _memory(shape, order, tiling, chunk, size, training, keeps))
            coefficients = costs["training" if training else "forward"].get(plan.method)
            note = ""
            if order == "kernel":
                note = kernels.unavailable(torch.device(device), dtype)
            if plan.method in ("kernel", "offset"):
                note = note or ("" if coefficients else NOT_MEASURED)
            seconds = math.inf if coefficients is None else _seconds(coefficients, features(shape, plan))
            plans.append(replace(plan, seconds=seconds, note=note))
    return plans


def features(shape: Shape, plan: Plan) -> dict[str, float]:
    """What a plan does, by the names that its coefficients have: counts of one forward pass."""
    s = shape
    counts: dict[str, float]
    images = s.batch * s.heads
    if plan.tiling is not None:
        t = plan.tiling
        chunks = math.ceil(s.batch / plan.chunk)
        rows = range(t.y.tiles)
        queries = images * t.x.tiles * t.queries
        context = sum(map(t.context, rows)) * s.intra_depth  # of a column of tiles
        output = images * s.value_depth * t.y.covered * t.x.covered
        counts = {
            "call": t.y.tiles * chunks,
            "value_product": queries * context * s.value_depth,
            "score": queries * context,
            "row_output": output if t.x.tiles == 1 and not t.whole else 0,
            "tiled_output": output if t.x.tiles > 1 else 0,
        }
        if t.by_offset:
            offsets = sum(map(t.offsets, rows)) * s.intra_depth  # of a column of tiles
            windows = s.batch * t.windows * s.value_depth * context
            return counts | {
                "offset_product": queries * offsets * s.query_depth,
                "offset": queries * offsets,
                "offset_table": chunks * t.tables * offsets * s.query_depth,
                "window": windows,
            }
        blocks = t.queries * s.query_depth * context
        block = t.queries * s.query_depth * _most(t.context, t) * s.intra_depth
        return counts | {
            "score_product": queries * context * s.query_depth,
            "embedding_read": chunks * blocks,
            "embedding_far": chunks * blocks if block > FAR else 0,
            "embedding_built": blocks / t.y.tiles if t.shared else blocks,
            "window": images * t.x.tiles * s.value_depth * context,
        }
    context = s.n if plan.order == "lambda" else _reach(s.height, s.rows) * _reach(s.width, s.columns)
    lambdas = s.batch * s.n * s.query_depth * s.value_depth
    counts = {
        "call": math.ceil(s.batch / plan.chunk),
        "product": lambdas * context * s.intra_depth,
        "lambda": lambdas,
        "query_product": lambdas * s.heads,
    }
    if plan.order == "lambda":
        counts["embedding_built"] = s.n * s.n * s.query_depth * s.intra_depth
    return counts


def _seconds(coefficients: Mapping[str, float], counts: Mapping[str, float]) -> float:
    return sum(coefficients[name] * count for name, count in counts.items()) * 1e-9


def _tilings(shape: Shape, size: int, scratch: float, training: bool) -> list[Tiling]:
    """Tilings worth a look: in rows, padded and clipped, in patches, each with as many images at once as the scratch
    holds; and whole, with half as many, too. All by embeddings, and in training by offset: evaluation keeps embeddings.
    """
    found = set()
    # Where a scope reaches across most of the grid, padding would mostly add zeros to what a tile sees; and columns are
    # clipped by offset alone, where every tile sees them all, an image at a time (see Tiling.tables).
    across_y, across_x = (2 * (extent // 2) >= side for extent, side in _sides(shape))
    either = (True, False)
    ways = either if training else (False,)
    for tile_y, tile_x, padded, by_offset in product(_tiles(shape.height), _tiles(shape.width), either, ways):
        y = make_axis(shape.height, shape.rows, tile_y, padded)
        x = make_axis(shape.width, shape.columns, tile_x, not across_x)
        if (padded and across_y) or not (x.padded or x.tiles == 1 or (by_offset and x.seen)):
            continue
        tiling = Tiling(y, x, 1, by_offset)
        each = _most(tiling.offsets if by_offset else tiling.context, tiling)
        # Scores of an image, of all tiles of a row, which are contracted at once.
        one = y.tile * x.covered * each * shape.intra_depth * shape.heads * size
        if by_offset and one > 2 * scratch and tile_y > 1:  # which pays in the cache alone; a lower tile fits it
            continue
        chunk = _even(shape.batch, int(scratch // one)) if tiling.tables == 1 else 1
        found.add(replace(tiling, chunk=chunk))
        if tiling.whole:  # where nothing else can be made smaller
            found.add(replace(tiling, chunk=math.ceil(chunk / 2)))
    return sorted(found, key=lambda tiling: (-tiling.y.tile, -tiling.x.tile))


def _tiles(side: int) -> set[int]:
    """Sides of a tile: the grid's, its half and its quarter, and those of TILES."""
    return {tile for tile in (side, math.ceil(side / 2), math.ceil(side / 4), *TILES) if tile <= side}


def _most(count: Callable[[int], int], tiling: Tiling) -> int:
    """Of what rows of tiles count, as their context or their offsets."""
    return max(map(count, range(tiling.y.tiles)))


def _chunk(shape: Shape, order: str, size: int, scratch: float) -> int:
    if order == "kernel":
        return max(1, shape.batch)
    return _even(shape.batch, int(scratch // (shape.n * shape.query_depth * shape.value_depth * size)))


def _even(batch: int, most: int) -> int:
    """The size of chunks of at most ``most`` images that are alike."""
    most = max(1, min(batch, most))
    return math.ceil(batch / math.ceil(batch / most)) if batch else 1


def _memory(shape: Shape, order: str, tiling: Tiling | None, chunk: int, size: int, training: bool, keeps: bool) -> int:
    s = shape
    twice = 2 if training else 1  # the backward pass holds what the forward pass held, and mostly its gradient
    if order == "kernel":
        return 0
    if tiling is None:
        lambdas = chunk * s.n * s.query_depth * s.value_depth
        block = s.n * s.n * s.query_depth * s.intra_depth if order == "lambda" else 0
        return size * twice * (2 * lambdas + block)
    context = _most(tiling.context, tiling) * s.intra_depth
    images = chunk * tiling.x.tiles * s.heads
    scores = images * tiling.queries * context
    whole = _padded(s, tiling, training)
    if tiling.by_offset:
        offsets = images * tiling.queries * _most(tiling.offsets, tiling) * s.intra_depth
        windows = chunk * tiling.windows * s.value_depth * context
        tables = tiling.tables * s.query_depth * _most(tiling.offsets, tiling) * s.intra_depth
        # a gradient's sum, what is added
        return size * (scores + offsets + twice * windows + (twice + 1) * tables + whole)
    rows = tiling.y.tiles if keeps and not tiling.shared else 1  # evaluation keeps the blocks of all
    blocks = rows * tiling.queries * s.query_depth * context
    windows = images * s.value_depth * context
    return size * (scores + twice * (blocks + windows) + whole)  # one map serves the scores and their gradient


def _padded(shape: Shape, tiling: Tiling, training: bool) -> int:
    """Elements of copies of all queries and values, with what fills up the last tiles and pads windows."""
    s, t = shape, tiling
    count = 0
    if t.y.covered * t.x.covered > s.n:
        count += s.batch * s.heads * (s.query_depth + (s.value_depth if training else 0)) * t.y.covered * t.x.covered
    context = t.y.padded_size * t.x.padded_size
    if context > s.n:
        count += (2 if training else 1) * s.batch * s.value_depth * s.intra_depth * context
    return count


def _tensors(shape: Shape) -> int:
    """Elements of queries, values and output."""
    s = shape
    return s.batch * s.n * (s.heads * (s.query_depth + s.value_depth) + s.value_depth * s.intra_depth)


def _sides(shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
    return (shape.rows, shape.height), (shape.columns, shape.width)


def _reach(side: int, extent: int) -> int:
    return min(extent, 2 * side - 1)


def _environment() -> tuple[str, str]:
    """What is set of memory budget and costs."""
    return os.environ.get("LAMBDARESNET_ZOO_MEMORY", ""), os.environ.get("LAMBDARESNET_ZOO_COSTS", "")


def _budget(device: str, memory: float) -> float:
    text = memory or _environment()[0]
    try:
        given = float(text or 0)
    except ValueError:
        given = math.nan
    if not 0 <= given < math.inf:
        raise ValueError(f"LAMBDARESNET_ZOO_MEMORY must be a number of MiB of at least 0, got '{text}'")
    return MIB * (given or _costs(device)["memory_mib"])


def _costs(device: str) -> dict[str, Any]:
    """Of a kind of device, or else those of any."""
    return _read_costs(Path(_environment()[1] or COSTS), device)


@lru_cache(maxsize=16)
def _read_costs(path: Path, device: str) -> dict[str, Any]:
    try:
        costs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"LAMBDARESNET_ZOO_COSTS {path} cannot be read: {error}") from error
    sets = [costs.get("other"), *costs.values()] if isinstance(costs, dict) else [None]
    if not all(_is_costs(found) for found in sets):
        raise ValueError(f"LAMBDARESNET_ZOO_COSTS {path} is no cost model; lambdaresnet-zoo plan --fit FILE writes one")
    kind = device if device in costs else "other"
    for mode, (method, names) in product(("forward", "training"), _counted().items()):
        coefficients = costs[kind][mode].get(method)
        if coefficients is not None and (missing := names - set(coefficients)):
            raise ValueError(
                f"LAMBDARESNET_ZOO_COSTS {path} lacks {', '.join(sorted(missing))} of {method}, {mode}, {kind}; "
                f"unset it, and lambdaresnet-zoo plan --fit FILE --device {device} writes all"
            )
    found: dict[str, Any] = costs[kind]
    return found


def _is_costs(found: Any) -> bool:
    """Whether it looks like the costs of a kind of device."""
    if not isinstance(found, dict) or not set(found) >= NEEDED:
        return False
    modes, scratch = [found["forward"], found["training"]], found["scratch_mib"]
    methods = [method for mode in modes if isinstance(mode, dict) for method in mode.values()]
    if not all(isinstance(each, dict) for each in (*modes, *methods, scratch)) or not set(scratch) >= SCRATCH:
        return False
    numbers = [found["memory_mib"], *scratch.values(), *(number for method in methods for number in method.values())]
    return all(isinstance(number, (int, float)) and 0 <= number < math.inf for number in numbers)


@lru_cache(maxsize=1)
def _counted() -> dict[str, set[str]]:
    """What :func:`features` counts of each method."""
    one = Axis(1, 1, 1)
    tilings = {order: Tiling(one, one, 1) if order == "query" else None for order in IMPLEMENTATIONS}
    plans = [Plan(order, tiling, 1, math.inf, 0) for order, tiling in tilings.items()]
    plans.append(Plan("query", Tiling(one, one, 1, by_offset=True), 1, math.inf, 0))
    return {plan.method: set(features(Shape(*[1] * 9), plan)) for plan in plans}
