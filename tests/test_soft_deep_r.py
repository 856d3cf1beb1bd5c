"""soft-DEEP R: the walk by hand, the share of dormant weights that it comes to, and the cut."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from latent import one_layer
from training import train_step
from variants import PATTERNS, STEPS, begun, check_resumed, check_run

import sparsewright as sw
from sparsewright.methods.soft_deep_r import DEPTH, SIGN, SoftDeepR


def put(layer, values, sign, depth):
    """A layer in a state of the walk: latent values, signs, and depths of what is dormant."""
    with torch.no_grad():
        layer.weight[0] = torch.tensor(values)
    layer.memory["latent"] = layer.weight.detach().clone()
    layer.memory[SIGN] = torch.tensor([sign], dtype=torch.int8)
    layer.memory[DEPTH] = torch.tensor([depth])


def test_a_walk_without_noise_by_hand():
    """lr 1, l1 0.25, floor 2. theta 0.5 of sign -1 (weight -0.5) under the pull 0.5: the step makes
    the weight -1, theta 1, less the drift 0.75. theta 0.5 of sign +1 under the same pull: 0, less
    the drift -0.25: dormant at depth 0.25 / 2. A dormant one at depth 0.25 (theta -0.5) has no
    gradient and no drift, and stays; so does one at the floor."""
    method = SoftDeepR(l1=0.25, noise=0.0, floor=2.0, end=50)
    step, layer = one_layer([0.1, 0.1, 0.1, 0.1], method, lr=1.0)
    put(layer, [-0.5, 0.5, 0.0, 0.0], [-1, 1, 1, -1], [0.0, 0.0, 0.25, 1.0])
    assert step([0.5, 0.5, 0.5, 0.5]) == [-0.75, 0.0, 0.0, 0.0]
    assert layer.memory[DEPTH].tolist() == [[0.0, 0.125, 0.25, 1.0]]
    assert layer.memory[SIGN].tolist() == [[-1, 1, 1, -1]], "signs are fixed"
    # Now -0.75 + 1 = 0.25: theta -0.25, less the drift -0.5. None of the others has a gradient.
    assert step([-1.0, -1.0, -1.0, -1.0]) == [0.0, 0.0, 0.0, 0.0]
    assert layer.memory[DEPTH].tolist() == [[0.25, 0.125, 0.25, 1.0]]


def test_noise_alone_wakes_and_no_theta_falls_below_the_floor():
    """Many weights at theta -0.5, noise 1 (lr 0.5, noise 2): those awake are the normal's share
    above 0.5, 30.9 %, with their signs; those below -2, 6.7 %, are put to -2."""
    many = 4000
    method = SoftDeepR(l1=0.25, noise=2.0, floor=2.0, end=50)
    step, layer = one_layer([0.1] * many, method, lr=0.5)
    signs = [1, -1] * (many // 2)
    put(layer, [0.0] * many, signs, [0.25] * many)
    values = torch.tensor(step([3.0] * many))  # dormant: the pull does not reach them
    awake = values != 0
    # 4 standard deviations of a share of 4000: 4 * 0.5 / sqrt(4000) = 0.032
    assert float(awake.float().mean()) == pytest.approx(0.3085, abs=0.032)
    assert bool((values[awake].sign() == torch.tensor(signs)[awake]).all())
    assert torch.equal(layer.memory[DEPTH][0] == 0, awake)
    assert float((layer.memory[DEPTH] == 1).float().mean()) == pytest.approx(0.0668, abs=0.032)
    # theta of those awake: a normal around -0.5, above 0
    mean = math.exp(-0.125) / math.sqrt(2 * math.pi) / 0.3085 - 0.5
    assert float(values.abs()[awake].mean()) == pytest.approx(mean, abs=0.07)


def test_the_rule_for_the_floor_leaves_the_budget_awake_without_a_loss():
    """The trap: a floor of one's own makes nearly all, or nearly none, awake. T / l1 = 0.09 is
    three times a step's noise, 0.03, so that steps are small beside what they explore."""
    many = 2000
    method = SoftDeepR(l1=0.005, temperature=0.00045, end=900)
    step, layer = one_layer([0.1] * many, method, sparsity=0.8, lr=1.0, steps=1000)
    shares = []
    for _ in range(600):
        step([0.0] * many)
        shares.append(float((layer.memory[DEPTH] == 0).float().mean()))
    # steps of a third of the scale are not small enough to meet it more nearly than by a fifth
    assert sum(shares[300:]) / 300 == pytest.approx(0.2, rel=0.2)


def test_the_floor_and_temperature_by_hand():
    assert SoftDeepR(noise=0.2).temperature_of(0.5) == pytest.approx(0.01)
    assert SoftDeepR(temperature=0.3).temperature_of(0.5) == 0.3
    # (0.9 / 0.1) * 0.3 / 0.5
    assert SoftDeepR(temperature=0.3, l1=0.5).floor_of(1.0, 0.1) == pytest.approx(5.4)
    # the public code's numbers for its first layer: lr 0.05, l1 and noise 1e-5, density 0.005
    assert SoftDeepR().floor_of(0.05, 0.005) == pytest.approx(199 * 2.5e-12 / 1e-5)
    assert SoftDeepR(floor=0.2).floor_of(0.05, 0.005) == 0.2


@pytest.mark.parametrize("optimizer", ["SGD", "Muon", "AdamW"])
def test_what_is_dormant_computes_nothing_and_no_optimizer_moves_it(optimizer):
    """Momentum, weight decay and mixing would move theta of weights that have no gradient."""
    method = SoftDeepR(l1=0.5, noise=0.0, floor=1.0, end=12)
    model, optimizers, sparse = begun(method, "unstructured", optimizer, "masked")
    for step in range(STEPS):
        before = {y.name: copy.deepcopy(y.memory[DEPTH]) for y in sparse.layers}
        train_step(model, optimizers, step)
        for layer in sparse.layers:
            depth = layer.memory[DEPTH]
            slept = before[layer.name] > 0
            if step < 12:
                assert torch.equal(depth[slept], before[layer.name][slept]), "without noise"
                assert not layer.weight[depth > 0].any()
                theta = layer.weight * layer.memory[SIGN]
                assert (theta[depth == 0] >= 0).all()
                assert layer.is_full, "no count is held before the cut"
            else:
                assert layer.present == layer.keep


def test_the_cut_keeps_the_largest_theta():
    method = SoftDeepR(l1=0.0, noise=0.0, floor=1.0, end=1)
    step, layer = one_layer([0.1] * 4, method, sparsity=0.25, lr=1.0)
    put(layer, [-3.0, 0.5, 0.0, 0.0], [-1, 1, 1, 1], [0.0, 0.0, 0.75, 0.25])
    step([0.0] * 4)
    assert step([1.0] * 4) == [-4.0, -0.5, 0.0, 0.0], "no gradient: it slept in the backward"
    assert layer.table.tolist() == [[True, True, False, True]], "the nearest to waking joins"
    assert step([1.0] * 4) == [-5.0, -1.5, 0.0, -1.0], "signs bind no more"


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_the_budget_is_met_from_the_cut_on(pattern, optimizer):
    check_run(SoftDeepR(l1=0.1, noise=0.1), pattern, "masked", optimizer, from_end=12)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "channel"])
def test_a_resumed_run_is_bit_identical(pattern):
    check_resumed(SoftDeepR(l1=0.1, noise=0.1), pattern, "masked")


def test_packed_weights_are_refused():
    with pytest.raises(sw.StateError, match="method SoftDeepR needs the values of absent weights"):
        begun(SoftDeepR(), "unstructured", "SGD", "packed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l1": -1.0}, "method SoftDeepR: l1 must be 0 or more; got -1.0"),
        ({"noise": math.inf}, "method SoftDeepR: noise must be finite; got inf"),
        ({"temperature": -1.0}, "temperature must be 0 or more; got -1.0"),
        ({"l1": 0.0}, "l1 must be above 0 where floor is left to the rule"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(sw.ConfigError, match=message):
        SoftDeepR(**options)
