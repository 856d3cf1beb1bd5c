"""Products that write into memory that they are given: the same bits, and nothing around them."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_chain_batches import LAYOUTS, WIDTHS
from test_transposed import ALL, ISAS, product
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import sparsewright as sw
from sparsewright.errors import KernelError
from sparsewright.kernels import kernel_info
from sparsewright.kernels.bound import Call, Into, bind, chain, into, transposed
from sparsewright.measure.environment import threads

compiled = pytest.mark.skipif(not kernel_info().native, reason="needs the compiled kernels")
BATCHES = [0, 1, 2, 3, 7, 16, 17, 64, 130]


def memory(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Room for an output of that shape, and what lies around it."""
    count = torch.Size(shape).numel()
    room = torch.full((count + 32,), -7.0)
    return room[16 : 16 + count].view(shape), room


def check(call: Call, x: Tensor, across: bool = False) -> None:
    given = x.t().contiguous() if across else x
    expected = (transposed(call) if across else call)(given)
    out, room = memory(tuple(expected.shape))
    run = into(call, given, out, across)
    for scale in (1.0, -2.0):  # what x holds by then
        given.mul_(scale)
        expected = (transposed(call) if across else call)(given)
        assert run() is None
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert (room[:16] == -7).all()
    assert (room[-16:] == -7).all()


@compiled
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ALL)
def test_every_layout_and_batch(layout, isa, count):
    torch.manual_seed(0)
    with threads(count):
        for width, out in pairwise(WIDTHS):
            call = product(f"{layout}.{isa}", width, out, activation=1)
            for batch in BATCHES:
                check(call, torch.randn(batch, width))
                check(call, torch.randn(batch, width), across=True)


@compiled
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    "names", [LAYOUTS, ["sell", "csr"], ["window", "csr"], ["block", "block", "csr"]]
)
def test_chains(names, count):
    """In one region, in tiles, and one after the other: only the last writes into that memory."""
    torch.manual_seed(0)
    widths = [70, 45, 45, 33, 40, 20][: len(names) + 1]
    with threads(count):
        sizes = zip(names, pairwise(widths), strict=True)
        calls = [product(f"{n}.{ISAS[-1]}", i, o) for n, (i, o) in sizes]
        for batch in BATCHES:
            check(chain(calls), torch.randn(batch, 70))
            check(chain(calls), torch.randn(batch, 70), across=True)


@compiled
def test_a_call_after_it_has_memory_of_its_own():
    torch.manual_seed(0)
    call = product("csr.portable", 70, 45)
    x, out = torch.randn(3, 70), torch.empty(3, 45)
    into(call, x, out)()
    kept = out.clone()
    again = call(torch.randn(3, 70))
    assert again.data_ptr() != out.data_ptr()
    assert torch.equal(out, kept)


@compiled
def test_what_is_not_finite_is_as_in_the_product():
    torch.manual_seed(0)
    x = torch.randn(17, 70)
    x[3], x[11, 5] = float("nan"), float("inf")
    for layout in ALL:
        check(product(f"{layout}.{ISAS[-1]}", 70, 45), x.clone(), across=True)


def refusals() -> dict[str, tuple[Tensor, Tensor, str]]:
    both = torch.randn(200)
    leaf = torch.randn(2, 5, requires_grad=True)
    return {
        "double": (torch.randn(2, 5).double(), torch.empty(2, 3), "x must be float32 on the CPU"),
        "meta": (torch.randn(2, 5), torch.empty(2, 3, device="meta"), "out must be float32 on the"),
        "strided x": (torch.randn(5, 2).t(), torch.empty(2, 3), "x must be contiguous; got .*1, 2"),
        "strided out": (torch.randn(2, 5), torch.empty(2, 6)[:, ::2], "out must be contiguous"),
        "gradient": (leaf, torch.empty(2, 3), "x must be without a gradient"),
        "shared": (both[:10].view(2, 5), both[9:15].view(2, 3), "must not share memory"),
        "no tensor": ([1.0], torch.empty(2, 3), "x must be a tensor; got a value of type list"),
    }


@pytest.mark.parametrize("case", refusals())
def test_memory_that_does_not_do(case):
    x, out, rule = refusals()[case]
    for call in (bind(torch.matmul, [torch.randn(5, 3)]), *bound(5, 3)):
        with pytest.raises(KernelError, match=rule):
            into(call, x, out)


def bound(width: int, out: int) -> list[Call]:
    return [product("csr.portable", width, out)] if kernel_info().native else []


def test_neighbours_in_memory_do_not_share_it():
    both = torch.randn(16)
    for call in (bind(torch.matmul, [torch.randn(5, 3)]), *bound(5, 3)):
        into(call, both[:10].view(2, 5), both[10:].view(2, 3))()
        torch.testing.assert_close(both[10:].view(2, 3), call(both[:10].view(2, 5)))


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (6,), (1, 2, 3)])
def test_an_output_of_another_shape(shape):
    for call in (bind(torch.matmul, [torch.randn(5, 3)]), *bound(5, 3)):
        with pytest.raises(KernelError, match="out must have the shape of the product"):
            into(call, torch.randn(2, 5), torch.empty(shape))


@compiled
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("layout", ALL)
def test_tensors_that_change_afterwards(layout, across):
    call = product(f"{layout}.{ISAS[-1]}", 70, 45)
    shape = (lambda rows, width: (width, rows)) if across else (lambda rows, width: (rows, width))
    x, out = torch.randn(shape(2, 70)), torch.empty(shape(2, 45))
    run = into(call, x, out, across)
    x.resize_(shape(3, 70)).normal_()
    with pytest.raises(KernelError, match="out must have the shape of the product"):
        run()
    out.resize_(shape(3, 45))
    run()
    expected = (transposed(call) if across else call)(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    for tensor, name in ((x, "x"), (out, "out")):
        kept = tensor.data
        tensor.data = kept.double()
        with pytest.raises(KernelError, match=f"{name} must be float32"):
            run()
        tensor.data = kept.t().contiguous().t()
        with pytest.raises(KernelError, match=f"{name} must be contiguous"):
            run()
        tensor.data = kept
    for width in (8, 69, 71):  # a kernel of some layouts would read beyond x, or the wrong numbers
        x.data = torch.randn(shape(3, width))
        with pytest.raises(
            KernelError, match="x must keep its 2 dimensions and its 70 in_features"
        ):
            run()
    x.data = torch.randn(3, 70).flatten()
    with pytest.raises(KernelError, match="x must keep its 2 dimensions"):
        run()
    x.data = torch.randn(shape(3, 70))
    run()
    x.untyped_storage().resize_(0)
    with pytest.raises(KernelError, match="x"):
        run()


@compiled
def test_numbers_without_an_output_are_refused():
    call = product("csr.portable", 5, 3)
    run = into(call, torch.randn(1, 5), torch.empty(1, 3))
    x, out = torch.randn(1, 5), torch.ones(1, 3)
    number = torch.ops.sparsewright.bind_into(call.number, x, out, False)
    with pytest.raises(RuntimeError, match="has its x and its output bound to it"):
        torch.ops.sparsewright.bound(number, x)
    with pytest.raises(RuntimeError, match="no call is bound to the number"):
        torch.ops.sparsewright.bound(number + 1000, x)
    with pytest.raises(RuntimeError, match="only products with matrices write"):
        torch.ops.sparsewright.bind_into(number, x, out, False)
    run()


@compiled
def test_it_is_let_go_with_its_last_holder():
    gc.collect()
    before = torch.ops.sparsewright.bound_count()
    call = product("csr.portable", 5, 3)
    x, out = torch.randn(1, 5), torch.zeros(1, 3)
    run = into(call, x, out)
    expected = call(x)
    del call, x  # it holds both
    run()
    assert torch.equal(out, expected)
    del run
    gc.collect()
    assert torch.ops.sparsewright.bound_count() == before


@compiled
def test_several_threads_at_once():
    torch.manual_seed(0)
    call = product("csr.portable", 70, 45)
    xs = [torch.randn(16, 70) for _ in range(4)]
    outs = [torch.zeros(16, 45) for _ in xs]
    runs = [into(call, x, out) for x, out in zip(xs, outs, strict=True)]
    expected = [call(x) for x in xs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            outs[i].zero_()
            runs[i]()
            if not torch.equal(outs[i], expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.Linear(32, 10))
    sw.prune(model, sparsity=0.8, allocate="uniform_all")  # as many places in each layer, any seed
    return model


@pytest.mark.parametrize("batch", [1, 16, 20])
@pytest.mark.parametrize("turned", [False, True])
def test_a_deployed_chain(batch, turned):
    x = torch.randn(batch, 64)
    fast = sw.deploy(mlp(), x, seconds=0)
    given = x.t().contiguous() if turned else x
    out = torch.zeros((10, batch) if turned else (batch, 10))
    run = fast.into(given, out, transposed=turned)
    given.neg_()
    run()
    torch.testing.assert_close(out, fast.transposed(given) if turned else fast(given))


def served_by_csr(model: nn.Module, x: Tensor) -> sw.Deployed:
    plan = sw.deploy(model, x, seconds=0).plan
    rows = [replace(row, kernel="csr.portable", layout="csr") for row in plan.layers]
    return sw.deploy(model, x, plan=replace(plan, layers=tuple(rows)))


@compiled
@pytest.mark.parametrize(
    ("shape", "turned"),
    [((1, 64), False), ((1, 64), True), ((16, 64), False), ((16, 64), True), ((2, 3, 64), False)],
)
def test_a_deployed_chain_is_called_past_its_program(shape, turned, monkeypatch):
    x = torch.randn(shape)
    fast = served_by_csr(mlp(), x)
    given = x.t().contiguous() if turned else x
    expected = fast.transposed(given) if turned else fast(given)
    out = torch.zeros_like(expected)
    run = fast.into(given, out, transposed=turned)
    assert isinstance(run, Into)
    for way in ("__call__", "transposed"):
        monkeypatch.setattr(type(fast), way, lambda *_: pytest.fail("it went through torch"))
    out.zero_()
    run()
    torch.testing.assert_close(out, expected)


@compiled
def test_copies_and_files_have_calls_of_their_own(tmp_path):
    x = torch.randn(1, 64)
    fast = served_by_csr(mlp(), x)
    expected = fast(x)
    mine = fast.into(x, torch.zeros(1, 10))
    sw.save(fast, tmp_path / "model")
    for other in (copy.deepcopy(fast), sw.load(tmp_path / "model")):
        out = torch.zeros(1, 10)
        run = other.into(x, out)
        assert isinstance(run, Into)
        run()
        torch.testing.assert_close(out, expected)
        other.drop_program()
        with pytest.raises(KernelError, match="has changed: deploy it again"):
            run()
    mine()
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.copy(mine)


@compiled
@pytest.mark.parametrize("part", ["deployed", "model", "layer"])
@pytest.mark.parametrize("copied", [False, True])
def test_a_model_whose_state_is_loaded_computes_with_it(part, copied):
    """A chain keeps places of the old weights: neither it nor its calls may serve any longer."""
    x, out = torch.randn(1, 64), torch.zeros(1, 10)
    fast, other = (served_by_csr(mlp(seed), x) for seed in (0, 1))
    first = fast
    if copied:
        fast = copy.deepcopy(fast)
    run = fast.into(x, out)
    old, expected = out.clone(), other(x)
    kept = first.into(x, torch.zeros(1, 10))
    before = torch.ops.sparsewright.bound_count()
    pairs = {
        "deployed": [(fast, other)],
        "model": [(fast.model, other.model)],
        "layer": list(zip(fast.model.children(), other.model.children(), strict=True)),
    }[part]
    for mine, theirs in pairs:
        mine.load_state_dict(theirs.state_dict())
    with pytest.raises(KernelError, match="has changed: deploy it again"):
        run()
    assert torch.ops.sparsewright.bound_count() < before
    assert not torch.allclose(old, expected, atol=1e-3)
    torch.testing.assert_close(fast(x), expected)
    fast.into(x, out)()  # of the modules, by then
    torch.testing.assert_close(out, expected)
    if copied:
        kept()  # the one that it was copied from serves as before


def test_a_deployed_model_is_gone_with_its_last_name():
    fast = sw.deploy(mlp(), torch.randn(1, 64), seconds=0)
    model, gone = fast.model, weakref.ref(fast)
    gc.disable()
    try:
        del fast
        assert gone() is None
    finally:
        gc.enable()
    model.load_state_dict(model.state_dict())
    pickle.loads(pickle.dumps(model._load_state_dict_post_hooks))


@pytest.mark.parametrize("made_in", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_any_mode_of_torch(made_in):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Softmax(-1), nn.Linear(6, 4))
    sw.prune(model, sparsity=0.5)
    fast = sw.deploy(model, torch.randn(2, 8), seconds=0)
    with made_in():
        x, out = torch.randn(2, 8), torch.zeros(2, 4)
        run = fast.into(x, out)
    out.zero_() if made_in is not torch.inference_mode else None
    run()
    assert not out.requires_grad
    torch.testing.assert_close(out.clone(), fast(x.clone()))


def test_any_other_deployed_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    sw.prune(model, sparsity=0.8)
    x, out = torch.randn(2, 3, 8, 8), torch.zeros(2, 4)
    fast = sw.deploy(model, x, seconds=0)
    run = fast.into(x, out)
    x.neg_()
    run()
    torch.testing.assert_close(out, fast(x))
    with pytest.raises(KernelError, match="out must have the shape of the product"):
        fast.into(x, torch.zeros(4, 2))


@pytest.mark.parametrize("place", ["deployed", "layer", "everywhere"])
def test_hooks_are_called_where_there_are_some(place):
    x, out = torch.randn(1, 64), torch.zeros(1, 10)
    fast = sw.deploy(mlp(), x, seconds=0)
    heard: list[int] = []
    register = {
        "deployed": fast.register_forward_hook,
        "layer": next(m for m in fast.model.modules() if m is not fast.model).register_forward_hook,
        "everywhere": torch_module.register_module_forward_hook,
    }[place]
    handle = register(lambda *_: heard.append(1))
    try:
        run = fast.into(x, out)
        heard.clear()
        run()
        assert heard
        turned = fast.into(x.t().contiguous(), torch.zeros(10, 1), transposed=True)
        heard.clear()
        turned()
        assert heard
    finally:
        handle.remove()
    torch.testing.assert_close(out, fast(x))
