"""Products whose activations lie feature by feature give what they give row by row."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import test_chain
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_chain_batches import BATCHES, LAYOUTS, WIDTHS, present, random
from torch import Tensor, nn

import sparsewright as sw
from sparsewright.errors import LayoutError
from sparsewright.kernels import KERNELS, kernel_info
from sparsewright.kernels.bound import Call, bind, chain, transposed
from sparsewright.layouts import pack
from sparsewright.measure.environment import threads

compiled = pytest.mark.skipif(not kernel_info().native, reason="needs the compiled kernels")
ISAS = [isa for isa in ("portable", "avx2", "avx512") if KERNELS[f"csr.{isa}"].refuses() is None]
ALL = [*LAYOUTS, "block"]


def product(
    name: str,
    width: int,
    out: int,
    values: str = "fp32",
    activation: int = 0,
    biased: bool = True,
    density: float = 0.3,
) -> Call:
    layout = name.partition(".")[0]
    if layout == "block":
        kept = (torch.rand(-(-out // 4), width) < density).repeat_interleave(4, 0)[:out]
    else:
        kept = present(layout, out, width, density)
    bias = torch.randn(out) if biased else None
    return test_chain.product(name, torch.randn(out, width) * kept, bias, activation, values)[0]


def check(call: Call, x: Tensor) -> None:
    got, expected = transposed(call)(x.t().contiguous()), call(x)
    assert got.shape == (expected.shape[1], expected.shape[0])
    assert got.is_contiguous()
    # Sums of the same few hundred products, in another order.
    torch.testing.assert_close(got.t(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@compiled
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ALL)
def test_every_layout_and_batch(layout, isa, count):
    torch.manual_seed(0)
    with threads(count):
        for width, out in pairwise(WIDTHS):
            call = product(f"{layout}.{isa}", width, out, activation=1)
            for batch in [*BATCHES, 1, 2, 3, 4, 8, 64 + 16, 256, 288, 300]:
                check(call, torch.randn(batch, width))


@compiled
@pytest.mark.parametrize("activation", range(6))
@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("layout", ALL)
def test_values_bias_and_activation(layout, values, activation):
    torch.manual_seed(0)
    for biased in (False, True):
        call = product(f"{layout}.{ISAS[-1]}", 70, 45, values, activation, biased)
        for batch in (3, 32, 47):
            check(call, torch.randn(batch, 70))


@compiled
@given(
    layout=st.sampled_from(ALL),
    isa=st.sampled_from(ISAS),
    width=st.integers(1, 90),
    out=st.integers(1, 90),
    batch=st.integers(0, 300),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
@settings(max_examples=60)
def test_any_size(layout, isa, width, out, batch, density):
    torch.manual_seed(width * out)
    try:
        call = product(f"{layout}.{isa}", width, out, density=density)
    except LayoutError as error:  # a single column of 15 rows can have weights in a few of them
        assume("of the slots would be empty" not in str(error))
        raise
    check(call, torch.randn(batch, width))


@compiled
def test_many_threads_and_wide_layers():
    """So wide that threads share the rows of the weight, and a batch in more than one piece."""
    torch.manual_seed(0)
    call = product("csr.portable", 4500, 3000, density=0.05)
    for count in (1, 3, 4):
        with threads(count):
            for batch in (16, 96, 128):
                check(call, torch.randn(batch, 4500))


@compiled
@pytest.mark.parametrize("layout", ALL)
def test_what_is_not_finite_stays_in_its_row_of_the_batch(layout):
    torch.manual_seed(0)
    x = torch.randn(48, 70)
    x[3], x[20, 5], x[47] = float("nan"), float("inf"), -float("inf")
    call = product(f"{layout}.{ISAS[-1]}", 70, 45)
    check(call, x)
    others = [r for r in range(48) if r not in (3, 20, 47)]
    assert transposed(call)(x.t().contiguous())[:, others].isfinite().all()


@compiled
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("names", [["csr"] * 4, ["csb", "sell", "nm", "csr"], ["csr", "block"]])
def test_chains(names, count):
    torch.manual_seed(0)
    calls = random([n for n in names if n != "block"], ISAS[-1])
    if "block" in names:  # which no region serves: one by one
        calls = [calls[0], product(f"block.{ISAS[-1]}", WIDTHS[1], 33)]
    with threads(count):
        for batch in (*BATCHES, 1, 128):
            check(chain(calls), torch.randn(batch, WIDTHS[0]))


@compiled
def test_a_view_is_read_as_it_is():
    torch.manual_seed(0)
    call, x = product(f"csr.{ISAS[-1]}", 70, 45), torch.randn(32, 70)
    for view in (x.t(), torch.randn(70, 64)[:, ::2], torch.randn(71, 33)[1:, 1:]):
        expected = call(view.t().contiguous()).t()
        torch.testing.assert_close(transposed(call)(view), expected, rtol=1e-4, atol=1e-4)


@compiled
def test_wrong_use_is_refused():
    turned = transposed(product("csr.portable", 70, 45))
    with pytest.raises(RuntimeError, match=r"x must have shape \(in_features, batch\); got 3 dim"):
        turned(torch.ones(2, 70, 4))
    with pytest.raises(RuntimeError, match="beyond the in_features of x, 4"):
        turned(torch.ones(4, 70))
    # and the next call, of rows, is none of transposed activations
    assert product("csr.portable", 70, 45)(torch.ones(2, 3, 70)).shape == (2, 3, 45)
    kernel = KERNELS["csb.conv2d.portable"]
    conv = sw.kernels.Conv2d((3, 3))
    prepared = conv.prepare(kernel, pack("csb", torch.eye(9, 36)), (1, 4, 5, 5))
    filters = bind(kernel.op, [*prepared.tensors.values(), None, *prepared.numbers])
    with pytest.raises(RuntimeError, match="only products with matrices take transposed"):
        transposed(filters)(torch.ones(4, 2))


def mlp(kernels: list[str] | None = None, batch: int = 16) -> sw.Deployed:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    sw.prune(model, sparsity=0.8)
    return sw.deploy(model, torch.randn(batch, 64), kernels=kernels, seconds=0)


def agree(fast: sw.Deployed, x: Tensor) -> None:
    torch.testing.assert_close(fast.transposed(x), fast(x.t()).t(), rtol=1e-4, atol=1e-5)


@compiled
def test_a_deployed_chain_reads_columns_where_they_lie():
    fast = mlp(["csr.portable"])
    assert fast.program is not None
    for batch in (1, 16, 33):
        x = torch.randn(64, batch)
        agree(fast, x)
        assert torch.equal(fast.program.run_transposed(x), fast.transposed(x))
        assert torch.equal(copy.deepcopy(fast).transposed(x), fast.transposed(x))


@compiled
def test_what_the_program_does_not_serve_goes_through_the_model():
    fast = mlp(["csr.portable"])
    x = torch.randn(64, 16)
    seen: list[int] = []
    fast.model[0].register_forward_hook(lambda *_: seen.append(1))
    agree(fast, x)
    assert seen == [1, 1]
    fast = mlp(["csr.portable"])
    fast.drop_program()
    agree(fast, x)


def test_any_deployed_model_of_matrices_serves():
    agree(mlp(["dense.eager"]), torch.randn(64, 16))


def test_models_and_inputs_that_have_no_columns():
    fast = mlp()
    with pytest.raises(sw.KernelError, match=r"shape \(in_features, batch\)"):
        fast.transposed(torch.ones(64))
    with pytest.raises(sw.KernelError, match=r"shape \(in_features, batch\)"):
        fast.transposed([[1.0]])  # type: ignore[arg-type]
    images = nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3))
    deployed = sw.deploy(images, torch.randn(2, 16), seconds=0)
    with pytest.raises(sw.KernelError, match=r"one tensor of shape \(batch, out_features\)"):
        deployed.transposed(torch.randn(16, 2))
