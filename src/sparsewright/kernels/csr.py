"""The CPU kernels of layout csr: row after row, the layout for the fewest weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import reference
from ._ops import define, register

TENSORS = ("rows", "columns", "values")


def _shape(x: Tensor, rows: Tensor, *rest: Any) -> tuple[int, ...]:
    return (*x.shape[:-1], rows.shape[0] - 1)


csr_linear = define(
    "csr_linear(Tensor x, Tensor rows, Tensor columns, Tensor values, Tensor? scales, "
    "Tensor? bias, int activation, int isa) -> Tensor",
    reference.csr_linear,
    _shape,
)
register("csr", csr_linear, reference.csr_linear, TENSORS, lambda packed: ())
