"""Batches that go through a chain of products in tiles give what the products one by one give."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chain import one_by_one, product
from torch import Tensor

from sparsewright.kernels import KERNELS, kernel_info
from sparsewright.kernels.bound import Call, bind, chain
from sparsewright.layouts.csb import Csb
from sparsewright.measure.environment import threads

pytestmark = pytest.mark.skipif(not kernel_info().native, reason="needs the compiled kernels")
WIDTHS = [300, 70, 515, 33, 7]
"""Of the activations between layers: no multiples of a chunk, a block or a vector."""
BATCHES = [2, 16, 17, 64, 130]
KINDS = [k for k in ("portable", "avx2", "avx512") if KERNELS[f"csb.{k}"].refuses() is None]
LAYOUTS = ["csb", "csr", "sell", "window", "nm"]
SIZES = [(31, 16), (255, 128), (64, 70), (7, 3)]
"""Chunks and blocks of layout csb, one after the other."""


def csb(kind: str, weight: Tensor, bias: Tensor | None, activation: int, chunk: int, block: int):
    kernel = KERNELS[f"csb.{kind}"]
    packed = Csb().pack(weight, chunk, block)
    prepared = kernel.prepare(packed, 1)
    rest = [*prepared.tensors.values(), bias, *prepared.numbers]
    rest[[a.name for a in kernel.op._schema.arguments[1:]].index("activation")] = activation
    return bind(kernel.op, rest)


def present(layout: str, out: int, width: int, density: float) -> Tensor:
    if layout != "nm":
        return torch.rand(out, width) < density
    places = torch.rand(out, -(-width // 8), 8).argsort(-1)
    return (places < round(8 * density)).flatten(1)[:, :width]


def random(
    names: Sequence[str],
    kind: str,
    activation: int = 1,
    values: str = "fp32",
    density: float = 0.3,
    biased: bool = True,
) -> list[Call]:
    calls = []
    for name, (width, out) in zip(names, pairwise(WIDTHS), strict=False):
        weight = torch.randn(out, width) / (width * max(density, 0.01)) ** 0.5
        weight *= present(name, out, width, density)
        bias = torch.randn(out) if biased else None
        calls.append(product(f"{name}.{kind}", weight, bias, activation, values)[0])
    return calls


def check(calls: Sequence[Call], x: Tensor, exact: bool) -> None:
    got, expected = chain(calls)(x), one_by_one(calls, x)
    assert got.shape == expected.shape
    if exact:
        assert torch.equal(got, expected)
    else:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names", [["csr"] * 4, ["sell"] * 4, ["nm"] * 4, ["sell", "csr", "nm", "window"]]
)
def test_the_bits_of_the_products(names, kind, count):
    torch.manual_seed(0)
    calls = random(names, kind)
    with threads(count):
        for batch in BATCHES:
            check(calls, torch.randn(batch, 300), exact=True)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", ["fp32", "bf16"])
def test_sums_of_whole_numbers_are_the_same_in_any_order(values, kind, count):
    """Also layout csb's, whose order depends on the width of a tile."""
    torch.manual_seed(0)
    names = ["csb", "csr", "nm", "sell", "csb"]
    calls = []
    for name, (width, out) in zip(names, pairwise([*WIDTHS, 140]), strict=True):
        weight = torch.randint(-2, 3, (out, width)) * present(name, out, width, 0.25)
        bias = torch.randint(-3, 4, (out,)).float()
        calls.append(product(f"{name}.{kind}", weight.float(), bias, 4, values)[0])
    with threads(count):
        for batch in BATCHES:
            check(calls, torch.randint(-4, 5, (batch, 300)).float(), exact=True)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_blocks_that_differ(kind, count):
    torch.manual_seed(0)
    for turn in range(len(SIZES)):
        sizes = SIZES[turn:] + SIZES[:turn]
        calls = []
        for (chunk, block), (width, out) in zip(sizes, pairwise(WIDTHS), strict=True):
            weight = torch.randint(-2, 3, (out, width)) * (torch.rand(out, width) < 0.2)
            bias = torch.randint(-3, 4, (out,)).float()
            calls.append(csb(kind, weight.float(), bias, 4, chunk, block))
        with threads(count):
            for batch in BATCHES:
                check(calls, torch.randint(-4, 5, (batch, 300)).float(), exact=True)


@pytest.mark.parametrize("activation", range(6))
@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("biased", [True, False])
def test_every_activation_and_type_of_values(biased, values, activation):
    torch.manual_seed(0)
    for names in (["csb"] * 3, ["csr", "csb", "sell", "nm"], ["csr", "nm", "csr"]):
        calls = random(names, KINDS[-1], activation, values, biased=biased)
        with threads(3):
            check(calls, torch.randn(70, 300), exact="csb" not in names)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.sampled_from(LAYOUTS), min_size=2, max_size=4),
    kind=st.sampled_from(KINDS),
    values=st.sampled_from(["fp32", "bf16", "int8"]),
    density=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    count=st.sampled_from([1, 2, 3, 4]),
    batch=st.integers(0, 140),
)
def test_any_chain(names, kind, values, density, count, batch):
    torch.manual_seed(batch)
    calls = random(names, kind, 1, values, density)
    with threads(count):
        check(calls, torch.randn(batch, 300), exact="csb" not in names)


@pytest.mark.parametrize("names", [["csb", "csb"], ["csr", "csr"], ["csb", "nm", "sell"]])
def test_shapes_and_strides(names):
    torch.manual_seed(0)
    calls = random(names, KINDS[-1])
    exact = "csb" not in names
    for x in (
        torch.randn(5, 7, 300),
        torch.randn(300, 40).t(),
        torch.randn(40, 600)[:, ::2],
        torch.randn(0, 300),
        torch.randn(3, 0, 300),
    ):
        check(calls, x, exact)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("names", [["csb"] * 3, ["csr"] * 3, ["sell", "csb", "nm"]])
def test_nan_and_infinity_stay_in_their_rows(names, count):
    torch.manual_seed(0)
    calls = random(names, KINDS[-1], activation=0)
    with threads(count):
        for batch in (17, 64):
            for wrong in (float("nan"), float("inf"), -float("inf")):
                x = torch.randn(batch, 300)
                x[batch // 2, 7] = wrong
                got, expected = chain(calls)(x), one_by_one(calls, x)
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
                assert not got[batch // 2].isfinite().all()
                assert got[: batch // 2].isfinite().all()
                assert got[batch // 2 + 1 :].isfinite().all()


@pytest.mark.parametrize("count", [1, 4])
def test_memory_that_held_nan_is_not_read(count):
    """Zeros that padding multiplies, rows of a tile that no row of the batch fills."""
    torch.manual_seed(0)
    chains = [random(names, KINDS[-1]) for names in (["csr"] * 4, ["csb"] * 4, ["nm", "sell"])]
    with threads(count):
        for calls in chains:
            chain(chains[0])(torch.full((256, 300), float("nan")))
            for batch in (64, 17):
                check(calls, torch.randn(batch, 300), exact=False)


def test_parts_that_may_not_wait_for_each_other(monkeypatch):
    torch.manual_seed(0)
    calls = random(["csr"] * 4, KINDS[-1])
    monkeypatch.setattr("sparsewright.kernels.bound._threads_run_at_once", lambda: False)
    x = torch.randn(16, 300)
    with threads(4):
        assert torch.equal(chain(calls)(x), one_by_one(calls, x))


def test_layers_too_wide_for_tiles_run_one_by_one():
    torch.manual_seed(0)
    up = product("csr.portable", torch.randn(140_000, 3), None)[0]
    down = product("csr.portable", torch.randn(3, 140_000) / 374, None)[0]
    check([up, down], torch.randn(5, 3), exact=True)


@pytest.mark.parametrize("name", ["csb", "csr"])
def test_written_and_replaced_tensors_count(name):
    torch.manual_seed(0)
    first, rest = product(f"{name}.portable", torch.randn(64, 32), torch.randn(64))
    last, _ = product("csr.portable", torch.randn(8, 64), None)
    joined, x = chain([first, last]), torch.randn(20, 32)
    before = joined(x)
    bias = next(
        t for t in rest if isinstance(t, Tensor) and t.shape == (64,) and t.is_floating_point()
    )
    bias.mul_(2)
    assert not torch.equal(joined(x), before)
    torch.testing.assert_close(joined(x), one_by_one([first, last], x))
    bias.set_(torch.zeros(64))  # other memory: the op looks at the tensor anew
    torch.testing.assert_close(joined(x), one_by_one([first, last], x))
    bias.set_(torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"bias must have shape \(64,\); got 3"):
        joined(x)


def test_places_out_of_range_are_found():
    torch.manual_seed(0)
    first, _ = product("csb.portable", torch.randn(64, 32), None)
    last, rest = product("csr.portable", torch.randn(8, 64), None)
    joined, x = chain([first, last]), torch.randn(20, 32)
    joined(x)
    columns = rest[1]
    assert isinstance(columns, Tensor)
    columns.view(torch.int16)[-1] = 64
    # Of x, as the one call names it: the last layer by itself would say 64.
    with pytest.raises(RuntimeError, match="columns beyond the in_features of x, 32"):
        joined(x)
    columns.view(torch.int16)[-1] = 63
    joined(x)
    with pytest.raises(RuntimeError, match="columns beyond the in_features of x, 31"):
        chain([last, product("csr.portable", torch.randn(4, 8), None)[0]])(torch.randn(20, 31))


def test_layers_that_do_not_fit_each_other():
    torch.manual_seed(0)
    first, _ = product("csb.portable", torch.randn(64, 32), None)
    for name in ("csr", "sell"):
        wide, _ = product(f"{name}.portable", torch.randn(8, 66), None)
        with pytest.raises(RuntimeError, match=r"column 6\d, beyond the 64 outputs"):
            chain([first, wide])
    wide = csb("portable", torch.randn(8, 66), None, 0, 16, 8)
    with pytest.raises(RuntimeError, match=r"starts must have shape \(5, 2\) for 64 in_features"):
        chain([first, wide])(torch.randn(20, 32))
    narrow, _ = product("csr.portable", torch.randn(8, 64), None)
    with pytest.raises(RuntimeError, match="starts must have shape"):
        chain([first, narrow])(torch.randn(20, 400))


def test_several_python_threads_at_once():
    torch.manual_seed(0)
    calls = random(["csr"] * 4, KINDS[-1])
    joined, wrong = chain(calls), []
    inputs = [torch.randn(batch, 300) for batch in (2, 17, 64, 130)]
    with threads(4):
        expected = [one_by_one(calls, x) for x in inputs]

        def work(i: int) -> None:
            for _ in range(50):
                if not torch.equal(joined(inputs[i]), expected[i]):
                    wrong.append(i)

        running = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert not wrong
