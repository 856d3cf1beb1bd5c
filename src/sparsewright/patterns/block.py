"""Block: tiles of R outputs by C inputs are present or absent (Gray, Radford, Kingma 2017).

In a convolution the tiles lie over output and input channels within each kernel position.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..arguments import whole
from ..errors import ConfigError
from . import PATTERNS
from ._fold import from_matrix, from_parts, needs_matrix, parts_of_units, to_matrix, to_parts


@PATTERNS.register("block")
@dataclass(frozen=True)
class Block:
    """One group; its units are the R x C tiles.

    >>> import torch
    >>> Block(2, 2).fold(torch.arange(8.).reshape(2, 4))
    tensor([[10., 18.]])
    """

    rows: int
    columns: int
    examples: ClassVar[tuple[str, ...]] = ("block:4x4",)
    sparsity: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        for size in (self.rows, self.columns):
            whole("pattern block:RxC: R and C", size)
        if self.rows < 1 or self.columns < 1:
            raise ConfigError(
                f"pattern block:RxC needs R and C of 1 or more; got {self.rows}x{self.columns}"
            )

    @classmethod
    def parse(cls, text: str) -> Block | None:
        match = re.fullmatch(r"block:(\d+)x(\d+)", text)
        return cls(int(match[1]), int(match[2])) if match else None

    def __str__(self) -> str:
        return f"block:{self.rows}x{self.columns}"

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        reason = needs_matrix(shape)
        if reason is None and (shape[0] % self.rows or shape[1] % self.columns):
            reason = (
                f"needs out_features divisible by {self.rows} and in_features by {self.columns}; "
                f"got {shape[0]} and {shape[1]}"
            )
        return reason

    def fold(self, weight: Tensor) -> Tensor:
        matrix = to_matrix(weight)  # (out, places, in)
        out, places, inputs = matrix.shape
        across = inputs // self.columns
        tiles = matrix.reshape(out // self.rows, self.rows, places, across, self.columns)
        return tiles.sum(dim=(1, 4)).reshape(1, -1)

    def unfold(self, table: Tensor, shape: tuple[int, ...]) -> Tensor:
        places = math.prod(shape[2:])
        tiles = table.reshape(shape[0] // self.rows, places, shape[1] // self.columns)
        matrix = tiles.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 2)
        return from_matrix(matrix, shape)

    def unit_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.rows, self.columns)

    def allowed(self, units: int) -> range:
        return range(units + 1)

    @property
    def row_step(self) -> int:
        return self.rows

    def places_of(self, units: Tensor, shape: tuple[int, ...]) -> Tensor:
        grid = (shape[0] // self.rows, shape[1] // self.columns, *shape[2:])
        out, place, column = parts_of_units(units, grid)
        row = torch.arange(self.rows, device=units.device)[:, None]
        across = torch.arange(self.columns, device=units.device)
        rows = (out * self.rows)[:, None, None] + row
        columns = (column * self.columns)[:, None, None] + across
        return from_parts(rows, place[:, None, None], columns, shape).flatten(1)

    def units_of(self, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        out, place, column = to_parts(places, shape)
        strip = out // self.rows * math.prod(shape[2:]) + place
        return strip * (shape[1] // self.columns) + column // self.columns
