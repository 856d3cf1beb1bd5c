"""Additions and activations become part of a packed layer where nothing else reads between."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.kernels import kernel_info, reference
from sparsewright.program import MISS

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

KIND = "portable" if kernel_info().native else "reference"
KERNELS = [f"csr.{KIND}", f"csb.conv2d.{KIND}"]
NAMES = [name for name, _ in reference.ACTIVATIONS]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.strided = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.signal, self.fc = nn.Conv1d(4, 4, 3, padding=1), nn.Linear(8, 8)


def deployed(forward):
    torch.manual_seed(0)
    model = type("Case", (Net,), {"forward": forward})().eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    fast = sw.deploy(model, torch.randn(2, 4, 8, 8), kernels=KERNELS, seconds=0)
    assert fast.program is not None
    return model, fast


def calls(fast):
    """(short name, activation's name, whether there is a residual) of the graph's nodes."""
    out = []
    for node in fast.graph.document["nodes"]:
        name, _, _ = node["op"].removeprefix("sparsewright.").removeprefix("aten.").partition(".")
        own = node["op"].startswith("sparsewright.")
        added = name.endswith("conv2d") and node["args"][7] is not None
        out.append((name, NAMES[node["args"][-2]] if own else "", added))
    return out


FUSED = {
    "relu": (lambda m, x: torch.relu(m.conv(x)), [("csb_conv2d", "relu", False)], True),
    "gelu": (lambda m, x: F.gelu(m.conv(x)), [("csb_conv2d", "gelu", False)], False),
    "silu": (lambda m, x: F.silu(m.fc(x)), [("csr_linear", "silu", False)], False),
    "relu6": (lambda m, x: F.relu6(m.conv(x)), [("csb_conv2d", "relu6", False)], True),
    "hardtanh": (lambda m, x: nn.ReLU6()(m.conv(x)), [("csb_conv2d", "relu6", False)], True),
    "hardswish": (lambda m, x: F.hardswish(m.fc(x)), [("csr_linear", "hardswish", False)], False),
    "linear": (lambda m, x: F.relu_(m.fc(x)), [("csr_linear", "relu", False)], True),
    "residual": (
        lambda m, x: torch.relu(m.conv(x) + x),
        [("csb_conv2d", "relu", True)],
        False,
    ),
    "residual first": (lambda m, x: x + m.conv(x), [("csb_conv2d", "none", True)], False),
    "two branches": (
        lambda m, x: torch.relu(m.conv(x) + m.other(x)),
        [("csb_conv2d", "none", False), ("csb_conv2d", "relu", True)],
        False,
    ),
    "later": (
        lambda m, x: m.conv(x) + torch.sigmoid(m.other(x)),
        [("csb_conv2d", "none", False), ("sigmoid", "", False), ("csb_conv2d", "none", True)],
        False,
    ),
    "a signal": (
        lambda m, x: torch.relu(m.signal(x.flatten(2))),
        [("flatten", "", False), ("unsqueeze", "", False), ("csb_conv2d", "relu", False)],
        True,
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_what_follows_alone_is_fused(name, tmp_path):
    forward, wanted, exact = FUSED[name]
    model, fast = deployed(forward)
    found = [c for c in calls(fast) if c[0] not in ("sym_size", "squeeze")]
    assert found == wanted
    assert fast.graph.exact == exact
    sw.save(fast, tmp_path / "file")
    again = sw.load(tmp_path / "file")
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4, 8, 8)
        got = fast.program.run(x)
        assert got is not MISS
        assert torch.equal(again(x), got)
        # float32 sums in another order; erf and exp by polynomials
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
        if exact:
            assert torch.equal(got, fast.run_modules(x))


def two_readers(m, x):
    y = m.conv(x)
    return torch.relu(y) + y


def returned(m, x):
    y = m.conv(x)
    return torch.relu(y), y


KEPT = {
    "two readers": two_readers,
    "returned as well": returned,
    "tanh form": lambda m, x: F.gelu(m.conv(x), approximate="tanh"),
    "another hardtanh": lambda m, x: F.hardtanh(m.conv(x), 0.0, 5.0),
    "another activation": lambda m, x: torch.sigmoid(m.conv(x)),
    "twice itself": lambda m, x: (lambda y: y + y)(m.conv(x)),
    "a number": lambda m, x: m.conv(x) + 2.0,
    "broadcast": lambda m, x: m.conv(x) + x[:, :1],
    "widened": lambda m, x: m.strided(x)[:1, :1, :1, :1] + m.conv(x),
    "scaled": lambda m, x: torch.add(m.conv(x), x, alpha=2),
    "after an activation": lambda m, x: torch.sigmoid(torch.sigmoid(m.conv(x)) + x),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_something_else_reads_or_means_stays(name):
    model, fast = deployed(KEPT[name])
    assert {c[1:] for c in calls(fast) if c[0].startswith("cs")} == {("none", False)}
    assert fast.graph.exact
    x = torch.randn(3, 4, 8, 8)
    for got, expected in zip(fast(x), model(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_one_activation_only():
    _, fast = deployed(lambda m, x: F.silu(torch.relu(m.conv(x))))
    assert calls(fast) == [("csb_conv2d", "relu", False), ("silu", "", False)]


def test_nothing_is_added_after_an_activation():
    _, fast = deployed(lambda m, x: torch.relu(m.conv(x)) + x)
    assert calls(fast) == [("csb_conv2d", "relu", False), ("add", "", False)]


def test_relu_comes_after_max_pooling():
    _, fast = deployed(lambda m, x: m.conv(F.max_pool2d(torch.relu(x), 2)))
    assert [c[0] for c in calls(fast)] == ["max_pool2d", "relu", "csb_conv2d"]
    assert fast.graph.exact
    x = torch.randn(3, 4, 8, 8)
    x[0, 1, 2, :], x[1] = float("nan"), -1.0
    assert torch.equal(fast(x).isnan(), fast.run_modules(x).isnan())
    assert torch.equal(fast(x).nan_to_num(), fast.run_modules(x).nan_to_num())


def test_relu_that_others_read_stays_before_max_pooling():
    def forward(m, x):
        y = torch.relu(x)
        return m.conv(F.max_pool2d(y, 2)), y

    _, fast = deployed(forward)
    assert [c[0] for c in calls(fast)] == ["relu", "max_pool2d", "csb_conv2d"]


def test_nan_goes_through_fused_activations():
    _, fast = deployed(lambda m, x: torch.relu(m.fc(F.silu(m.fc(x)))))
    x = torch.randn(2, 4, 8, 8)
    x[0, 1, 2, :] = float("nan")
    got, expected = fast(x), fast.run_modules(x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert bool(got.isnan().any())
