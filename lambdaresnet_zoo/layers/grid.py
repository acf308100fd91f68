"""Maps on the grid of a lambda layer, cut into tiles and windows, and sums over tiles and windows that overlap.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. Here N are the queries of a tile, M the positions of its window, D is K or V, and
b counts images and the tiles of a row.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiles import Axis, Tiling

__all__ = ["Tiles", "Windows"]


class Tiles:
    """Maps [B, H, D, N] of queries, or of a gradient or sum of that shape, N counting the grid, in tiles."""

    def __init__(self, maps: Tensor, tiling: Tiling) -> None:
        self.maps = maps
        self.tiling = tiling

    def by_position(self, images: slice, row: int) -> Tensor:
        """[N, b * H, D] contiguous, of a row of tiles."""
        if self.tiling.whole:  # in fewer calls, as below: where the grid is small, each counts
            tiles = self.maps[images].permute(3, 0, 1, 2)
        else:
            tiles = self._tiles(images, row).permute(3, 5, 0, 4, 1, 2)
        # Not a view, even where one would do: matrix products of strided positions are ten times slower.
        return tiles.reshape(self.tiling.queries, -1, self.maps.shape[2]).contiguous()

    def by_map(self, images: slice, row: int) -> Tensor:
        """[b * H, D, N], of a row of tiles."""
        if self.tiling.whole:
            return self.maps[images].flatten(0, 1)
        tiles = self._tiles(images, row).permute(0, 4, 1, 2, 3, 5)
        return tiles.reshape(-1, self.maps.shape[2], self.tiling.queries)

    def add(self, tiles: Tensor, images: slice, row: int) -> None:
        """Add tiles [b * H, D, N] of a row to the maps; those that are added to are not read in tiles."""
        y, x = self.tiling.y, self.tiling.x
        heads, depth = self.maps.shape[1:3]
        if self.tiling.whole:
            self.maps[images].add_(tiles.reshape(-1, heads, depth, self.tiling.queries))
            return
        region = self._grid[images, :, :, row * y.tile : (row + 1) * y.tile]
        if x.tiles == 1:
            rows = tiles.reshape(-1, heads, depth, y.tile, x.size)
        else:
            rows = tiles.reshape(-1, x.tiles, heads, depth, y.tile, x.tile).permute(0, 2, 3, 4, 1, 5).flatten(4)
        region += rows[:, :, :, : region.shape[3], : x.size]

    def _tiles(self, images: slice, row: int) -> Tensor:
        """[images, H, D, y, tiles, x], of a row of tiles."""
        y, x = self.tiling.y, self.tiling.x
        return self._padded[images, :, :, row * y.tile : (row + 1) * y.tile].unflatten(4, (x.tiles, x.tile))

    @property
    def _grid(self) -> Tensor:
        return self.maps.view(*self.maps.shape[:3], self.tiling.y.size, self.tiling.x.size)

    @cached_property
    def _padded(self) -> Tensor:
        """[B, H, D, h', w'], the last tiles filled up."""
        y, x = self.tiling.y, self.tiling.x
        return _pad(self.maps.unflatten(3, (y.size, x.size)), (0, x.covered - x.size, 0, y.covered - y.size))


class Windows:
    """Values [B, V, U, N], or a sum of that shape, N counting the grid, in the windows that tiles of queries see.

    Where every tile of a row sees all columns, they have one window.

    The positions of a window count from the last to the first, or forwards, as those of its embeddings do (see
    layers.tiles).
    """

    def __init__(self, values: Tensor, tiling: Tiling, forwards: bool = False) -> None:
        self.maps = values
        self.tiling = tiling
        self.forwards = forwards

    def of(self, images: slice, row: int) -> Tensor:
        """[b, V, U * M], of a row of tiles."""
        y, x = self.tiling.y, self.tiling.x
        if self.tiling.whole and self.forwards:
            return self.maps[images].flatten(2)
        values = self.padded[images, :, :, y.window(row)]
        if not x.seen:
            values = values.unfold(4, x.extent(0), x.tile).permute(0, 4, 1, 2, 3, 5)  # [images, tiles, V, U, y, x]
        if not self.forwards:
            values = values.flip(-2, -1)
        return values.reshape(-1, self.maps.shape[1], self.maps.shape[2] * self.tiling.context(row))

    def add(self, windows: Tensor, images: slice, row: int) -> None:
        """Add windows [b, V, U * M] of a row of tiles; they overlap."""
        y, x = self.tiling.y, self.tiling.x
        if self.tiling.whole and self.forwards:
            self.maps[images].add_(windows.view(-1, *self.maps.shape[1:]))
            return
        rows = self.padded[images, :, :, y.window(row)]
        windows = windows.reshape(-1, self.tiling.windows, *rows.shape[1:4], x.extent(0))
        if not self.forwards:
            windows = windows.flip(4, 5)
        for tile in range(self.tiling.windows):
            rows[..., x.window(tile)] += windows[:, tile]

    def sums(self) -> "Windows":
        """Zeros to add windows of this shape to, in float32 at least: what overlaps is summed over tiles."""
        dtype = torch.promote_types(self.maps.dtype, torch.float32)
        return Windows(self.maps.new_zeros(self.maps.shape, dtype=dtype), self.tiling, self.forwards)

    def values(self) -> Tensor:
        """[B, V, U, N], without padding."""
        return _pad(self.padded, [-size for size in self._padding]).flatten(3)

    @cached_property
    def padded(self) -> Tensor:
        """[B, V, U, h', w']."""
        y, x = self.tiling.y, self.tiling.x
        return _pad(self.maps.unflatten(3, (y.size, x.size)), self._padding)

    @property
    def _padding(self) -> tuple[int, ...]:
        return *_around(self.tiling.x), *_around(self.tiling.y)


def _pad(maps: Tensor, padding: Sequence[int]) -> Tensor:
    return F.pad(maps, list(padding)) if any(padding) else maps  # torch copies where there is none, too


def _around(axis: Axis) -> tuple[int, int]:
    """Zeros before and after the values along an axis."""
    return (axis.pad, axis.pad + axis.covered - axis.size) if axis.padded else (0, 0)
