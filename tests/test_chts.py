"""CHTs: link scores by hand and against paths walked one by one; draws; the sparsity that rises."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.core import Layer
from sparsewright.methods._topology import by_nodes, by_paths
from sparsewright.methods.chts import CHTs, CHTss, drawn, sigmoid_ramp
from sparsewright.patterns import as_pattern
from sparsewright.storage import MaskedStorage

# Outputs a, b, c (rows) and inputs 0 to 3. The pair (a, 3) is joined by a-0-b-3 and a-1-b-3 and
# a-1-c-3. Links of inputs 0: a, b; 1: a, b, c; of outputs b: 0, 1, 3; c: 1, 2, 3.
LINKS = [[1, 1, 0, 0], [1, 1, 0, 1], [0, 1, 1, 1]]


def test_scores_of_a_small_network_by_hand():
    """Internal and external links of the nodes of (a, 3)'s paths, the links to a and 3 left out:

    0: internal to b, none outside. 1: to b and c, none outside. b: to 0 and 1, none outside.
    c: to 1; to 2 outside. CH2-L3n = 2/1 + 3/1 + 3/1 + 2/2 = 9. Paths: a-0-b-3 and a-1-b-3 have
    nothing outside, 1 each; a-1-c-3 has 1/sqrt(1 * 2). CH3-L3p = 2 + 0.7071.
    """
    links = torch.tensor(LINKS, dtype=torch.float32)
    assert float(by_nodes(links)[0, 3]) == 9.0
    assert float(by_paths(links)[0, 3]) == pytest.approx(2 + math.sqrt(0.5), abs=1e-6)


def walked(links, u, v):
    """Both scores of a missing link, path by path."""
    outputs, inputs = links.shape
    paths = [
        (z1, z2)
        for z1, z2 in itertools.product(range(outputs), range(inputs))
        if links[u, z2] and links[z1, z2] and links[z1, v]
    ]
    rows, columns = {z1 for z1, _ in paths}, {z2 for _, z2 in paths}

    def split(neighbours, community, seed):
        inside = len(neighbours & community)
        return inside, len(neighbours - community - {seed})

    def of_row(z1):
        return split(set(links[z1].nonzero().flatten().tolist()), columns, v)

    def of_column(z2):
        return split(set(links[:, z2].nonzero().flatten().tolist()), rows, u)

    nodes = [of_row(z) for z in rows] + [of_column(z) for z in columns]
    by_node = sum((1 + i) / (1 + e) for i, e in nodes)
    by_path = sum(1 / math.sqrt((1 + of_row(z1)[1]) * (1 + of_column(z2)[1])) for z1, z2 in paths)
    return by_node, by_path


@pytest.mark.parametrize("density", [0.1, 0.3, 0.6])
def test_scores_are_those_of_the_paths(density):
    generator = torch.Generator().manual_seed(0)
    links = (torch.rand(9, 12, generator=generator) < density).float()
    nodes, paths = by_nodes(links), by_paths(links)
    for u, v in (links == 0).nonzero().tolist():
        by_node, by_path = walked(links, u, v)
        # float32 sums of a few dozen terms
        assert float(nodes[u, v]) == pytest.approx(by_node, rel=1e-5)
        assert float(paths[u, v]) == pytest.approx(by_path, rel=1e-5)


def layer(weight, seed=0, keep=None, pattern="unstructured"):
    parameter = nn.Parameter(torch.as_tensor(weight, dtype=torch.float32))
    pattern = as_pattern(pattern)
    table = pattern.fold((parameter.detach() != 0).float()) > 0
    keep = int(table.sum(dim=1).max()) if keep is None else keep
    storage = MaskedStorage(parameter, pattern, table)
    return Layer("fc", storage, pattern, keep, torch.Generator().manual_seed(seed))


def test_importance_by_hand():
    """Row sums 4 and 2, column sums 1, 5: relative importance 1/4 + 1/1, 3/4 + 3/5, 2/2 + 2/5."""
    small = layer([[1.0, -3.0], [0.0, 2.0]])
    found = CHTs(magnitude=0.0)._importance(small)
    assert torch.allclose(found, torch.tensor([[1.25, 1.35, 0.0, 1.4]]))
    assert torch.allclose(CHTs(magnitude=1.0)._importance(small), torch.tensor([[2.0, 6, 0, 4]]))


def test_draws_are_in_proportion():
    """P(first of one) = s^p / sum s^p, with p = d / (1 - d)."""
    scores = torch.tensor([1.0, 2.0, 3.0, 0.0]).repeat(20000, 1)
    for softness, weights in ((0.5, (1, 2, 3)), (0.75, (1, 8, 27)), (0.0, (1, 1, 1))):
        first = drawn(scores, softness, layer([[1.0]])).argmax(dim=1)
        part = torch.bincount(first, minlength=4) / len(first)
        wanted = torch.tensor([*weights, 0]) / sum(weights)
        # 5 standard deviations of 20000 draws: 5 * 0.5 / sqrt(20000) = 0.018
        assert torch.allclose(part, wanted, atol=0.018)
    assert (drawn(scores, 1.0, layer([[1.0]])).argmax(dim=1) == 2).all()
    last = drawn(scores, 0.5, layer([[1.0]])).argmin(dim=1)
    assert (last == 3).all(), "what scores 0 comes last"


def test_an_update_without_softness_is_the_best_by_hand():
    """Of 7 links 1 goes: the least |w|. What comes is the pair of the highest score, (a, 3) again:
    it was 9 with all links there, and nothing else that is missing has as much.
    """
    weight = torch.tensor(LINKS) * torch.tensor(
        [[3.0, 4.0, 1.0, 1.0], [5.0, 6.0, 1.0, 7.0], [1.0, 8.0, 0.5, 9.0]]
    )
    method = CHTs(
        fraction=0.15, magnitude=1.0, softness=(1.0, 1.0), grow_softness=1.0, every=1, end=10
    )
    update = method.update(layer(weight), 1)
    gone = torch.tensor(LINKS).bool()
    gone[2, 2] = False
    missing = by_nodes(gone.float()).masked_fill(gone, -1)
    assert int(missing.argmax()) == 3
    assert update.units.nonzero()[:, 1].tolist() == [0, 1, 3, 4, 5, 7, 9, 11]
    assert update.fresh.nonzero()[:, 1].tolist() == [3]


def trained(method, pattern="unstructured", steps=40, kind=nn.Linear):
    torch.manual_seed(0)
    if kind is nn.Linear:
        model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
        x = torch.randn(32, 16)
    else:
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        x = torch.randn(4, 4, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    settings = {"sparsity": 0.75, "pattern": pattern, "allocate": "uniform_all", "steps": steps}
    sparse = sw.attach(model, optimizer, method=method, **settings)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        seen.append([layer.present for layer in sparse.layers])
    return sparse, seen


@pytest.mark.parametrize("links", ["CH2-L3n", "CH3-L3p"])
@pytest.mark.parametrize("pattern", ["unstructured", "fan_in", "block:4x4"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_counts_hold_and_masks_move(links, pattern, kind):
    sparse, seen = trained(CHTs(every=5, links=links), pattern, kind=kind)
    assert all(counts == seen[0] for counts in seen)
    assert any(change.grown for change in sparse.changes)
    assert abs(sparse.report().sparsity - 0.75) < 0.01


def test_sparsity_rises_along_the_sigmoid_and_is_met():
    sparse, seen = trained(CHTss(every=2))
    counts = [sum(now) for now in seen]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 16 * 24 // 2 + 24 * 8 // 2
    assert counts[30] == counts[-1] == sum(layer.keep for layer in sparse.layers)
    assert counts[29] > counts[30]
    middle = sum(sigmoid_ramp(14 / 30) * (k - f) + f for k, f in ((96, 192), (48, 96)))
    assert abs(counts[14] - middle) <= 2, "rounded up in two layers"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"links": "CN"}, "no value of CHTs's links is called 'CN'"),
        ({"softness": (0.5, 1.5)}, r"softness\[1\] must be in \[0, 1\]; got 1.5"),
        ({"magnitude": -1.0}, r"magnitude must be in \[0, 1\]; got -1.0"),
        ({"initial_sparsity": 1.0}, r"initial_sparsity must be in \[0, 1\); got 1.0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(sw.SparsewrightError, match=message):
        CHTs(**options)
