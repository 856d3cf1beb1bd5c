"""Traps that every method meets: layers with a sparsity of their own, frozen or unused layers, a
budget of all weights, and weights of other precisions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training import assert_masked

import sparsewright as sw
from sparsewright.methods import METHODS
from sparsewright.methods._units import unit_norms
from sparsewright.methods.acdc import ACDC
from sparsewright.methods.admm import projection
from sparsewright.methods.deep_r import DeepR
from sparsewright.methods.dsd import DSD
from sparsewright.methods.dsr import DSR
from sparsewright.methods.gradual import Gradual
from sparsewright.methods.granet import GraNet
from sparsewright.methods.iht import IHT
from sparsewright.methods.set import SET
from sparsewright.methods.slimming import Slimming
from sparsewright.methods.snfs import SNFS
from sparsewright.methods.sr_ste import SRSTE
from sparsewright.methods.variational_dropout import VariationalDropout

STEPS = 12
# Settings under which each method moves within a few steps; a method added later runs as it is.
QUICK = {
    "gradual": {"every": 2, "end": 6},
    "rigl": {"every": 2, "end": 8, "fraction": 0.5},
    "set": {"every": 2, "fraction": 0.5},
    "gse": {"every": 2, "end": 8, "fraction": 0.5},
    "srigl": {"every": 2, "end": 8, "fraction": 0.5},
    "chts": {"every": 2, "end": 8},
    "chtss": {"every": 2, "end": 8},
    "dsr": {"threshold": 0.05},
}
MOVES_BUDGET = [ACDC(), DSR(threshold=0.05), SNFS(), Slimming(scope="global")]


def net(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Linear(32, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 8)).to(dtype)


def trained(method, model=None, dtype=torch.float32, **settings):
    """A model and its Sparsifier after STEPS of training."""
    model = net(dtype) if model is None else model
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moving, 1e-2, momentum=0.9)
    settings = {"sparsity": 0.75, "steps": STEPS} | settings
    sparse = sw.attach(model, optimizer, method=method, **settings)
    for step in range(STEPS):
        x = torch.randn(16, 32, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.zero_grad()
        model(x).float().square().mean().backward()
        optimizer.step()
    assert_masked(sparse)
    return model, sparse


def quick(name):
    return METHODS[name](**QUICK.get(name, {}))


# a sparsity of one's own


@pytest.mark.parametrize("method", MOVES_BUDGET, ids=lambda method: type(method).__name__)
def test_a_layer_keeps_a_sparsity_of_its_own_whatever_moves(method):
    _, sparse = trained(method, overrides={"3*": {"sparsity": 0.5}})
    first, own, last = sparse.layers
    assert own.is_own
    assert own.present == own.numel // 2
    assert first.present + last.present == (first.numel + last.numel) // 4


def test_a_layer_keeps_its_mask_whatever_moves():
    mask = torch.zeros(32, 48, dtype=torch.bool)
    mask[:, ::3] = True
    _, sparse = trained(DSR(threshold=0.05), masks={"3": mask})
    assert sparse.layers[1].present == int(mask.sum())


def test_a_state_of_another_sparsity_of_its_own_is_refused():
    kinds = {"allocate": "uniform_all", "sparsity": 0.5}
    own = [{"0": {"sparsity": a}, "3": {"sparsity": b}} for a, b in ((0.5, 0.25), (0.25, 0.5))]
    states = [trained(SNFS(), overrides=one, **kinds)[1] for one in own]
    with pytest.raises(sw.StateError, match="layer '0': the sparse state has keep 768"):
        states[1].load_state_dict(states[0].state_dict())


# frozen and unused layers


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.filterwarnings("ignore:frozen layers lose weights")
def test_frozen_weights_meet_the_budget_and_are_not_worn_away(name):
    model = net()
    model[3].weight.requires_grad_(False)
    model, sparse = trained(quick(name), model)
    layer = sparse.layers[1]
    assert layer.present == layer.keep * layer.groups
    assert int(model[3].weight.count_nonzero()) == layer.present, "none is grown, to stay 0"


@pytest.mark.parametrize("pack", [False, True])
def test_unused_layers_go_down_the_ramp_of_granet(pack):
    model = nn.ModuleDict({"used": net(), "spare": nn.Linear(32, 32)})
    model = sw.pack(model) if pack else model
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    settings = {"sparsity": 0.75, "allocate": "uniform_all", "steps": STEPS}
    sparse = sw.attach(model, optimizer, method=GraNet(every=1), **settings)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model["used"](torch.randn(16, 32)).square().mean().backward()
        optimizer.step()
    assert [layer.present for layer in sparse.layers] == [384, 384, 64, 256]


def test_a_ramp_that_cannot_be_judged_at_its_end_says_so():
    model = nn.ModuleDict({"used": net(), "spare": nn.Linear(32, 32)})
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    method = Gradual(every=1, end=3, score="gradient")
    sw.attach(model, optimizer, method=method, sparsity=0.75, steps=STEPS)
    for _ in range(3):
        optimizer.zero_grad()
        model["used"](torch.randn(16, 32)).square().mean().backward()
        optimizer.step()
    with pytest.raises(sw.StateError, match="layer 'spare': the score needs the weight's gradient"):
        optimizer.step()


# a budget of all weights


@pytest.mark.parametrize("name", METHODS.names())
def test_nothing_moves_where_all_may_stay(name):
    _, sparse = trained(quick(name), sparsity=0.0)
    assert all(layer.is_full for layer in sparse.layers)
    if name != "deep_r":  # a walk: what crosses zero starts anew with a sign that is drawn
        assert sparse.changes == []


def test_mest_resets_no_weight_of_a_dense_layer():
    model, _ = trained(quick("mest"), sparsity=0.0)
    assert all((model[i].weight != 0).all() for i in (0, 3, 5))


# other precisions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", METHODS.names())
def test_weights_of_other_precisions_train(name, dtype):
    model, sparse = trained(quick(name), dtype=dtype)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(layer.present == layer.keep * layer.groups for layer in sparse.layers)


def halves():
    """A Linear of half-precision weights whose squares vanish in half precision, and its layer."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False)).half()
    model[0].weight.data[:] = torch.tensor([[1e-4, 2e-4, -4e-4, 3e-4]])
    return model


def test_the_longest_units_are_found_where_squares_vanish():
    model = halves()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sparse = sw.attach(model, optimizer, method=IHT(), sparsity=0.5, init=None)
    (layer,) = sparse.layers
    model(torch.zeros(1, 4, dtype=torch.half)).sum().backward()
    optimizer.step()
    assert layer.present_units.tolist() == [2, 3]
    assert projection(layer, layer.memory["latent"]).count_nonzero() == 2
    blocks = sw.attach(
        pair := halves(),
        torch.optim.SGD(pair.parameters(), 0.0),
        method="group_lasso",
        pattern="block:1x2",
        sparsity=0.5,
        steps=STEPS,
    ).layers[0]
    # 2^-11 of half precision in each of two weights
    assert unit_norms(blocks)[0, ::2].tolist() == pytest.approx([5**0.5 * 1e-4, 5e-4], rel=1e-3)


def test_the_walk_of_deep_r_is_as_fine_as_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4, bias=False, dtype=torch.double))
    before = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sparse = sw.attach(model, optimizer, method=DeepR(l1=0.0), sparsity=0.5)
    model(torch.randn(2, 8, dtype=torch.double)).sum().backward()
    optimizer.step()
    mask = sparse.layers[0].mask
    assert torch.equal(model[0].weight[mask], before[mask])


def test_variational_dropout_of_halves_near_zero_stays_finite():
    model = halves()
    model[0].weight.data[0, 0] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sw.attach(model, optimizer, method=VariationalDropout(), sparsity=0.5, steps=STEPS)
    model(torch.ones(1, 4, dtype=torch.half)).sum().backward()
    optimizer.step()
    assert torch.isfinite(model[0].weight).all()


# what would be noticed only at the end of a run


def test_set_refuses_at_once_what_its_last_update_could_not_do():
    model, method = net(), SET(every=2, last="remove")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(sw.ConfigError, match="unequal; use last='regrow'"):
        sw.attach(model, optimizer, method=method, sparsity=0.5, pattern="fan_in", steps=STEPS)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ACDC(turns=(2, 4, 20)), r"method ACDC: the last turn .* before step 12; got .*20"),
        (DSD(turns=(2, 4, 12)), "method DSD: the last turn must fall within the run"),
    ],
)
def test_turns_after_the_run_are_refused(method, message):
    with pytest.raises(sw.ConfigError, match=message):
        method.bind(STEPS)


def test_dsd_has_a_turn_for_each_part():
    with pytest.raises(sw.ConfigError, match="method DSD: turns must be 3 steps"):
        DSD(turns=())


def test_sr_ste_masks_the_first_step_as_the_paper_does():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = sw.attach(model, optimizer, method=SRSTE(), pattern="2:4")
    assert [layer.sparsity for layer in sparse.layers] == [0.5] * 3
