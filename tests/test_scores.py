"""Scores: by hand, in float32 or wider, in the weight's shape; a missing gradient says so."""

import pytest
import torch
from torch import nn

from sparsewright.abilities import Measured
from sparsewright.core import Layer
from sparsewright.errors import StateError, UnknownNameError
from sparsewright.patterns import as_pattern
from sparsewright.scores import SCORES, as_score
from sparsewright.storage import MaskedStorage

NAMES = [name for name, score in SCORES.items() if not isinstance(score, Measured)]
BY_GRADIENT = [name for name, score in SCORES.items() if score.needs_gradient]


def layer(weight, gradient=None, seed=0):
    parameter = nn.Parameter(torch.as_tensor(weight))
    if gradient is not None:
        parameter.grad = torch.as_tensor(gradient, dtype=parameter.dtype)
    pattern = as_pattern("unstructured")
    table = torch.ones(1, parameter.numel(), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    storage = MaskedStorage(parameter, pattern, table)
    return Layer("fc", storage, pattern, parameter.numel(), generator)


def test_by_hand():
    small = layer([[1.0, -2.0], [0.0, 3.0]], [[-4.0, 0.5], [5.0, 0.0]])
    assert as_score("magnitude")(small).tolist() == [[1, 2], [0, 3]]
    assert as_score("gradient")(small).tolist() == [[4, 0.5], [5, 0]]
    assert as_score("weight_gradient")(small).tolist() == [[4, 1], [0, 0]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 3), (2, 2, 2, 2), (0, 4)])
def test_shape_and_plainness(name, shape):
    given = layer(torch.randn(shape), torch.randn(shape))
    before = given.weight.detach().clone()
    score = as_score(name)(given)
    assert score.shape == shape
    assert not score.requires_grad
    assert (score >= 0).all()
    assert torch.equal(given.weight, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_scored_in_float32(name, dtype):
    weight = torch.tensor([[1.5, -2.0]], dtype=dtype)
    score = as_score(name)(layer(weight, [[0.5, 2.0]]))
    assert score.dtype == torch.float32


@pytest.mark.parametrize("name", ["magnitude", "gradient", "weight_gradient"])
def test_double_stays_double(name):
    given = layer(torch.ones(1, 2, dtype=torch.float64), [[1.0, 1.0]])
    assert as_score(name)(given).dtype == torch.float64


def test_half_precision_products_do_not_underflow():
    given = layer(torch.full((1, 1), 1e-4, dtype=torch.float16), [[1e-4]])
    assert float(as_score("weight_gradient")(given)) > 0


def test_random_is_uniform_and_follows_the_seed():
    first, again, other = (
        as_score("random")(layer(torch.ones(100, 100), seed=s)) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= float(first.min()) < 0.01 < 0.99 < float(first.max()) < 1
    assert abs(float(first.mean()) - 0.5) < 0.02


def test_random_draws_anew_at_every_call():
    given = layer(torch.ones(4, 4))
    assert not torch.equal(as_score("random")(given), as_score("random")(given))


def test_scores_by_gradient_are_known():
    assert BY_GRADIENT == ["gradient", "weight_gradient"]


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_a_missing_gradient_names_the_layer_and_the_way_out(name):
    with pytest.raises(StateError, match=r"layer 'fc': .*gradient.*call loss.backward\(\) first"):
        as_score(name)(layer([[1.0]]))


def test_sparse_gradients_of_embeddings_are_read():
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    given = layer(embedding.weight.detach())
    given.weight.grad = embedding.weight.grad
    assert as_score("gradient")(given).tolist() == [[0, 0], [2, 2], [0, 0]]


def test_names_and_objects():
    magnitude = SCORES["magnitude"]
    assert as_score("magnitude") is as_score(magnitude) is magnitude
    with pytest.raises(
        UnknownNameError, match="no score is called 'magnitud'; did you mean 'magnit"
    ):
        as_score("magnitud")
