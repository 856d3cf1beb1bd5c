"""Layout block: which strips it takes, how they lie, and that validation rejects what is broken.

What holds for every layout is in test_layouts.py, and the products are in test_kernels.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsewright.errors import LayoutError
from sparsewright.layouts import LAYOUTS, pack, unpack, validate
from sparsewright.layouts.block import Block


def _ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


BLOCK = torch.zeros(10, 6)  # strips of 4 rows, the last of which has 2
BLOCK[:4, 1:5] = 1.0
BLOCK[2, 2] = 0.0
BLOCK[8:, :2] = 2.0
BLOCK[9, 3] = 3.0


def test_block_by_hand() -> None:
    """The whole columns of every strip, then its others; a strip beyond the weight's end too."""
    tensors = Block().pack(BLOCK, 4).tensors
    assert tensors["starts"].tolist() == [0, 3, 4, 4, 4, 6, 7]
    assert tensors["columns"].tolist() == [1, 3, 4, 2, 0, 1, 3]
    assert tensors["values"].tolist() == [
        *([1.0] * 4 for _ in range(3)),
        [1.0, 1.0, 0.0, 1.0],
        *([2.0, 2.0, 0.0, 0.0] for _ in range(2)),
        [0.0, 3.0, 0.0, 0.0],
    ]


@pytest.mark.parametrize(("tall", "wide", "rows"), [(4, 1, 4), (8, 1, 8), (16, 1, 16), (4, 4, 4),
                                                    (16, 16, 16), (32, 2, 16)])  # fmt: skip
def test_block_takes_the_tallest_strips_that_a_pattern_fills(
    tall: int, wide: int, rows: int
) -> None:
    kept = torch.rand(128 // tall, 64 // wide) < 0.2
    weight = torch.rand(128, 64) + 1.0
    weight *= kept.repeat_interleave(tall, 0).repeat_interleave(wide, 1)
    assert LAYOUTS["block"].refuses(weight) is None
    values = pack("block", weight).tensors["values"]
    assert values.shape[1] == rows
    assert bool((values != 0).all())


def test_block_refuses_waste_with_its_measure() -> None:
    weight = torch.zeros(64, 256)
    weight[::4] = 1.0
    reason = LAYOUTS["block"].refuses(weight)
    assert reason == "75% of the values would be padding in strips of 4 rows; at most 10% may be"
    with pytest.raises(LayoutError, match=r"needs rows of \[4, 8, 16\]; got 5"):
        Block().pack(weight, 5)


@pytest.mark.parametrize(
    ("name", "at", "value", "rule"),
    [
        ("starts", 0, 1, "starts must run from 0 to 7"),
        ("starts", -1, 6, "starts must run from 0 to 7"),
        ("starts", 2, 2, "starts must not descend"),
        ("starts", 2, -1, "starts must not descend"),
        ("starts", 2, 2**31 - 1, "starts must not descend"),
        ("starts", 1, 2, "columns must ascend"),
        ("starts", 1, 4, "columns must ascend"),
        ("starts", 5, 7, "only they are whole"),
        ("columns", 0, 6, r"columns must lie in \[0, 6\)"),
        ("columns", -1, -1, r"columns must lie in \[0, 6\)"),
        ("columns", 0, 3, "columns must ascend"),
        ("columns", 3, 1, "must name a column once"),
        ("values", (0, 0), 0.0, "only they are whole"),
        ("values", (3, 2), 5.0, "only they are whole"),
        ("values", (4, 2), 5.0, "rows beyond 10 must be empty"),
        ("values", (6, 1), 0.0, "a column must hold a weight"),
    ],
)
def test_block_rejects_hostile_tensors(name: str, at: Any, value: float, rule: str) -> None:
    packed = Block().pack(BLOCK, 4)
    tensors = {**packed.tensors, "columns": packed.tensors["columns"].to(torch.int32)}
    validate(dataclasses.replace(packed, tensors=tensors))
    broken = {key: tensor.clone() for key, tensor in tensors.items()}
    broken[name][at] = value
    for call in (validate, unpack):
        with pytest.raises(LayoutError, match=rule):
            call(dataclasses.replace(packed, tensors=broken))


@pytest.mark.parametrize(
    ("name", "tensor", "rule"),
    [
        ("values", torch.ones(7, 5), r"rows of \[4, 8, 16\]"),
        ("values", torch.ones(28), r"rows of \[4, 8, 16\]"),
        ("values", torch.ones(6, 4), "columns must have 6 entries"),
        ("columns", torch.zeros(7, 1, dtype=torch.int32), "columns must have 7 entries"),
        ("columns", torch.zeros(7, dtype=torch.int64), "columns must be uint16 or int32"),
        ("starts", _ints(0, 3, 4, 4, 7), "starts must have 7 entries"),
        ("starts", _ints(), "starts must have 7 entries"),
        ("starts", torch.zeros(7, 1, dtype=torch.int32), "starts must have 7 entries"),
    ],
)
def test_block_rejects_hostile_sizes(name: str, tensor: Tensor, rule: str) -> None:
    packed = Block().pack(BLOCK, 4)
    broken = dataclasses.replace(packed, tensors={**packed.tensors, name: tensor})
    with pytest.raises(LayoutError, match=rule):
        validate(broken)
    with pytest.raises(LayoutError, match=rule):
        unpack(broken)


def test_block_rejects_meta_and_narrow_columns() -> None:
    packed = Block().pack(BLOCK, 4)
    with pytest.raises(LayoutError, match="has no meta"):
        validate(dataclasses.replace(packed, meta={"rows": 4}))
    with pytest.raises(LayoutError, match="needs int32 columns"):
        validate(dataclasses.replace(packed, shape=(10, 2**16 + 1)))
