"""Patterns within patterns: by hand, counted over all levels, pruned, trained, stored, resumed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from training import assert_masked, small_model, through_a_file, train_step

import sparsewright as sw
from sparsewright.patterns import as_pattern, places_of, units_of
from sparsewright.patterns.levels import Levels

NAMES = [
    "channel:0.5+2:4",
    "block:4x4:0.5+unstructured",
    "channel:0.25+block:4x4:0.5+unstructured",
    "channel:0.5+fan_in",
    "block:4x8:0.5+2:4",
    "channel:0.5+block:4x4",
]


def test_channels_then_two_of_four_by_hand():
    weight = torch.tensor(
        [
            [1.0, 9.0, 2.0, 3.0],
            [0.1, 0.2, 0.3, 0.4],
            [5.0, 4.0, 7.0, 6.0],
            [8.0, 0.0, 0.0, 1.0],
        ]
    )
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].weight.data = weight.clone()
    summary = sw.prune(model, pattern="channel:0.5+2:4", allocate="uniform_all")
    want = weight * torch.tensor([[0, 1, 0, 1], [0] * 4, [0, 0, 1, 1], [0] * 4])
    assert torch.equal(model[0].weight, want)
    assert (summary.sparsity, summary.present, summary.rows[0].pattern) == (
        0.75,
        4,
        "channel:0.5+2:4",
    )
    assert summary.rows[0].dead_outputs == 2


def test_blocks_then_single_weights_by_hand():
    weight = torch.tensor(
        [
            [1.0, 1.0, 9.0, 2.0],
            [1.0, 1.0, 1.0, 3.0],
            [4.0, 5.0, 0.0, 6.0],
            [3.0, 7.0, 0.0, 0.0],
        ]
    )
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].weight.data = weight.clone()
    sw.prune(model, 0.75, "block:2x2:0.5+unstructured", allocate="uniform_all")
    kept = model[0].weight.nonzero().tolist()
    assert kept == [[0, 2], [2, 0], [2, 1], [3, 1]], "6 lies in a block that left"


def test_three_levels_by_hand():
    """Rows 2 and 3 stay; of their two tiles the right one; of that its best 2 of 4."""
    weight = torch.tensor([[1.0] * 4, [1.0] * 4, [2.0, 2.0, 9.0, 4.0], [2.0, 2.0, 3.0, 8.0]])
    pattern = as_pattern("channel:0.5+block:2x2:0.5+unstructured").choose(weight)
    assert pattern.chosen.tolist() == [10, 11, 14, 15]
    assert pattern.fold(weight).tolist() == [[9.0, 4.0, 3.0, 8.0]]
    assert pattern.unit_size == 1
    assert places_of(pattern, torch.tensor([1, 2]), (4, 4)).tolist() == [[11], [14]]
    assert units_of(pattern, torch.tensor([9, 10, 15]), (4, 4)).tolist() == [-1, 0, 3]
    mask = pattern.unfold(torch.tensor([[True, False, False, True]]), (4, 4))
    assert mask.nonzero().tolist() == [[2, 2], [3, 3]]


@pytest.mark.parametrize("shape", [(16, 32), (16, 8, 3, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_tables_of_chosen_levels(name, shape):
    """What a table has is what the mask has, and units and places are those of the table."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    pattern = as_pattern(name)
    assert pattern.misfit(shape) is None
    within = pattern.choose(weight.abs())
    scores = within.fold(weight.abs())
    groups, units = scores.shape
    assert groups * units * within.unit_size == len(within.chosen)
    keep = within.allowed(units)[-1] if pattern.sparsity is not None else units // 2
    table = sw.keep_best(scores, keep)
    mask = within.unfold(table, shape)
    assert int(mask.sum()) == int(table.sum()) * within.unit_size
    flat = table.view(-1).nonzero().squeeze(1)
    places = places_of(within, flat, shape)
    assert torch.equal(places.flatten().sort().values, mask.view(-1).nonzero().squeeze(1))
    assert torch.equal(units_of(within, places.flatten(), shape).view(places.shape)[:, 0], flat)
    inside = torch.zeros(weight.numel(), dtype=torch.bool)
    inside[within.chosen] = True
    assert bool((mask.view(-1) <= inside).all())


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("allocate", ["uniform_all", "erk", "global", "lamp"])
def test_sparsity_counts_all_levels(name, allocate):
    model, total = mlp(), 32 * 64 + 64 * 48
    sparsity = None if as_pattern(name).sparsity is not None else 0.9
    summary = sw.prune(model, sparsity, name, allocate=allocate)
    present = sum(int((m.weight != 0).sum()) for m in model if isinstance(m, nn.Linear))
    assert summary.present == present
    step = {"unstructured": 1, "fan_in": 32, "block:4x4": 16}
    if sparsity is None:
        assert present == round((1 - as_pattern(name).sparsity) * total)
    else:
        assert abs(present - total // 10) <= step[str(as_pattern(name).inner)]


def test_a_sparsity_that_the_outer_levels_exceed_is_refused():
    with pytest.raises(sw.BudgetError, match="outer levels of the patterns leave no more; the nea"):
        sw.prune(mlp(), 0.3, "channel:0.5+unstructured", allocate="uniform_all")


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("method", ["rigl", "set", "gradual", "srigl", "chts"])
@pytest.mark.parametrize("name", ["channel:0.5+2:4", "block:4x4:0.5+unstructured"])
def test_methods_move_within_the_outer_units(method, name, pack):
    kinds = {"rigl": sw.RigL, "set": sw.SET, "gradual": sw.Gradual}
    kind = kinds.get(method) or sw.methods.METHODS[method]
    model = sw.pack(small_model()) if pack else small_model()
    optimizers = [torch.optim.AdamW(model.parameters(), 1e-2)]
    sparsity = None if as_pattern(name).sparsity is not None else 0.8
    sparse = sw.attach(
        model, optimizers, method=kind(every=2, end=8), sparsity=sparsity, pattern=name, steps=12
    )
    outer = [layer.pattern.chosen.clone() for layer in sparse.layers]
    first = [layer.table for layer in sparse.layers]
    for step in range(12):
        train_step(model, optimizers, step)
        for layer, chosen in zip(sparse.layers, outer, strict=True):
            inside = torch.zeros(layer.numel, dtype=torch.bool)
            inside[chosen] = True
            assert bool((layer.mask.view(-1) <= inside).all())
            assert int(layer.mask.sum()) == layer.present
        if not pack:
            assert_masked(sparse)
    assert any(not torch.equal(a, y.table) for a, y in zip(first, sparse.layers, strict=True))
    want = 0.75 if sparsity is None else 0.8
    assert abs(sparse.report().sparsity - want) < 1e-3


@pytest.mark.parametrize("pack", [False, True])
def test_a_run_goes_on_in_a_model_that_chose_other_units(pack):
    def made(seed):
        model = small_model(seed)
        model = sw.pack(model) if pack else model
        optimizers = [torch.optim.AdamW(model.parameters(), 1e-2)]
        method = sw.RigL(every=2, end=9)
        return (
            model,
            optimizers,
            sw.attach(model, optimizers, method=method, pattern="channel:0.5+2:4"),
        )

    model, optimizers, sparse = made(0)
    for step in range(5):
        train_step(model, optimizers, step)
    saved = [model.state_dict(), optimizers[0].state_dict(), sparse.state_dict()]
    saved = through_a_file(copy.deepcopy(saved))
    again, again_optimizers, again_sparse = made(1)
    assert not torch.equal(sparse.layers[0].pattern.chosen, again_sparse.layers[0].pattern.chosen)
    again.load_state_dict(saved[0])
    again_optimizers[0].load_state_dict(saved[1])
    again_sparse.load_state_dict(saved[2])
    for step in range(5, 10):
        train_step(model, optimizers, step)
        train_step(again, again_optimizers, step)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    saved[2]["layers"]["0"]["chosen"][0] = saved[2]["layers"]["0"]["chosen"][1]
    with pytest.raises(sw.StateError, match=r"chosen places of channel:0\.5\+2:4 must"):
        again_sparse.load_state_dict(saved[2])


def test_a_pruned_model_is_trained_on_under_its_masks():
    model = small_model()
    sw.prune(model, 0.8, "block:4x4:0.5+unstructured", allocate="uniform_all")
    before = [p.detach() != 0 for p in model.parameters() if p.dim() == 2]
    optimizers = [torch.optim.SGD(model.parameters(), 0.05)]
    sparse = sw.attach(
        model,
        optimizers,
        method=sw.Static(initial="magnitude"),
        sparsity=0.8,
        pattern="block:4x4:0.5+unstructured",
        allocate="uniform_all",
    )
    train_step(model, optimizers, 0)
    for layer, mask in zip(sparse.layers, before, strict=True):
        assert torch.equal(layer.mask, mask)


@pytest.mark.parametrize("name", ["channel:0.5+2:4", "block:4x4:0.5+unstructured"])
def test_combined_weights_are_deployed(name):
    model = small_model()
    sparsity = None if as_pattern(name).sparsity is not None else 0.9
    sw.prune(model, sparsity, name, allocate="uniform_all")
    x = torch.randn(8, 32)
    # sums of at most 64 terms in another order
    assert torch.allclose(sw.deploy(model.eval(), x, seconds=0.01)(x), model(x), atol=1e-5)


def test_patterns_follow_a_rule_of_names_and_shapes():
    def rule(name, shape):
        if len(shape) == 4:
            return {"pattern": "block:4x4"}
        return {"pattern": "2:4"} if shape[0] >= 32 else None

    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)
    )
    summary = sw.prune(model, 0.5, allocate="uniform_all", overrides=rule)
    assert [row.pattern for row in summary.rows] == ["block:4x4", "2:4", "unstructured"]
    assert summary.sparsity == 0.5
    with pytest.raises(sw.UnknownNameError, match="no per-layer override is called 'patern'"):
        sw.prune(model, 0.5, overrides=lambda name, shape: {"patern": "2:4"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("channel+2:4", "every level but the last needs its sparsity, as in channel:0.5; got 'cha"),
        ("channel:1.5+2:4", r"sparsity of an outer level must be in \(0, 1\); got 1.5"),
        ("2:4:0.5+channel", r"must be one whose units can hold a pattern .*; got 2:4"),
        ("channel:0.5+3-4", "no pattern is called '3-4'"),
    ],
)
def test_impossible_levels_are_refused(name, message):
    with pytest.raises(sw.SparsewrightError, match=message):
        as_pattern(name)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "channel:0.5+block:4x4",
            (10, 8),
            r"needs level block:4x4 to fit \(5, 8\), and that needs",
        ),
        ("block:4x4:0.5+2:4", (10, 8), r"needs level block:4x4 to fit \(10, 8\), and that needs"),
        ("block:2x2:0.5+2:4", (8, 8), r"needs level 2:4 to fit \(16, 2\), and that needs in_feat"),
    ],
)
def test_misfits_name_the_level(name, shape, message):
    model = nn.Sequential(nn.Linear(*reversed(shape)))
    with pytest.raises(sw.MisfitError, match=message):
        sw.prune(model, 0.9, name)


def test_names_and_objects_are_one():
    for name in NAMES:
        assert str(as_pattern(name)) == name
        assert isinstance(as_pattern(name), Levels)
