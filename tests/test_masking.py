"""Zeros where weights are absent: each instruction set as torch's masked_fill; autograd knows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsewright import library
from sparsewright.kernels import masking

ISAS = ["portable", "avx2", "avx512"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 33, 1000, 200_003])
def test_every_instruction_set_equals_torch(isa, count):
    if reason := library.why_no_isa(isa, "zero_where"):
        pytest.skip(reason)
    values, where = torch.randn(count), torch.rand(count) < 0.5
    values[::3] = torch.nan
    expected = values.masked_fill(where, 0.0)
    got = torch.ops.sparsewright.zero_where(values, where, library.ISAS[isa])
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), "to the bit"
    torch.ops.sparsewright.zero_where_(values, where, library.ISAS[isa])
    assert torch.equal(values.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(6, 5),
        torch.randn(5, 6).t(),
        torch.randn(6, 5).double(),
        torch.randn(6, 5).bfloat16(),
        nn.Parameter(torch.randn(6, 5)),
    ],
    ids=["plain", "transposed", "double", "bfloat16", "parameter"],
)
def test_whatever_the_weight(values):
    where = torch.rand(6, 5) < 0.5
    expected = values.detach().masked_fill(where, 0.0)
    assert torch.equal(masking.zeroed(values, where), expected)
    masking.zero_(values, where)
    assert torch.equal(values, expected)


def test_autograd_knows_that_the_weight_changed():
    weight = nn.Parameter(torch.randn(4))
    product = (weight * weight).sum()
    masking.zero_(weight, torch.tensor([True, False, False, False]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_gradients_of_gradients_pass_through():
    gradient = torch.randn(4, requires_grad=True)
    where = torch.tensor([True, False, False, True])
    masking.zeroed(gradient, where).sum().backward()
    assert torch.equal(gradient.grad, (~where).float())


@pytest.mark.skipif(library.LIBRARY.path is None, reason="there are no compiled kernels")
def test_sizes_must_agree():
    with pytest.raises(RuntimeError, match="an entry for each of 3 values; got 2"):
        torch.ops.sparsewright.zero_where(torch.ones(3), torch.ones(2, dtype=torch.bool), 0)
