"""The same run in both storages: masks, losses and optimizer state agree, whatever the method."""

from __future__ import annotations

import copy

import pytest
import torch
from test_contract import EXAMPLES, QUICK
from torch import nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.methods import METHODS
from sparsewright.patterns import as_pattern
from sparsewright.steering import masked_only

STEPS = 200


def mlp() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)
    return nn.Sequential(*layers)


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 32, generator=generator)
    return x, (x[:, :8] + x[:, 8:16]).argmax(dim=1)


def attached(model, method, pattern, optimizer):
    made = optimizer(model.parameters())
    sparsity = 0.75 if as_pattern(pattern).sparsity is None else None
    return made, sw.attach(
        model,
        made,
        method=METHODS[method](**QUICK.get(method, {}) | LONGER.get(method, {})),
        sparsity=sparsity,
        pattern=pattern,
        allocate="uniform_all",
        steps=STEPS,
        init="fan_in",
        seed=3,
    )


LONGER = {
    "gradual": {"every": 20, "end": 150},
    "rigl": {"every": 10, "end": None},
    "set": {"every": 10, "end": None},
    "gse": {"every": 10, "end": None},
    "srigl": {"every": 10, "end": None},
}


def step(model, optimizer, number) -> float:
    x, y = data(number)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


BOTH = [name for name in METHODS.names() if masked_only(METHODS[name]()) is None]


@pytest.mark.parametrize("method", sorted(set(METHODS.names()) - set(BOTH)))
def test_methods_for_masked_weights_refuse_packed_ones(method):
    model = sw.pack(mlp())
    with pytest.raises(sw.StateError, match=r"layer '0' is packed, and method \w+ \w+"):
        attached(model, method, "unstructured", lambda p: torch.optim.SGD(p, 0.1))
    assert model[0].watch.wanted is None


@pytest.mark.parametrize("pattern", EXAMPLES)
@pytest.mark.parametrize("method", BOTH)
def test_masks_and_losses_agree_for_200_steps(method, pattern):
    masked = mlp()
    packed = sw.pack(copy.deepcopy(masked))
    runs = [
        (model, *attached(model, method, pattern, lambda p: torch.optim.AdamW(p, 1e-3)))
        for model in (masked, packed)
    ]
    for number in range(STEPS):
        losses = [step(model, optimizer, number) for model, optimizer, _ in runs]
        # Sums in another order differ in their last bits, 1e-7 each; Adam divides by the size of
        # a gradient, so that of a tiny one the last bits can become a step.
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        for a, b in zip(runs[0][2].layers, runs[1][2].layers, strict=True):
            assert torch.equal(a.present_units, b.present_units), (number, a.name)
            assert len(b.weight) == a.present
    assert runs[0][2].changes == runs[1][2].changes
    if method != "static":
        assert runs[0][2].changes


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_what_float32_tells_apart_is_rounding(method):
    """In float32 SET parts at step 52 under this pattern: a ReLU's input is 3e-8 in one storage and
    -1e-7 in the other, so one sample has a gradient there alone, and Adam makes a whole step of it.
    In float64 moves, weights and AdamW's state agree."""
    masked = mlp().double()
    packed = sw.pack(copy.deepcopy(masked))
    runs = [
        (model, *attached(model, method, "channel:0.5+2:4", lambda p: torch.optim.AdamW(p, 1e-3)))
        for model in (masked, packed)
    ]
    for number in range(100):
        x, y = data(number)
        for model, optimizer, _ in runs:
            optimizer.zero_grad()
            F.cross_entropy(model(x.double()), y).backward()
            optimizer.step()
    (_, made, sparse), (_, other, again) = runs
    assert sparse.changes == again.changes != []
    near = {"rtol": 0.0, "atol": 1e-13}  # a hundred steps of last bits, 1e-16 each
    for a, b in zip(sparse.layers, again.layers, strict=True):
        assert torch.equal(a.present_units, b.present_units)
        torch.testing.assert_close(a.weight[a.mask], b.weight, **near)
        for slot in ("exp_avg", "exp_avg_sq"):
            one, two = made.state[a.weight][slot], other.state[b.weight][slot]
            torch.testing.assert_close(one[a.mask], two, **near)
