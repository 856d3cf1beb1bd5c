"""SRigL: by hand, and over a run in both storages; rows of ablated neurons through the library."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from training import assert_masked, through_a_file

import sparsewright as sw
from sparsewright.core import Layer
from sparsewright.exchange import exchange_of, units_after
from sparsewright.methods.srigl import SRigL, surviving
from sparsewright.patterns import as_pattern
from sparsewright.storage import MaskedStorage

HARD = {"every": 5, "end": 40, "saliency": 0.95, "fraction": 0.5}


def by_hand(weight, gradient, keep):
    """A fan_in layer whose present weights are those that are not 0."""
    parameter = nn.Parameter(torch.tensor(weight))
    parameter.grad = torch.tensor(gradient)
    storage = MaskedStorage(parameter, as_pattern("fan_in"), parameter.detach() != 0)
    return Layer("fc", storage, as_pattern("fan_in"), keep, torch.Generator().manual_seed(0))


def units_of(layer, wish):
    """The units that a wish of a layer leads to."""
    return units_after(layer, exchange_of(layer, wish)[0])


WEIGHT = [
    [5.0, 4.0, 0.0, 0.0],
    [0.3, 0.2, 0.0, 0.0],
    [3.0, 0.1, 0.0, 0.0],
    [2.0, 6.0, 0.0, 0.0],
]
GRADIENT = [
    [0.0, 9.0, 7.0, 0.1],
    [0.0, 0.0, 0.2, 0.3],
    [8.0, 8.0, 0.5, 0.4],
    [0.0, 0.0, 0.6, 6.0],
]


def test_saliency_ablation_and_growth_by_hand():
    """8 present, K = floor(3/8 * 8) = 3. Dropped: 0.1, 0.2, 0.3. Steepest absent: 7, 6, 0.6.

    Salient per row: 3, 0, 1, 4. Bound: floor(1.0 * 2) = 2, so rows 1 and 2 go. k' = 8 // 2 = 4.
    """
    layer = by_hand(WEIGHT, GRADIENT, keep=2)
    method = SRigL(fraction=lambda step: 3 / 8, end=10, saliency=1.0, spared=())
    update = method.update(layer, 1)
    assert units_of(layer, update).tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert update.comes.tolist() == [2, 3, 14, 15]


@pytest.mark.parametrize("saliency", [0.5, 0.3, 0.0])
def test_a_lower_bound_leaves_a_neuron_more(saliency):
    """Bound: max(1, floor(0.5 * 2)) = 1, so row 1 goes alone, and k' = 8 // 3 = 2, two left over.

    Row 0 keeps 5 and 4, row 3 keeps 6 and 2; row 2 keeps 3 and regrows its place 1 (8.0). A lower
    saliency changes nothing: a neuron without a salient weight always goes."""
    layer = by_hand(WEIGHT, GRADIENT, keep=2)
    method = SRigL(fraction=lambda step: 3 / 8, end=10, saliency=saliency, spared=())
    update = method.update(layer, 1)
    assert units_of(layer, update).tolist() == [0, 1, 8, 9, 12, 13]
    assert update.comes.tolist() == [], "place 1 of row 2 was there before, and keeps its value"
    anew = SRigL(
        fraction=lambda step: 3 / 8, end=10, saliency=0.5, spared=(), regrown="reset"
    ).update(layer, 1)
    assert anew.comes.tolist() == [9]


def test_gradients_of_all_weights_count_as_in_the_code():
    """The steepest three are then 9, 8 and 8: rows count 2, 0, 2, 2."""
    layer = by_hand(WEIGHT, GRADIENT, keep=2)
    method = SRigL(fraction=lambda step: 3 / 8, end=10, saliency=1.0, spared=(), steep="all")
    assert units_of(layer, method.update(layer, 1)).tolist() == [0, 1, 8, 9, 12, 13]


def test_rows_above_the_fan_in_keep_their_largest():
    """No ablation: row 0 has 4 present of the 8, and is cut to its best two,
    which are not its first."""
    weight = [[2.0, 3.0, 5.0, 4.0], [1.0, 1.5, 1.2, 1.1], [0.0] * 4, [0.0] * 4]
    layer = by_hand(weight, [[0.0, 0.0, 0.0, 0.0]] * 2 + [[3.0, 1.0, 2.0, 0.0]] * 2, keep=2)
    method = SRigL(fraction=lambda step: 1 / 8, end=10, ablate=False)
    assert units_of(layer, method.update(layer, 1)).tolist() == [2, 3, 5, 6, 8, 10, 12, 14]


def test_what_is_ablated_goes_before_what_is_small():
    """K = floor(1/3 * 6) = 2: 0.2 and 0.3 are not salient. Steepest absent: 9 and 8, both in row 0.

    Salient per row: 3, 1, 2; bound 2, so row 1 goes. Its two weights are the K that go: 0.3 stays.
    k' = 6 // 2 = 3: row 0 grows its 9, row 2 its 1.
    """
    weight = [[5.0, 0.3, 0.0, 0.0], [4.0, 0.2, 0.0, 0.0], [3.0, 2.0, 0.0, 0.0]]
    gradient = [[0.0, 0.0, 9.0, 8.0], [0.0] * 4, [0.0, 0.0, 0.5, 1.0]]
    layer = by_hand(weight, gradient, keep=2)
    method = SRigL(fraction=lambda step: 1 / 3, end=10, saliency=1.0, spared=())
    assert units_of(layer, method.update(layer, 1)).tolist() == [0, 1, 2, 8, 9, 11]


def test_where_few_are_not_zero_all_those_stay_and_the_rest_is_grown():
    """K = 1, but two present weights are 0: both places are given to steeper gradients."""
    layer = by_hand([[5.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]], [[0.0] * 4] * 2, keep=2)
    layer.set_table(torch.tensor([[True, True, False, False]] * 2))
    layer.weight.grad = torch.tensor([[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 0.0, 8.0]])
    method = SRigL(fraction=lambda step: 1 / 4, end=10, ablate=False)
    assert units_of(layer, method.update(layer, 1)).tolist() == [0, 2, 4, 7]


@pytest.mark.parametrize(
    ("part_of", "rows"),
    # fan-in 4 of 8 inputs now, 2 at first: bounds 2, 1 and 4; salient are 4, 3, 1 and 0
    [("fan_in", {0, 1}), ("first_fan_in", {0, 1, 2}), ("inputs", {0})],
)
def test_saliency_is_a_part_of_a_fan_in_or_of_the_inputs(part_of, rows):
    """8 present of 4 rows of 8, two rows ablated before. K = 2: not salient are 0.1 and 0.2.

    Steepest: that of row 2, and of the others, all 0, the first absent, in row 0.
    """
    weight = [[5.0, 4.0, 3.0, 0.1], [2.0, 1.0, 0.2, 0.3], [0.0] * 4, [0.0] * 4]
    weight = [row + [0.0] * 4 for row in weight]
    gradient = torch.zeros(4, 8)
    gradient[2, 5] = 9.0
    layer = by_hand(weight, gradient.tolist(), keep=2)
    method = SRigL(fraction=lambda step: 1 / 4, end=10, saliency=0.5, spared=(), part_of=part_of)
    after = units_of(layer, method.update(layer, 1))
    assert set((after // 8).tolist()) == rows


def test_as_many_neurons_stay_as_the_budget_needs():
    """6 weights in rows of 4 need two neurons. K = 2: 0.1 and 0.05. Salient: 4, 2, 0; the bound of
    3 (the longest row) would leave row 0 alone, and two weights without a place. k' = 3."""
    weight = [[5.0, 4.0, 3.0, 0.0], [0.3, 0.0, 0.0, 0.0], [0.1, 0.05, 0.0, 0.0]]
    gradient = [[0.0, 0.0, 0.0, 9.0], [0.0, 1.0, 8.0, 2.0], [0.0] * 4]
    layer = by_hand(weight, gradient, keep=2)
    method = SRigL(fraction=lambda step: 1 / 3, end=10, saliency=1.0, spared=())
    assert units_of(layer, method.update(layer, 1)).tolist() == [0, 1, 2, 4, 6, 7]


def test_enough_neurons_survive():
    counts = torch.tensor([1, 3, 0, 2])
    assert surviving(counts, 4, 1).tolist() == [False, True, False, False]
    assert surviving(counts, 4, 3).tolist() == [True, True, False, True]
    assert surviving(counts, 2, 1).tolist() == [False, True, False, True]


def published(weight, slope, mask, budget, moved, saliency, last):
    """The mask after an update, weight by weight: salient, ablated, k', dropped, grown."""
    rows, columns = weight.shape
    present = sorted(mask.nonzero().tolist(), key=lambda at: -abs(float(weight[tuple(at)])))
    absent = sorted((~mask).nonzero().tolist(), key=lambda at: -float(slope[tuple(at)]))
    salient = [0] * rows
    for row, _ in present[: len(present) - moved] + absent[:moved]:
        salient[row] += 1
    bound = max(1, int(saliency * int(mask.sum(dim=1).max())))
    fewest = math.ceil(budget / columns)
    bound = min(bound, sorted(salient, reverse=True)[fewest - 1])
    active = [row for row in range(rows) if last or salient[row] >= bound]
    fan_in = min(columns, budget // len(active))
    ranked = [at for at in present if at[0] in active]
    ranked += [at for at in present if at[0] not in active]
    kept = ranked[: len(present) - moved]
    after = torch.zeros_like(mask)
    for row in active:
        mine = [column for one, column in kept if one == row][:fan_in]
        others = [c for c in range(columns) if [row, c] not in kept]
        others.sort(key=lambda c: -float(slope[row, c]))
        after[row, mine + others[: fan_in - len(mine)]] = True
    return after


def test_runs_follow_the_published_steps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 12), nn.Tanh())
    model.append(nn.Linear(12, 6))
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    method = SRigL(every=3, fraction=0.5, saliency=0.9)
    settings = {"sparsity": 0.75, "pattern": "fan_in", "allocate": "uniform_all", "steps": 40}
    sparse = sw.attach(model, optimizer, method=method, **settings)
    x, y, ablated = torch.randn(64, 16), torch.randn(64, 6), 0
    for step in range(40):
        weights = [layer.weight for layer in sparse.layers]
        slopes = torch.autograd.grad(((model(x) - y) ** 2).mean(), weights)
        wanted = []
        for layer, slope in zip(sparse.layers, slopes, strict=True):
            mask, budget = layer.mask, layer.keep * layer.groups
            alpha = 0.25 * (1 + math.cos(math.pi * step / 30))
            moved = math.floor(alpha * layer.present)
            if 0 < step < 30 and step % 3 == 0 and moved:
                last = layer.name == "4"
                weight = layer.weight.detach()
                mask = published(weight, slope.abs(), mask, budget, moved, 0.9, last)
            wanted.append(mask)
        optimizer.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()
        for layer, mask in zip(sparse.layers, wanted, strict=True):
            assert torch.equal(layer.mask, mask), (step, layer.name)
            ablated += int((~mask.any(dim=1)).sum())
    assert ablated, "neurons go"


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8)
    )


def data(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 32, generator=generator)
    return x, (x[:, :8] + x[:, 8:16]).argmax(dim=1)


def attached(model, **options):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    method = SRigL(**HARD | options)
    settings = {"sparsity": 0.85, "pattern": "fan_in", "allocate": "uniform_all", "steps": 50}
    return optimizer, sw.attach(model, optimizer, method=method, init="fan_in", **settings)


def train(model, optimizer, steps):
    for number in steps:
        x, y = data(number)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def fan_ins(layer):
    return layer.table.sum(dim=1)


@pytest.mark.parametrize("packed", [False, True])
def test_active_neurons_have_one_fan_in_and_the_last_layer_keeps_all(packed):
    model = sw.pack(mlp()) if packed else mlp()
    optimizer, sparse = attached(model)
    ablated = set()
    for number in range(50):
        train(model, optimizer, [number])
        if not packed:
            assert_masked(sparse)
        for layer in sparse.layers:
            counts = fan_ins(layer)
            active = int((counts > 0).sum())
            assert set(counts.tolist()) <= {0, int(counts.max())}
            if active < layer.groups:
                ablated.add(layer.name)
                assert int(counts.max()) == layer.keep * layer.groups // active
                assert 0 <= layer.keep * layer.groups - layer.present < active
    assert ablated
    assert "4" not in ablated
    assert fan_ins(sparse.layers[-1]).tolist() == [sparse.layers[-1].keep] * 8
    for row, layer in zip(sparse.report().rows, sparse.layers, strict=True):
        assert row.present == int((layer.mask).sum()) == layer.present
        assert row.dead_outputs == int((fan_ins(layer) == 0).sum())


def test_without_ablation_every_neuron_stays():
    model = mlp()
    optimizer, sparse = attached(model, ablate=False)
    before = [layer.table for layer in sparse.layers]
    train(model, optimizer, range(50))
    for layer, table in zip(sparse.layers, before, strict=True):
        assert fan_ins(layer).tolist() == [layer.keep] * layer.groups
        assert not torch.equal(layer.table, table)


def test_spared_layers_keep_all_and_must_exist():
    model = mlp()
    optimizer, sparse = attached(model, spared=("0", "2", "4"))
    train(model, optimizer, range(50))
    assert all(fan_ins(layer).tolist() == [layer.keep] * layer.groups for layer in sparse.layers)
    with pytest.raises(sw.ConfigError, match="names no sparse layer by 'head'; there are: 0, 2, 4"):
        attached(mlp(), spared=("head",))


def test_ablated_neurons_may_come_back():
    """The gradients of an ablated row become the steepest: it is salient again."""
    weight = [[5.0, 4.0, 3.0, 0.2], [0.0] * 4]
    layer = by_hand(weight, [[0.0] * 4, [1.0, 2.0, 3.0, 4.0]], keep=2)
    method = SRigL(fraction=lambda step: 0.5, end=10, spared=())
    assert units_of(layer, method.update(layer, 1)).tolist() == [0, 1, 6, 7]


@pytest.mark.parametrize("packed", [False, True])
def test_a_run_with_ablated_neurons_goes_on_bit_for_bit(packed):
    def made():
        model = sw.pack(mlp()) if packed else mlp()
        return model, *attached(model)

    model, optimizer, sparse = made()
    train(model, optimizer, range(20))
    assert any((fan_ins(layer) == 0).any() for layer in sparse.layers)
    state = [model.state_dict(), optimizer.state_dict(), sparse.state_dict()]
    state = through_a_file(state)
    again, again_optimizer, again_sparse = made()
    for part, kept in zip((again, again_optimizer, again_sparse), state, strict=True):
        part.load_state_dict(kept)
    train(model, optimizer, range(20, 50))
    train(again, again_optimizer, range(20, 50))
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def trained(packed):
    model = sw.pack(mlp()) if packed else mlp()
    optimizer, sparse = attached(model)
    train(model, optimizer, range(45))
    sparse.detach()
    return model, sparse


def test_both_storages_ablate_the_same_neurons():
    (_, masked), (_, packed) = trained(False), trained(True)
    for a, b in zip(masked.layers, packed.layers, strict=True):
        assert torch.equal(a.present_units, b.present_units)
    assert masked.changes == packed.changes


@pytest.mark.parametrize("packed", [False, True])
def test_ablated_weights_are_deployed(packed):
    model, _ = trained(packed)
    x = torch.randn(16, 32)
    fast = sw.deploy(model.eval(), x, seconds=0.01)
    # sums of at most 64 terms in another order
    assert torch.allclose(fast(x), model(x), atol=1e-5)


def test_packed_weights_with_ablated_neurons_are_attached_again():
    model, _ = trained(True)
    before = [m.topology.places() for m in model if hasattr(m, "topology")]
    for method in ("static", SRigL(**HARD)):
        again = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(again.parameters(), 1e-2)
        sparse = sw.attach(again, optimizer, method=method, pattern="fan_in", steps=50)
        for layer, places in zip(sparse.layers, before, strict=True):
            assert torch.equal(layer.present_units, places), "it keeps what it has"
        train(again, optimizer, range(12))
        for layer in sparse.layers:
            assert len(set(fan_ins(layer).tolist()) - {0}) == 1
    again = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(again.parameters(), 1e-2)
    sw.attach(again, optimizer, method=sw.RigL(every=2), pattern="fan_in", steps=50)
    with pytest.raises(sw.StateError, match="where neurons are ablated, the others hold their"):
        train(again, optimizer, range(4))


def test_other_patterns_are_those_of_rigl():
    runs = []
    for method in (SRigL(every=5, start=0), sw.RigL(every=5, start=5, step_on_update=True)):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        settings = {"sparsity": 0.8, "pattern": "unstructured", "steps": 40}
        sparse = sw.attach(model, optimizer, method=method, **settings)
        train(model, optimizer, range(40))
        runs.append([layer.present_units for layer in sparse.layers])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"saliency": 1.5}, r"saliency \(gamma_sal.*must be in \[0, 1\]; got 1.5"),
        ({"exclude_dropped": True}, "exclude_dropped must be False"),
        ({"steep": "some"}, "no value of SRigL's steep is called 'some'"),
        ({"part_of": "layer"}, "no value of SRigL's part_of is called 'layer'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(sw.SparsewrightError, match=message):
        SRigL(**options)
