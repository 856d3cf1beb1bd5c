"""Packed modules: they compute and train as the dense module with the same zeros does."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from training import close

import sparsewright as sw
from sparsewright.errors import BudgetError, KernelError, LayoutError, StateError
from sparsewright.nn import PackedConv2d, PackedLinear, PackedModule

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")


def sparse_linear(n: int = 24, m: int = 16, bias: bool = True, dtype=torch.float32) -> nn.Linear:
    layer = nn.Linear(n, m, bias, dtype=dtype)
    with torch.no_grad():
        layer.weight[torch.rand(m, n) < 0.7] = 0.0
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_linear_equals_the_masked_dense_layer(lead: tuple[int, ...], bias: bool) -> None:
    dense = sparse_linear(bias=bias)
    packed = PackedLinear.from_dense(dense)
    x, again = (torch.randn(*lead, 24).requires_grad_() for _ in range(2))
    again.data = x.data.clone()
    y, z = dense(x), packed(again)
    assert close(z.detach(), y.detach(), 24)
    dy = torch.randn_like(y)
    y.backward(dy)
    z.backward(dy)
    mask = dense.weight != 0
    assert close(again.grad, x.grad, 16)
    assert close(packed.weight.grad, dense.weight.grad[mask], max(1, x.numel()))
    if bias:
        assert close(packed.bias.grad, dense.bias.grad, max(1, x.numel()))


def test_gradients_of_linear_are_right_in_float64() -> None:
    packed = PackedLinear(5, 4, sparsity=0.6, dtype=torch.float64)

    def run(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(packed, {"weight": values, "bias": bias}, (x,))

    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, packed.weight, packed.bias))


def test_second_gradients_are_refused() -> None:
    packed = PackedLinear(5, 4, sparsity=0.5)
    x = torch.randn(2, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(packed(x).square().sum(), x, create_graph=True)
    with pytest.raises(
        KernelError, match=r"PackedLinear of shape \(4, 5\): .* first gradients only"
    ):
        gradient.sum().backward()


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    packed = PackedLinear(5, 4, sparsity=0.5)
    with pytest.raises(KernelError, match=r"needs x \(\.\.\., 5\); got \(2, 6\)"):
        packed(torch.ones(2, 6))
    with pytest.raises(KernelError, match="must be the same"):
        packed(torch.ones(2, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("layer", "x", "why"),
    [
        (nn.Linear(5, 4), torch.ones(2, 6), r"needs x \(\.\.\., 5\); got \(2, 6\)"),
        (nn.Linear(5, 4), torch.ones(2, 5).double(), "x is torch.float64 on cpu, but values"),
        (nn.Conv1d(2, 4, 3), torch.ones(2, 3, 5), r"needs x \(N, 2, H, W\); got \(2, 3, 1, 5\)"),
        (nn.Conv2d(2, 4, 3), torch.ones(2, 5), r"needs x \(N, 2, H, W\); got \(2, 5\)"),
        (nn.Embedding(4, 3), torch.tensor([4]), r"needs ids in \[0, 4\); got 4 to 4"),
    ],
)
def test_errors_name_the_layer(layer: nn.Module, x: Tensor, why: str) -> None:
    """By its name in the model that was packed, and once attached in that which is trained."""
    model = sw.pack(nn.ModuleDict({"body": nn.Sequential(nn.ReLU(), layer)}))
    with pytest.raises(KernelError, match=rf"^layer 'body\.1': {why}"):
        model["body"][1](x)
    kept = copy.deepcopy(model)["body"][1]
    kept.move(kept.topology.places()[1:], kept.weight.detach()[1:])
    with pytest.raises(KernelError, match=rf"^layer 'body\.1': {why}"):
        kept(x)
    whole = nn.ModuleDict({"whole": model})
    optimizer = torch.optim.SGD(whole.parameters(), 0.1)
    sw.attach(whole, optimizer, method="static", sparsity=0.0)
    with pytest.raises(KernelError, match=rf"^layer 'whole\.body\.1': {why}"):
        model["body"][1](x)


@pytest.mark.parametrize(
    ("pattern", "sparsity", "nnz"),
    [
        ("unstructured", 0.9, 205),
        ("fan_in", 0.9, 192),
        ("2:4", None, 1024),
        ("block:4x4", 0.9, 208),
    ],
)
def test_a_layer_is_sparse_from_its_start(pattern: str, sparsity: float | None, nnz: int) -> None:
    layer = PackedLinear(64, 32, sparsity=sparsity, pattern=pattern)
    assert layer.nnz == len(layer.weight) == nnz
    assert layer.to_dense().shape == (32, 64)
    mask = torch.zeros(64 * 32, dtype=torch.bool)
    mask[layer.topology.places()] = True
    table = sw.patterns.as_pattern(pattern).fold(mask.view(32, 64).float())
    assert table.count_nonzero(1).unique().numel() == 1
    assert set(table.unique().tolist()) <= {0.0, 1.0, 16.0}


def test_a_sparsity_is_needed_or_fixed() -> None:
    with pytest.raises(BudgetError, match="fixes no sparsity"):
        PackedLinear(8, 8)


def test_a_copy_stands_apart() -> None:
    packed = PackedLinear(6, 5, sparsity=0.5)
    packed.watch.wanted = lambda: True
    other = copy.deepcopy(packed)
    assert torch.equal(other.topology.places(), packed.topology.places())
    other(torch.ones(2, 6)).sum().backward()
    assert packed.watch.seen == [] == other.watch.seen
    packed(torch.ones(2, 6)).sum().backward()
    assert len(packed.watch.seen) == 1
    other.watch.wanted = lambda: True
    other(torch.ones(2, 6)).sum().backward()
    assert len(other.watch.seen) == len(packed.watch.seen) == 1
    other.move(torch.tensor([0, 7]), torch.tensor([1.0, 2.0]))
    assert packed.nnz == 15
    assert torch.equal(other.to_dense().flatten().nonzero().flatten(), torch.tensor([0, 7]))


def test_a_module_goes_through_torch_save() -> None:
    packed = PackedLinear(6, 5, sparsity=0.5)
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x = torch.randn(2, 6)
    assert torch.equal(again(x), packed(x))


def test_a_backward_after_a_move_is_refused() -> None:
    packed = PackedLinear(6, 5, sparsity=0.5)
    old = packed.topology  # somebody may still hold it
    y = packed(torch.ones(2, 6)).sum()
    packed.move(torch.arange(15), torch.ones(15))
    with pytest.raises(StateError, match="between forward and backward"):
        y.backward()
    assert old.nnz == 15


def test_a_state_dict_brings_its_places() -> None:
    one, two = (PackedLinear(6, 5, sparsity=s) for s in (0.5, 0.8))
    parameter = two.weight
    state = one.state_dict()
    assert set(state) == {"weight", "bias", "starts", "columns"}
    assert {str(t.dtype) for t in state.values()} == {"torch.float32", "torch.int64", "torch.int32"}
    two.load_state_dict(state)
    assert two.weight is parameter
    assert torch.equal(two.to_dense(), one.to_dense())
    x = torch.randn(3, 6)
    assert torch.equal(two(x), one(x))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("columns", torch.tensor([0, 6]), "columns must lie"),
        ("columns", torch.tensor([1, 1]), "ascend"),
        ("starts", torch.tensor([0, 2, 1, 2]), "descend"),
        ("starts", torch.tensor([0, 2, 2, 3]), "starts must be 4 numbers"),
        ("starts", torch.tensor([]), "integers"),
        ("weight", torch.ones(3), "as many values"),
    ],
)
def test_a_broken_state_dict_names_module_and_rule(key: str, value: Tensor, words: str) -> None:
    model = nn.Sequential(PackedLinear(4, 3, places=torch.tensor([0, 1])))
    before = copy.deepcopy(model[0]).to_dense()
    state = {**model.state_dict(), f"0.{key}": value}
    with pytest.raises(RuntimeError, match=f"0: .*{words}"):
        model.load_state_dict(state)
    assert torch.equal(model[0].to_dense(), before)


def test_missing_places_are_reported() -> None:
    layer = PackedLinear(4, 3, sparsity=0.5)
    state = {k: v for k, v in layer.state_dict().items() if k != "columns"}
    with pytest.raises(RuntimeError, match=r'Missing key.*"columns"'):
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="without their places"):
        layer.load_state_dict(state, strict=False)
    del state["weight"]
    assert set(layer.load_state_dict(state, strict=False).missing_keys) == {"columns", "weight"}


def test_the_gradient_of_absent_weights_is_what_dense_has() -> None:
    dense = sparse_linear()
    packed = PackedLinear.from_dense(dense)
    packed.watch.wanted = lambda: True
    for _ in range(2):
        x = torch.randn(7, 24)
        dense(x).square().sum().backward()
        packed(x).square().sum().backward()
        x.zero_()  # what was seen is a copy: loops use their input buffers again
    assert len(packed.watch.seen) == 2
    rows = torch.cat([packed.dense_gradient(0, 5), packed.dense_gradient(5, 16)])
    assert close(rows, dense.weight.grad, 14 * 24)
    places = torch.tensor([3, 300, 20])
    assert close(packed.gradient_at(places), dense.weight.grad.flatten()[places], 14 * 24)


@pytest.mark.parametrize("to_none", [True, False])
def test_what_a_thrown_away_step_left_is_not_seen(to_none: bool) -> None:
    packed = PackedLinear(6, 5, sparsity=0.5)
    packed.watch.wanted = lambda: True
    shared = nn.Sequential(packed, nn.Linear(5, 6), packed)  # twice in one backward
    shared(torch.full((2, 6), 100.0)).sum().backward()
    assert len(packed.watch.seen) == 2
    packed.zero_grad(set_to_none=to_none)
    shared(torch.ones(2, 6)).sum().backward()
    assert len(packed.watch.seen) == 2
    assert not any(bool((x == 100).all()) for x, _ in packed.watch.seen)


def test_a_weight_of_zeros_is_wholly_present() -> None:
    dense = nn.Linear(3, 2)
    nn.init.zeros_(dense.weight)
    assert PackedLinear.from_dense(dense).nnz == 6
    none = PackedLinear.from_dense(dense, torch.zeros(2, 3, dtype=torch.bool))
    assert none.nnz == 0
    x = torch.randn(4, 3, requires_grad=True)
    none(x).sum().backward()
    assert torch.equal(none(x), dense.bias.expand(4, 2))
    assert not x.grad.any()


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LayoutError, match="a mask must be bool"):
        PackedLinear.from_dense(nn.Linear(3, 2), torch.ones(2, 3))


def test_half_types_compute_in_float32_and_round_once() -> None:
    packed = PackedLinear(256, 8, sparsity=0.5)
    half = copy.deepcopy(packed).bfloat16()
    x = torch.randn(4, 256).bfloat16()
    wide = copy.deepcopy(half).float()(x.float())
    assert torch.equal(half(x), wide.bfloat16())


def test_packing_and_unpacking_keep_every_bit() -> None:
    model = nn.Sequential(sparse_linear(), nn.ReLU(), nn.Linear(16, 4, bias=False)).eval()
    model[2].weight.requires_grad_(False)
    weights = [p.clone() for p in model.parameters()]
    assert sw.pack(model) is model
    assert isinstance(model[0], PackedModule)
    assert [type(m) for m in model] == [PackedLinear, nn.ReLU, PackedLinear]
    assert not model[0].training
    assert not model[2].weight.requires_grad
    assert [w.name for w in sw.find_weights(model)] == ["0", "2"]
    sw.unpack(model)
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:4x4", "channel", "fan_in"])
def test_every_pattern_survives_packing_to_the_bit(pattern: str) -> None:
    model = nn.ModuleList(
        [
            nn.Linear(16, 8),
            nn.Conv1d(8, 16, 3, padding=1),
            nn.Conv2d(8, 8, (3, 1), groups=2),
            nn.Embedding(12, 8, padding_idx=1),
        ]
    )
    fixed = pattern == "2:4"
    sw.prune(model, None if fixed else 0.6, pattern=pattern, allocate="uniform_all")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    reprs = [repr(m) for m in model]
    sw.pack(model)
    assert all(isinstance(m, PackedModule) for m in model)
    sw.unpack(model)
    assert [repr(m) for m in model] == reprs
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_gives_the_same_layer() -> None:
    def made() -> PackedConv2d:
        generator = torch.Generator().manual_seed(3)
        return PackedConv2d(8, 8, 3, sparsity=0.8, generator=generator)

    one, two = made(), made()
    assert torch.equal(one.to_dense(), two.to_dense())
    assert torch.equal(one.bias, two.bias)


def test_a_pattern_that_names_no_places_takes_a_mask() -> None:
    class Plain(sw.NM):
        places_of = property()  # as if it were not there

    one, two = (
        PackedLinear(8, 8, pattern=p, generator=torch.Generator().manual_seed(0))
        for p in (Plain(2, 4), sw.NM(2, 4))
    )
    assert torch.equal(one.to_dense(), two.to_dense())


def test_a_layer_without_memory_gets_its_values_later() -> None:
    with torch.device("meta"):
        layer = PackedLinear(8, 4, sparsity=0.5)
    assert layer.weight.is_meta
    assert layer(torch.ones(2, 8, device="meta")).shape == (2, 4)
    other = PackedLinear(8, 4, sparsity=0.75)
    here = copy.deepcopy(layer).to_empty(device="cpu")
    here.reset_parameters()
    assert torch.isfinite(here(torch.ones(2, 8))).all()
    layer.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(layer(torch.ones(2, 8)), other(torch.ones(2, 8)))


def test_a_shallow_copy_does_not_take_the_watch() -> None:
    packed = PackedLinear(8, 4, sparsity=0.5)
    packed.watch.wanted = lambda: True
    copy.copy(packed)
    packed(torch.ones(2, 8)).sum().backward()
    assert len(packed.watch.seen) == 1


def test_checkpointing_and_inference_mode_are_no_obstacle() -> None:
    packed = PackedLinear(8, 4, sparsity=0.5)
    packed.watch.wanted = lambda: True
    x = torch.randn(2, 8, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(packed, x, use_reentrant=False)
    y.sum().backward()
    assert len(packed.watch.seen) == 1
    with torch.inference_mode():
        assert torch.equal(packed(x), y)
