"""Maps on the grid of a lambda layer, cut into tiles and windows, and sums over tiles and windows that overlap.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. Here N are the queries of a tile, M the positions of its window, D is K or V, and
b counts images and the tiles of a row.
"""

from collections.abc import Sequence
from functools import cached_property

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
        tiles = self._tiles(images, row).permute(3, 5, 0, 4, 1, 2)
        # Not a view, even where one would do: matrix products of strided positions are ten times slower.
        return tiles.reshape(self.tiling.queries, -1, self.maps.shape[2]).contiguous()

    def by_map(self, images: slice, row: int) -> Tensor:
        """[b * H, D, N], of a row of tiles."""
        tiles = self._tiles(images, row).permute(0, 4, 1, 2, 3, 5)
        return tiles.reshape(-1, self.maps.shape[2], self.tiling.queries)

    def add(self, tiles: Tensor, images: slice, row: int) -> None:
        """Add tiles [b * H, D, N] of a row to the maps; those that are added to are not read in tiles."""
        y, x = self.tiling.y, self.tiling.x
        heads, depth = self.maps.shape[1:3]
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

    The positions of a window count from the last to the first, as those of its embeddings do (see layers.tiles).
    """

    def __init__(self, values: Tensor, tiling: Tiling) -> None:
        y, x = tiling.y, tiling.x
        self.tiling = tiling
        self.padding = (*_around(x), *_around(y))
        self.padded = _pad(values.unflatten(3, (y.size, x.size)), self.padding)  # [B, V, U, h', w']

    def of(self, images: slice, row: int) -> Tensor:
        """[b, V, U * M], of a row of tiles."""
        y, x = self.tiling.y, self.tiling.x
        values = self.padded[images, :, :, y.window(row)]
        if x.tiles == 1:
            return values.flip(3, 4).flatten(2)
        windows = values.unfold(4, x.extent(0), x.tile)  # [images, V, U, y, tiles, x]
        windows = windows.permute(0, 4, 1, 2, 3, 5).flip(4, 5)
        return windows.reshape(-1, values.shape[1], windows[0, 0, 0].numel())

    def add(self, windows: Tensor, images: slice, row: int) -> None:
        """Add windows [b, V, U * M] of a row of tiles; they overlap."""
        y, x = self.tiling.y, self.tiling.x
        rows = self.padded[images, :, :, y.window(row)]
        windows = windows.reshape(-1, x.tiles, *rows.shape[1:4], x.extent(0)).flip(4, 5)
        for tile in range(x.tiles):
            rows[..., x.window(tile)] += windows[:, tile]

    def values(self) -> Tensor:
        """[B, V, U, N], without padding."""
        return _pad(self.padded, [-size for size in self.padding]).flatten(3)


def _pad(maps: Tensor, padding: Sequence[int]) -> Tensor:
    return F.pad(maps, list(padding)) if any(padding) else maps  # torch copies where there is none, too


def _around(axis: Axis) -> tuple[int, int]:
    """Zeros before and after the values along an axis."""
    return (axis.pad, axis.pad + axis.covered - axis.size) if axis.padded else (0, 0)
