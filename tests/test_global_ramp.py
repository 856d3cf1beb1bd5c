"""gradual and granet with scope="global": one ramp and one ranking for all layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from training import batch, train_step
from variants import (
    PATTERNS,
    STEPS,
    begun,
    budget,
    check_resumed,
    check_run,
    check_storages_agree,
)

import sparsewright as sw
from sparsewright.core import Layer
from sparsewright.methods.acdc import ACDC
from sparsewright.methods.granet import GraNet
from sparsewright.patterns import as_pattern
from sparsewright.storage import MaskedStorage

END = 12
RAMPS = [
    sw.Gradual(every=3, end=END, scope="global"),
    GraNet(every=2, end=END, scope="global"),
    GraNet(every=2, end=END, scope="global", initial_sparsity=0.0),
    sw.Gradual(every=2, end=END, scope="global", score="weight_gradient"),
]


def named(method) -> str:
    return type(method).__name__


def layer(name, values, keep):
    weight = nn.Parameter(torch.tensor([values]))
    return Layer(
        name,
        MaskedStorage(weight, as_pattern("unstructured")),
        as_pattern("unstructured"),
        keep,
        torch.Generator(),
    )


def test_a_ramp_over_two_layers_by_hand():
    """8 weights, 4 to keep: at half of the ramp 4 + 4 / 8, rounded up, 5 of them. By size they are
    8 7 6 5 4, all of a and one of b; at its end 8 7 6 of a, and 4 since b keeps one at least."""
    method = sw.Gradual(every=1, end=2, scope="global").bind(4)
    layers = [layer("a", [5.0, -6.0, 7.0, 8.0], 2), layer("b", [1.0, 2.0, -3.0, 4.0], 2)]
    for one in layers:
        one.set_table(method.begin(one))
    seen = []
    for step in (0, 1, 2):
        method.rebudget(layers, step)
        for one in layers:
            one.set_table(method.update(one, step))
        seen.append([one.present_units.tolist() for one in layers])
        assert sum(one.keep for one in layers) == 4
    assert seen == [[[0, 1, 2, 3], [0, 1, 2, 3]], [[0, 1, 2, 3], [3]], [[1, 2, 3], [3]]]
    assert [one.keep for one in layers] == [3, 1]


def three_layers() -> nn.Sequential:
    """Large weights in the middle, so that no layer is cut to its last unit."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 32)
    )
    with torch.no_grad():
        model[2].weight.mul_(1.3)
    return model


def test_masks_are_those_of_a_plain_reference():
    """Sort all |w| that are there, keep the largest so many: the whole method, in two lines."""
    model = three_layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparse = sw.attach(model, optimizer, method=RAMPS[0], sparsity=0.8, allocate="erk", steps=STEPS)
    weights = [y.weight for y in sparse.layers]
    count, final = sum(w.numel() for w in weights), budget(sparse)
    asked = [y.keep for y in sparse.layers]
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch(step)
        (model(x) - y).square().mean().backward()
        sizes = [torch.where(y.mask, y.weight.detach().abs(), -1.0) for y in sparse.layers]
        optimizer.step()
        if step in (0, 3, 6, 9, END):
            left = final + (count - final) * (1 - step / END) ** 3
            flat = torch.cat([s.flatten() for s in sizes])
            least = flat.sort(descending=True).values[math.ceil(left - 1e-9) - 1]
            expected = [s >= least for s in sizes]
        for one, mask in zip(sparse.layers, expected, strict=True):
            assert torch.equal(one.mask, mask), step
    assert [one.keep for one in sparse.layers] != asked, "budget has moved"
    assert sparse.report().present == final


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", RAMPS, ids=named)
def test_the_total_goes_down_the_ramp_and_is_met(method, pattern):
    bound, seen = method.bind(STEPS), []

    def look(step, sparse):
        seen.append(sum(y.present for y in sparse.layers))
        if not bound.due(step):
            return
        layers = sparse.layers
        final = sum(y.keep * y.groups * y.unit_size for y in layers)
        total = bound.kept(sum(y.groups * y.units * y.unit_size for y in layers), final, step)
        # a coarse pattern comes as near as its steps; N:M goes down in whole units, rounded up
        coarsest = sum(y.groups * y.unit_size for y in layers)
        assert abs(seen[-1] - total) <= (0 if pattern == "unstructured" else coarsest)

    sparse = check_run(method, pattern, "masked", look=look, from_end=END)
    assert seen == sorted(seen, reverse=True)
    if as_pattern(pattern).sparsity is None and method is not RAMPS[3]:
        assert len({y.sparsity for y in sparse.layers}) > 1, "budget has moved"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_gradual_pruned_never_returns(pattern):
    gone = {}

    def look(step, sparse):
        for one in sparse.layers:
            before = gone.get(one.name, torch.zeros_like(one.mask))
            assert not (before & one.mask).any()
            gone[one.name] = ~one.mask

    check_run(sw.Gradual(every=1, end=END, scope="global"), pattern, "masked", look=look)


@pytest.mark.parametrize(
    ("pattern", "storage"), [("unstructured", "masked"), ("2:4", "packed"), ("fan_in", "packed")]
)
@pytest.mark.parametrize("method", RAMPS[:2], ids=named)
def test_a_resumed_run_is_bit_identical(method, pattern, storage):
    check_resumed(method, pattern, storage)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", RAMPS[:2], ids=named)
def test_both_storages_agree(method, pattern):
    check_storages_agree(method, pattern)


def test_granet_regrows_where_it_dropped():
    """After the ramp every layer moves weights, and no budget does."""
    model, optimizers, sparse = begun(RAMPS[1], "unstructured", "AdamW", "masked")
    for step in range(STEPS):
        train_step(model, optimizers, step)
        if step == END:
            kept = [y.present for y in sparse.layers]
    assert [y.present for y in sparse.layers] == kept
    late = [change for change in sparse.changes if change.step > END]
    assert late
    assert all(change.grown == change.dropped for change in late)


def test_layers_with_a_sparsity_of_their_own_keep_their_ramp():
    model = three_layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = sw.attach(
        model,
        optimizer,
        method=RAMPS[0],
        sparsity=0.6,
        allocate="uniform_all",
        overrides={"2": {"sparsity": 0.5}, "4": {"pattern": "2:4"}},
        steps=STEPS,
    )
    alone = RAMPS[0].bind(STEPS)
    for step in range(STEPS):
        train_step(model, [optimizer], step)
        if alone.due(step):
            assert sparse.layers[1].present == alone.kept(48 * 24, 24 * 24, step)
    assert [y.present for y in sparse.layers[1:]] == [24 * 24, 32 * 24 // 2]


def test_a_layer_without_a_gradient_waits_for_one():
    """Its ramp rests while nothing can be ranked, and it is cut once it can be."""
    model, optimizers, sparse = begun(RAMPS[3], "unstructured", "SGD", "masked")
    frozen = sparse.layers[1]
    for step in range(STEPS):
        frozen.weight.requires_grad_(step > 5)
        if step <= 5:
            frozen.weight.grad = None
        train_step(model, optimizers, step)
        assert frozen.is_full == (step <= 5)
    assert sum(y.present for y in sparse.layers) == budget(sparse)


@pytest.mark.parametrize("pattern", ["fan_in", "channel", "block:4x4"])
@pytest.mark.parametrize(
    "method", [ACDC(), sw.methods.METHODS["snfs"](every=2), RAMPS[0]], ids=named
)
def test_a_total_is_kept_by_layers_whose_steps_have_no_common_size(method, pattern):
    """44, 28 and 20 rows: what rounding leaves is brought to 0 by steps up here and down there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 44), nn.ReLU(), nn.Linear(44, 28), nn.ReLU(), nn.Linear(28, 20)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    settings = {"sparsity": 0.7, "pattern": pattern, "allocate": "uniform_all", "steps": 40}
    sparse = sw.attach(model, optimizer, method=method, **settings)
    total, asked = budget(sparse), [y.keep for y in sparse.layers]
    for step in range(40):
        optimizer.zero_grad()
        (model(batch(step)[0]) - 1).square().mean().backward()
        optimizer.step()
        assert budget(sparse) == total
    assert [y.keep for y in sparse.layers] != asked
    assert sparse.report().present == total


@pytest.mark.parametrize("kind", [sw.Gradual, GraNet])
def test_a_scope_that_is_none_is_refused(kind):
    with pytest.raises(sw.UnknownNameError, match="scope is called 'network'"):
        kind(scope="network")
