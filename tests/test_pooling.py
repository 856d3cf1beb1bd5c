"""Max pooling by slices gives torch's own numbers, wherever it does not leave them to torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.pooling import max_pool2d

CASES = [
    ((3, 3), (2, 2), (1, 1), (2, 3, 112, 112)),
    ((2, 2), (), (0, 0), (1, 4, 7, 9)),
    ((3, 2), (1, 3), (1, 0), (2, 2, 8, 11)),
    ((1, 1), (2, 2), (0, 0), (1, 1, 5, 5)),
    ((3,), (2,), (1,), (2, 1, 6, 7)),
    ((5, 5), (5, 5), (2, 2), (0, 2, 6, 7)),
    ((9, 9), (1, 1), (4, 4), (1, 2, 12, 12)),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "shape"), CASES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "channels last", "dilated", "ceil"])
def test_equals_torch(kernel, stride, padding, shape, kind) -> None:
    x = torch.randn(shape)
    x.view(-1)[::7], x.view(-1)[::11] = float("nan"), float("-inf")
    if kind == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    dilation, ceil = (2 if kind == "dilated" and kernel[0] < 3 else 1,), kind == "ceil"
    expected = F.max_pool2d(x, kernel, stride or None, padding, dilation, ceil_mode=ceil)
    got = max_pool2d(x, kernel, stride, padding, dilation, ceil)
    assert torch.equal(got.nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))
    assert got.stride() == expected.stride()


def test_errors_are_torch_s() -> None:
    for arguments in (((3, 3), (1, 1), (2, 2)), ((7, 7),)):
        with pytest.raises(RuntimeError):
            max_pool2d(torch.ones(1, 1, 4, 4), *arguments)


def test_a_deployed_model_pools_so() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(100, 3)
    )
    x = torch.randn(2, 2, 12, 12)
    fast = sw.deploy(model, x, seconds=0)
    assert fast.program is not None
    torch.testing.assert_close(fast(x), model(x))
