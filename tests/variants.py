"""Runs of one method on a small model, in both storages and cut in two, for tests of options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from training import OPTIMIZERS, assert_masked, small_model, through_a_file, train_step

import sparsewright as sw
from sparsewright.patterns import as_pattern

PATTERNS = ["unstructured", "2:4", "block:4x4", "channel", "fan_in"]
STEPS = 16
Run = tuple[torch.nn.Module, list[torch.optim.Optimizer], sw.Sparsifier]


def begun(method: Any, pattern: str, optimizer: str, storage: str, steps: int = STEPS) -> Run:
    model = small_model()
    if storage == "packed":
        model = sw.pack(model)
    optimizers = OPTIMIZERS[optimizer](model)
    sparsity = 0.75 if as_pattern(pattern).sparsity is None else None
    settings = {"pattern": pattern, "allocate": "uniform_all", "steps": steps}
    return (
        model,
        optimizers,
        sw.attach(model, optimizers, method=method, sparsity=sparsity, **settings),
    )


def budget(sparse: sw.Sparsifier) -> int:
    """Weights that all layers are to keep."""
    return sum(y.keep * y.groups * y.unit_size for y in sparse.layers)


def check_run(
    method: Any,
    pattern: str,
    storage: str,
    optimizer: str = "AdamW",
    look: Callable[[int, sw.Sparsifier], None] = lambda step, sparse: None,
    from_end: int | None = None,
) -> sw.Sparsifier:
    """Zeros, equal groups and one total at every step; the budget met at the end, or from a step
    on (`from_end`)."""
    model, optimizers, sparse = begun(method, pattern, optimizer, storage)
    total = budget(sparse)
    for step in range(STEPS):
        train_step(model, optimizers, step)
        for layer in sparse.layers:
            counts = layer.table.sum(dim=1)
            assert (counts == counts[0]).all(), "every group holds as many units"
            assert counts[0] >= layer.keep
            if from_end is not None and step >= from_end:
                assert counts[0] == layer.keep
            if storage == "packed":
                assert len(layer.weight) == layer.present
        if storage == "masked":
            assert_masked(sparse)
        assert budget(sparse) == total, "what one layer gains another loses"
        look(step, sparse)
    for layer in sparse.layers:
        assert (layer.table.sum(dim=1) == layer.keep).all(), "the budget is met"
    assert sparse.report().present == total
    return sparse


def check_resumed(method: Any, pattern: str, storage: str, optimizer: str = "AdamW") -> None:
    """A run cut in two, at every part of it, ends like one that was not, bit for bit."""
    for cut in (3, 8):
        model, optimizers, sparse = begun(method, pattern, optimizer, storage)
        for step in range(cut):
            train_step(model, optimizers, step)
        checkpoint = through_a_file(
            {
                "model": model.state_dict(),
                "optimizers": [one.state_dict() for one in optimizers],
                "sparse": sparse.state_dict(),
            }
        )
        again, again_optimizers, again_sparse = begun(method, pattern, optimizer, storage)
        again.load_state_dict(checkpoint["model"])
        for one, state in zip(again_optimizers, checkpoint["optimizers"], strict=True):
            one.load_state_dict(state)
        again_sparse.load_state_dict(checkpoint["sparse"])
        for step in range(cut, STEPS):
            train_step(model, optimizers, step)
            train_step(again, again_optimizers, step)
        for a, b in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b)
        for layer, twin in zip(sparse.layers, again_sparse.layers, strict=True):
            assert layer.keep == twin.keep
            assert torch.equal(layer.table, twin.table)


def check_storages_agree(method: Any, pattern: str, optimizer: str = "SGD-momentum") -> None:
    """Masked and packed, the same units at every step.

    SGD, since Adam divides by the size of a gradient: of a tiny one its last bits, which differ
    between storages, can become a whole step.
    """
    runs = [begun(method, pattern, optimizer, storage) for storage in ("masked", "packed")]
    for step in range(STEPS):
        for model, optimizers, _ in runs:
            train_step(model, optimizers, step)
        for a, b in zip(runs[0][2].layers, runs[1][2].layers, strict=True):
            assert a.keep == b.keep
            assert torch.equal(a.present_units, b.present_units), (step, a.name)
    assert runs[0][2].changes == runs[1][2].changes
    assert runs[0][2].changes
