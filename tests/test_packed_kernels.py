"""The compiled products of training on packed weights equal their specification in float64.

Tolerance: a float32 sum of n products is off by at most about n * eps * sum |a| |b|, in any order
(Higham 2002, section 3.1); the bias and the sums kept side by side add MARGIN to n. Outputs are
filled with NaN before a kernel runs. Every instruction set that this machine has is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparsewright import library
from sparsewright.errors import KernelError
from sparsewright.kernels import packed, packed_forms
from sparsewright.kernels import packed_reference as plain
from sparsewright.kernels.operation import Conv2d
from sparsewright.topology import Topology

pytestmark = pytest.mark.skipif(
    library.LIBRARY.path is None, reason=f"no compiled kernels: {library.LIBRARY.why_not}"
)

MARGIN = 8
EPS = torch.finfo(torch.float32).eps
BATCHES = [0, 1, 7, 128, 130]
SHAPES = [(0, 8), (8, 0), (1, 1), (1, 40), (40, 1), (3, 5), (17, 300), (129, 257), (300, 33)]
FORMS = ["rows", "cells"]


@pytest.fixture(autouse=True)
def _nan_filled() -> Iterator[None]:
    """torch fills fresh tensors with NaN: an output that was not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=list(library.ISAS))
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    reason = library.why_no_isa(request.param)
    if reason:
        pytest.skip(reason)
    monkeypatch.setattr(packed_forms, "ISA", library.ISAS[request.param])
    return str(request.param)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Every topology takes this form, whatever it holds."""
    cells = request.param == "cells"
    monkeypatch.setattr(packed_forms, "LEAST", 0 if cells else 10**9)
    monkeypatch.setattr(packed_forms, "WASTE", 1.0)
    monkeypatch.setattr(packed_forms, "NEAR", 0)
    return packed_forms.ByCells if cells else packed_forms.ByRows


def topology_of(mask: Tensor) -> Topology:
    return Topology.from_places(mask.flatten().nonzero()[:, 0], (mask.shape[0], mask.shape[1]))


def scattered(shape: tuple[int, int], density: float) -> Topology:
    return topology_of(torch.rand(shape) < density)


def close(got: Tensor, expected: Tensor, size: Tensor, summands: int) -> None:
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    allowed = (summands + MARGIN) * EPS * size
    assert bool(((got.double() - expected).abs() <= allowed).all())  # NaN fails


def most(topology: Topology) -> int:
    return int(topology.starts.diff().max()) if topology.shape[0] else 0


def check_linear(topology: Topology, batch: int | tuple[int, ...], bias: bool = False) -> None:
    """Forward and both gradients, against float64."""
    dims = (batch,) if isinstance(batch, int) else batch
    out, width = topology.shape
    x, dy = torch.randn(*dims, width), torch.randn(*dims, out)
    values, start = torch.randn(topology.nnz), torch.randn(out) if bias else None
    wide = None if start is None else start.double()
    size = None if wide is None else wide.abs()
    ds = [t.double() for t in (x, dy, values)]
    sizes = [t.abs() for t in ds]
    close(
        packed.linear(topology, x, values, start),
        plain.linear(topology, ds[0], ds[2], wide),
        plain.linear(topology, sizes[0], sizes[2], size),
        most(topology),
    )
    close(
        packed.linear_input_gradient(topology, dy, values),
        plain.linear_input_gradient(topology, ds[1], ds[2]),
        plain.linear_input_gradient(topology, sizes[1], sizes[2]),
        out,
    )
    expected = plain.linear_weight_gradient(topology, ds[1], ds[0])
    bound = plain.linear_weight_gradient(topology, sizes[1], sizes[0])
    for gradient in (packed.linear_weight_gradient, packed.linear_gradient_at):
        close(gradient(topology, dy, x), expected, bound, math.prod(dims))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_the_specification(isa: str, form: type, shape: tuple[int, int]) -> None:
    for i, density in enumerate((0.1, 0.5, 1.0)):
        topology = scattered(shape, density)
        for batch in BATCHES:
            check_linear(topology, batch, bias=i % 2 == 1)
        if topology.nnz:
            assert type(topology.derived(packed_forms.forward)) is form


def test_no_weights_at_all(isa: str, form: type) -> None:
    for batch in BATCHES:
        check_linear(scattered((5, 9), 0.0), batch, bias=True)


def test_gradients_of_few_columns_are_taken_row_by_row(isa: str) -> None:
    topology = scattered((130, 300), 0.3)
    check_linear(topology, 70)
    cells = topology.derived(packed_forms.forward)
    assert isinstance(cells, packed_forms.ByCells)
    assert isinstance(cells.near, packed_forms.ByRows)


def test_rows_without_weights_and_full_ones(isa: str, form: type) -> None:
    mask = torch.zeros(260, 600, dtype=torch.bool)
    mask[7], mask[:, 3], mask[100:140, ::7], mask[259, 599] = True, True, True, True
    check_linear(topology_of(mask), 130)


def test_batches_beyond_the_scratch_come_in_turns(isa: str, form: type) -> None:
    """Each turn adds to all gradients."""
    check_linear(scattered((700, 900), 0.005), 1300)


@pytest.mark.parametrize("dims", [(2, 3), (1, 1, 4), (2, 0, 3)], ids=str)
def test_any_leading_dimensions(form: type, dims: tuple[int, ...]) -> None:
    check_linear(scattered((20, 40), 0.3), dims)


def test_one_row_of_the_batch_without_a_dimension() -> None:
    topology, x, dy = scattered((20, 40), 0.3), torch.randn(40), torch.randn(20)
    values = torch.randn(topology.nnz)
    weight = torch.zeros(800).index_put((topology.places(),), values).view(20, 40)
    torch.testing.assert_close(packed.linear(topology, x, values, None), weight @ x)
    gradient = packed.linear_weight_gradient(topology, dy, x)
    torch.testing.assert_close(gradient, (dy[:, None] * x).flatten()[topology.places()])


def test_wide_and_very_sparse_weights_go_by_rows(isa: str) -> None:
    """Ten weights per row of a million columns: nothing takes memory for rows times chunks."""
    rows, width = 50, 1_000_000
    columns = torch.randint(width // 10, (rows, 10)) + torch.arange(0, width, width // 10)
    places = (torch.arange(rows)[:, None] * width + columns).flatten()
    topology = Topology.from_places(places, (rows, width))
    assert topology.columns.dtype == torch.int32
    check_linear(topology, 3)
    for derived in (packed_forms.forward, packed_forms.backward):
        assert isinstance(topology.derived(derived), packed_forms.ByRows)


def test_wide_weights_go_by_cells(isa: str) -> None:
    topology = scattered((40, 70_000), 0.05)
    assert isinstance(topology.derived(packed_forms.forward), packed_forms.ByCells)
    check_linear(topology, 9)


def test_uneven_rows_go_by_rows() -> None:
    """Padding would take more than half of the places."""
    mask = torch.rand(256, 255) < 0.001
    mask[::128] = True
    topology = topology_of(mask.repeat(1, 40))
    form = packed_forms.form_of(topology)
    assert isinstance(form, packed_forms.ByRows) == (topology.nnz < 8 * 256 * 40)


def test_strided_and_expanded_arguments(form: type) -> None:
    topology = scattered((20, 40), 0.3)
    x, dy, values = torch.randn(40, 9).t(), torch.ones(1).expand(9, 20), torch.randn(topology.nnz)
    got = packed.linear_weight_gradient(topology, dy, x)
    assert torch.equal(got, packed.linear_weight_gradient(topology, dy.clone(), x.clone()))
    got = packed.linear_input_gradient(topology, dy, values.repeat_interleave(2)[::2])
    assert torch.equal(got, packed.linear_input_gradient(topology, dy.clone(), values))


@given(
    out=st.integers(1, 150),
    width=st.integers(1, 300),
    batch=st.integers(0, 70),
    density=st.floats(0, 1),
    cells=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_gradient_is_that_of_the_product(
    out: int, width: int, batch: int, density: float, cells: bool, seed: int
) -> None:
    """<dy, W x> = <dW, values> = <dX, x>, whatever the sizes."""
    torch.manual_seed(seed)
    topology = scattered((out, width), density)
    x, dy, values = torch.randn(batch, width), torch.randn(batch, out), torch.randn(topology.nnz)
    before = packed_forms.LEAST
    packed_forms.LEAST = 0 if cells else 10**9
    try:
        y = packed.linear(topology, x, values, None).double()
        dx = packed.linear_input_gradient(topology, dy, values).double()
        dw = packed.linear_weight_gradient(topology, dy, x).double()
    finally:
        packed_forms.LEAST = before
    size = plain.linear(topology, x.double().abs(), values.double().abs(), None)
    allowed = (out + width + batch + MARGIN) * EPS * float((size * dy.abs()).sum())
    one = float((dy * y).sum())
    assert abs(one - float((dw * values).sum())) <= allowed
    assert abs(one - float((dx * x).sum())) <= allowed


CONVS = {
    "1x1": (Conv2d((1, 1)), (20, 16), (3, 16, 9, 8)),
    "1x1 stride": (Conv2d((1, 1), (2, 2)), (8, 16), (1, 16, 9, 8)),
    "1x1 padding": (Conv2d((1, 1), padding=(1, 2)), (8, 16), (2, 16, 9, 8)),
    "3x3": (Conv2d((3, 3), padding=(1, 1)), (20, 8), (3, 8, 14, 13)),
    "3x3 no padding": (Conv2d((3, 3)), (130, 30), (2, 30, 8, 7)),
    "3x3 much padding": (Conv2d((3, 3), padding=(4, 3)), (8, 4), (2, 4, 6, 5)),
    "3x3 stride": (Conv2d((3, 3), (2, 2), (1, 1)), (17, 5), (2, 5, 15, 16)),
    "3x3 strides": (Conv2d((3, 3), (3, 1), (1, 0)), (9, 6), (2, 6, 14, 11)),
    "5x5": (Conv2d((5, 5), (1, 1), (2, 2)), (8, 4), (2, 4, 11, 20)),
    "5x5 stride": (Conv2d((5, 5), (3, 3), (2, 1)), (8, 4), (2, 4, 17, 10)),
    "dilated": (Conv2d((3, 5), (1, 1), (4, 2), (2, 3)), (8, 4), (1, 4, 12, 20)),
    "dilated stride": (Conv2d((3, 3), (2, 4), (2, 3), (2, 3)), (8, 4), (2, 4, 12, 21)),
    "1x5": (Conv2d((1, 5), (1, 1), (0, 2)), (8, 4), (2, 4, 1, 33)),
    "stride beyond": (Conv2d((2, 2), (5, 5)), (3, 2), (2, 2, 13, 8)),
    "groups": (Conv2d((3, 3), (2, 1), (1, 1), groups=2), (70, 30), (2, 60, 9, 7)),
    "groups across blocks": (Conv2d((3, 3), padding=(1, 1), groups=3), (150, 8), (3, 24, 7, 6)),
    "depthwise": (Conv2d((3, 3), (1, 1), (1, 1), groups=20), (20, 1), (2, 20, 9, 11)),
    "no image": (Conv2d((3, 3), padding=(1, 1)), (8, 4), (0, 4, 5, 5)),
    "one": (Conv2d((3, 3)), (1, 1), (1, 1, 3, 3)),
}
"""Geometry, (out, channels of one group), shape of x."""


def check_conv(name: str, density: float) -> None:
    conv, (out, depth), shape = CONVS[name]
    topology = scattered((out, depth * conv.places), density)
    x, values, bias = torch.randn(shape), torch.randn(topology.nnz), torch.randn(out)
    numbers = (conv.stride, conv.padding, conv.dilation, conv.groups)
    weight = torch.zeros(out, depth, *conv.kernel, dtype=torch.float64)
    weight.view(-1)[topology.places()] = values.double()
    expected = F.conv2d(x.double(), weight, bias.double(), *numbers)
    dy = torch.randn(expected.shape)
    wide = (x.double(), values.double(), bias.double(), dy.double())
    size = tuple(t.abs() for t in wide)
    assert torch.allclose(plain.conv2d(topology, *wide[:3], conv), expected)
    close(
        packed.conv2d(topology, x, values, bias, conv),
        expected,
        plain.conv2d(topology, *size[:3], conv),
        most(topology),
    )
    close(
        packed.conv2d_input_gradient(topology, dy, values, conv, x.shape),
        plain.conv2d_input_gradient(topology, wide[3], wide[1], conv, x.shape),
        plain.conv2d_input_gradient(topology, size[3], size[1], conv, x.shape),
        out * conv.places,
    )
    if not shape[0]:  # the specification's patches take no empty batch
        assert torch.equal(
            packed.conv2d_weight_gradient(topology, dy, x, conv), torch.zeros_like(values)
        )
        return
    close(
        packed.conv2d_weight_gradient(topology, dy, x, conv),
        plain.conv2d_weight_gradient(topology, wide[3], wide[0], conv),
        plain.conv2d_weight_gradient(topology, size[3], size[0], conv),
        dy[:, 0].numel(),
    )


@pytest.mark.parametrize(
    ("name", "patches"),
    [*((name, True) for name in CONVS), ("groups", False), ("depthwise", False)],
)
def test_convolutions_equal_the_specification(
    isa: str, name: str, patches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """patches: groups of few weights lay them out too, where torch's gradient serves else."""
    if patches:
        monkeypatch.setattr(packed, "FAN_IN", 0)
    for density in (0.0, 0.1, 1.0):
        check_conv(name, density)


@pytest.mark.parametrize(("out", "images", "density"), [(8, 6, 0.05), (64, 1, 1.0)])
def test_convolutions_whose_patches_come_in_turns(
    isa: str, out: int, images: int, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More images than are padded at once; and so many weights that threads share them, not the
    positions, of which there are more than are laid out at once."""
    conv = Conv2d((3, 3), padding=(1, 1))
    monkeypatch.setitem(CONVS, "large", (conv, (out, 64), (images, 64, 60, 60)))
    check_conv("large", density)


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 2),
    sides=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 999),
)
def test_any_geometry(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    sides: tuple[int, int],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    assume(all(n + 2 * p > r for n, p, r in zip(sides, padding, reach, strict=True)))
    conv = Conv2d(kernel, stride, padding, dilation, groups)
    CONVS["any"] = (conv, (3 * groups, 2), (2, 2 * groups, *sides))
    before, packed.FAN_IN = packed.FAN_IN, 0
    try:
        check_conv("any", 0.4)
    finally:
        packed.FAN_IN = before
        del CONVS["any"]


def test_infinite_activations_reach_present_weights_only(isa: str, form: type) -> None:
    mask = torch.rand(40, 300) < 0.2
    mask[:, 11], mask[3] = False, False
    topology, values = topology_of(mask), torch.randn(int(mask.sum()))
    x, dy = torch.randn(7, 300), torch.randn(7, 40)
    x[0, 11], x[2, 299], dy[1, 3], dy[6, 39] = torch.nan, torch.inf, torch.nan, -torch.inf
    x[4, 254:256] = torch.inf
    pairs = [
        (packed.linear, plain.linear, (x, values, None)),
        (packed.linear_input_gradient, plain.linear_input_gradient, (dy, values)),
        (packed.linear_weight_gradient, plain.linear_weight_gradient, (dy, x)),
    ]
    calls: list[tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[object, ...]]] = pairs
    for kernel, specification, given_ in calls:
        got, expected = kernel(topology, *given_), specification(topology, *given_)
        torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-5, atol=1e-4)


def test_threads_share_the_work_and_not_the_sums(form: type) -> None:
    """The bits do not depend on the threads, of torch's or Python's."""
    topology = scattered((512, 700), 0.1)
    x, dy, values = torch.randn(200, 700), torch.randn(200, 512), torch.randn(topology.nnz)
    filters, conv = scattered((24, 16 * 9), 0.2), Conv2d((3, 3), padding=(1, 1))
    image, of_image = torch.randn(5, 16, 30, 30), torch.randn(5, 24, 30, 30)

    def products() -> list[Tensor]:
        return [
            packed.conv2d_weight_gradient(filters, of_image, image, conv),
            packed.linear(topology, x, values, None),
            packed.linear_input_gradient(topology, dy, values),
            packed.linear_weight_gradient(topology, dy, x),
        ]

    before = torch.get_num_threads()
    expected = products()
    try:
        for threads in (1, 3, 4):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, products(), expected))
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(4) as pool:
        for got in [pool.submit(products) for _ in range(12)]:
            assert all(map(torch.equal, got.result(), expected))


def test_transposed_is_that_of_the_topology() -> None:
    for shape in SHAPES:
        topology = scattered(shape, 0.3)
        got, order = packed_forms.transposed(topology)
        keys = topology.columns.long() * shape[0] + topology.rows()
        ordered = keys.sort()
        expected = Topology.from_places(ordered.values, (shape[1], shape[0]))
        assert got.shape == expected.shape
        assert torch.equal(got.starts, expected.starts)
        assert torch.equal(got.columns.int(), expected.columns.int())
        assert got.columns.dtype == expected.columns.dtype
        assert torch.equal(order, ordered.indices.int())


def test_all_that_is_derived_takes_few_bytes() -> None:
    topology = scattered((1024, 2048), 0.1)
    check_linear(topology, 5)
    assert topology.nbytes <= 10 * topology.nnz


def test_candidates_leave_nothing_behind() -> None:
    topology = scattered((300, 500), 0.1)
    packed.linear_gradient_at(topology, torch.randn(5, 300), torch.randn(5, 500))
    assert topology.nbytes == topology.starts.numel() * 8 + topology.nnz * 2


def test_other_types_are_the_specification() -> None:
    topology = scattered((30, 40), 0.2)
    x, values = torch.randn(3, 40), torch.randn(topology.nnz)
    for dtype in (torch.float64, torch.bfloat16):
        got = packed.linear(topology, x.to(dtype), values.to(dtype), None)
        assert torch.equal(got, plain.linear(topology, x.to(dtype), values.to(dtype), None))


def test_wrong_sizes_say_so() -> None:
    topology = scattered((30, 40), 0.2)
    values = torch.randn(topology.nnz)
    with pytest.raises(KernelError, match=r"x must have 40 columns; got \(3, 41\)"):
        packed.linear(topology, torch.randn(3, 41), values, None)
    with pytest.raises(KernelError, match=r"dy must have 30 columns; got \(3, 29\)"):
        packed.linear_input_gradient(topology, torch.randn(3, 29), values)
    with pytest.raises(RuntimeError, match="as many rows; got 3 and 2"):
        packed.linear_weight_gradient(topology, torch.randn(2, 30), torch.randn(3, 40))
    with pytest.raises(KernelError, match=r"values must have shape"):
        packed.linear(topology, torch.randn(3, 40), values[1:], None)
    conv, topology = Conv2d((3, 3)), scattered((8, 36), 0.3)
    with pytest.raises(KernelError, match=r"x must have shape \(N, 4, H, W\); got \(1, 3, 5, 5\)"):
        packed.conv2d(topology, torch.randn(1, 3, 5, 5), torch.randn(topology.nnz), None, conv)
    x = torch.randn(1, 4, 5, 5)
    with pytest.raises(RuntimeError, match=r"the output's shape, \(1, 8, 3, 3\); got"):
        packed.conv2d_weight_gradient(topology, torch.randn(1, 8, 5, 5), x, conv)
