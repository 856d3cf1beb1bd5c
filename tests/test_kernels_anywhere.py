"""Every kernel of the table, on weights, sizes and activations that nobody thought of.

Held against the specification in float64: an absent weight takes no part, so infinite and missing
activations reach exactly those outputs that have a weight present for them. The tolerance is
that of test_kernels.py. A kernel added to the table is covered as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsewright.core import Packed
from sparsewright.errors import LayoutError
from sparsewright.kernels import KERNELS as ALL
from sparsewright.kernels import Kernel
from sparsewright.layouts import LAYOUTS, VALUES, pack, rounded, validate

KERNELS = {name: kernel for name, kernel in ALL.items() if kernel.operation == "linear"}
MARGIN = 8
SIDES = st.one_of(
    st.sampled_from([33, 32, 31, 40, 63, 64, 65, 96, 129, 257, 15, 16, 17, 7, 8, 9, 3, 2, 1, 0]),
    st.integers(0, 140),
)
BATCHES = st.one_of(st.integers(0, 9), st.sampled_from([15, 16, 17, 31, 33, 64, 65]),
                    st.integers(0, 140))  # fmt: skip
DENSITIES = st.sampled_from([0.02, 0.1, 0.25, 0.4, 0.5, 0.6, 0.8, 1.0, 0.0])
SPECIAL = st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e38, -0.0, 1e-45])
SPOILT = st.tuples(SPECIAL, st.integers(0, 199), st.integers(0, 999))


@dataclass(frozen=True)
class Case:
    """weight (out, in); x (..., in), of any strides; bias (out) or None; values: their type."""

    weight: Tensor
    x: Tensor
    bias: Tensor | None
    values: str = "fp32"

    @property
    def held(self) -> Tensor:
        """The weight that its type of values leaves."""
        return rounded(self.weight, self.values)


# --- weights: what patterns leave, and what they do not --------------------------------------


def scattered(out: int, width: int, density: float) -> Tensor:
    return torch.rand(out, width) < density


def n_of_m(out: int, width: int, density: float, m: int) -> Tensor:
    """The same number of weights in every m columns of every row."""
    groups = -(-width // m)
    kept = torch.rand(out, groups, m).argsort(dim=2) < max(1, round(density * m))
    return kept.reshape(out, groups * m)[:, :width]


def blocks(out: int, width: int, density: float, tall: int, wide: int) -> Tensor:
    kept = torch.rand(-(-out // tall), -(-width // wide)) < density
    return kept.repeat_interleave(tall, 0).repeat_interleave(wide, 1)[:out, :width]


def uneven(out: int, width: int, density: float) -> Tensor:
    """A few full rows, a few full columns, many empty ones."""
    return (torch.rand(out, 1) < density) | (torch.rand(1, width) < density * density)


def thinned(present: Tensor) -> Tensor:
    """Some of a pattern's weights happen to be 0: a layout pads there."""
    return present & (torch.rand(present.shape) < 0.9)


TILES = ((4, 1), (8, 1), (16, 1), (4, 4), (16, 16))
MASKS = [
    scattered,
    uneven,
    *(lambda o, w, d, m=m: n_of_m(o, w, d, m) for m in (4, 16, 24, 32)),
    *(lambda o, w, d, m=m: thinned(n_of_m(o, w, d, m)) for m in (4, 16, 24, 32)),
    *(lambda o, w, d, b=b: blocks(o, w, d, *b) for b in TILES),
    *(lambda o, w, d, b=b: thinned(blocks(o, w, d, *b)) for b in TILES[-2:]),
]


# --- activations: their strides, and where they are not finite ---------------------------------


def plain(x: Tensor) -> Tensor:
    return x


def transposed(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


def every_other(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=1)[:, ::2]


def shifted(x: Tensor) -> Tensor:
    """Rows begin at odd places of memory."""
    return torch.nn.functional.pad(x, (1, 2))[:, 1 : 1 + x.shape[1]]


def from_middle(x: Tensor) -> Tensor:
    """Contiguous, but not at the start of its storage."""
    return torch.cat([torch.full((1, x.shape[1]), 7.0), x])[1:]


def repeated(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def deeper(x: Tensor) -> Tensor:
    """(batch, in) as (1, batch, 1, in), its rows far apart."""
    return x.repeat(1, 3)[None, :, None, : x.shape[1]]


STRIDES = [plain, transposed, every_other, shifted, from_middle, repeated, deeper]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    out, width, batch = draw(SIDES), draw(SIDES), draw(BATCHES)
    torch.manual_seed(draw(st.integers(0, 9999)))
    present = draw(st.sampled_from(MASKS))(out, width, draw(DENSITIES))
    weight = torch.where(present, torch.randn(out, width), 0.0)
    x = torch.randn(batch, width)
    for value, row, column in draw(st.lists(SPOILT, max_size=3)):
        if batch and width:
            x[row % batch, column % width] = value
    bias = torch.randn(out) if draw(st.booleans()) else None
    values = draw(st.sampled_from(VALUES.names()))
    return Case(weight, draw(st.sampled_from(STRIDES))(x), bias, values)


def isolating(weight: Tensor, rows: int, values: str) -> Case:
    """Each row of x is NaN wherever one output has no weight: nothing may be read there for it."""
    x = torch.randn(rows, weight.shape[1])
    if len(weight):
        x[weight[torch.randint(len(weight), (rows,))] == 0] = float("nan")
    return Case(weight, x, None, values)


# --- the check -------------------------------------------------------------------------------


def specification(case: Case) -> tuple[Tensor, Tensor]:
    """In float64: the product over present weights alone, and the size of its finite terms."""
    x, weight = case.x.double()[..., None, :], case.held.double()
    terms = torch.where(weight != 0, x * weight, 0.0)
    bias = torch.zeros(len(weight)) if case.bias is None else case.bias
    size = terms.abs().nan_to_num(0.0, 0.0).sum(dim=-1) + bias.double().abs()
    return terms.sum(dim=-1) + bias.double(), size


def forms(layout: str, weight: Tensor, values: str = "fp32") -> Iterator[Packed]:
    """The weight packed, if the layout takes it; with wider indices too, where it has such."""
    if LAYOUTS[layout].refuses(weight) is not None:
        return
    packed = pack(layout, weight, values)
    yield packed
    narrow = {n: t for n, t in packed.tensors.items() if t.dtype == torch.uint16}
    wide = {name: tensor.to(torch.int32) for name, tensor in narrow.items()}
    other = Packed(layout, packed.shape, {**packed.tensors, **wide}, packed.meta)
    try:
        validate(other)
    except LayoutError:
        return
    if wide:
        yield other


def prepared(kernel: Kernel, weight: Tensor, values: str = "fp32") -> Iterator[Packed | Tensor]:
    if kernel.refuses(weight) is None and kernel.refuses_values(values) is None:
        yield from forms(kernel.layout, weight, values) if kernel.layout in LAYOUTS else [weight]


def check(name: str, case: Case, held: Packed | Tensor, expected: Tensor, size: Tensor) -> None:
    kernel = KERNELS[name]
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN: what is not written shows
    try:
        got = kernel.run(case.x, kernel.prepare(held, case.x.shape[:-1].numel()), case.bias)
    finally:
        torch.use_deterministic_algorithms(False)
    what = f"{name}: {tuple(case.x.shape)} by {tuple(case.weight.shape)}"
    assert got.dtype == torch.float32, what
    assert got.shape == expected.shape, what
    # Beyond, it depends on the order of terms. Those of int8 values are counted in their steps.
    steps = held.tensors.get("scales") if isinstance(held, Packed) else None
    most = torch.finfo(torch.float32).max / 2 * (1.0 if steps is None else steps.clamp(max=1.0))
    safe = size < most
    same = (got.double() == expected) | (torch.isnan(got) & torch.isnan(expected))
    fan_in = int((case.weight != 0).sum(dim=1).max()) if case.weight.numel() else 0
    allowed = (fan_in + MARGIN) * torch.finfo(torch.float32).eps * size + TINY
    near = (got.double() - expected).abs() <= allowed  # NaN is not near
    assert bool(same[safe & ~expected.isfinite()].all()), f"{what}: infinite or missing"
    assert bool(near[safe & expected.isfinite()].all()), what


TINY = 2**-126 * 300
"""Products of numbers below float32's normal range lose up to half a step of it, each."""


@settings(max_examples=100)
@given(case=cases())
def test_sparse_kernels_equal_the_specification(case: Case) -> None:
    alone = [isolating(case.weight, rows, case.values) for rows in (3, 33)]
    all_cases = [case, *alone]
    tried = [(c, *specification(c)) for c in all_cases]
    for name, kernel in KERNELS.items():
        if kernel.layout in LAYOUTS:
            for held in prepared(kernel, case.weight, case.values):
                for one, expected, size in tried:
                    check(name, one, held, expected, size)


@settings(max_examples=25)
@given(case=cases())
def test_dense_kernels_equal_it_where_all_is_finite(case: Case) -> None:
    """A dense product multiplies the zeros too: an infinite activation reaches every output."""
    case = Case(case.weight, case.x.nan_to_num(0.0, 0.0, 0.0), case.bias)
    expected, size = specification(case)
    for name, kernel in KERNELS.items():
        if kernel.layout not in LAYOUTS:
            for held in prepared(kernel, case.weight):
                check(name, case, held, expected, size)


@pytest.mark.parametrize("layout", LAYOUTS.names())
def test_every_layout_takes_some_of_these_weights(layout: str) -> None:
    """Else the test above would say nothing about its kernels."""
    taken = [m for m in MASKS if list(forms(layout, m(64, 96, 0.5) * torch.rand(64, 96)))]
    assert taken, layout
    assert any(kernel.layout == layout for _, kernel in KERNELS.items())


@pytest.mark.parametrize("name", [n for n, k in KERNELS.items() if k.layout in LAYOUTS])
def test_the_check_finds_a_kernel_that_is_wrong(name: str) -> None:
    kernel = KERNELS[name]
    if kernel.refuses():
        pytest.skip(str(kernel.refuses()))
    taken, x = 0, torch.randn(5, 64)
    for mask in (n_of_m(48, 64, 0.25, 32), blocks(48, 64, 0.25, 16, 1)):
        mask[:16, 5] = True  # row 7 has a weight, whatever was drawn
        weight = mask * torch.randn(48, 64)
        for values in kernel.values:
            held = next(prepared(kernel, weight, values), None)
            if held is None:
                continue
            taken += 1
            case = Case(weight, x, None, values)
            expected, size = specification(case)
            check(name, case, held, expected, size)
            expected[3, 7] += 1e-3 * (1 + size[3, 7])
            with pytest.raises(AssertionError, match=f"{name}: "):
                check(name, case, held, expected, size)
            x_inf = x.clone()
            x_inf[3, 5] = float("nan")
            with pytest.raises(AssertionError, match=f"{name}: "):
                check(name, Case(weight, x_inf, None, values), held, expected, size)
    assert taken


DEFINED = """
import sparsewright
import torch

names = [f"{layout}_linear" for layout in ("csr", "nm", "sell", "window", "csb", "block")]
for name in [*names, "csr_conv2d", "csb_conv2d"]:
    op = getattr(torch.ops.sparsewright, name).default
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CPU"), name
    assert torch._library.simple_registry.singleton.find(op.name()).fake_impl.kernel, name
"""


@pytest.mark.parametrize("hidden", ["0", "1"], ids=["compiled", "reference"])
def test_the_import_alone_defines_every_op_and_its_fake(hidden: str) -> None:
    environment = {**os.environ, "SPARSEWRIGHT_NO_NATIVE": hidden}
    command = [sys.executable, "-W", "ignore", "-c", DEFINED]
    subprocess.run(command, check=True, env=environment, timeout=300)
