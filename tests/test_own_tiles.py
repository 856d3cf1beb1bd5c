"""Tiles that each thread lays for itself give what tiles that all of them share give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsewright.kernels import KERNELS, kernel_info
from sparsewright.layouts import LAYOUTS, pack
from sparsewright.measure.environment import threads

pytestmark = pytest.mark.skipif(not kernel_info().native, reason="needs the compiled kernels")
LINEAR = [
    name
    for name, k in KERNELS.items()
    if k.layout in LAYOUTS and k.operation == "linear" and k.refuses() is None and k.reserve is None
]
SHAPES = [(300, 150), (100, 515)]
BATCHES = [1, 9, 16, 33, 64, 100, 130]
DENSITIES = [0.01, 0.1, 0.75]
"""From weights that every thread reads whole to those whose rows are shared out."""


def weight_of(layout: str, out: int, width: int, density: float) -> Tensor:
    weight = torch.randn(out, width)
    if layout == "block":
        return weight * (torch.rand(out // 4, width) < density).repeat_interleave(4, 0)
    if layout != "nm":
        return weight * (torch.rand(out, width) < density)
    keep = max(1, int(8 * density))  # of every eight
    places = torch.rand(out, -(-width // 8), 8).argsort(-1)
    return weight * (places < keep).flatten(1)[:, :width]


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(("out", "width"), SHAPES)
@pytest.mark.parametrize("name", LINEAR)
def test_the_number_of_threads_changes_no_sum(name, out, width, density):
    """Nor its order, but in layout csb: there narrow tiles add up every second weight apart."""
    torch.manual_seed(0)
    kernel = KERNELS[name]
    weight, bias = weight_of(kernel.layout, out, width, density), torch.randn(out)
    packed = pack(kernel.layout, weight)
    for batch in BATCHES:
        x = torch.randn(batch, width)
        prepared = kernel.prepare(packed, batch)
        exact = x.double() @ weight.double().t() + bias.double()
        size = x.double().abs() @ weight.double().abs().t() + bias.double().abs()
        # Higham (2002), section 3.1: a sum of so many products in any order.
        most = (int((weight != 0).sum(1).max()) + 8) * torch.finfo(torch.float32).eps
        got = {}
        for count in (1, 2, 3, 4, 7):
            with threads(count):
                got[count] = kernel.run(x, prepared, bias)
            assert bool(((got[count] - exact).abs() <= most * size).all()), (batch, count)
            if kernel.layout != "csb":
                assert torch.equal(got[count], got[1]), (batch, count)
