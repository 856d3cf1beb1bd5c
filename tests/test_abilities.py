"""What a method may do besides choosing units: shape weights, draw them, move budget, know the
model; with every optimizer's way of stepping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from training import OPTIMIZERS, assert_masked, loss_of, small_model, through_a_file, train_step

import sparsewright as sw
from sparsewright.budget import share_again
from sparsewright.methods.static import Static
from sparsewright.ranking import best_units, first_units


@dataclass(frozen=True)
class Penalty(Static):
    """A constant pull on every present weight."""

    keeps_absent: ClassVar[bool] = False

    def before_step(self, layer, step):
        layer.weight.grad += 1.0

    def after_step(self, layer, step):
        pass


@dataclass(frozen=True)
class Counting(Static):
    """Adds 1 to what it remembers after every step."""

    keeps_absent: ClassVar[bool] = False

    def begin(self, layer):
        layer.memory["steps"] = torch.tensor(0)
        return super().begin(layer)

    def before_step(self, layer, step):
        pass

    def after_step(self, layer, step):
        layer.memory["steps"] += step >= 0


@dataclass(frozen=True)
class Latent(Static):
    """The best of the latent weights at every step, doubled."""

    keeps_absent: ClassVar[bool] = True

    def begin(self, layer):
        layer.memory["seen"] = torch.zeros(layer.shape)
        return first_units(layer, "magnitude")

    def before_step(self, layer, step):
        layer.memory["seen"][:] = layer.weight.grad

    def after_step(self, layer, step):
        layer.weight.mul_(2.0)
        return self.update(layer, step)

    def update(self, layer, step):
        scores = layer.pattern.fold(layer.memory["latent"].abs())
        return sw.keep_best(scores, layer.keep).reshape(-1).nonzero().squeeze(1)


@dataclass(frozen=True)
class Chooses(Latent):
    """The best of the latent weights after every step, by what it returns."""

    def after_step(self, layer, step):
        return self.update(layer, step)

    def update(self, layer, step):
        layer.memory["asked"] = torch.tensor(step)
        return super().update(layer, step)


@dataclass(frozen=True)
class Noisy(Latent):
    """Weights that are 5 in every training step."""

    def before_forward(self, layer, step):
        layer.weight.fill_(5.0)


@dataclass(frozen=True)
class ToFirst(Static):
    """At step 2 the first layer takes three quarters of the budget."""

    def due(self, step):
        return step == 2

    def rebudget(self, layers, step):
        whole = sum(layer.present for layer in layers)
        share_again(layers, {y.name: whole * p for y, p in zip(layers, (0.75, 0.25), strict=True)})

    def update(self, layer, step):
        if layer.keep <= layer.storage.count():
            return best_units(layer, "magnitude", layer.keep)
        table = torch.zeros(1, layer.units, dtype=torch.bool)
        table[0, : layer.keep] = True
        return table


@dataclass(frozen=True)
class Knows(Static):
    """Remembers the model's name."""

    name: str = ""

    def meet(self, model, layers):
        return replace(self, name=f"{type(model).__name__} of {len(layers)}")


def attached(method, optimizer="SGD-momentum", sparsity=0.5):
    model = small_model()
    optimizers = OPTIMIZERS[optimizer](model)
    settings = {"sparsity": sparsity, "allocate": "uniform_all", "steps": 9}
    return model, optimizers, sw.attach(model, optimizers, method=method, **settings)


def test_penalties_reach_present_weights_alone():
    model, optimizers, sparse = attached(Penalty(), "SGD")
    plain, plain_optimizers, _ = attached(Static(), "SGD")
    for one, made in ((model, optimizers), (plain, plain_optimizers)):
        train_step(one, made, 0)
    for layer in sparse.layers:
        other = dict(plain.named_modules())[layer.name].weight
        # a step of lr 0.05 along a gradient that is 1 larger
        assert torch.allclose(layer.weight[layer.mask], other[layer.mask] - 0.05, atol=1e-6)
    assert_masked(sparse)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_latent_weights_step_as_dense_ones_do(optimizer):
    """The optimizer's steps are those that it takes on the latent weights with these gradients."""
    model, optimizers, sparse = attached(Latent(), optimizer)
    twin = small_model()
    twin_optimizers = OPTIMIZERS[optimizer](twin)
    weights = [twin[0].weight, twin[2].weight]
    closures = 0
    for step in range(4):
        train_step(model, optimizers, step)
        assert_masked(sparse)
        for layer in sparse.layers:
            latent = layer.memory["latent"]
            assert torch.equal(layer.weight, torch.where(layer.mask, latent * 2, 0.0))
            assert layer.memory["seen"][layer.absent].any(), "gradients are dense"
        if optimizer == "LBFGS":
            continue
        # the twin: the same gradients at the latent weights
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.grad = mine.grad.clone()
        for one in twin_optimizers:
            one.step()
        for layer, weight in zip(sparse.layers, weights, strict=True):
            assert torch.equal(layer.memory["latent"], weight)
        closures += 1
    assert optimizer == "LBFGS" or closures == 4


def test_latent_weights_survive_a_checkpoint():
    model, optimizers, sparse = attached(Latent(), "AdamW")
    for step in range(3):
        train_step(model, optimizers, step)
    saved = [model.state_dict(), optimizers[0].state_dict(), sparse.state_dict()]
    kept = through_a_file(saved)
    again, again_optimizers, again_sparse = attached(Latent(), "AdamW")
    train_step(again, again_optimizers, 7)
    again.load_state_dict(kept[0])
    again_optimizers[0].load_state_dict(kept[1])
    again_sparse.load_state_dict(kept[2])
    for step in range(3, 6):
        train_step(model, optimizers, step)
        train_step(again, again_optimizers, step)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    del kept[2]["layers"]["0"]["memory"]["latent"]
    with pytest.raises(sw.StateError, match=r"remembers \['seen'\]; this attachment"):
        again_sparse.load_state_dict(kept[2])


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "LBFGS"])
def test_units_chosen_after_a_step_are_what_the_model_computes_with(optimizer):
    model, optimizers, sparse = attached(Chooses(), optimizer)
    tables = [layer.table for layer in sparse.layers]
    for step in range(4):
        train_step(model, optimizers, step)
        assert_masked(sparse)
        for layer in sparse.layers:
            best = sw.keep_best(layer.memory["latent"].abs().view(1, -1), layer.keep)
            assert torch.equal(layer.table, best)
    assert [layer.memory["asked"] for layer in sparse.layers] == [3, 3]
    for layer, first in zip(sparse.layers, tables, strict=True):
        moves = [change for change in sparse.changes if change.layer == layer.name]
        assert all(change.grown == change.dropped > 0 for change in moves)
        # what moved in all is at least what is another now
        assert sum(change.grown for change in moves) >= int((layer.table & ~first).sum()) > 0


def test_penalties_are_not_scaled_with_the_loss():
    """A fused optimizer divides gradients by the GradScaler's scale itself."""
    model, optimizers, sparse = attached(Penalty(), "Adam-fused")
    train_step(model, optimizers, 0)
    plain = [layer.weight.grad.clone() for layer in sparse.layers]
    model, optimizers, sparse = attached(Penalty(), "Adam-fused")
    optimizers[0].grad_scale = torch.tensor(1024.0)
    (loss_of(model, 0) * 1024).backward()
    optimizers[0].step()
    for layer, gradient in zip(sparse.layers, plain, strict=True):
        torch.testing.assert_close(layer.weight.grad, gradient)


def test_a_step_that_a_scaler_skips_changes_nothing():
    model, optimizers, sparse = attached(Latent(), "Adam-fused")
    train_step(model, optimizers, 0)
    before = [p.detach().clone() for p in model.parameters()]
    latent = [layer.memory["latent"].clone() for layer in sparse.layers]
    optimizers[0].found_inf = torch.tensor(1.0)
    train_step(model, optimizers, 1)
    optimizers[0].found_inf = None
    for a, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(a, b)
    for layer, kept in zip(sparse.layers, latent, strict=True):
        assert torch.equal(layer.memory["latent"], kept)


@pytest.mark.parametrize("optimizer", ["Adam-fused", "Adam"])
def test_penalties_are_as_large_under_a_scaler(optimizer):
    """A fused optimizer is handed gradients of the scaled loss, beside which a pull would be 0."""
    models = []
    for scaled in (True, False):
        model, optimizers, _ = attached(Penalty(), optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for step in range(3):
            optimizers[0].zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            scaler.step(optimizers[0])
            scaler.update()
        models.append(model)
    # scaling by a power of two loses nothing
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)


def test_masks_that_move_after_a_step_are_told():
    model, optimizers, sparse = attached(Latent(), "SGD", sparsity=0.5)
    before = sparse.layers[0].table.clone()
    for step in range(3):
        train_step(model, optimizers, step)
    changes = [change for change in sparse.changes if change.layer == sparse.layers[0].name]
    assert changes
    assert not torch.equal(sparse.layers[0].table, before)
    assert all(change.dropped == change.grown > 0 for change in changes)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam-fused", "LBFGS"])
def test_every_step_is_over_once(optimizer):
    """However often a closure is evaluated; and one that a scaler skips is none."""
    model, optimizers, sparse = attached(Counting(), optimizer)
    for step in range(3):
        train_step(model, optimizers, step)
    counts = [int(layer.memory["steps"]) for layer in sparse.layers]
    assert counts == [3, 3]
    optimizers[0].found_inf = torch.tensor(1.0)
    if optimizer == "Adam-fused":
        train_step(model, optimizers, 3)
    assert [int(layer.memory["steps"]) for layer in sparse.layers] == [3, 3]


def test_draws_are_for_training_forwards_alone():
    model, optimizers, sparse = attached(Noisy())
    resting = model[0].weight.detach().clone()
    x = torch.randn(4, 32)
    model.eval()
    model(x)
    assert torch.equal(model[0].weight, resting)
    model.train()
    model(x)
    assert bool((model[0].weight == 5).all())
    model.eval()
    model(x)
    assert torch.equal(model[0].weight, resting)
    model.train()
    train_step(model, optimizers, 0)
    assert_masked(sparse)


def test_packed_layers_refuse_latent_weights():
    model = sw.pack(small_model())
    with pytest.raises(sw.StateError, match=r"layer '0' is packed, and method Latent needs"):
        sw.attach(model, torch.optim.SGD(model.parameters(), 0.1), method=Latent(), sparsity=0.5)
    assert not model[0].weight._backward_hooks


def test_budget_moves_between_layers_and_is_kept():
    model, optimizers, sparse = attached(ToFirst())
    whole = sparse.report().present
    for step in range(4):
        train_step(model, optimizers, step)
    assert [layer.keep for layer in sparse.layers] == [1536, 512]
    assert [layer.present for layer in sparse.layers] == [1536, 512]
    assert sparse.report().present == whole
    kept = through_a_file(sparse.state_dict())
    _, _, other = attached(ToFirst())
    other.load_state_dict(kept)
    assert [layer.keep for layer in other.layers] == [1536, 512]
    kept["layers"]["0"]["keep"] -= 1
    with pytest.raises(
        sw.StateError, match="keeps 2047 weights in all; this attachment keeps 2048"
    ):
        other.load_state_dict(kept)


def test_a_method_meets_the_model():
    _, _, sparse = attached(Knows())
    assert sparse.method.name == "Sequential of 2"
