"""The CPU kernels of layout nm: 16 rows in lanes, activations looked up in registers.

The op cannot tell widths of x apart within the last chunk: LayoutLinear does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import reference
from ._ops import define, register


def _shape(x: Tensor, *rest: Any) -> tuple[int, ...]:
    return (*x.shape[:-1], rest[4])


nm_linear = define(
    "nm_linear(Tensor x, Tensor values, Tensor columns, Tensor? scales, Tensor? bias, "
    "int out_features, int chunk, int activation, int isa) -> Tensor",
    reference.nm_linear,
    _shape,
)
register(
    "nm",
    nm_linear,
    reference.nm_linear,
    ("values", "columns"),
    lambda packed: (packed.shape[0], packed.meta["chunk"]),
)
