"""What every registered pattern, method and optimizer of torch.optim must keep, taken together."""

from __future__ import annotations

import pytest
import torch
from training import OPTIMIZERS, assert_masked, small_model, through_a_file, train_step

import sparsewright as sw
from sparsewright.methods import METHODS
from sparsewright.patterns import PATTERNS, as_pattern

STEPS = 9
EXAMPLES = [example for _, kind in PATTERNS.items() for example in kind.examples]
# Settings under which each method moves within a few steps; a method added later runs as it is.
QUICK = {
    "gradual": {"every": 2, "end": 6},
    "rigl": {"every": 2, "end": 8, "fraction": 0.5},
    "set": {"every": 2, "end": 8, "fraction": 0.5},
    "gse": {"every": 2, "end": 8, "fraction": 0.5},
    "deep_r": {"l1": 5.0},
    "dsr": {"fraction": 0.02},  # LBFGS without a line search does not stand much more
    "sr_ste": {"start": 1},
    "chts": {"every": 2},
    "srigl": {"every": 2, "end": 6, "fraction": 0.5, "ablate": False},  # ablated: in test_srigl
}


def setting(method, pattern, optimizer):
    """A model, its optimizers and the attached Sparsifier."""
    model = small_model()
    optimizers = OPTIMIZERS[optimizer](model)
    sparse = sw.attach(
        model,
        optimizers,
        method=METHODS[method](**QUICK.get(method, {})),
        sparsity=0.75 if as_pattern(pattern).sparsity is None else None,
        pattern=pattern,
        allocate="uniform_all",
        steps=STEPS,
    )
    return model, optimizers, sparse


def test_every_optimizer_of_torch_is_tried():
    theirs = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    ours = {name.split("-")[0] for name in OPTIMIZERS} | {"SparseAdam", "Optimizer"}
    assert theirs <= ours


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pattern", EXAMPLES)
@pytest.mark.parametrize("method", METHODS.names())
def test_masks_hold_at_every_step(method, pattern, optimizer):
    model, optimizers, sparse = setting(method, pattern, optimizer)
    first = [layer.table.clone() for layer in sparse.layers]
    before = [p.detach().clone() for p in model.parameters()]
    assert_masked(sparse)
    for step in range(STEPS):
        train_step(model, optimizers, step)
        assert_masked(sparse)
        for layer in sparse.layers:
            kept = layer.table.sum(dim=1)
            assert (kept == kept[0]).all(), "every group holds as many units"
            assert kept[0] >= layer.keep
    assert sparse.step == STEPS
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for layer, table in zip(sparse.layers, first, strict=True):
        assert (layer.table.sum(dim=1) == layer.keep).all(), "the budget is met at the end"
        moves = bool(sparse.method.due(2)) and layer.keep < layer.units
        assert torch.equal(layer.table, table) != moves, "masks move when they should"


@pytest.mark.parametrize("optimizer", ["SGD-momentum", "AdamW", "Muon", "Rprop"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", METHODS.names())
def test_resumed_run_is_bit_identical(method, pattern, optimizer):
    model, optimizers, sparse = setting(method, pattern, optimizer)
    for step in range(5):
        train_step(model, optimizers, step)
    checkpoint = through_a_file(
        {
            "model": model.state_dict(),
            "optimizers": [o.state_dict() for o in optimizers],
            "sparse": sparse.state_dict(),
        }
    )
    again, again_optimizers, again_sparse = setting(method, pattern, optimizer)
    again.load_state_dict(checkpoint["model"])
    for optimizer_, state in zip(again_optimizers, checkpoint["optimizers"], strict=True):
        optimizer_.load_state_dict(state)
    again_sparse.load_state_dict(checkpoint["sparse"])
    for step in range(5, STEPS):
        train_step(model, optimizers, step)
        train_step(again, again_optimizers, step)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    for layer, twin in zip(sparse.layers, again_sparse.layers, strict=True):
        assert torch.equal(layer.table, twin.table)


@pytest.mark.parametrize("method", METHODS.names())
def test_same_seed_same_masks(method):
    tables = []
    for _ in range(2):
        model, optimizers, sparse = setting(method, "unstructured", "AdamW")
        for step in range(5):
            train_step(model, optimizers, step)
        tables.append([layer.table for layer in sparse.layers])
    assert all(torch.equal(a, b) for a, b in zip(*tables, strict=True))
