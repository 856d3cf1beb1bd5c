"""A Sparsifier on packed weights: state, resumption, copies, sizes that change, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from test_contract import QUICK
from test_storages import BOTH
from torch import nn
from torch.nn import functional as F
from training import through_a_file

import sparsewright as sw
from sparsewright.methods import METHODS
from sparsewright.nn import PackedLinear

STEPS = 12
QUICK = QUICK | {"chts": {"every": 2}, "srigl": {"every": 2}}
PLACES = [(name, False) for name in METHODS.names()] + [(name, True) for name in BOTH]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 8))


class Net(nn.Module):
    """An embedding, convolutions and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, 16)
        self.conv = nn.Conv1d(16, 24, 3, padding=1)
        self.image = nn.Conv2d(1, 6, (3, 2), stride=2)
        self.head = nn.Linear(6 * 11 * 4, 5)

    def forward(self, words):
        y = self.conv(self.words(words).transpose(1, 2)).relu()
        return self.head(self.image(y.unsqueeze(1)).relu().flatten(1))


def inputs(model: nn.Module, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    if isinstance(model, Net):
        words = torch.randint(0, 20, (16, 9), generator=generator)
        return words, words.sum(dim=1) % 5
    x = torch.randn(32, 24, generator=generator)
    return x, x[:, :8].argmax(dim=1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, y = inputs(model, step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)  # lives on until the next step's, as in most loops
        loss.backward()
        optimizer.step()


def attached(model, method="rigl", optimizer=None, steps=STEPS, **options):
    made = optimizer(model.parameters()) if optimizer else torch.optim.AdamW(model.parameters())
    options = {"sparsity": 0.75, "init": "fan_in", **options}
    chosen = METHODS[method](**QUICK.get(method, {})) if isinstance(method, str) else method
    return made, sw.attach(model, made, method=chosen, steps=steps, **options)


def pair(make=mlp):
    """The same model masked and packed."""
    masked = make()
    return masked, sw.pack(copy.deepcopy(masked))


@pytest.mark.filterwarnings("ignore:method CHTs")  # no chain is known here
@pytest.mark.parametrize("method", BOTH)
def test_convolutions_and_embeddings_follow_the_same_masks(method):
    runs = []
    for model in pair(Net):
        optimizer, sparse = attached(model, method, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
        train(model, optimizer, range(STEPS))
        runs.append(sparse)
    for a, b in zip(runs[0].layers, runs[1].layers, strict=True):
        assert torch.equal(a.present_units, b.present_units), a.name
        values = a.weight.detach()[a.mask]
        torch.testing.assert_close(values, b.weight.detach(), rtol=1e-4, atol=1e-5)
        assert torch.equal(a.mask, b.mask)
    assert runs[0].changes == runs[1].changes
    assert [(r.name, r.present, r.dead_outputs) for r in runs[0].report().rows] == [
        (r.name, r.present, r.dead_outputs) for r in runs[1].report().rows
    ]


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 1e-2),
        lambda p: torch.optim.Adagrad(p, 0.05, initial_accumulator_value=0.1),
        lambda p: torch.optim.Rprop(p, 1e-3),
    ],
    ids=["sgd", "adamw", "adagrad", "rprop"],
)
def test_optimizer_state_moves_with_the_weights(optimizer):
    states = []
    for model in pair():
        # A weight that grew one step ago is as large as one step of Adam, like all that grew with
        # it: which of them is the smallest would be decided by the last bits.
        made, sparse = attached(model, sw.RigL(every=4, end=9), optimizer)
        train(model, made, range(9))  # the last update, at step 8, was just now
        states.append((made, sparse))
    (dense, masked), (vector, packed) = states
    for a, b in zip(masked.layers, packed.layers, strict=True):
        theirs, ours = dense.state[a.weight], vector.state[b.weight]
        slots = [
            name for name, t in ours.items() if torch.is_tensor(t) and t.shape == b.weight.shape
        ]
        assert slots
        for name in slots:
            torch.testing.assert_close(theirs[name][a.mask], ours[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", BOTH)
def test_a_resumed_run_is_the_same_to_the_bit(method):
    def begun():
        model = sw.pack(mlp())
        return model, *attached(model, method)

    model, optimizer, sparse = begun()
    train(model, optimizer, range(5))
    saved = through_a_file([model.state_dict(), optimizer.state_dict(), sparse.state_dict()])
    train(model, optimizer, range(5, STEPS))
    other, its_optimizer, its_sparse = begun()
    for part, state in zip((other, its_optimizer, its_sparse), saved, strict=True):
        part.load_state_dict(state)
    train(other, its_optimizer, range(5, STEPS))
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert sparse.state_dict()["layers"].keys() == its_sparse.state_dict()["layers"].keys()


def test_a_sparse_state_is_of_either_storage():
    masked, packed = pair()
    optimizer, sparse = attached(masked)
    train(masked, optimizer, range(3))
    _, other = attached(packed)
    other.load_state_dict(sparse.state_dict())
    for a, b in zip(sparse.layers, other.layers, strict=True):
        assert torch.equal(a.present_units, b.present_units)


def test_a_gradient_of_a_step_that_was_thrown_away_grows_nothing():
    runs = []
    for thrown in (False, True):
        model = sw.pack(mlp())
        optimizer, sparse = attached(model)
        if thrown:
            model(1e3 * torch.ones(4, 24)).sum().backward()
            optimizer.zero_grad()
        train(model, optimizer, range(3))
        runs.append([layer.present_units for layer in sparse.layers])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_growth_sees_all_that_was_accumulated():
    runs = []
    for parts in (1, 4):
        model = sw.pack(mlp())
        optimizer, sparse = attached(model, optimizer=lambda p: torch.optim.SGD(p, 0.1))
        for step in range(3):
            x, y = inputs(model, step)
            optimizer.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy(model(a), b) / parts).backward()
            optimizer.step()
        assert sparse.changes
        runs.append([layer.present_units for layer in sparse.layers])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_gradual_makes_the_parameters_smaller():
    model = sw.pack(mlp())
    optimizer, sparse = attached(model, "gradual", init=None)
    sizes = []
    for step in range(STEPS):
        train(model, optimizer, range(step, step + 1))
        sizes.append(sum(len(layer.weight) for layer in sparse.layers))
        assert all(
            len(optimizer.state[la.weight]["exp_avg"]) == len(la.weight) for la in sparse.layers
        )
    assert sizes[0] > sizes[3] > sizes[-1] == sparse.report().present
    assert sparse.report().sparsity == pytest.approx(0.75, abs=1e-3)


def test_a_moving_average_follows_the_places():
    model = sw.pack(mlp())
    optimizer, sparse = attached(model)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    expected = [layer.to_dense().detach() for layer in (model[0], model[2])]
    for step in range(STEPS):
        before = [layer.mask for layer in sparse.layers]
        train(model, optimizer, range(step, step + 1))
        sparse.apply_masks(average)
        average.update_parameters(model)
        for i, layer in enumerate((model[0], model[2])):
            value, mask = layer.to_dense().detach(), sparse.layers[i].mask
            start = torch.where(before[i], expected[i], value)  # what grew begins at its value
            start = start if step else value  # the first call copies
            expected[i] = torch.where(mask, 0.5 * start + 0.5 * value, 0.0)
    for i, layer in enumerate((average.module[0], average.module[2])):
        torch.testing.assert_close(layer.to_dense().detach(), expected[i])
        assert torch.equal(layer.topology.places(), sparse.layers[i].present_units)


def test_what_is_sparse_from_the_start_keeps_its_places():
    torch.manual_seed(0)
    layers = PackedLinear(24, 48, sparsity=0.9), nn.ReLU(), PackedLinear(48, 8, sparsity=0.8)
    model = nn.Sequential(*layers)
    before = [layer.topology.places() for layer in (model[0], model[2])]
    _, sparse = attached(model, "set", sparsity=None, init=None)
    for places, layer in zip(before, sparse.layers, strict=True):
        assert torch.equal(places, layer.present_units)
    assert sparse.report().present == sum(map(len, before))


def test_less_sparse_than_it_is_cannot_be_asked():
    model = nn.Sequential(PackedLinear(24, 48, sparsity=0.9))
    with pytest.raises(sw.StateError, match=r"layer '0': 576 units .* and 116 are present"):
        attached(model, sparsity=0.5)


def test_more_sparse_than_it_is_can():
    torch.manual_seed(0)
    model = nn.Sequential(PackedLinear(24, 48, sparsity=0.5))
    before = set(model[0].topology.places().tolist())
    _, sparse = attached(model, "static", sparsity=0.9, init=None)
    assert set(sparse.layers[0].present_units.tolist()) < before
    assert model[0].nnz == 1152 - 1036


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("block:4x4", "pattern block:4x4 needs whole units; the 116 packed"),
        ("fan_in", "needs as many units in every group"),
    ],
)
def test_places_that_are_not_of_the_pattern_are_refused(pattern, message):
    torch.manual_seed(0)
    model = nn.Sequential(PackedLinear(24, 48, sparsity=0.9))
    with pytest.raises(sw.MisfitError, match=message):
        attached(model, pattern=pattern)


def closure_of(model, optimizer):
    """What LBFGS calls, on one batch."""
    x, y = inputs(model, 0)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def test_lbfgs_keeps_its_places():
    model = sw.pack(mlp())
    optimizer, _ = attached(model, "static", lambda p: torch.optim.LBFGS(p, 0.1))
    closure = closure_of(model, optimizer)
    first = optimizer.step(closure)
    for _ in range(3):
        last = optimizer.step(closure)
    assert last < first


def test_state_that_cannot_move_is_named():
    model = sw.pack(mlp())
    optimizer, _ = attached(model, "set", lambda p: torch.optim.LBFGS(p, 0.1))
    closure = closure_of(model, optimizer)
    optimizer.step(closure)
    optimizer.step(closure)
    with pytest.raises(sw.StateError, match=r"LBFGS keeps '.*' for a packed weight"):
        optimizer.step(closure)


def test_attaching_twice_is_refused_until_detached():
    model = sw.pack(mlp())
    _, sparse = attached(model)
    with pytest.raises(sw.StateError, match="weight '0' is attached already: call detach"):
        attached(model)
    sparse.detach()
    attached(model)


def test_a_compiled_model_follows_the_same_masks():
    runs = []
    for compiled in (False, True):
        model = sw.pack(mlp())
        optimizer, sparse = attached(model)
        trained = torch.compile(model, backend="aot_eager") if compiled else model
        train(trained, optimizer, range(STEPS))
        runs.append([layer.present_units for layer in sparse.layers])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types_grow_by_gradient(dtype):
    model = sw.pack(mlp().to(dtype))
    optimizer, sparse = attached(model, "rigl", lambda p: torch.optim.SGD(p, 0.01))
    for step in range(5):
        x, y = inputs(model, step)
        optimizer.zero_grad()
        F.cross_entropy(model(x.to(dtype)), y).backward()
        optimizer.step()
    assert sparse.changes
    assert model[0].weight.dtype == dtype


def test_grown_values_reach_weights_in_any_memory_format():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3))
    model.to(memory_format=torch.channels_last)
    method = sw.RigL(every=1, end=9, grown="normal")
    optimizer, sparse = attached(model, method, lambda p: torch.optim.SGD(p, 0.0), init=None)
    before = sparse.layers[0].mask
    model(torch.randn(2, 4, 9, 9)).sum().backward()
    optimizer.step()
    layer = sparse.layers[0]
    assert layer.weight.detach()[layer.mask & ~before].abs().min() > 0


def test_a_layer_that_no_example_has_reached_stays_as_it_is():
    model = sw.pack(mlp())
    optimizer, sparse = attached(model)
    before = [layer.present_units for layer in sparse.layers]
    F.cross_entropy(model(torch.randn(0, 24)), torch.empty(0, dtype=torch.int64)).backward()
    optimizer.step()
    for layer, units in zip(sparse.layers, before, strict=True):
        assert torch.equal(layer.present_units, units)


@pytest.mark.filterwarnings("ignore:frozen layers lose weights")
def test_what_is_unfrozen_later_grows_too():
    model = sw.pack(mlp())
    model[0].weight.requires_grad_(False)
    optimizer, sparse = attached(model)
    train(model, optimizer, range(2))
    assert {change.layer for change in sparse.changes} == {"2"}
    model[0].weight.requires_grad_(True)
    train(model, optimizer, range(2, 6))
    assert {change.layer for change in sparse.changes} == {"0", "2"}


def single_weights():
    """A layer of 4 x 4 with two present weights, and a RigL that wants its gradients."""
    model = nn.Sequential(sw.nn.PackedLinear(4, 4, bias=False, sparsity=14 / 16))
    model[0].move(torch.tensor([0, 5]), torch.ones(2))
    optimizer, _ = attached(
        model,
        sw.RigL(every=1, end=9),
        lambda p: torch.optim.SGD(p, 0.1),
        sparsity=None,
        init=None,
    )
    return model, optimizer


@pytest.mark.filterwarnings("ignore:layer .* percolation threshold")
def test_a_part_of_a_batch_counts_though_no_present_weight_has_a_gradient_of_it():
    model, _ = single_weights()
    model(torch.tensor([[0, 0, 5.0, 0]])).sum().backward()
    model(torch.tensor([[1.0, 1, 0, 0]])).sum().backward()
    assert model[0].dense_gradient(0, 4)[0].tolist() == [1, 1, 5, 0]


@pytest.mark.filterwarnings("ignore:layer .* percolation threshold")
def test_a_gradient_of_the_inputs_alone_counts_for_nothing():
    model, _ = single_weights()
    model(torch.ones(1, 4)).sum().backward()
    x = torch.randn(2, 4, requires_grad=True)
    torch.autograd.grad(model(x).sum(), x)
    assert model[0].dense_gradient(0, 4)[0].tolist() == [1, 1, 1, 1]


def test_unpacking_what_a_sparsifier_holds_is_refused():
    model = sw.pack(mlp())
    _, sparse = attached(model)
    with pytest.raises(sw.StateError, match="layer '0' is held by a Sparsifier: call its detach"):
        sw.unpack(model)
    sparse.detach()
    sw.unpack(model)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_places_of_another_number_that_were_loaded_are_refused(sparsity):
    model = sw.pack(mlp())
    optimizer, _ = attached(model, allocate="uniform_all")
    other = PackedLinear(24, 48, sparsity=sparsity)
    model[0].load_state_dict(other.state_dict())
    with pytest.raises(sw.StateError, match="layer '0': other places were loaded"):
        train(model, optimizer, range(1))


def test_packed_layers_that_share_a_weight_are_refused():
    first = PackedLinear(8, 8, sparsity=0.5)
    second = copy.deepcopy(first)
    second.weight = first.weight
    with pytest.raises(sw.StateError, match="'0' and '2' share a weight"):
        attached(nn.Sequential(first, nn.ReLU(), second), sparsity=None)


def test_types_to_skip_mean_packed_layers_too():
    _, sparse = attached(sw.pack(Net()), skip=[nn.Linear, nn.Embedding])
    assert [layer.name for layer in sparse.layers] == ["conv", "image"]


def test_a_packed_weight_that_does_not_hold_the_pattern_can_be_left_out():
    torch.manual_seed(0)
    layers = PackedLinear(16, 32, sparsity=0.5), nn.ReLU(), PackedLinear(32, 8, pattern="2:4")
    model = nn.Sequential(*layers)
    _, sparse = attached(model, "static", sparsity=None, pattern="2:4", on_misfit="skip")
    assert [layer.name for layer in sparse.layers] == ["2"]


@pytest.mark.parametrize(("method", "packed"), PLACES)
@pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:layer .* no path leads")
@pytest.mark.filterwarnings("ignore:method CHTs")  # no chain is known here
def test_layers_without_weights_are_no_trouble(method, packed):
    with torch.device("meta"):  # torch warns of initial values that are none
        model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3))
    model = model.to_empty(device="cpu")
    model = sw.pack(model) if packed else model
    optimizer, _ = attached(model, method, allocate="uniform_all")
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
