"""A bound call is its op, argument for argument: the same bits, errors and tensors."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.kernels import KERNELS, Conv2d, Linear, kernel_info
from sparsewright.kernels.bound import bind, binder_of, call_on
from sparsewright.layouts import LAYOUTS, pack

compiled = pytest.mark.skipif(not kernel_info().native, reason="needs the compiled kernels")
CONV = Conv2d((3, 3), padding=(1, 1))


def ready(name: str, conv: bool, bias: bool):
    """A kernel on a weight that its layout takes, an input, and all that follows it."""
    kernel, operation = KERNELS[name], CONV if conv else Linear()
    depthwise = conv and kernel.layout == "dense"
    if conv:
        weight = torch.randn(32, 1 if depthwise else 32, 3, 3)
        x = torch.randn(2, 32, 5, 7)
        operation = Conv2d((3, 3), padding=(1, 1), groups=32) if depthwise else CONV
    else:
        weight, x = torch.randn(32, 64), torch.randn(3, 64)
    sparse = nn.Module()
    sparse.weight = nn.Parameter(weight)
    matrix = operation.matrix(weight)
    if kernel.layout != "dense":
        matrix *= torch.rand(8, matrix.shape[1]).repeat_interleave(4, 0) < 0.4
        packed = pack(kernel.layout, matrix)
    else:
        packed = weight
    prepared = operation.prepare(kernel, packed, tuple(x.shape))
    start = torch.randn(32) if bias else None
    return kernel.op, x, [*prepared.tensors.values(), start, *prepared.numbers]


def bindable() -> list[tuple[str, bool]]:
    here = [(name, kernel) for name, kernel in KERNELS.items() if kernel.refuses() is None]
    return [(name, kernel.operation == "conv2d") for name, kernel in here if binder_of(kernel.op)]


@compiled
def test_every_layout_can_be_bound():
    layouts = {KERNELS[name].layout for name, conv in bindable() if not conv}
    assert layouts == set(LAYOUTS.names())
    assert {KERNELS[name].layout for name, conv in bindable() if conv} == {"csb", "dense"}


@compiled
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("name", "conv"), [b for b in bindable() if not KERNELS[b[0]].runs_code])
def test_a_bound_call_gives_the_bits_of_its_op(name, conv, bias):
    op, x, rest = ready(name, conv, bias)
    call = bind(op, rest)
    assert torch.equal(call(x), op(x, *rest))
    assert torch.equal(call(x[:1]), op(x[:1], *rest))
    assert torch.equal(call_on(op, x, rest)(), op(x, *rest))
    if conv:
        residual = torch.randn_like(call(x))
        place = [a.name for a in op._schema.arguments[1:]].index("residual")
        whole = [*rest[:place], residual, *rest[place + 1 :]]
        assert torch.equal(call(x, residual), op(x, *whole))
        assert not torch.equal(call(x, residual), call(x))


@compiled
def test_what_is_written_into_the_tensors_counts():
    op, x, rest = ready("csr.portable", False, True)
    call = bind(op, rest)
    before = call(x)
    rest[-3].mul_(2)  # the bias
    assert not torch.equal(call(x), before)
    assert torch.equal(call(x), op(x, *rest))


@compiled
def test_bad_calls_say_what_is_wrong():
    op, x, rest = ready("csr.portable", False, False)
    call = bind(op, rest)
    with pytest.raises(RuntimeError, match="columns beyond the in_features of x, 60"):
        call(x[:, :60])
    with pytest.raises(RuntimeError, match="x must be float32"):
        call(x.double())
    with pytest.raises(RuntimeError, match="a product with a matrix takes no residual"):
        call(x, x)
    with pytest.raises(RuntimeError, match="no call is bound to the number -1"):
        torch.ops.sparsewright.bound(-1, x)
    with pytest.raises(TypeError, match="bind it again"):
        copy.deepcopy(call)
    op, x, rest = ready("csb.conv2d.portable", True, False)
    place = [a.name for a in op._schema.arguments[1:]].index("residual")
    with pytest.raises(RuntimeError, match="a residual is an argument of each call"):
        bind(op, [*rest[:place], x, *rest[place + 1 :]])


@compiled
def test_a_call_that_nobody_holds_is_let_go():
    count = torch.ops.sparsewright.bound_count
    op, x, rest = ready("csr.portable", False, False)
    gc.collect()
    before = count()
    calls = [bind(op, rest) for _ in range(3)]
    assert count() == before + 3
    number = calls[0].args[0]
    assert torch.equal(torch.ops.sparsewright.bound(number, x), op(x, *rest))
    calls.clear()
    gc.collect()
    assert count() == before
    with pytest.raises(RuntimeError, match=f"no call is bound to the number {number}"):
        torch.ops.sparsewright.bound(number, x)


@compiled
def test_threads_bind_call_and_let_go_at_once():
    op, x, rest = ready("csr.portable", False, True)
    expected, wrong = op(x, *rest), []

    def work():
        for _ in range(200):
            if not torch.equal(bind(op, rest)(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_ops_are_called_as_they_are():
    assert binder_of(torch.ops.aten.add.Tensor) is None
    assert binder_of(torch.add) is None
    assert torch.equal(bind(torch.add, [2])(torch.ones(3)), torch.full((3,), 3.0))


@compiled
def test_a_call_let_go_in_somebodys_trace_is_no_part_of_it():
    """Garbage is collected at any time. That was an error in the trace, or a node of it."""

    class Drops(nn.Module):
        def forward(self, x):
            calls.clear()
            return x + 1

    op, x, rest = ready("csr.portable", False, False)
    count = torch.ops.sparsewright.bound_count
    gc.collect()
    before = count()
    calls = [bind(op, rest)]
    assert count() == before + 1
    traced = torch.export.export(Drops(), (x,))
    assert count() == before
    assert [str(n.target) for n in traced.graph.nodes if n.op == "call_function"] == [
        "aten.add.Tensor"
    ]


@compiled
def test_a_deployed_models_program_binds_and_its_copies_bind_anew():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 8))
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    x, kernels = torch.randn(2, 3, 8, 8), ["csb.conv2d.portable", "csr.portable"]
    gc.collect()
    count = torch.ops.sparsewright.bound_count
    before = count()
    fast = sw.deploy(model, x, kernels=kernels, seconds=0)
    held = count() - before
    assert held >= 2
    again = copy.deepcopy(fast)
    assert count() > before + held
    one = x[:1]  # a larger batch may run in pieces, the modules never do
    assert torch.equal(again.program.run(one), fast.program.run(one))
    assert torch.equal(fast.program.run(one), fast.run_modules(one))
    del fast, again
    gc.collect()
    assert count() == before


@compiled
def test_torch_compile_takes_the_modules():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    x = torch.randn(2, 64)
    fast = sw.deploy(model, x, kernels=["csr.portable"], seconds=0)
    assert fast.program is not None
    whole = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert torch.allclose(whole(x), fast(x), atol=1e-6)
