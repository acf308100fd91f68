"""What this project means to reach, held against results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...weights.benchmarks import MEASURED, Row, as_built, cells, memory_share, speed_up, unfolded_speed_up
from . import layer, model, roofline
from .model import EFFICIENTNET, PAIR, TIMM

__all__ = ["Verdict", "verdicts"]

SIZES = (14, 7, 16, 20, 10)
"""Of the maps in c4 and c5, in pixels."""
FORWARD, TRAINING, NOWHERE_BELOW, MEMORY, PAIR_INFERENCE, SHARE = 2.0, 1.5, 0.95, 0.5, 1.3, 0.5
EFFICIENTNET_TRAINING = 4.4
"""On a GPU."""


@dataclass(frozen=True)
class Verdict:
    """A target, and how every measurement that it is about stands."""

    target: str
    met: int
    expected: int
    """Measurements that the target is about."""
    missed: tuple[str, ...]
    """Each that misses it, with its figure."""
    worst: str
    """The measurement nearest to, or furthest beyond, the line."""

    aside: str = ""
    """How it stands where nothing is folded, which decides nothing."""

    @property
    def reached(self) -> bool:
        """By all of them."""
        return not self.missed and self.met == self.expected

    def __str__(self) -> str:
        word = "met" if self.reached else "missed" if self.missed else "open"
        lines = [f"{word:7} {self.target}: {self.met} of {self.expected}" + (f"; {self.worst}" if self.worst else "")]
        lines += [f"        missed at {each}" for each in self.missed]
        return "\n".join([*lines, *([f"        {self.aside}"] if self.aside else [])])


def verdicts(rows: Mapping[str, Sequence[Row]], cuda: bool) -> list[Verdict]:
    """How results stand.

    Args:
        rows: of each part that was run, of one machine.
        cuda: it is a GPU, for which there are other batches and one more target.

    Returns:
        One for each target of the parts; one with nothing measured is not reached.
    """
    device = "cuda" if cuda else "cpu"
    found = []
    if "layer" in rows:
        found += _layer(rows["layer"], device)
    if "model" in rows:
        wanted = (PAIR, TIMM, "inference")
        pair = [row for row in rows["model"] if (row["model"], row["kind"], row["mode"]) == wanted]
        pairs = [(_network(row), _ratio(row)) for row in pair]
        built = [(_network(row), as_built(rows["model"], row)) for row in pair]
        verdict = _verdict(f"{PAIR} inference at least {PAIR_INFERENCE}x timm's own", pairs, 1, PAIR_INFERENCE)
        found.append(_beside(verdict, built, PAIR_INFERENCE))
        if cuda:
            steps = [row for row in rows["model"] if row["kind"] == EFFICIENTNET and row["mode"] == "training"]
            name = f"training steps at least {EFFICIENTNET_TRAINING}x the paired EfficientNet's"
            expected = sum(bool(case.efficientnet) for case in model.cases())
            ratios = [(_network(row), _ratio(row)) for row in steps]
            found.append(_verdict(name, ratios, expected, EFFICIENTNET_TRAINING))
    if "roofline" in rows:
        at = [row for row in rows["roofline"] if (row["dim"], row["size"], row["mode"]) == ("512", "14", "forward")]
        shares = [(_shape(row), float(row["share_run"]) if row["share_run"] else None) for row in at]
        expected = len(roofline.BATCHES[device])
        found.append(_verdict(f"whole layer at {SHARE:.0%} of the matrix-multiply rate", shares, expected, SHARE))
    return found


def _layer(rows: Sequence[Row], device: str) -> list[Verdict]:
    grid = cells(rows, *layer.KEY)
    batches = [batch for batch in layer.BATCHES[device] if batch > 1]
    deep = {
        key: cell for key, cell in grid.items() if int(key[1]) in SIZES and int(key[3]) in batches
    }  # key: dim, size, scope, batch, mode
    expected = sum(shape.size in SIZES for shape in layer.SHAPES) * len(batches)
    found = []
    for mode, least in (("forward", FORWARD), ("training", TRAINING)):
        ratios = [(_shape(cell[0]), speed_up(cell)) for key, cell in deep.items() if key[4] == mode]
        target = f"{mode} at c4 and c5, batches above 1, at least {least}x as fast as the fastest peer"
        unfolded = [(_shape(cell[0]), unfolded_speed_up(cell)) for key, cell in deep.items() if key[4] == mode]
        found.append(_beside(_verdict(target, ratios, expected, least), unfolded, least))
    every = [(f"{_shape(cell[0])} {key[4]}", speed_up(cell)) for key, cell in grid.items()]
    count = len(layer.SHAPES) * len(layer.BATCHES[device]) * len(layer.MODES)
    found.append(_verdict(f"nowhere slower than {NOWHERE_BELOW}x the fastest peer", every, count, NOWHERE_BELOW))
    memory = [(_shape(cell[0]), memory_share(cell)) for key, cell in deep.items() if key[4] == "training"]
    target = f"memory of a training step at c4 and c5, batches above 1, at most {MEMORY}x the leanest peer's"
    return [*found, _verdict(target, memory, expected, MEMORY, at_most=True)]


Figures = Iterable[tuple[str, float | tuple[float, str] | None]]
"""Where, and a ratio, with the peer that it is to or without."""


def _beside(verdict: Verdict, unfolded: Figures, line: float) -> Verdict:
    """A verdict with how it would stand were nothing folded; as it is where that was not measured."""
    built = _verdict("", unfolded, 0, line)
    if not built.expected:
        return verdict
    least = f"; missed at {', '.join(built.missed)}" if built.missed else f"; {built.worst}"
    return replace(verdict, aside=f"with nothing folded {built.met} of {built.expected}{least}")


def _verdict(
    target: str,
    figures: Figures,
    expected: int,
    line: float,
    at_most: bool = False,
) -> Verdict:
    told: list[tuple[float, str]] = []
    for where, figure in figures:
        if figure is not None:
            value, peer = figure if isinstance(figure, tuple) else (figure, "")
            told.append((value, f"{where}: {value:.3f}" + (f" ({peer})" if peer else "")))
    told.sort(reverse=at_most)
    missed = tuple(text for value, text in told if (value > line if at_most else value < line))
    worst = f"{'largest' if at_most else 'least'} at {told[0][1]}" if told and not missed else ""
    return Verdict(target, len(told) - len(missed), max(expected, len(told)), missed, worst)


def _shape(row: Row) -> str:
    return f"{row['dim']},{row['size']},{row['scope']} batch {row['batch']}"


def _network(row: Row) -> str:
    return f"{row['model']}@{row['size']} batch {row['batch']}"


def _ratio(row: Row) -> float | None:
    return float(row["times_zoo"]) if row["status"] == MEASURED and row["times_zoo"] else None
