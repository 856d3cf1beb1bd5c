"""Allocations that measure, by hand; and the count that ties must not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.allocations.owl import OWL, Ratios, outlier_ratio
from sparsewright.allocations.sensitivity import Curves, Sensitivity, sparsest
from sparsewright.calibration import Calibration
from sparsewright.scores import SCORES
from sparsewright.scores.wanda import products, squares_of
from sparsewright.selection import candidates


def calibration(model, data=None, loss=None, **options):
    found = candidates(
        model, pattern="unstructured", generator=torch.Generator().manual_seed(0), **options
    )
    return Calibration(model, found.layers, data, loss)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 8, 2, dilation=2, padding=1, padding_mode="circular"),
        nn.Conv1d(4, 2, 3, padding="same"),
        nn.Conv3d(4, 4, 2, groups=4),
        nn.Linear(4, 3),
    ],
)
def test_input_squares_are_those_of_what_each_weight_sees(conv):
    """The output is linear in each weight: what a weight of 1 alone lets through is its input."""
    places = {nn.Linear: (5, 4)}.get(type(conv), (4, *[5] * (conv.weight.dim() - 2)))
    x = torch.randn(3, *places)
    found = squares_of(calibration(nn.Sequential(conv), [x[:2], (x[2:], None)]), "OWL")["0"]
    found = products(torch.ones_like(conv.weight), found).square()
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    for place in [0, 3, conv.weight.numel() - 1]:
        with torch.no_grad():
            conv.weight.zero_().view(-1)[place] = 1.0
            expected = conv(x).square().sum()
        assert float(found.reshape(-1)[place]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "measured", [Ratios({"a": 1.0, "b": 2.0}, 0.08), Curves({"a": ((0, 0), (1, 1)), "b": ()})]
)
def test_what_was_not_measured_has_no_share(measured):
    with pytest.raises(sw.BudgetError, match=r"layer 'c': .* not measure it; it measured: a, b$"):
        measured(dict.fromkeys("abc", (4, 4)), 0.5)


def test_owl_by_hand():
    """D of 0, 50 and 100 over a window of 0.16 around a mean density of 0.4."""
    ratios = Ratios({"a": 0.0, "b": 50.0, "c": 100.0}, window=0.08)
    found = ratios(dict.fromkeys("abc", (10, 10)), 0.6, None)
    assert found == pytest.approx({"a": 0.68, "b": 0.6, "c": 0.52})
    # equal ones have nothing to divide by
    assert Ratios({"a": 7.0, "b": 7.0}, 0.08)({"a": (4, 4), "b": (2, 2)}, 0.7) == pytest.approx(
        {"a": 0.7, "b": 0.7}
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.03, 0.5, 0.97, 0.999])
def test_owl_meets_the_mean_of_layers_of_any_size(sparsity):
    shapes = {"a": (10, 10), "b": (100, 10), "c": (5, 5)}
    found = Ratios({"a": 1.0, "b": 9.0, "c": 4.0}, 0.08)(shapes, sparsity)
    sizes = {"a": 100, "b": 1000, "c": 25}
    assert all(0 <= s <= 1 for s in found.values())
    absent = sum(found[name] * size for name, size in sizes.items())
    assert absent == pytest.approx(sparsity * 1125, abs=1e-6)
    assert found["b"] <= found["c"] <= found["a"]


def test_owl_counts_outliers_of_weight_times_norm():
    model = nn.Sequential(nn.Linear(8, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.fill_(1.0)
    x = torch.ones(2, 8)
    x[:, 0] = 100.0  # A: 141 and seven of 1.4: mean 18.9; 5 times that is 94
    bound = OWL().measured(calibration(model, [x]), SCORES["magnitude"])
    assert bound.found == {"0": 12.5, "1": 0.0}
    assert outlier_ratio([torch.tensor([1.0, 2.0, 9.0])], 2.0) == pytest.approx(100 / 3)


def test_an_outlier_exceeds_its_multiple_of_the_mean():
    assert outlier_ratio([torch.tensor([0.0, 2.0])], 2.0) == 0.0, "2 is twice the mean, not more"
    # the mean is that of all layers together: 2, of which 5 is more than twice
    assert outlier_ratio([torch.tensor([1.0, 1.0]), torch.tensor([5.0, 1.0])], 2.0) == 25.0


def test_owl_pools_the_layers_of_a_block():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(4, 4), "v": nn.Linear(4, 8)})] * 1)
    model.layers.append(nn.ModuleDict({"q": nn.Linear(4, 4), "v": nn.Linear(4, 8)}))
    model.forward = lambda x: [block[key](x) for block in model.layers for key in ("q", "v")]
    nn.init.eye_(model.layers[1]["q"].weight)
    seen = calibration(model, [torch.randn(16, 4)])
    pooled = OWL(outlier=2.0).measured(seen, SCORES["magnitude"]).found
    alone = OWL(outlier=2.0, by="layer").measured(seen, SCORES["magnitude"]).found
    assert pooled["layers.1.q"] == pooled["layers.1.v"] != pooled["layers.0.q"]
    assert alone["layers.1.q"] == 25.0  # the diagonal of four by four


def test_owl_names_the_layer_whose_inputs_it_cannot_see():
    attention = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16))
    options = {"allocate": "owl", "data": [torch.randn(3, 2, 8)]}
    with pytest.raises(sw.ConfigError, match=r"layer '0\.self_attn\.in_proj.*MultiheadAttention"):
        sw.prune(attention, 0.5, **options)
    assert sw.prune(attention, 0.5, skip=["*self_attn*"], **options).sparsity == 0.5
    with pytest.raises(sw.ConfigError, match="give data"):
        sw.prune(nn.Linear(4, 4), 0.5, allocate="owl")


def test_sensitivity_is_the_largest_sparsity_below_the_rise():
    curve = ((0.0, 0.0), (0.5, 0.0), (0.75, 2.0), (1.0, 2.0))
    assert [sparsest(curve, rise) for rise in (-1, 0, 1, 2)] == [0.0, 0.5, 0.625, 1.0]


def test_sensitivity_shares_by_equal_rise():
    # 300 weights of a slope of 1 and 100 of 4: at a rise t, 300 t + 100 t / 4 = 200
    curves = Curves({"a": ((0, 0), (1, 1)), "b": ((0, 0), (1, 4))})
    found = curves({"a": (30, 10), "b": (10, 10)}, 0.5)
    assert found == pytest.approx({"a": 200 / 325, "b": 50 / 325})
    # where nothing hurts all go as far as it takes
    level = Curves({"a": ((0, 0), (1, 0)), "b": ((0, 0), (1, 0))})
    assert level({"a": (4, 4), "b": (4, 4)}, 0.25) == pytest.approx({"a": 0.25, "b": 0.25})


def two_layers():
    """Two layers of which the loss feels the first alone: the second acts on zeros."""
    torch.manual_seed(0)
    model = nn.Module()
    model.felt, model.idle = nn.Linear(8, 8), nn.Linear(8, 8)
    model.forward = lambda x: model.felt(x) + 1e-3 * model.idle(x)
    return model


def test_sensitivity_prunes_what_the_loss_does_not_feel():
    model = two_layers()
    x = torch.randn(32, 8)
    data = [(x, model(x).argmax(dim=1))]
    values = [p.detach().clone() for p in model.parameters()]
    bound = Sensitivity(levels=(0.5, 0.9)).measured(calibration(model, data), SCORES["magnitude"])
    assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))
    by_hand = model.felt.weight.detach().clone()
    cut = by_hand.abs().flatten().sort().values[31]
    by_hand[by_hand.abs() <= cut] = 0.0
    start = F.cross_entropy(model(x), data[0][1])
    rise = F.cross_entropy(
        F.linear(x, by_hand, model.felt.bias) + 1e-3 * model.idle(x), data[0][1]
    ) - start  # fmt: skip
    assert bound.found["felt"][1] == (0.5, pytest.approx(max(0.0, float(rise.detach())), abs=1e-6))
    report = sw.prune(model, 0.5, allocate="sensitivity", data=data)
    felt, idle = report.rows
    assert report.present == 64
    assert felt.sparsity < 0.1 < 0.9 < idle.sparsity


def test_sensitivity_restores_values_after_an_error():
    model, calls = two_layers(), []

    def loss(model):
        calls.append(1)
        return model(torch.ones(1, 8)).sum() * (torch.nan if len(calls) > 3 else 1.0)

    values = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(sw.StateError, match=r"layer 'felt': the loss at sparsity 0\.75 is not fin"):
        sw.prune(model, 0.5, allocate="sensitivity", loss=loss)
    assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["owl", "sensitivity"])
def test_an_allocation_that_has_not_measured_says_how(name):
    model = nn.Linear(4, 4)
    with pytest.raises(sw.StateError, match="measures the model before it shares out"):
        sw.attach(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            method="static",
            sparsity=0.5,
            allocate=name,
        )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: OWL(window=0.5),
        lambda: OWL(outlier=0),
        lambda: OWL(by="model"),
        lambda: Sensitivity(levels=(0.5, 0.4)),
        lambda: Sensitivity(levels=(0.5, 1.0)),
    ],
)
def test_options_are_checked(wrong):
    with pytest.raises(sw.ConfigError, match=r"^allocation (OWL|Sensitivity): \w+ must be"):
        wrong()


@pytest.mark.parametrize("allocate", ["lamp", "global"])
def test_ties_do_not_change_the_count(allocate):
    """Where many weights tie at the threshold the first of them stay, and not all."""
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    for layer in model:
        nn.init.constant_(layer.weight, 0.5)
    report = sw.prune(model, 0.77, allocate=allocate)
    assert report.present == 46
    if allocate == "lamp":
        assert [row.present for row in report.rows] == [23, 23]
