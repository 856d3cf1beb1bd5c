"""Measured scores against values worked out by hand, and the trap that each is known for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.abilities import Measured, OfUnits
from sparsewright.allocate import Global
from sparsewright.calibration import Calibration
from sparsewright.core import View
from sparsewright.patterns import as_pattern
from sparsewright.scores import SCORES, as_score
from sparsewright.scores.fpgm import FPGM
from sparsewright.scores.grasp import GraSP
from sparsewright.scores.l2 import L2
from sparsewright.scores.obd import OBD
from sparsewright.scores.synflow import SynFlow
from sparsewright.scores.taylor import Taylor
from sparsewright.selection import candidates

RANK_EQUALS_OTHERWISE = (
    *("random", "signed_rank"),  # by chance, and by place
    *("receptive_field", "scale_free", "small_world"),  # look at no weight
    "wanda",  # row by row
)
MEASURED = [name for name, score in SCORES.items() if isinstance(score, Measured)]


def calibration(model, data=None, loss=None, pattern="unstructured"):
    generator = torch.Generator().manual_seed(0)
    found = candidates(model, pattern=pattern, generator=generator, score=as_score("magnitude"))
    return Calibration(model, found.layers, data, loss)


def weights_scores(score, seen):
    """Layer name -> scores of its weights."""
    bound = score.measured(seen)
    return {y.name: bound(y) for y in seen.layers}


def units_scores(score, seen):
    """Layer name -> (groups, units)."""
    bound = score.measured(seen) if isinstance(score, Measured) else score
    return {y.name: bound.of_units(view_of(y), y.pattern) for y in seen.layers}


def view_of(layer):
    return View(layer.name, layer.weight.detach(), layer.mask, layer.generator)


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return nn.Sequential(layer)


def squares(model, batch):
    """A loss whose every derivative is easily worked out: half the squared error."""
    x, y = batch
    return ((model(x) - y) ** 2).sum() / 2


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def batches(count=3, size=6, seed=0):
    torch.manual_seed(seed)
    return [(torch.randn(size, 4), torch.randint(3, (size,))) for _ in range(count)]


# SNIP


def test_snip_by_hand():
    # y = 2*1 - 3*1 = -1 against 0: g = y * x = (-1, -1); |w g| = (2, 3), over their sum 5
    data = [(torch.tensor([[1.0, 1.0]]), torch.zeros(1, 1))]
    found = weights_scores(SCORES["snip"], calibration(linear([2.0, -3.0]), data, squares))
    assert found["0"].tolist() == [[pytest.approx(0.4), pytest.approx(0.6)]]


def test_snip_adds_gradients_before_it_takes_their_size():
    # of the first batch g = (1, 1), of the second (-1, 1): the first weight's cancel
    data = [
        (torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0]])),
        (torch.tensor([[-1.0, 1.0]]), torch.tensor([[-1.0]])),
    ]
    found = weights_scores(SCORES["snip"], calibration(linear([0.5, 0.5]), data, squares))
    assert found["0"].tolist() == [[0.0, 1.0]]


def test_snip_is_no_gradient_alone():
    """|g| without w ranks the other way round where inputs are large and weights small."""
    data = [(torch.tensor([[1.0, 4.0]]), torch.zeros(1, 1))]
    model = linear([8.0, 0.5])  # y = 10: g = (10, 40), w g = (80, 20)
    found = weights_scores(SCORES["snip"], calibration(model, data, squares))["0"]
    assert found[0, 0] == pytest.approx(0.8)
    kept = {}
    for name in ("snip", "gradient"):
        model = linear([8.0, 0.5])
        sw.prune(model, 0.5, score=name, allocate="uniform_all", data=data, loss=squares)
        kept[name] = (model[0].weight != 0).tolist()
    assert kept == {"snip": [[True, False]], "gradient": [[False, True]]}


def test_global_snip_ranks_all_layers_together():
    model, data = classifier(), batches(1)
    bound = SCORES["snip"].measured(calibration(model, data))
    flat = torch.cat([bound.scores[name].flatten() for name in ("0", "2")])
    assert float(flat.sum()) == pytest.approx(1.0)
    sw.prune(model, 0.75, score="snip", allocate="global", data=data)
    kept = torch.cat([model[i].weight.flatten() for i in (0, 2)]) != 0
    assert int(kept.sum()) == 14
    assert flat[kept].min() >= flat[~kept].max()


# OBD and GraSP


def diagonal(curvatures):
    """A loss with a diagonal Hessian, no data."""
    h = torch.tensor(curvatures)
    return lambda model: (h * model[0].weight ** 2).sum() / 2


def test_hutchinson_is_exact_for_a_diagonal_hessian():
    score = OBD("hutchinson", samples=1)
    found = weights_scores(
        score, calibration(linear([2.0, -1.0, 3.0]), loss=diagonal([1.0, 4.0, -2.0]))
    )
    assert found["0"].tolist() == [[2.0, 2.0, -9.0]]  # h w^2 / 2


def test_hutchinson_nears_the_diagonal_of_a_full_hessian():
    root = torch.tensor([[2.0, 1.0], [0.0, 1.0]])  # H = root^T root = [[4, 2], [2, 2]]

    def loss(model):
        return ((model[0].weight @ root.T) ** 2).sum() / 2

    score = OBD("hutchinson", samples=256)
    found = weights_scores(score, calibration(linear([1.0, 1.0]), loss=loss))["0"]
    # v * H v = h_kk +- 2: the mean of 256 has a deviation of 2 / 16, here halved; five of them
    assert found.tolist() == [[pytest.approx(2.0, abs=0.32), pytest.approx(1.0, abs=0.32)]]


def test_fisher_is_of_examples_and_not_of_batches():
    """At a minimum the gradient of the batch is 0, and those of its examples are not."""
    data = [(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [3.0]]))]
    model = linear([2.0])  # errors +1 and -1
    found = weights_scores(OBD(), calibration(model, data, squares))
    assert found["0"].tolist() == [[2.0]]  # h = (1 + 1) / 2; h w^2 / 2 = 2
    together = sum(squares(model, batch) for batch in data)
    assert torch.autograd.grad(together, model[0].weight)[0].item() == 0.0


def test_fisher_runs_examples_alone_in_evaluation_mode():
    """A norm in training mode has no variance of one example."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    found = weights_scores(OBD(), calibration(model, batches(1)))
    assert model.training
    again = weights_scores(OBD(), calibration(model.eval(), batches(1)))
    assert all(torch.equal(found[name], again[name]) for name in ("0", "2"))


def test_fisher_by_single_gradients():
    model, data = classifier(), batches(2)
    found = weights_scores(OBD(), calibration(model, data))
    expected, count = torch.zeros(8, 4), 0
    for x, y in data:
        for i in range(len(x)):
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            expected += torch.autograd.grad(loss, model[0].weight)[0] ** 2
            count += 1
    expected = expected / count * model[0].weight.detach() ** 2 / 2
    assert torch.allclose(found["0"], expected, rtol=1e-5, atol=1e-9)  # sums in another order


def test_grasp_by_hand():
    # L = 1/2 w^T H w with H = [[2, 1], [1, 3]]: g = H w, and the score w * (H g)
    h = torch.tensor([[2.0, 1.0], [1.0, 3.0]])

    def loss(model):
        w = model[0].weight[0]
        return w @ h @ w / 2

    found = weights_scores(GraSP(), calibration(linear([1.0, -1.0]), loss=loss))
    # g = (1, -2); H g = (0, -5); w * Hg = (0, 5)
    assert found["0"].tolist() == [[0.0, 5.0]]


def test_grasp_removes_the_highest_of_the_papers_s():
    # S = -w * H g: a diagonal H of 1 and -1 gives H g = w, S = -w^2 for both; 4 more for the first
    model = linear([3.0, 1.0])
    sw.prune(model, 0.5, score="grasp", allocate="uniform_all", loss=diagonal([1.0, -1.0]))
    assert (model[0].weight != 0).tolist() == [[True, False]]


def test_grasp_keeps_its_sign():
    """What weakens the flow of gradients goes before what matters nothing to it."""
    h = torch.tensor([[0.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])

    def loss(model):
        w = model[0].weight[0]
        return w @ h @ w / 2

    # g = (-1, -1, 0); H g = (-1, -4, 0); w * H g = (-2, 4, 0)
    found = weights_scores(GraSP(), calibration(linear([2.0, -1.0, 5.0]), loss=loss))
    assert found["0"].tolist() == [[-2.0, 4.0, 0.0]]
    model = linear([2.0, -1.0, 5.0])
    sw.prune(model, 1 / 3, score="grasp", allocate="uniform_all", loss=loss)
    assert (model[0].weight != 0).tolist() == [[False, True, True]]


def test_grasp_of_two_halves_is_that_of_the_whole():
    model, (whole,) = classifier(), batches(1, 8)
    halves = [(whole[0][:4], whole[1][:4]), (whole[0][4:], whole[1][4:])]
    one = weights_scores(GraSP(), calibration(model, [whole]))
    two = weights_scores(GraSP(), calibration(model, halves))
    for name in one:  # the same sums, of 8 examples, in another order
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-8)


def test_grasp_divides_logits_by_its_temperature():
    model, data = classifier(), batches(1)
    cooled = weights_scores(GraSP(temperature=200.0), calibration(model, data))

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]) / 200.0, batch[1])

    by_hand = weights_scores(GraSP(), calibration(model, data, loss))
    for name in cooled:
        assert torch.equal(cooled[name], by_hand[name])


def test_grasp_needs_data_for_two_passes():
    with pytest.raises(sw.ConfigError, match="a generator, which lasts for one pass"):
        sw.prune(classifier(), 0.5, score="grasp", data=(b for b in batches()))


# SynFlow


def test_synflow_by_hand():
    model = nn.Sequential(linear([1.0, -2.0])[0], linear([-3.0])[0])
    found = weights_scores(SynFlow(example=torch.zeros(5, 2)), calibration(model))
    # R = 3 * (1 + 2) = 9: each weight's share of it
    assert found["0"].tolist() == [[3.0, 6.0]]
    assert found["1"].tolist() == [[9.0]]
    assert found["0"].dtype == torch.float64


def conv_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(24),
        nn.Linear(24, 5),
    )


def test_synflow_is_conserved_through_norms_and_biases():
    """Every layer's scores add up to R, though a LayerNorm's own scaling would stop the flow."""
    model = conv_net()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2.0)
        model[1].bias.normal_()
    found = weights_scores(SynFlow(example=torch.randn(3, 2, 6, 6)), calibration(model))
    sums = [float(scores.sum()) for scores in found.values()]
    assert sums[0] > 0
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-12)  # float64 sums


def deep(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in ((20, 40), (40, 2), (2, 40), (40, 5))]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def gone(model, score, density, **options):
    """The layers of which a global ranking would keep nothing in one round."""
    seen = calibration(model, **options)
    bound = score.measured(seen) if isinstance(score, Measured) else score
    tables = {y.name: y.pattern.fold(bound(view_of(y))) for y in seen.layers}
    found = Global()({y.name: y.shape for y in seen.layers}, 1 - density, tables)
    return [name for name, sparsity in found.items() if sparsity == 1.0]


def test_synflow_never_empties_a_layer_at_the_maximum_compression():
    """Four weights of four layers are left, and they are one path from input to output."""
    size = 20 * 40 + 40 * 2 + 2 * 40 + 40 * 5
    example = torch.ones(1, 20)
    model = deep()
    sparsity = 1 - 4 / size
    report = sw.prune(model, sparsity, score=SynFlow(example=example), allocate="global")
    assert [row.present for row in report.rows] == [1, 1, 1, 1]
    assert all(row.dead_outputs == row.shape[0] - 1 for row in report.rows)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.abs_()
            layer.bias.zero_()
    assert model(example).sum() > 0, "the weights that are left join the input to the output"
    # At once, by magnitude, the widest layer is emptied long before.
    assert gone(deep(), SCORES["magnitude"], 4 / size)
    assert gone(deep(), SCORES["magnitude"], 0.02)


def test_synflow_of_overflowing_products_is_finite():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(12)])
    with torch.no_grad():
        for layer in model:
            layer.weight.mul_(1000.0)
    found = weights_scores(SynFlow(example=torch.ones(1, 64)), calibration(model))
    total = sum(float(s.sum()) for s in found.values())
    assert torch.finfo(torch.float32).max < total < torch.inf


def test_synflow_needs_a_shape_and_leaves_no_trace():
    with pytest.raises(sw.ConfigError, match=r"needs the shape of an input: give data"):
        sw.prune(classifier(), 0.5, score="synflow")
    model = conv_net()
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    SynFlow().measured(calibration(model, [(torch.randn(2, 2, 6, 6), None)]))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


# Taylor


def test_taylor_squares_the_sum_over_the_unit():
    # rows (1, -1) and (0.5, 0.5): g w of the first cancels, though each part of it is larger
    data = [(torch.ones(1, 2), torch.tensor([[-1.0, 0.0]]))]
    model = linear([1.0, -1.0], [0.5, 0.5])
    seen = calibration(model, data, squares, "channel")
    # errors (1, 1): g = 1 everywhere, so the sums are 0 and 1
    assert units_scores(Taylor(), seen)["0"].tolist() == [[0.0, 1.0]]
    single = calibration(model, data, squares)
    assert units_scores(Taylor(), single)["0"].tolist() == [[1.0, 1.0, 0.25, 0.25]]
    sw.prune(model, 0.5, "channel", "taylor", "uniform_all", data=data, loss=squares)
    assert (model[0].weight != 0).tolist() == [[False, False], [True, True]]


def test_taylor_may_sum_the_squares_of_parts():
    data = [(torch.ones(1, 2), torch.tensor([[-1.0, 0.0]]))]
    model = linear([1.0, -1.0], [0.5, 0.5])  # g = 1 everywhere: 1 + 1, and 1/4 + 1/4
    found = units_scores(Taylor("parts"), calibration(model, data, squares, "channel"))
    assert found["0"].tolist() == [[2.0, 0.5]]
    single = units_scores(Taylor("parts"), calibration(model, data, squares))
    assert single["0"].tolist() == [[1.0, 1.0, 0.25, 0.25]], "of single weights both are one"


def test_taylor_takes_the_mean_of_squares_over_batches():
    # w g = 2 and -1 in the two batches: squares 4 and 1, sizes 2 and 1; the sum's square is 1
    data = [
        (torch.ones(1, 1), torch.tensor([[-1.0]])),
        (torch.ones(1, 1), torch.tensor([[2.0]])),
    ]
    model = linear([1.0])
    assert units_scores(Taylor(), calibration(model, data, squares))["0"].item() == 2.5
    absolute = units_scores(Taylor("absolute"), calibration(model, data, squares))
    assert absolute["0"].item() == 1.5


def test_taylor_below_a_norm_in_training_tells_nothing():
    """The norm undoes the filter's scale; taylor_activation looks behind the norm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    data = [(torch.randn(8, 2, 6, 6), torch.randint(3, (8,)))]
    with pytest.raises(sw.StateError, match=r"layer '0': score Taylor.*model\.eval\(\)"):
        sw.prune(model, 0.5, "channel", score="taylor", allocate="uniform_all", data=data)
    behind = units_scores(SCORES["taylor_activation"], calibration(model, data, None, "channel"))
    model.eval()
    at_rest = units_scores(Taylor("absolute"), calibration(model, data, None, "channel"))["0"]
    assert at_rest.max() > 1e-3
    assert behind["0"].min() > 1e-2
    assert float(behind["0"].norm()) == pytest.approx(1.0)


def test_taylor_of_activations_by_hand():
    model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False))
    nn.init.ones_(model[0].weight)
    # z: (1, 3) in the first example and (-2, 0) in the second, in both channels. Slopes of 1 give
    # means of 2 and -1, sizes of 3 together; slopes of 0 and 4 give 0 and -4: 3 and 4, over 5
    x = torch.tensor([[[1.0, 3.0]], [[-2.0, 0.0]]])
    slope = torch.tensor([[1.0, 0.0], [1.0, 4.0]]).unsqueeze(2)

    def loss(model, batch):
        return (model(batch) * slope).sum()

    found = units_scores(SCORES["taylor_activation"], calibration(model, [x], loss, "channel"))
    assert found["0"].tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


@pytest.mark.parametrize("is_map", [True, False])
def test_taylor_of_activations_lets_positions_cancel(is_map):
    """The mean over positions comes before the size: 3 and -3 of one feature are nothing."""
    x = torch.tensor([[[3.0, -3.0], [1.0, 1.0]]])  # (examples, channels, positions)
    layer = nn.Conv1d(2, 2, 1, bias=False) if is_map else nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2).view(layer.weight.shape))
    model, x = nn.Sequential(layer), x if is_map else x.mT
    seen = calibration(model, [x], lambda m, batch: m(batch).sum(), "channel")
    assert units_scores(SCORES["taylor_activation"], seen)["0"].tolist() == [[0.0, 1.0]]


def test_taylor_of_activations_looks_behind_the_norm():
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))
    nn.init.constant_(model[1].bias, 1.0)
    x = torch.randn(6, 1)
    slope = torch.tensor([3.0, 1.0])
    seen = calibration(model, [x], lambda m, batch: (m(batch) * slope).sum(), "channel")
    found = units_scores(SCORES["taylor_activation"], seen)["0"]
    expected = (model(x).detach() * slope).abs().sum(dim=0)
    assert torch.allclose(found[0], expected / expected.norm(), rtol=1e-5)  # sums in float32


def test_taylor_of_activations_of_sequences_means_over_places():
    model = linear([1.0], [-1.0])
    x = torch.tensor([[[1.0], [3.0]], [[2.0], [-2.0]]])  # (examples, places, inputs)
    found = units_scores(
        SCORES["taylor_activation"],
        calibration(model, [x], lambda m, b: (m(b) * torch.tensor([3.0, 4.0])).sum(), "channel"),
    )["0"]
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]  # |2| and |0|, times slopes


# Filters without data


def test_magnitude_of_channels_is_their_l1_norm_and_l2_another():
    weight = torch.tensor([[3.0, 3.0], [5.0, 0.0]])
    view = View("fc", weight, weight == weight, torch.Generator())
    channel = as_pattern("channel")
    assert channel.fold(SCORES["magnitude"](view)).tolist() == [[6.0, 5.0]]
    found = L2().of_units(view, channel)
    assert found.tolist() == [[pytest.approx(18**0.5), pytest.approx(5.0)]]
    for score, kept in (("magnitude", 0), ("l2", 1)):
        model = linear(*weight.tolist())
        sw.prune(model, 0.5, "channel", score, "uniform_all")
        assert (model[0].weight != 0).any(dim=1).tolist() == [kept == 0, kept == 1]


def test_l2_of_small_weights_does_not_underflow():
    view = View("fc", torch.full((2, 2), 1e-25), torch.ones(2, 2, dtype=torch.bool), None)
    found = L2().of_units(view, as_pattern("channel"))
    assert found.tolist() == [[pytest.approx(1.41421356e-25)] * 2]


@given(st.integers(2, 6), st.integers(1, 4), st.sampled_from([1.0, 2.0, 3.0]))
def test_fpgm_is_the_sum_of_distances(filters, size, p):
    weight = torch.randn(filters, size)
    view = View("fc", weight, torch.ones_like(weight, dtype=torch.bool), torch.Generator())
    by_hand = [sum(float((a - b).norm(p)) for b in weight) for a in weight]
    found = FPGM(p).of_units(view, as_pattern("channel"))
    assert found[0].tolist() == pytest.approx(by_hand, rel=1e-4, abs=1e-5)  # float32 sums


def test_fpgm_drops_the_median_and_not_the_smallest():
    model = linear([0.1, 0.0], [2.0, 0.0], [2.1, 0.0], [4.0, 0.0], [1.0, 3.0])
    sw.prune(model, 0.2, "channel", "fpgm", "uniform_all")
    assert (model[0].weight != 0).any(dim=1).tolist() == [True, False, True, True, True]
    with pytest.raises(sw.MisfitError, match=r"units of pattern 'channel'; got pattern 'fan_in'"):
        sw.prune(linear([1.0, 2.0]), 0.5, "fan_in", "fpgm", "uniform_all")


def test_absent_filters_are_no_neighbours():
    mask = torch.tensor([[True], [True], [False]])
    view = View("fc", torch.tensor([[1.0], [3.0], [0.0]]), mask, torch.Generator())
    assert FPGM().of_units(view, as_pattern("channel"))[0, :2].tolist() == [2.0, 2.0]


class OutOfOrder(nn.Module):
    """Registers its norms after its convolutions, in the wrong order."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1)
        self.of_second, self.of_first = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        with torch.no_grad():
            self.of_first.weight.copy_(torch.tensor([1.0, -5.0, 2.0]))
            self.of_second.weight.copy_(torch.tensor([7.0, 6.0, -8.0]))

    def forward(self, x):
        return self.of_second(self.second(self.of_first(self.first(x)).relu()))


def test_slimming_takes_the_scale_of_the_norm_that_follows():
    data = [torch.randn(2, 1, 4, 4)]
    found = units_scores(SCORES["slimming"], calibration(OutOfOrder(), data, None, "channel"))
    assert found["first"].tolist() == [[1.0, 5.0, 2.0]]
    assert found["second"].tolist() == [[7.0, 6.0, 8.0]]
    blocks = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.BatchNorm1d(3))
    nn.init.constant_(blocks[2].weight, -4.0)
    found = units_scores(SCORES["slimming"], calibration(blocks, None, None, "channel"))
    assert found["0"].tolist() == [[4.0, 4.0, 4.0]]


def test_slimming_names_the_layer_that_no_norm_follows():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(sw.StateError, match=r"layer '3': .*none follows.*skip=\['3'\]"):
        sw.prune(model, 0.5, "channel", "slimming", "uniform_all")
    assert sw.prune(model, 0.5, "channel", "slimming", "uniform_all", skip=["3"]).sparsity == 0.5


# All of them

STARTS = {"small_world", "scale_free", "receptive_field"}  # which draw their links
TIED = sorted(set(SCORES) - STARTS - {"fpgm", "slimming", "taylor_activation", "wanda"})


@pytest.mark.parametrize("name", MEASURED)
def test_a_score_that_has_not_measured_says_how(name):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(sw.StateError, match=r"layer '0': score .* measures the model before"):
        sw.attach(model, optimizer, method=sw.Static(initial=name), sparsity=0.5)


@pytest.mark.parametrize("name", TIED)
def test_the_first_unit_wins_ties(name):
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    nn.init.constant_(model[0].weight, 0.5)
    measures = isinstance(SCORES[name], Measured) or SCORES[name].needs_gradient
    loss = (lambda m, batch: (m(batch) ** 2).sum()) if measures and name != "synflow" else None
    data = [torch.ones(1, 3)] if measures else None
    sw.prune(model, 0.5, score=name, allocate="uniform_all", data=data, loss=loss)
    kept = (model[0].weight != 0).flatten()
    assert int(kept.sum()) == 6
    if name not in RANK_EQUALS_OTHERWISE:
        assert kept[:6].all()


@pytest.mark.parametrize("name", sorted({*MEASURED} - {"slimming", "wanda"}))  # no loss
def test_a_layer_that_nothing_depends_on_is_named(name):
    model = classifier()
    model.unused = nn.Linear(4, 4)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    said = r"layer 'unused'.*(no batch reaches it|is never called on the data)"
    with pytest.raises((sw.StateError, sw.ConfigError), match=said):
        sw.prune(model, 0.5, "channel", name, "uniform_all", data=batches())


def test_facts_are_complete():
    for name, score in SCORES.items():
        if isinstance(score, Measured | OfUnits):
            facts = score.facts
            assert all((facts.source, facts.when, facts.memory, facts.flops, facts.published)), name
