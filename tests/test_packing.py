"""The compiled library packs a weight as the layouts' own Python does, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsewright.core import Packed
from sparsewright.errors import LayoutError
from sparsewright.kernels import kernel_info
from sparsewright.layouts import LAYOUTS, csb, pack, validate, window
from sparsewright.layouts._packing import compiled, holds

pytestmark = pytest.mark.skipif(not kernel_info().native, reason="needs the compiled kernels")
ODD = [(0, 0), (0, 5), (5, 0), (1, 1), (16, 32), (17, 33), (40, 300), (129, 511)]


def random(out: int, width: int, density: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    weight = torch.randn(out, width) * (torch.rand(out, width) < density)
    if out and width > 3:
        weight[0, :3] = torch.tensor([torch.nan, -0.0, torch.inf])
        weight[-1] = 0
    return weight


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert got[name].is_contiguous()
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name)


def check_csb(weight: Tensor, chunk: int, block: int) -> None:
    expected = csb._fill(weight, chunk, block)
    got = LAYOUTS["csb"].pack(weight, chunk, block)
    assert (got.shape, got.meta) == (expected.shape, expected.meta)
    same(got.tensors, expected.tensors)
    counted = compiled("csb_steps", weight)
    assert counted is not None
    assert tuple(counted(chunk, block)) == csb._steps(weight, chunk, block)


def check_window(weight: Tensor, grid: int) -> None:
    packed, counted = compiled("window_pack", weight), compiled("window_steps", weight)
    assert packed is not None
    assert counted is not None
    with mock.patch.object(window, "GRID", grid):
        for most in (0, window.MOST):
            expected = window._fill(weight, most)
            same(dict(zip(window.DTYPES, packed(grid, most), strict=True)), expected.tensors)
        assert counted(grid) == window._steps(weight)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("shape", ODD)
def test_odd_sizes(shape, density):
    weight = random(*shape, density)
    for chunk, block in ((160, 128), (255, 127), (1, 1), (7, 3)):
        check_csb(weight, chunk, block)
    for grid in (1, 8, 16, 32):
        check_window(weight, grid)


@given(
    st.integers(0, 70), st.integers(0, 90), st.floats(0, 1), st.integers(1, 255),
    st.integers(1, 128), st.sampled_from([1, 8, 16]), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_size(out, width, density, chunk, block, grid, seed):
    weight = random(out, width, density, seed)
    check_csb(weight, chunk, block)
    check_window(weight, grid)


def test_columns_beyond_16_bits():
    weight = torch.zeros(17, 2**16)
    weight[:, ::4099] = 2.0
    weight[3, -1] = 1.0
    check_window(weight, 1)
    check_csb(weight, 255, 128)


@pytest.mark.parametrize("layout", ["csb", "window"])
def test_any_strides_threads_and_views(layout):
    weight = random(300, 400, 0.2)
    expected = LAYOUTS[layout].pack(weight)
    validate(expected)
    before = torch.get_num_threads()
    for threads in (1, 4):
        torch.set_num_threads(threads)
        try:
            same(LAYOUTS[layout].pack(weight.t().contiguous().t()).tensors, expected.tensors)
            negative = torch._neg_view(-weight)
            same(LAYOUTS[layout].pack(negative).tensors, expected.tensors)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("layout", ["csb", "window"])
@pytest.mark.parametrize("density", [0.004, 0.02, 0.1, 0.5])
def test_the_same_weights_are_refused_without_the_library(layout, density, monkeypatch):
    weight = random(200, 600, density)
    with_library = LAYOUTS[layout].refuses(weight), LAYOUTS[layout].pack(weight)
    module = {"csb": csb, "window": window}[layout]
    monkeypatch.setattr(module, "compiled", lambda op, weight: None)
    assert LAYOUTS[layout].refuses(weight) == with_library[0]
    same(LAYOUTS[layout].pack(weight).tensors, with_library[1].tensors)


def test_arguments_that_do_not_fit():
    ops = torch.ops.sparsewright
    with pytest.raises(RuntimeError, match="chunk must be in"):
        ops.csb_pack(torch.ones(2, 2), 256, 1)
    with pytest.raises(RuntimeError, match="block must be in"):
        ops.csb_steps(torch.ones(2, 2), 1, 129)
    with pytest.raises(RuntimeError, match="grid must be in"):
        ops.window_pack(torch.ones(2, 2), 0, 9)
    with pytest.raises(RuntimeError, match="weight must be float32"):
        ops.window_pack(torch.ones(2, 2).double(), 1, 9)
    with pytest.raises(RuntimeError, match="shape"):
        ops.window_steps(torch.ones(2), 1)


def damaged(packed: Packed, data: st.DataObject) -> Packed:
    """A copy with one to three numbers changed a little, or to an extreme."""
    tensors = {name: t.clone() for name, t in packed.tensors.items()}
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(
            st.sampled_from([n for n, t in tensors.items() if t.numel() and n != "scales"])
        )
        flat = tensors[name].view(-1)
        at = data.draw(st.integers(0, flat.numel() - 1))
        if name == "values":
            flat[at] = data.draw(st.sampled_from([0.0, -0.0, 1.0]))
            continue
        most = torch.iinfo(flat.dtype).max
        near = int(flat[at]) + data.draw(st.sampled_from([-256, -2, -1, 1, 2, 256, 2**17]))
        before = int(flat[max(0, at - data.draw(st.integers(1, 2)))])  # of the same row, often
        flat[at] = data.draw(st.sampled_from([before, near % (most + 1), most, 0]))
    return Packed(packed.layout, packed.shape, tensors, packed.meta)


def verdict(packed: Packed) -> str | None:
    try:
        validate(packed)
    except LayoutError as error:
        return str(error)
    return None


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("layout", ["csb", "window", "window squeezed"])
@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damage_is_seen_as_without_the_library(layout, values, monkeypatch, data):
    out, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 80))
    torch.manual_seed(data.draw(st.integers(0, 9)))
    layout, _, squeezed = layout.partition(" ")
    with monkeypatch.context() as patch:
        if squeezed:
            patch.setattr(window, "_most", lambda weights: 0)
        whole = pack(layout, torch.randn(out, width) * (torch.rand(out, width) < 0.4), values)
    packed = damaged(whole, data)
    asked = []
    module = {"csb": csb, "window": window}[layout]

    def spy(*given: object) -> bool:
        asked.append(holds(*given))
        return asked[-1]

    with monkeypatch.context() as patch:
        patch.setattr(module, "holds", spy)
        got = verdict(packed)
        patch.setattr(module, "holds", lambda *given: False)
        expected = verdict(packed)
    assert got == expected
    assert asked in ([], [expected is None])  # nor does the plain way find what this did not


@pytest.mark.parametrize("layout", ["csb", "window"])
def test_starts_that_lead_outside_are_seen_by_the_library_itself(layout):
    packed = LAYOUTS[layout].pack(random(300, 400, 0.2))
    starts = packed.tensors["starts"]
    rest = (400, 300, packed.meta["chunk"], packed.meta["block"]) if packed.meta else (400, 300)
    op = getattr(torch.ops.sparsewright, f"{layout}_holds")
    assert op(*packed.tensors.values(), *rest)
    for wrong in (2**30, -(2**30)):
        starts.view(-1)[2] = wrong
        assert not op(*packed.tensors.values(), *rest)


FLUSHED = """
import sys, torch
from sparsewright.layouts import LAYOUTS, csb, unpack, window
torch.set_num_threads(4)
{before}
(torch.ones(1000, 1000) + 1).sum()  # the other threads are there, and do as they do now
{after}
weight = torch.zeros(2048, 64)
weight[1024:] = 1
weight[1024:, ::2] = 1e-40
weight[:1024, :{wide}] = 1
for name, plain in (
    ("csb", csb._fill(weight, *csb._packed_sizes(weight.shape))),
    ("window", window._fill(weight, window.MOST)),
):
    packed = LAYOUTS[name].pack(weight)
    for key, tensor in plain.tensors.items():
        assert torch.equal(packed.tensors[key], tensor), (name, key)
    assert LAYOUTS[name].refuses(weight) is None
    assert torch.equal(unpack(packed), weight), name
print("same")
"""


@pytest.mark.parametrize(
    ("before", "after"), [("", "torch.set_flush_denormal(True)"), ("flush", "unflush"), ("", "")]
)
def test_all_threads_agree_which_weights_are_0(before, after):
    """Only the calling thread flushes subnormal numbers to 0, or only the others do."""
    if before:
        before, after = (f"torch.set_flush_denormal({on})" for on in (True, False))
    code = FLUSHED.format(before=before, after=after, wide=8 if before else 40)
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "same\n", done.stderr
