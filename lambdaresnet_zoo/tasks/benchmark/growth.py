"""The part *growth*: time and memory of the layers as the map grows, and as the batch does."""

from dataclasses import replace

from .compare import Limits
from .layer import FIELDS, KEY, MODES
from .peers import Shape

__all__ = ["FIELDS", "KEY", "MODES", "QUICK", "growing", "limits"]

DIM, SCOPE = 128, 23
SIZES = (7, 10, 14, 20, 28, 40, 56, 80, 112)
"""At a batch of 1."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
BATCH_SIZE = 14
"""Size of the map while the batch grows."""
QUICK = (7, 10, 14)


def growing(quick: bool = False) -> list[tuple[Shape, int]]:
    """Shapes and batches from the smallest: those of one dimension, of which one grows at a time."""
    sizes, batches = (QUICK, BATCHES[:3]) if quick else (SIZES, BATCHES)
    by_size = [(Shape(DIM, size, SCOPE), 1) for size in sizes]
    return by_size + [(Shape(DIM, BATCH_SIZE, SCOPE), batch) for batch in batches if batch > 1]


def limits(of_layer: Limits) -> Limits:
    """Fewer rounds than the grid of shapes: a curve over two decades, not a ratio to a hundredth."""
    return replace(of_layer, repeats=min(of_layer.repeats, 5), round_seconds=of_layer.round_seconds / 2)
