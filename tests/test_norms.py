"""Which norm follows a layer: one answer for the method and the scores that ask."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.calibration import Calibration
from sparsewright.methods.slimming import Slimming
from sparsewright.norms import ALL, norms_after
from sparsewright.patterns import as_pattern
from sparsewright.scores import as_score
from sparsewright.selection import candidates


def layers_of(model):
    chance = torch.Generator().manual_seed(0)
    return candidates(
        model, pattern=as_pattern("channel"), generator=chance, score=as_score("l2")
    ).layers


def names_after(model, *args, **options):
    """Layer name -> name of its norm."""
    names = {module: name for name, module in model.named_modules()}
    found = norms_after(model, layers_of(model), *args, **options)
    return {layer: names[norm] for layer, norm in found.items()}


class Added(nn.Module):
    """A block of a transformer: its norm comes first, and its output is added to its input."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


def test_the_norm_of_the_next_block_is_not_the_last_layers():
    """It is given the sum, whose scale is not that of the layer alone."""
    model = nn.Sequential(Added(), Added())
    assert names_after(model, ALL) == {}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = sw.attach(model, optimizer, method=Slimming(), sparsity=0.5, steps=8)
    assert sparse.method.scales == {}


@pytest.mark.parametrize("between", [nn.ReLU(), nn.PReLU(), nn.Dropout(), nn.MaxPool1d(1)])
def test_method_and_score_look_past_what_keeps_outputs_apart(between):
    model = nn.Sequential(nn.Conv1d(2, 4, 1), between, nn.BatchNorm1d(4))
    x = torch.randn(3, 2, 5)
    assert names_after(model) == names_after(model, batch=x) == {"0": "2"}
    nn.init.constant_(model[2].weight, -3.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    kinds = {"pattern": "channel", "sparsity": 0.5, "allocate": "uniform_all"}
    sparse = sw.attach(model, optimizer, method=Slimming(without="error"), steps=8, **kinds)
    assert sparse.method.scales["0"] is model[2].weight
    for data in (None, [x]):
        score = as_score("slimming").measured(Calibration(model, layers_of(model), data, None))
        assert score.tables["0"].tolist() == [[3.0] * 4]


def test_a_module_that_moves_outputs_hides_the_norm():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ChannelShuffle(2), nn.BatchNorm2d(4))
    assert names_after(model) == names_after(model, batch=torch.randn(1, 2, 3, 3)) == {}
    flat = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Flatten(), nn.BatchNorm1d(20))
    assert names_after(flat) == {}


def test_a_sequential_within_another_counts_as_its_modules():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 4)), nn.Sequential(nn.BatchNorm1d(4)))
    assert names_after(model) == names_after(model, batch=torch.randn(3, 2)) == {"0.0": "1.0"}


def test_a_norm_of_another_size_or_kind_is_none():
    model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.LayerNorm([3, 6]))
    assert names_after(model) == {}
    assert names_after(model, ALL) == {"0": "1"}


def test_weights_inside_attention_have_no_norm_of_their_own():
    model = nn.Sequential(nn.MultiheadAttention(4, 1, kdim=2), nn.LayerNorm(4))
    assert "0.q_proj_weight" in {layer.name for layer in layers_of(model)}
    assert names_after(model, ALL) == {}
