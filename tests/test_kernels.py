"""Every kernel that this machine runs equals the specification in float64, at every size.

Tolerance: a float32 sum of n products is off by at most about n * eps * sum |w| |x|, in any order
(Higham 2002, section 3.1); the bias and the sums kept side by side add MARGIN to n. It is the
same on every machine. Outputs are filled with NaN before the kernel runs. Values in bf16 and int8
are held against the rounded weight, so they keep to the same tolerance: a step times its scale is
exact.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsewright import library
from sparsewright.core import Packed
from sparsewright.errors import KernelError
from sparsewright.kernels import KERNELS, Kernel, Prepared, kernel_info, reference
from sparsewright.kernels.bound import bind
from sparsewright.layouts import LAYOUTS, VALUES, pack, rounded, store, values_name
from sparsewright.layouts.block import ROWS, Block
from sparsewright.layouts.csb import Csb
from sparsewright.layouts.nm import NMLanes

BATCHES = [0, 1, 2, 3, 5, 7, 8, 9, 16, 33, 64, 65]
SHAPES = [(0, 8), (8, 0), (1, 1), (1, 40), (3, 5), (16, 32), (17, 33), (33, 70), (66, 129)]
MARGIN = 8
SPARSE = [
    name
    for name, kernel in KERNELS.items()
    if (kernel.layout != "dense", kernel.operation) == (True, "linear")
]


@pytest.fixture(autouse=True)
def _nan_filled() -> Iterator[None]:
    """torch fills fresh tensors with NaN: an output that was not written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=SPARSE)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found = KERNELS[request.param]
    reason = found.refuses()
    if reason:
        pytest.skip(f"{found.name}: {reason}")
    return found


def test_the_library_that_is_named_is_the_one_that_is_tested() -> None:
    """Else a build that does not load would leave every case to the reference, unnoticed."""
    info = kernel_info()
    assert info.library == os.environ.get("SPARSEWRIGHT_LIBRARY", info.library), info.why_not


def call_of(kernel: Kernel, prepared: Prepared, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """As a deployed model calls it, where that is another thing: a weight is code once bound."""
    if not kernel.name.startswith("csb.code"):
        return lambda x: kernel.run(x, prepared, bias)
    return bind(kernel.op, [*prepared.tensors.values(), bias, *prepared.numbers])


def run(kernel: Kernel, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
    return call_of(kernel, prepared, bias)(x)


def random_weight(out: int, width: int, density: float) -> Tensor:
    return torch.randn(out, width) * (torch.rand(out, width) < density)


def packings(layout: str, weight: Tensor) -> list[Packed]:
    """The weight in every form of the layout, with every type of values."""
    packs: list[Callable[[Tensor], Packed]] = [functools.partial(pack, layout)]
    if layout == "nm":
        packs = [functools.partial(NMLanes().pack, chunk=chunk) for chunk in (32, 7, 100)]
    if layout == "csb":
        sizes = ((None, None), (7, 5), (255, 128), (32, 16))
        packs = [functools.partial(Csb().pack, chunk=c, block=b) for c, b in sizes]
    if layout == "block":
        packs = [functools.partial(Block().pack, rows=rows) for rows in ROWS]
    forms = [store(of, weight, values) for of in packs for values in VALUES]
    if layout in ("nm", "csb"):
        return forms
    return [form for packed in forms for form in (packed, _wide(packed))]


def of_each_type(layout: str, weight: Tensor) -> list[Packed]:
    """One form of the layout for every type of values."""
    return list({values_name(packed): packed for packed in packings(layout, weight)}.values())


def _wide(packed: Packed) -> Packed:
    """With columns of 32 bits."""
    wide = {**packed.tensors, "columns": packed.tensors["columns"].to(torch.int32)}
    return Packed(packed.layout, packed.shape, wide)


def check(kernel: Kernel, packed: Packed, weight: Tensor, x: Tensor, bias: Tensor | None) -> None:
    """weight: of which `packed` is made, not yet rounded."""
    got = run(kernel, x, kernel.prepare(packed, 0), bias)
    weight = rounded(weight, values_name(packed))
    start = 0.0 if bias is None else bias.double()
    expected = x.double() @ weight.double().t() + start
    size = x.double().abs() @ weight.double().abs().t() + abs(start)
    fan_in = int((weight != 0).sum(dim=1).max()) if weight.numel() else 0
    allowed = (fan_in + MARGIN) * torch.finfo(torch.float32).eps * size
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    assert bool(((got.double() - expected).abs() <= allowed).all())  # NaN fails


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_specification(kernel: Kernel, shape: tuple[int, int]) -> None:
    out, width = shape
    for density in (0.1, 1.0):
        weight = random_weight(out, width, density)
        for packed in packings(kernel.layout, weight):
            for i, batch in enumerate(BATCHES):
                bias = torch.randn(out) if i % 2 else None
                check(kernel, packed, weight, torch.randn(batch, width), bias)


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 64])
def test_with_and_without_bias(kernel: Kernel, batch: int) -> None:
    weight, x = random_weight(50, 96, 0.2), torch.randn(batch, 96)
    for packed in packings(kernel.layout, weight):
        check(kernel, packed, weight, x, torch.randn(50))
        check(kernel, packed, weight, x, None)


@pytest.mark.parametrize(
    ("shape", "batch", "density"),
    [
        ((70, 3000), 64, 0.1),  # activations beyond L1: columns come in steps
        ((70, 3000), 5, 0.1),
        ((5, 70000), 3, 0.001),  # 32-bit columns
        ((3, 70000), 40, 0.001),  # batch beyond the scratch: rows come in turns
        ((600, 600), 1, 0.3),  # enough work for several threads
        ((600, 600), 130, 0.3),
    ],
    ids=str,
)
def test_large_sizes(kernel: Kernel, shape: tuple[int, int], batch: int, density: float) -> None:
    weight = random_weight(*shape, density)
    for packed in of_each_type(kernel.layout, weight):
        check(kernel, packed, weight, torch.randn(batch, shape[1]), torch.randn(shape[0]))


def test_rows_of_very_different_lengths(kernel: Kernel) -> None:
    weight = torch.zeros(300, 600)
    weight[7] = torch.randn(600)
    weight[100:140, ::7] = torch.randn(40, 86)
    for packed in of_each_type(kernel.layout, weight):
        for batch in (1, 33):
            check(kernel, packed, weight, torch.randn(batch, 600), torch.randn(300))


@given(
    out=st.integers(1, 80),
    width=st.integers(1, 150),
    batch=st.integers(0, 40),
    density=st.floats(0, 1),
    chunk=st.integers(1, 40),
    seed=st.integers(0, 999),
)
def test_equals_the_specification_with_any_chunk(
    out: int, width: int, batch: int, density: float, chunk: int, seed: int
) -> None:
    torch.manual_seed(seed)
    weight, x, bias = random_weight(out, width, density), torch.randn(batch, width), None
    sized: dict[str, Callable[[Tensor], Packed]] = {
        "nm": functools.partial(NMLanes().pack, chunk=chunk),
        "csb": functools.partial(Csb().pack, chunk=chunk, block=1 + seed % 128),
    }
    packs = {name: sized.get(name) or functools.partial(pack, name) for name in LAYOUTS}
    forms = {name: store(of, weight, VALUES.names()[seed % 3]) for name, of in packs.items()}
    for name in SPARSE:
        if KERNELS[name].layout in forms and KERNELS[name].refuses() is None:
            check(KERNELS[name], forms[KERNELS[name].layout], weight, x, bias)


@pytest.mark.parametrize("dims", [(), (2,), (2, 3), (1, 1, 4), (2, 0, 3)], ids=str)
def test_any_leading_dimensions(kernel: Kernel, dims: tuple[int, ...]) -> None:
    weight = random_weight(20, 40, 0.3)
    for packed in packings(kernel.layout, weight):
        check(kernel, packed, weight, torch.randn(*dims, 40), torch.randn(20))


def test_strided_activations(kernel: Kernel) -> None:
    weight = random_weight(20, 40, 0.3)
    packed = packings(kernel.layout, weight)[0]
    for x in (
        torch.randn(40, 9).t(),
        torch.randn(9, 80)[:, ::2],
        torch.randn(1, 40).expand(9, 40),
        torch.randn(9, 41)[:, 1:],
    ):
        check(kernel, packed, weight, x, None)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 16, 40])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")], ids=str)
def test_infinite_activations_reach_present_weights_only(
    kernel: Kernel, value: float, batch: int
) -> None:
    """As in the specification: an absent weight takes no part, and no padding reads anything."""
    weight = random_weight(40, 70, 0.2)
    weight[:, 11] = 0.0
    weight[3] = 0.0
    x = torch.randn(batch, 70)
    x[0, 0], x[0, 11], x[-1, 69], x[batch // 2, 31:33] = value, value, value, value
    for packed in packings(kernel.layout, weight):
        plain = pack("csr", rounded(weight, values_name(packed)))
        rows = reference.csr_linear(x, *plain.tensors.values(), None, None)
        got = run(kernel, x, kernel.prepare(packed, 0), None)
        torch.testing.assert_close(got, rows, equal_nan=True, rtol=1e-5, atol=1e-4)
        assert bool((got[:, 3] == 0).all())


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 40])
@pytest.mark.parametrize("even", [True, False])
def test_columns_without_weights_are_never_read(kernel: Kernel, batch: int, even: bool) -> None:
    """NaN in half of the columns, wherever padding might point."""
    weight, x = random_weight(40, 70, 0.3), torch.randn(batch, 70)
    weight[:, int(even) :: 2] = 0.0
    clean = x.clone()
    clean[:, int(even) :: 2] = 0.0
    x[:, int(even) :: 2] = float("nan")
    for packed in packings(kernel.layout, weight):
        prepared = kernel.prepare(packed, 0)
        assert torch.equal(run(kernel, x, prepared, None), run(kernel, clean, prepared, None))


@pytest.mark.parametrize("batch", [1, 2, 5, 40])
@pytest.mark.parametrize("number", range(1, len(reference.ACTIVATIONS)))
def test_activations_follow_the_sums(kernel: Kernel, batch: int, number: int) -> None:
    """As torch computes them on the same sums; NaN and infinity too, and far out on both sides."""
    if kernel.layout == "dense":
        pytest.skip("dense kernels are torch's own")
    weight = torch.zeros(37, 40)
    weight[:, 0] = torch.linspace(-100, 100, 37)
    weight[5, 1], weight[6, 2], weight[7, 3] = 1.0, 1.0, -1.0
    x = torch.zeros(batch, 40)
    x[:, 0] = torch.linspace(0.001, 1.5, batch)
    x[:, 1], x[:, 2], x[:, 3] = float("nan"), float("inf"), float("inf")
    for packed in packings(kernel.layout, weight):
        prepared = kernel.prepare(packed, 0)
        *numbers, _, isa = prepared.numbers
        plain = run(kernel, x, prepared, None)
        then = dataclasses.replace(prepared, numbers=(*numbers, number, isa))
        got = run(kernel, x, then, None)
        # erf by a polynomial is off by 1.5e-7, times |x| / 2; exp by 2 ulp.
        expected = reference.ACTIVATIONS[number][1](plain.double()).float()
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=2e-6, equal_nan=True)


def test_the_reference_has_gelu_of_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch's own says NaN of it, as its float32 code for AVX-512 does."""
    monkeypatch.setattr(reference.F, "gelu", lambda y: y * math.nan)
    got = reference.gelu(torch.tensor([math.inf, -math.inf, 1.0]))
    assert got[0] == math.inf
    assert got[1:].isnan().all()


def test_reference_equals_the_dense_product() -> None:
    """The specification itself, in float64, against torch's dense product."""
    for shape in SHAPES:
        weight, x = random_weight(*shape, 0.4), torch.randn(6, shape[1]).double()
        bias = torch.randn(shape[0]).double()
        expected = x @ weight.double().t() + bias
        rows, columns, values = pack("csr", weight).tensors.values()
        got = reference.csr_linear(x, rows, columns, values.double(), None, bias)
        torch.testing.assert_close(got, expected)
        rows, columns, values, scales = pack("csr", weight, "int8").tensors.values()
        got = reference.csr_linear(x, rows, columns, values, scales.double(), bias)
        steps = rounded(weight, "int8").double()
        torch.testing.assert_close(got, x @ steps.t() + bias)
        tensors = NMLanes().pack(weight, 24).tensors
        values, columns = tensors["values"].double(), tensors["columns"]
        got = reference.nm_linear(x, values, columns, None, bias, shape[0], 24)
        torch.testing.assert_close(got, expected)


def test_many_python_threads_at_once(kernel: Kernel) -> None:
    weight = random_weight(96, 320, 0.2)
    packed = packings(kernel.layout, weight)[0]
    prepared = kernel.prepare(packed, 0)
    inputs = [torch.randn(batch, 320) for batch in (1, 3, 17, 70)] * 6
    call = call_of(kernel, prepared, None)
    expected = [call(x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(call, inputs))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 5])
def test_any_number_of_threads(kernel: Kernel, threads: int) -> None:
    before = torch.get_num_threads()
    weight = random_weight(500, 500, 0.3)
    packed = packings(kernel.layout, weight)[0]
    torch.set_num_threads(threads)
    try:
        for batch in (1, 70):
            check(kernel, packed, weight, torch.randn(batch, 500), torch.randn(500))
    finally:
        torch.set_num_threads(before)


# ---- what the ops reject --------------------------------------------------------------------


@pytest.fixture
def native() -> None:
    if not kernel_info().native:
        pytest.skip(f"no compiled kernels: {kernel_info().why_not}")


def csr_call(**changes: object) -> Tensor:
    tensors = pack("csr", torch.eye(4)).tensors
    args = {
        "x": torch.ones(2, 4),
        **tensors,
        "scales": None,
        "bias": None,
        "activation": 0,
        "isa": 1,
    }
    return torch.ops.sparsewright.csr_linear(*{**args, **changes}.values())


def nm_call(**changes: object) -> Tensor:
    tensors = pack("nm", torch.ones(4, 4)).tensors
    args = {
        "x": torch.ones(2, 4),
        **tensors,
        "scales": None,
        "bias": None,
        "out_features": 4,
        "chunk": 32,
    }
    return torch.ops.sparsewright.nm_linear(
        *{**args, "activation": 0, "isa": 1, **changes}.values()
    )


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(2, 4).double()}, "x must be float32"),
        ({"x": torch.tensor(1.0)}, "x must have at least one dimension"),
        ({"x": torch.ones(2, 3)}, "columns beyond the in_features of x, 3"),
        ({"x": torch.ones(40, 3)}, "columns beyond the in_features of x, 3"),
        ({"rows": torch.zeros(5, dtype=torch.int64)}, "rows must be int32"),
        ({"rows": torch.zeros(0, dtype=torch.int32)}, "rows must have shape"),
        ({"rows": torch.tensor([0, 1, 2, 3, 5], dtype=torch.int32)}, "rows must run from 0"),
        ({"rows": torch.tensor([0, 3, 2, 3, 4], dtype=torch.int32)}, "rows that do not ascend"),
        ({"rows": torch.tensor([0, 1, 99, 3, 4], dtype=torch.int32)}, "rows that do not ascend"),
        ({"columns": torch.zeros(4, dtype=torch.int64)}, "columns must be uint16 or int32"),
        ({"values": torch.ones(4).half()}, "values must be float32, bfloat16 or int8"),
        ({"values": torch.ones(4).char()}, "int8 values need scales, and only they"),
        ({"scales": torch.ones(4)}, "int8 values need scales, and only they"),
        (
            {"values": torch.ones(4).char(), "scales": torch.ones(3)},
            r"scales must have shape \(4,\); got 3",
        ),
        (
            {"values": torch.ones(4).char(), "scales": torch.ones(4).double()},
            "scales must be float32",
        ),
        ({"values": torch.ones(3)}, "equally long"),
        ({"values": torch.ones(8)[::2]}, "values must be contiguous"),
        ({"bias": torch.ones(3)}, r"bias must have shape \(4,\)"),
        ({"bias": torch.ones(4).double()}, "bias must be float32"),
        ({"isa": 9}, "isa must be 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_csr_op_checks_its_arguments(changes: dict[str, object], message: str) -> None:
    csr_call()
    with pytest.raises(RuntimeError, match=message):
        csr_call(**changes)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(2, 4).half()}, "x must be float32"),
        ({"x": torch.ones(2, 33)}, "values must have 2 chunks of 32 columns"),
        ({"values": torch.ones(1, 1, 4, 8)}, "values must have shape"),
        ({"columns": torch.zeros(1, 1, 3, 16).byte()}, "columns must have the shape"),
        ({"columns": torch.zeros(1, 1, 4, 16)}, "columns must be uint8"),
        ({"out_features": 17}, "one tile for every 16 of the 17 out_features; got 1"),
        ({"out_features": -1}, "out_features"),
        ({"chunk": 0}, "chunk must be in"),
        ({"chunk": 300}, "chunk must be in"),
        ({"bias": torch.ones(1, 4)}, "bias must have shape"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_nm_op_checks_its_arguments(changes: dict[str, object], message: str) -> None:
    nm_call()
    with pytest.raises(RuntimeError, match=message):
        nm_call(**changes)


def block_call(**changes: object) -> Tensor:
    tensors = Block().pack(torch.ones(6, 4), 4).tensors
    args = {
        "x": torch.ones(2, 4),
        **tensors,
        "scales": None,
        "bias": None,
        "in_features": 4,
        "out_features": 6,
    }
    op = torch.ops.sparsewright.block_linear
    return op(*{**args, "activation": 0, "isa": 1, **changes}.values())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(2, 4).double()}, "x must be float32"),
        ({"x": torch.ones(2, 5)}, "x must have 4 in_features; got 5"),
        ({"starts": torch.zeros(5, dtype=torch.int64)}, "starts must be int32"),
        ({"starts": torch.zeros(4, dtype=torch.int32)}, "starts must have shape"),
        ({"starts": torch.tensor([0, 4, 4, 8, 7]).int()}, "starts must run from 0 to 8"),
        ({"starts": torch.tensor([1, 4, 4, 8, 8]).int()}, "starts must run from 0 to 8"),
        ({"starts": torch.tensor([0, 9, 4, 8, 8]).int()}, "starts must not descend"),
        ({"columns": torch.zeros(8, dtype=torch.int64)}, "columns must be uint16 or int32"),
        ({"columns": torch.zeros(7, dtype=torch.int32)}, "values must have shape"),
        ({"values": torch.ones(8, 5)}, "values must have 4, 8 or 16 rows; got 5"),
        ({"values": torch.ones(8, 8)}, "starts must have shape"),
        ({"values": torch.ones(8, 4).double()}, "values must be float32"),
        ({"values": torch.ones(4, 8).t()}, "values must be contiguous"),
        ({"out_features": 9}, "starts must have shape"),
        ({"out_features": -1}, "out_features must not be negative"),
        ({"bias": torch.ones(8)}, r"bias must have shape \(6,\)"),
        ({"activation": 6}, "activation must be"),
        ({"isa": 9}, "isa must be 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_block_op_checks_its_arguments(changes: dict[str, object], message: str) -> None:
    block_call()
    with pytest.raises(RuntimeError, match=message):
        block_call(**changes)


@pytest.mark.parametrize("layout", LAYOUTS.names())
def test_ops_pass_torch_s_own_checks(layout: str) -> None:
    """Schema, fake tensors and what torch.compile relies on; no gradient is offered."""
    weight = random_weight(20, 40, 0.3)
    kernel = KERNELS[f"{layout}.portable"]
    shapes = ((40,), (3, 40), (2, 0, 40))
    for packed, shape in zip(of_each_type(layout, weight), shapes, strict=True):
        prepared = kernel.prepare(packed, 0)
        args = (torch.randn(shape), *prepared.tensors.values(), torch.randn(20), *prepared.numbers)
        torch.library.opcheck(kernel.op, args, test_utils=("test_schema", "test_faketensor"))


# ---- other processes: no library, capped instruction sets, emulated AVX-512 -----------------


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


WITHOUT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from sparsewright.errors import SparsityWarning
    from sparsewright.kernels import choose, kernel_info
    from sparsewright.layouts import pack
    from sparsewright.nn import LayoutLinear
    ours = lambda: [w for w in caught if issubclass(w.category, SparsityWarning)]
    assert not ours(), "importing says nothing"
    info = kernel_info()
    assert not info.native and info.why_not == "SPARSEWRIGHT_NO_NATIVE is set", info
    torch.manual_seed(0)
    weight = torch.randn(24, 64) * (torch.rand(24, 64) < 0.2)
    x = torch.randn(3, 64)
    for layout in ("csr", "nm"):
        layer = LayoutLinear(pack(layout, torch.ones(8, 64)))
        assert layer.kernel == layout + ".reference"
        assert torch.allclose(layer(x), x.sum(1, keepdim=True).expand(3, 8), atol=1e-4)
        assert torch.export.export(layer, (x,)).module()(x).shape == (3, 8)
        assert torch.compile(layer, fullgraph=True, backend="aot_eager")(x).shape == (3, 8)
    choice = choose(weight, None, x, seconds=0.01)
    refused = dict(choice.refusals)
    assert "SPARSEWRIGHT_NO_NATIVE" in refused["csr.portable"], refused
    assert "csr.reference" in {t.kernel for t in choice.timings}
    try:
        args = (*pack("csr", weight).tensors.values(), None, None, 0, 0)
        torch.ops.sparsewright.csr_linear(x.requires_grad_(), *args)
        raise SystemExit("a gradient was accepted")
    except Exception as error:
        assert "forwards only" in str(error), error
assert len(ours()) == 1 and "compiled kernels" in str(ours()[0].message)
print("good")
"""


def test_without_the_library_the_reference_serves_and_says_so_once() -> None:
    done = python(WITHOUT, SPARSEWRIGHT_NO_NATIVE="1")
    assert done.stdout == "good\n", done.stdout + done.stderr


def test_a_library_that_does_not_load_is_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    code = "from sparsewright.kernels import kernel_info; print(kernel_info().why_not)"
    done = python(code, SPARSEWRIGHT_LIBRARY=str(broken))
    assert done.stdout.startswith("broken.so could not be loaded: "), done.stderr


@pytest.mark.usefixtures("native")
def test_environment_caps_the_instruction_set() -> None:
    code = """
import torch
from sparsewright.kernels import KERNELS, kernel_info
assert kernel_info().isa == "portable"
assert KERNELS["csr.avx2"].refuses() in (
    "SPARSEWRIGHT_ISA=portable rules it out",
    "this CPU or its operating system has no AVX2 and FMA",
)
print("good")
"""
    done = python(code, SPARSEWRIGHT_ISA="portable")
    assert done.stdout == "good\n", done.stderr


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("value", ["AVX2", "avx512"])
def test_environment_s_wrong_instruction_set_is_an_error(value: str) -> None:
    if value in ("avx512",) and kernel_info().isas["avx512"] is None:
        pytest.skip("this CPU has AVX-512: asking for it is no error")
    code = """
import torch
from sparsewright import library
from sparsewright.kernels import kernel_info
from sparsewright.errors import KernelError
from sparsewright.layouts import LAYOUTS, VALUES, pack, rounded, store, values_name
for call in (kernel_info, lambda: torch.ops.sparsewright.csr_linear(
        torch.ones(1, 2), *pack("csr", torch.eye(2)).tensors.values(), None, None, 0, 0)):
    try:
        call()
    except (KernelError, RuntimeError) as error:
        print(str(error).splitlines()[0])
"""
    done = python(code, SPARSEWRIGHT_ISA=value)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    assert all("SPARSEWRIGHT_ISA" in line and value in line for line in lines), lines


@pytest.mark.slow
@pytest.mark.usefixtures("native")
def test_avx512_logic_on_any_cpu(root: Path, tmp_path: Path) -> None:
    """The AVX-512 kernels, compiled against SIMDe, pass the same cases in a process."""
    if os.environ.get("SPARSEWRIGHT_LIBRARY"):
        pytest.skip("this is that process")
    if not (Path("/usr/include/simde/x86/avx512.h").is_file()):
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    if kernel_info().isas["avx2"]:
        pytest.skip(f"the emulation is compiled for AVX2: {kernel_info().isas['avx2']}")
    build = tmp_path / "build"
    bin_folder = Path(sys.executable).parent
    cmake = str(bin_folder / "cmake") if (bin_folder / "cmake").is_file() else "cmake"
    ninja = [f"-DCMAKE_MAKE_PROGRAM={bin_folder / 'ninja'}", "-GNinja"]
    configure = [cmake, "-S", str(root), "-B", str(build), "-DCMAKE_CXX_FLAGS=-O1",
                 "-DSPARSEWRIGHT_EMULATE_AVX512=ON", f"-DPython_EXECUTABLE={sys.executable}",
                 *(ninja if (bin_folder / "ninja").is_file() else [])]  # fmt: skip
    for command in (configure, [cmake, "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode and not done.stdout and "No such file" in done.stderr:
            pytest.skip(f"cannot run {cmake}")
        assert done.returncode == 0, done.stdout + done.stderr
    names = "avx512 and not logic and not environment"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names, __file__],
        env={
            **os.environ,
            "SPARSEWRIGHT_LIBRARY": str(build / "csrc" / library.NAME),
            "SPARSEWRIGHT_ISA": "avx512",
        },
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "skipped" not in done.stdout, done.stdout[-4000:]
    assert int(done.stdout.rsplit(" passed", 1)[0].rsplit(None, 1)[-1]) >= 50, done.stdout


def test_gradients_are_refused() -> None:
    x = torch.ones(1, 4, requires_grad=True)
    with pytest.raises(KernelError, match="forwards only"):
        library.refuse_gradient(x)
    with torch.no_grad(), warnings.catch_warnings():
        library.refuse_gradient(x)
    library.refuse_gradient(x.detach())
