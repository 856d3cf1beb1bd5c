"""A chain of bound products gives the bits of the products one by one, however many threads.

Layout csb's last bits depend on how a batch is cut into tiles: tests/test_chain_batches.py.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsewright as sw
from sparsewright.kernels import KERNELS, kernel_info
from sparsewright.kernels.bound import Call, bind, chain
from sparsewright.layouts import pack
from sparsewright.measure.environment import threads

pytestmark = pytest.mark.skipif(not kernel_info().native, reason="needs the compiled kernels")
SIZES = [(200, 300), (515, 200), (96, 515), (7, 96)]
"""(out, in) of layers that follow each other; large enough for several threads where dense."""
IN_ONE_REGION = [
    f"{layout}.{isa}"
    for layout in ("sell", "csr", "window")
    for isa in ("portable", "avx2", "avx512")
    if KERNELS[f"{layout}.{isa}"].refuses() is None
]


def product(
    name: str, weight: Tensor, bias: Tensor | None, activation: int = 1, values: str = "fp32"
) -> tuple[Call, list[object]]:
    """A bound product and the tensors and numbers that it is bound to."""
    kernel = KERNELS[name]
    prepared = kernel.prepare(pack(kernel.layout, weight, values), 1)
    rest = [*prepared.tensors.values(), bias, *prepared.numbers]
    names = [a.name for a in kernel.op._schema.arguments[1:]]
    rest[names.index("activation")] = activation
    return bind(kernel.op, rest), rest


def products(
    names: Sequence[str],
    density: float = 0.4,
    activation: int = 1,
    values: str = "fp32",
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> list[Call]:
    calls = []
    for name, (out, width) in zip(names, sizes, strict=False):
        weight = torch.randn(out, width) / width**0.5
        weight *= torch.rand(out, width) < density
        calls.append(product(name, weight, torch.randn(out), activation, values)[0])
    return calls


def one_by_one(calls: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for call in calls:
        x = call(x)
    return x


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("activation", range(6))
@pytest.mark.parametrize(
    "names",
    [["sell"] * 4, ["csr"] * 4, ["window"] * 4, ["sell", "csr"] * 2, ["sell", "window"] * 2],
)
def test_a_chain_gives_the_bits_of_its_products(names, activation, count):
    torch.manual_seed(0)
    calls = products([f"{n}.portable" for n in names], activation=activation)
    joined = chain(calls)
    with threads(count):
        for shape in [(300,), (1, 300), (1, 1, 300), (2, 300), (8, 300), (33, 300), (0, 300)]:
            x = torch.randn(shape)
            expected = one_by_one(calls, x)
            assert joined(x).shape == expected.shape
            assert torch.equal(joined(x), expected), shape
        strided = torch.randn(300, 2).t()[:1]
        assert torch.equal(joined(strided), one_by_one(calls, strided))


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("names", [["window"] * 3, ["sell", "window", "csr"]])
def test_a_chain_that_several_threads_share(names, isa):
    if KERNELS[f"window.{isa}"].refuses() is not None:
        pytest.skip(f"this CPU has no {isa}")
    torch.manual_seed(0)
    sizes = [(1003, 1200), (1500, 1003), (800, 1500)]
    calls = products([f"{n}.{isa}" for n in names], 0.3, activation=2, sizes=sizes)
    x = torch.randn(1, 1200)
    expected = one_by_one(calls, x)
    for count in (1, 2, 3, 4):
        with threads(count):
            assert torch.equal(one_by_one(calls, x), expected)
            assert torch.equal(chain(calls)(x), expected)


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(IN_ONE_REGION), min_size=2, max_size=4),
    values=st.sampled_from(["fp32", "bf16", "int8"]),
    density=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    count=st.sampled_from([1, 2, 3, 4]),
)
def test_any_chain_of_sell_csr_and_window(names, values, density, count):
    torch.manual_seed(len(names))
    calls = products(names, density, values=values)
    x = torch.randn(1, 300)
    with threads(count):
        assert torch.equal(chain(calls)(x), one_by_one(calls, x))


def test_other_layouts_are_one_call_too():
    torch.manual_seed(0)
    calls = products(["sell.portable", "csb.portable", "csr.portable"])
    for batch in (1, 40):
        x = torch.randn(batch, 300)
        torch.testing.assert_close(chain(calls)(x), one_by_one(calls, x), rtol=1e-4, atol=1e-5)


def test_nan_and_infinity_go_through():
    torch.manual_seed(0)
    names = ["sell.portable", "csr.portable", "window.portable"]
    calls = products(names, activation=0)
    for wrong in (float("nan"), float("inf")):
        x = torch.randn(1, 300)
        x[0, 7] = wrong
        got, expected = chain(calls)(x), one_by_one(calls, x)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())
        assert not got.isfinite().all()


def test_what_is_written_into_the_tensors_counts_and_other_memory_is_seen():
    torch.manual_seed(0)
    first, rest = product("sell.portable", torch.randn(64, 32), torch.randn(64))
    last, _ = product("csr.portable", torch.randn(8, 64), None)
    joined, x = chain([first, last]), torch.randn(1, 32)
    before = joined(x)
    bias = rest[-4]
    assert isinstance(bias, Tensor)
    bias.mul_(2)
    assert not torch.equal(joined(x), before)
    assert torch.equal(joined(x), one_by_one([first, last], x))
    bias.set_(torch.zeros(64))  # other memory: the op looks at the tensor anew
    assert torch.equal(joined(x), one_by_one([first, last], x))
    bias.set_(torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"bias must have shape \(64,\); got 3"):
        joined(x)


def test_bad_chains_and_inputs_say_what_is_wrong():
    torch.manual_seed(0)
    wide, _ = product("csr.portable", torch.randn(8, 65), None)
    for name in ("sell.portable", "csr.portable"):
        first, _ = product(name, torch.randn(64, 32), None)
        with pytest.raises(RuntimeError, match="column 64, beyond the 64 outputs"):
            chain([first, wide])
    narrow, _ = product("csr.portable", torch.randn(8, 64), None)
    joined = chain([first, narrow])
    with pytest.raises(RuntimeError, match="columns beyond the in_features of x, 31"):
        joined(torch.randn(1, 31))
    with pytest.raises(RuntimeError, match="x must be float32"):
        joined(torch.randn(1, 32).double())
    with pytest.raises(RuntimeError, match="takes no residual"):
        joined(torch.randn(1, 32), torch.randn(1, 8))
    with pytest.raises(RuntimeError, match="at least two products; got 1"):
        torch.ops.sparsewright.bind_chain([1], True)
    with pytest.raises(RuntimeError, match="no call is bound to the number -1"):
        torch.ops.sparsewright.bind_chain([-1, -1], True)


def test_large_weights_and_wide_outputs_are_not_copied():
    torch.manual_seed(0)
    sizes = [(70_000, 8), (4, 70_000)]  # more outputs than 16-bit columns can name
    weights = [torch.randn(s) * (torch.rand(s) < 0.1) for s in sizes]
    calls = [product("sell.portable", w, None)[0] for w in weights]
    x = torch.randn(1, 8)
    assert torch.equal(chain(calls)(x), one_by_one(calls, x))
    large = [product("csr.portable", torch.randn(800, 800), None)[0] for _ in range(2)]
    x = torch.randn(1, 800)
    assert torch.equal(chain(large)(x), one_by_one(large, x))


def test_a_chain_outlives_its_products_and_is_let_go():
    torch.manual_seed(0)
    gc.collect()
    count = torch.ops.sparsewright.bound_count
    before = count()
    calls = products(["sell.portable", "csr.portable"])
    x = torch.randn(1, 300)
    expected, joined = one_by_one(calls, x), chain(calls)
    del calls
    gc.collect()
    assert count() == before + 1
    assert torch.equal(joined(x), expected)
    del joined
    gc.collect()
    assert count() == before


def test_several_python_threads_at_once():
    torch.manual_seed(0)
    calls = products(["sell.portable"] * 4)
    joined, wrong = chain(calls), []
    inputs = [torch.randn(1, 300) for _ in range(4)]
    with threads(4):
        expected = [one_by_one(calls, x) for x in inputs]

        def work(i: int) -> None:
            for _ in range(100):
                if not torch.equal(joined(inputs[i]), expected[i]):
                    wrong.append(i)

        running = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert not wrong


class Forked(nn.Module):
    """Two layers in a row, and one whose output is used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x)))
        return self.c(y) + y[..., :10]


@pytest.mark.parametrize("batch", [1, 5])
def test_a_programs_runs_of_layers_are_chains(batch, monkeypatch):
    torch.manual_seed(0)
    made = []
    monkeypatch.setattr(
        "sparsewright.shared_calls.chain", lambda calls: made.append(len(calls)) or chain(calls)
    )
    # pieces, which timing may prefer, would be other programs, and round otherwise
    monkeypatch.setattr("sparsewright.make.sizes", lambda batch: ())
    deep = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(64, 64), nn.ReLU())))
    for model, runs in ((deep, [3]), (Forked(), [2])):
        sw.prune(model, sparsity=0.8, allocate="uniform_all")
        x = torch.randn(batch, 64)
        made.clear()
        fast = sw.deploy(model, x, kernels=["sell.portable"], seconds=0)
        assert made[-1:] == runs
        assert torch.equal(fast.program.run(x), fast.run_modules(x))
        assert torch.allclose(fast(x), model(x), atol=1e-5)


def test_somebody_who_listens_to_a_deployed_model_is_heard():
    torch.manual_seed(0)
    fast = sw.deploy(nn.Sequential(nn.Linear(8, 4)), torch.randn(1, 8), seconds=0)
    heard = []
    x = torch.randn(1, 8)
    before = fast(x)
    handle = fast.register_forward_hook(lambda *_: heard.append(1))
    assert torch.equal(fast(x), before)
    assert heard == [1]
    handle.remove()
    with fast.register_forward_pre_hook(lambda *_: heard.append(2)):
        assert torch.equal(fast(x), before)
    assert heard == [1, 2]
    with nn.modules.module.register_module_forward_hook(lambda *_: heard.append(3)):
        fast(x)
    assert 3 in heard
