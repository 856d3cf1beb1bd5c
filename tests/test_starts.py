"""Starts by a network's shape: exact counts in every pattern, and the degrees that their names
promise."""

from __future__ import annotations

import pytest
import torch
from test_contract import EXAMPLES
from torch import nn

import sparsewright as sw
from sparsewright.patterns import as_pattern
from sparsewright.scores.pca import PCAStart
from sparsewright.scores.receptive_field import ReceptiveField
from sparsewright.scores.scale_free import ScaleFree
from sparsewright.scores.small_world import SmallWorld

STARTS = {
    "small_world": "small_world",
    "ring": SmallWorld(rewired=0.0),
    "rewired": SmallWorld(rewired=1.0),
    "scale_free": "scale_free",
    "receptive_field": "receptive_field",
    "near": ReceptiveField(spread=0.01),
    "pca": PCAStart({"0": torch.randn(50, 32, generator=torch.Generator().manual_seed(0))}),
}
NAMED = [start for start in STARTS.values() if isinstance(start, str)]


def masks(start, pattern="unstructured", sparsity=0.75, sizes=(32, 64, 32), seed=0, pack=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(*sizes[1:]))
    model = sw.pack(model) if pack else model
    fixed = as_pattern(pattern).sparsity is not None
    sparse = sw.attach(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        method=sw.Static(initial=start),
        sparsity=None if fixed else sparsity,
        pattern=pattern,
        allocate="uniform_all",
        seed=seed,
    )
    return sparse.layers


@pytest.mark.parametrize("pattern", EXAMPLES)
@pytest.mark.parametrize("start", STARTS)
def test_counts_are_those_of_the_budget(start, pattern):
    for layer, again in zip(
        masks(STARTS[start], pattern), masks(STARTS[start], pattern), strict=True
    ):
        assert (layer.table.sum(dim=1) == layer.keep).all()
        assert torch.equal(layer.table, again.table), "the generator decides alone"


@pytest.mark.parametrize("start", sorted(set(STARTS) - {"ring"}))
def test_other_seeds_begin_otherwise(start):
    pairs = zip(masks(STARTS[start]), masks(STARTS[start], seed=1), strict=True)
    assert any(not torch.equal(a.table, b.table) for a, b in pairs)


@pytest.mark.parametrize("start", STARTS)
def test_both_storages_begin_alike(start):
    for a, b in zip(masks(STARTS[start]), masks(STARTS[start], pack=True), strict=True):
        assert torch.equal(a.present_units, b.present_units)


def degrees(start, **options):
    """Of the inputs and outputs of a 300 to 200 layer with 12000 links: 40 and 60 at the mean."""
    mask = masks(start, sparsity=0.8, sizes=(300, 200, 10), **options)[0].mask
    assert int(mask.sum()) == 12000
    return mask.sum(dim=0).double(), mask.sum(dim=1).double()


def spread(counts):
    """Variance over mean: 1 - density = 0.8 of binomial counts."""
    return float(counts.var() / counts.mean())


def test_random_degrees_are_binomial():
    # The ratio of n counts has a standard deviation of 0.8 * sqrt(2 / n), 0.08 at most: 5 of them.
    inputs, outputs = degrees("random")
    assert abs(spread(inputs) - 0.8) < 0.4
    assert abs(spread(outputs) - 0.8) < 0.4


def test_a_ring_is_regular():
    inputs, outputs = degrees(SmallWorld(rewired=0.0))
    assert set(outputs.tolist()) == {60}
    assert inputs.max() - inputs.min() <= 2


def test_small_worlds_are_narrow():
    """A tenth of the links leave and come by chance: twice a tenth of a random network's spread."""
    inputs, outputs = degrees("small_world")
    assert set(outputs.tolist()) == {60}
    assert 0 < spread(inputs) < 0.4


def test_small_worlds_lie_near_and_far():
    """Of 60 links r move to any of the 240 inputs beyond them or of those that were left."""
    ring = masks(SmallWorld(rewired=0.0), sparsity=0.8, sizes=(300, 200, 10))[0].mask
    for rewired in (0.1, 0.5):
        mask = masks(SmallWorld(rewired=rewired), sparsity=0.8, sizes=(300, 200, 10))[0].mask
        share, left = float((mask & ring).sum() / ring.sum()), 60 * rewired
        # 5 standard deviations of 12000 draws: 5 * 0.5 / sqrt(12000) = 0.023
        assert abs(share - (1 - rewired + rewired * left / (240 + left))) < 0.023


def test_scale_free_degrees_have_a_heavy_tail():
    """Far wider than binomial on both sides, where the largest is 5 standard deviations above."""
    for counts in degrees("scale_free"):
        assert spread(counts) > 8
        assert counts.max() > counts.mean() + 5 * (0.8 * counts.mean()) ** 0.5
        assert counts.median() < counts.mean(), "most have few"


def test_scale_free_networks_may_be_dense():
    for sparsity in (0.1, 0.5, 0.9):
        layer = masks("scale_free", sparsity=sparsity)[0]
        assert layer.present == layer.keep


def test_receptive_fields_are_as_near_as_asked():
    def distance(spread):
        layer = masks(ReceptiveField(spread=spread), sizes=(64, 64, 64), sparsity=0.9)[0]
        out, inputs = layer.mask.nonzero().T
        apart = (out - inputs).abs()
        return float(torch.minimum(apart, 64 - apart).double().mean())

    near, middle, far = (distance(spread) for spread in (0.01, 0.5, 1.0))
    assert near < 2, "6 or 7 links each: 0, 1, 1, 2, 2, 3 and 3 apart"
    assert near < middle < far
    # uniform on a ring of 64: 16; the mean of 410 has a standard deviation of 9.2 / 20
    assert abs(far - 16) < 2.5


def test_inputs_of_large_components_begin_with_more_links():
    generator = torch.Generator().manual_seed(0)
    scale = torch.cat([torch.full((8,), 5.0), torch.full((24,), 1.0)])
    data = torch.randn(400, 32, generator=generator) * scale
    start = PCAStart({"0": data})
    assert start.weights("0")[:8].min() > start.weights("0")[8:].max()
    first, second = masks(start)
    counts = first.mask.sum(dim=0)
    assert counts[:8].min() > counts[8:].max()
    assert first.mask.sum(dim=1).unique().tolist() == [8]
    assert spread(second.mask.sum(dim=0).double()) < 2, "not named: at random"


def test_weights_of_inputs_by_hand():
    """Along (3, 4) / 5 with variance 50 and nothing else: 50 * 9 / 25 and 50 * 16 / 25."""
    data = torch.tensor([[3.0, 4.0], [-3.0, -4.0]], dtype=torch.float64)
    found = PCAStart({"a": data}).weights("a")
    assert torch.allclose(found, torch.tensor([18.0, 32.0], dtype=torch.float64))


def test_convolutions_start_too():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    data = {"0": torch.randn(10, 4, 6, 6)}
    for start in [*NAMED, PCAStart(data)]:
        sparse = sw.attach(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            method=sw.Static(initial=start),
            sparsity=0.75,
        )
        assert [layer.present for layer in sparse.layers] == [layer.keep for layer in sparse.layers]
        sparse.detach()


@pytest.mark.parametrize("start", NAMED)
def test_layers_cannot_be_ranked_by_a_start(start):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with pytest.raises(sw.ConfigError, match="must know how many weights a layer keeps"):
        sw.prune(model, 0.5, score=start, allocate="global")
    assert sw.prune(model, 0.5, score=start, allocate="erk").sparsity == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmallWorld(rewired=2.0), r"rewired must be in \[0, 1\]; got 2.0"),
        (lambda: ReceptiveField(spread=0.0), r"spread must be in \(0, 1\]; got 0.0"),
        (lambda: PCAStart({"a": torch.ones(3)}), r"\(samples, inputs\) with 2 samples or more"),
        (lambda: PCAStart({}, explained=0.0), r"explained must be in \(0, 1\]; got 0.0"),
        (lambda: masks(PCAStart({"0": torch.randn(9, 5)})), "data of 5 inputs; the layer has 32"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(sw.ConfigError, match=message):
        make()


def test_networks_are_undone_by_no_other_method():
    """RigL and SET begin as Static does."""
    want = masks(ScaleFree())
    for method in (sw.RigL(initial="scale_free", end=10), sw.SET(initial="scale_free")):
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        options = {"sparsity": 0.75, "allocate": "uniform_all"}
        sparse = sw.attach(model, optimizer, method=method, **options)
        for a, b in zip(sparse.layers, want, strict=True):
            assert torch.equal(a.table, b.table)
