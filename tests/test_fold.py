"""BatchNorm becomes part of the layer before it exactly where the graph shows that it may."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.fold import fold_norms
from sparsewright.kernels import kernel_info

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

EAGER = ["dense.eager", "dense.conv2d.eager"]


def lived(model):
    """The model in eval mode, its norms with statistics and weights that are not the defaults."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            m.running_mean.uniform_(-1, 1)
            m.running_var.uniform_(0.1, 2)
            if m.affine:
                m.weight.data.uniform_(-1, 1)
                m.bias.data.uniform_(-1, 1)
    return model.eval().requires_grad_(False)


FOLDED = {
    "conv2d": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), (2, 3, 7, 7)),
    "no bias": (nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)), (2, 3, 7, 7)),
    "groups": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (2, 4, 7, 7)),
    "same": (nn.Sequential(nn.Conv2d(3, 6, 3, padding="same"), nn.BatchNorm2d(6)), (2, 3, 7, 7)),
    "conv1d": (nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), (2, 3, 7)),
    "linear": (nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)), (4, 3)),
    "plain": (nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, affine=False)), (4, 3)),
    "dropout": (nn.Sequential(nn.Linear(3, 6), nn.Dropout(), nn.BatchNorm1d(6)), (4, 3)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_outputs_stay_and_zeros_stay(name):
    layers, shape = FOLDED[name]
    model, x = lived(copy.deepcopy(layers)), torch.randn(shape)
    model[0].weight *= torch.rand_like(model[0].weight) < 0.4
    expected, zeros = model.double()(x.double()), model[0].weight == 0
    model = model.float()
    (pair,) = fold_norms(model, (x,)).layers
    assert pair[0] == "0"
    assert isinstance(model.get_submodule(pair[1]), nn.Identity)
    # Weights and bias are rounded once more, and sums of at most 27 products come in another order.
    torch.testing.assert_close(model(x), expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(model[0].weight == 0, zeros)


class Shared(nn.Module):
    """What must not be folded, each for its own reason."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.other = nn.Conv2d(3, 3, 1)
        if way == "tied":
            self.other.weight = self.conv.weight
        self.way = way

    def forward(self, x):
        return getattr(self, self.way)(x)

    def tied(self, x):
        return self.norm(self.conv(x)) + self.other(x)

    def read_twice(self, x):
        y = self.conv(x)
        return self.norm(y) + y

    def called_twice(self, x):
        return self.norm(self.conv(x)) + self.conv(x)

    def norm_twice(self, x):
        return self.norm(self.other(x)) + self.norm(self.conv(x))

    def between(self, x):
        return self.norm(torch.relu(self.conv(x)))

    def order(self, x):
        """Registered one after the other, called the other way round."""
        return self.conv(self.norm(x))

    def by_hand(self, x):
        y = F.conv2d(x, self.conv.weight * 2, self.conv.bias)
        return self.norm(y)


@pytest.mark.parametrize(
    "way", ["tied", "read_twice", "called_twice", "norm_twice", "between", "order", "by_hand"]
)
def test_what_has_another_reader_stays(way):
    model, x = lived(Shared(way)), torch.randn(2, 3, 4, 4)
    before = model(x)
    assert fold_norms(model, (x,)).layers == ()
    assert torch.equal(model(x), before)


def test_other_norms_stay():
    hooked = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    hooked[1].register_forward_hook(lambda *call: None)
    for model, x in (
        (hooked, torch.ones(1, 3, 4, 4)),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3)), torch.ones(1, 3, 4, 4)),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(5)), torch.ones(2, 5, 4)),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.ones(2, 3, 4)),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
            torch.rand(2, 3, 4, 4),
        ),
    ):
        if isinstance(model[1], nn.BatchNorm1d) and x.shape[1] != model[1].num_features:
            continue
        assert fold_norms(lived(model), (x,)).layers == ()


def test_norms_without_finite_statistics_stay():
    model = lived(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    model[1].running_var[1] = -1.0
    assert fold_norms(model, (torch.ones(1, 3, 4, 4),)).layers == ()


def test_deploy_folds_and_says_so():
    model = lived(FOLDED["conv2d"][0])
    x = torch.randn(2, 3, 7, 7)
    names = [f"csb.conv2d.{'portable' if kernel_info().native else 'reference'}"]
    fast = sw.deploy(model, x, kernels=names, seconds=0)
    assert "BatchNorm folded: '1' into '0'" in str(fast.plan)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert "batch_norm" not in str(fast.graph.document)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)
    plain = sw.deploy(model, x, kernels=names, seconds=0, fold=False)
    assert plain.plan.notes == ()
    assert "batch_norm" in str(plain.graph.document)


class Asks(nn.Module):
    """Reads what its norm is, which an Identity cannot tell."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) * self.norm.num_features


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x):
        return self.body(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "why"),
    [(Asks(), "the model then raises AttributeError"), (Branches(), "torch.export failed with")],
)
def test_what_cannot_be_folded_is_deployed_with_the_reason(model, why):
    model, x = lived(model), torch.ones(1, 3, 4, 4)
    fast = sw.deploy(model, x, kernels=EAGER, seconds=0)
    assert f"BatchNorm is not folded: {why}" in str(fast.plan)
    assert torch.equal(fast(x), model(x))
