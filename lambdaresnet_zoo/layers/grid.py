"""Queries and values of a lambda layer on their grid, cut into tiles and windows, and what comes of these put back.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. Here N are the queries of a tile, M the positions of its window.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch.nn.functional as F
from torch import Tensor

from .tiles import Axis, Tiling

__all__ = ["Grid"]


class Grid:
    """Queries and values on their grid, in tiles and windows."""

    def __init__(self, queries: Tensor, values: Tensor, tiling: Tiling) -> None:
        self.tiling = tiling
        self.queries = queries
        self.values = values
        y, x = tiling.y, tiling.x
        self.short = (0, x.covered - x.size, 0, y.covered - y.size)
        self.padding = (*_around(x, self.short[1]), *_around(y, self.short[3]))

    @cached_property
    def padded_queries(self) -> Tensor:
        """[B, H, K, h', w'], as the tiles are cut from it."""
        return _pad(self.queries.unflatten(3, (self.tiling.y.size, self.tiling.x.size)), self.short)

    @cached_property
    def padded_values(self) -> Tensor:
        """[B, V, U, h', w'], as the windows are cut from it."""
        return _pad(self.values.unflatten(3, (self.tiling.y.size, self.tiling.x.size)), self.padding)

    def chunks(self) -> Iterator[slice]:
        """Images that are contracted at once."""
        for start in range(0, self.queries.shape[0], self.tiling.chunk):
            yield slice(start, start + self.tiling.chunk)

    def tile_queries(self, images: slice, row: int) -> Tensor:
        """[N, b * H, K] contiguous, b counting images and the tiles of a row."""
        if self.tiling.whole:
            by_position = self.queries[images].permute(3, 0, 1, 2)
        else:
            by_position = self._tiles(images, row).permute(3, 5, 0, 4, 1, 2)
        # Not a view, even where one would do: matrix products of strided positions are ten times slower.
        return by_position.reshape(self.tiling.queries, -1, self.queries.shape[2]).contiguous()

    def tile_maps(self, images: slice, row: int) -> Tensor:
        """[b * H, D, N] of maps [B, H, D, h, w]: the queries as they came."""
        if self.tiling.whole:
            return self.queries[images].flatten(0, 1)
        tiles = self._tiles(images, row)
        return tiles.permute(0, 4, 1, 2, 3, 5).reshape(-1, tiles.shape[2], self.tiling.queries)

    def windows(self, images: slice, row: int) -> Tensor:
        """[b, V, U * M], the context that each tile of a row sees."""
        if self.tiling.whole:
            return self.values[images].flatten(2)
        y, x = self.tiling.y, self.tiling.x
        values = self.padded_values[images, :, :, y.window(row)]
        if x.tiles == 1:
            return values.flatten(2)
        windows = values.unfold(4, x.extent(0), x.tile)  # [b, V, U, y, tiles, x]
        return windows.permute(0, 4, 1, 2, 3, 5).reshape(-1, values.shape[1], windows[0, 0, :, :, 0].numel())

    def add_tiles(self, maps: Tensor, tiles: Tensor, images: slice, row: int) -> None:
        """Add [b * H, D, N] to maps [B, H, D, h, w]."""
        y, x = self.tiling.y, self.tiling.x
        heads, depth = maps.shape[1:3]
        region = maps[images, :, :, row * y.tile : (row + 1) * y.tile]
        if x.tiles == 1:
            rows = tiles.reshape(-1, heads, depth, y.tile, x.size)
        else:
            rows = tiles.reshape(-1, x.tiles, heads, depth, y.tile, x.tile).permute(0, 2, 3, 4, 1, 5).flatten(4)
        region += rows[:, :, :, : region.shape[3], : x.size]

    def add_windows(self, padded: Tensor, windows: Tensor, images: slice, row: int) -> None:
        """Add [b, V, U * M] to padded values [B, V, U, h', w']; windows overlap."""
        y, x = self.tiling.y, self.tiling.x
        rows = padded[images, :, :, y.window(row)]
        windows = windows.reshape(-1, x.tiles, *rows.shape[1:4], x.extent(0))
        for tile in range(x.tiles):
            rows[..., x.window(tile)] += windows[:, tile]

    def cropped(self, padded: Tensor) -> Tensor:
        """Padded values without their padding."""
        return _pad(padded, [-size for size in self.padding])

    def _tiles(self, images: slice, row: int) -> Tensor:
        """Queries [b, H, K, y, tiles, x] of a row of tiles."""
        y, x = self.tiling.y, self.tiling.x
        maps = self.padded_queries[images]
        return maps[:, :, :, row * y.tile : (row + 1) * y.tile].unflatten(4, (x.tiles, x.tile))


def _pad(maps: Tensor, padding: Sequence[int]) -> Tensor:
    return F.pad(maps, list(padding)) if any(padding) else maps  # torch copies where there is none, too


def _around(axis: Axis, short: int) -> tuple[int, int]:
    return (axis.pad, axis.pad + short) if axis.padded else (0, 0)
