"""Max pooling by rows gives torch's own numbers, wherever it does not leave them to torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright import library
from sparsewright.pooling import by_rows, by_slices, max_pool2d

ISAS = [isa for isa in library.ISAS if library.why_no_isa(isa, "max_pool2d") is None]

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
    x = with_nothing_and_infinity(shape)
    if kind == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    dilation, ceil = (2 if kind == "dilated" and kernel[0] < 3 else 1,), kind == "ceil"
    expected = F.max_pool2d(x, kernel, stride or None, padding, dilation, ceil_mode=ceil)
    got = max_pool2d(x, kernel, stride, padding, dilation, ceil)
    assert torch.equal(got.nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))
    assert got.stride() == expected.stride()


def with_nothing_and_infinity(shape: tuple[int, ...]) -> Tensor:
    x = torch.randn(shape)
    x.view(-1)[::7], x.view(-1)[::11] = float("nan"), float("-inf")
    return x


sizes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 40), st.integers(1, 70))


@given(sizes, *(st.tuples(st.integers(1, 6), st.integers(1, 4)) for _ in range(2)), st.data())
def test_every_instruction_set_and_the_reference_equal_torch(
    shape: tuple[int, ...], h: tuple[int, int], w: tuple[int, int], data: st.DataObject
) -> None:
    """h, w: kernel and stride."""
    (kernel_h, down), (kernel_w, right) = h, w
    kernel_h, kernel_w = min(kernel_h, shape[2]), min(kernel_w, shape[3])
    padding = [data.draw(st.integers(0, kernel // 2)) for kernel in (kernel_h, kernel_w)]
    x = with_nothing_and_infinity(shape)
    expected = F.max_pool2d(x, (kernel_h, kernel_w), (down, right), padding)
    arguments = (x, kernel_h, kernel_w, down, right, *padding)
    found = [by_slices(*arguments), *(by_rows(*arguments, library.ISAS[isa]) for isa in ISAS)]
    for got in found:
        assert torch.equal(got.nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))
        assert got.is_contiguous()


@pytest.mark.skipif(not ISAS, reason="no compiled kernels")
def test_the_op_refuses_what_it_cannot_pool() -> None:
    x = torch.ones(1, 1, 4, 4)
    for wrong, why in (
        ((x, 3, 3, 1, 1, 2, 1), "padding is at most half of the kernel"),
        ((x, 7, 1, 1, 1, 0, 0), "the kernel reaches over 7 places"),
        ((x, 2, 2, 0, 1, 0, 0), "stride_h"),
        ((x[0], 2, 2, 1, 1, 0, 0), "x must have shape"),
        ((x.double(), 2, 2, 1, 1, 0, 0), "x must be float32"),
    ):
        with pytest.raises(RuntimeError, match=why):
            by_rows(*wrong, 0)


def test_a_gradient_is_torch_s_own() -> None:
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    max_pool2d(x, [2, 2]).sum().backward()
    assert x.grad is not None
    assert int(x.grad.sum()) == 18


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
