"""Core: which units stay, which weights are found, what a layer counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsewright.core import Layer, Packed
from sparsewright.keeping import keep_best
from sparsewright.patterns import as_pattern
from sparsewright.storage import MaskedStorage
from sparsewright.weights import find_weights


def test_keep_best_lets_the_first_of_equals_win():
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0, 5.0]])
    expected = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
    assert torch.equal(keep_best(scores, 2), expected)


def test_keep_best_takes_none_and_all():
    scores = torch.tensor([[1.0, -torch.inf, 3.0]])
    assert not keep_best(scores, 0).any()
    assert keep_best(scores, 3).all()


def test_keep_best_allows_infinities():
    low, high = -torch.inf, torch.inf
    scores = torch.tensor([[low, 1.0, low, high], [low, low, low, low]])
    expected = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]]).bool()
    assert torch.equal(keep_best(scores, 3), expected)


def test_keep_best_refuses_nan_and_impossible_counts():
    with pytest.raises(ValueError, match="NaN"):
        keep_best(torch.tensor([[1.0, torch.nan]]), 1)
    for keep in (-1, 3):
        with pytest.raises(ValueError, match=rf"keep must be in \[0, 2\].*got {keep}"):
            keep_best(torch.ones(1, 2), keep)


def test_keep_best_of_no_groups_is_empty():
    assert keep_best(torch.ones(0, 4), 2).shape == (0, 4)


@given(st.data())
def test_keep_best_is_a_stable_sort(data):
    groups, units = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    keep = data.draw(st.integers(0, units))
    values = st.lists(st.integers(-3, 3), min_size=units, max_size=units)
    rows = data.draw(st.lists(values, min_size=groups, max_size=groups))
    table = keep_best(torch.tensor(rows).float(), keep)
    for row, kept in zip(rows, table.tolist(), strict=True):
        best = sorted(range(units), key=lambda i: -row[i])[:keep]  # sorted() is stable
        assert [i for i in range(units) if kept[i]] == sorted(best)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight


def names(model):
    return [weight.name for weight in find_weights(model)]


def test_all_matrix_like_modules_are_found_in_order():
    model = nn.Sequential(
        nn.Embedding(5, 4),
        nn.Conv1d(4, 4, 3),
        nn.BatchNorm1d(4),
        nn.Conv2d(4, 4, 3),
        nn.Conv3d(4, 4, 3),
        nn.LayerNorm(4),
        nn.Linear(4, 4),
    )
    assert names(model) == ["0", "1", "3", "4", "6"]
    assert [w.module for w in find_weights(model)] == [model[i] for i in (0, 1, 3, 4, 6)]
    assert all(w.parameter is w.module.weight for w in find_weights(model))


def test_tied_weights_are_one():
    found = find_weights(Tied())
    assert [w.name for w in found] == ["embedding", "body"]
    assert found[0].aliases == ("head",)
    assert found[1].aliases == ()


def test_three_names_of_one_weight():
    shared = nn.Linear(3, 3)
    found = find_weights(nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()), shared))
    assert [(w.name, w.aliases) for w in found] == [("0", ("1.0", "2"))]


def test_attention_with_one_projection():
    attention = nn.MultiheadAttention(8, 2)
    found = find_weights(nn.ModuleDict({"attention": attention}))
    assert [w.name for w in found] == ["attention.in_proj_weight", "attention.out_proj"]
    assert found[0].parameter is attention.in_proj_weight
    assert found[0].module is attention


def test_attention_with_separate_projections():
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    assert names(attention) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"]


def test_the_model_may_be_a_layer_itself():
    model = nn.Linear(2, 3)
    (found,) = find_weights(model)
    assert (found.name, found.module) == ("weight", model)


def test_nested_modules_have_dotted_names():
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)))
    assert names(model) == ["0.0.0", "0.1"]


def test_nothing_to_find():
    assert find_weights(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))) == []


def layer_of(pattern, shape, table):
    weight = nn.Parameter(torch.ones(shape))
    storage = MaskedStorage(weight, as_pattern(pattern), table)
    return Layer("fc", storage, as_pattern(pattern), 1, torch.Generator())


def test_a_layer_counts_weights_and_not_units():
    layer = layer_of("block:2x2", (4, 4), torch.tensor([[True, False, False, False]]))
    assert (layer.groups, layer.units, layer.unit_size) == (1, 4, 4)
    assert (layer.present, layer.sparsity) == (4, 0.75)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(layer.mask, expected)
    assert torch.equal(layer.absent, ~expected)


def test_a_new_table_replaces_the_cached_mask():
    layer = layer_of("unstructured", (1, 2), torch.tensor([[True, False]]))
    assert layer.mask.tolist() == [[True, False]]
    layer.set_table(torch.tensor([[False, True]]))
    assert layer.mask.tolist() == [[False, True]]


@pytest.mark.parametrize("table", [torch.ones(1, 2), torch.ones(2, 1, dtype=torch.bool)])
def test_a_wrong_table_is_refused(table):
    layer = layer_of("unstructured", (1, 2), torch.tensor([[True, False]]))
    with pytest.raises(ValueError, match=r"layer 'fc': a table must be bool of shape \(1, 2\)"):
        layer.set_table(table)


def test_bytes_of_a_packed_weight():
    tensors = {"rows": torch.zeros(3, dtype=torch.int32), "values": torch.zeros(5)}
    assert Packed("csr", (2, 4), tensors).nbytes == 3 * 4 + 5 * 4
