"""N:M: exactly N weights present in every M consecutive inputs (Mishra et al. 2021 for 2:4).

Groups run along the input dimension; for a convolution along the input channels within each
kernel position, which is how NVIDIA's 2:4 has it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..arguments import whole
from ..errors import ConfigError
from . import PATTERNS
from ._fold import from_matrix, from_parts, needs_matrix, parts_of_units, to_matrix, to_parts


@PATTERNS.register("N:M")
@dataclass(frozen=True)
class NM:
    """N kept in every M. 0 < n < m.

    >>> import torch
    >>> NM(2, 4).fold(torch.arange(8.).reshape(1, 8))
    tensor([[0., 1., 2., 3.],
            [4., 5., 6., 7.]])
    """

    n: int
    m: int
    examples: ClassVar[tuple[str, ...]] = ("2:4", "3:32")
    row_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for size in (self.n, self.m):
            whole("pattern N:M: N and M", size)
        if not 0 < self.n < self.m:
            raise ConfigError(f"pattern N:M keeps N of every M, 0 < N < M; got {self.n}:{self.m}")

    @classmethod
    def parse(cls, text: str) -> NM | None:
        match = re.fullmatch(r"(\d+):(\d+)", text)
        return cls(int(match[1]), int(match[2])) if match else None

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        return 1.0 - self.n / self.m

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        reason = needs_matrix(shape)
        if reason is None and shape[1] % self.m:
            reason = f"needs in_features divisible by {self.m}; got {shape[1]}"
        return reason

    def fold(self, weight: Tensor) -> Tensor:
        return to_matrix(weight).reshape(-1, self.m)

    def unfold(self, table: Tensor, shape: tuple[int, ...]) -> Tensor:
        return from_matrix(table.reshape(shape[0], math.prod(shape[2:]), shape[1]), shape)

    def allowed(self, units: int) -> range:
        return range(self.n, self.n + 1)

    def places_of(self, units: Tensor, shape: tuple[int, ...]) -> Tensor:
        return from_parts(*parts_of_units(units, shape), shape)[:, None]

    def units_of(self, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        out, place, column = to_parts(places, shape)
        return (out * math.prod(shape[2:]) + place) * shape[1] + column
