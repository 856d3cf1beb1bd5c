"""The graph of a deployed model is made from the one trace of the model that was deployed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.kernels import KERNELS, kernel_info
from sparsewright.program import MISS
from sparsewright.swap import swap
from sparsewright.traced import traced

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

KIND = "portable" if kernel_info().native else "reference"
SPARSE = [f"csr.{KIND}", f"csb.conv2d.{KIND}"]


class Net(nn.Module):
    """Images, signals and rows, norms after layers without a bias, dropout, a layer used twice."""

    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(1, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.signal = nn.Conv1d(8, 16, 3, padding=1, bias=False)
        self.last = nn.BatchNorm1d(16)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        h = torch.relu(self.norm(self.image(x)))
        h = self.last(self.signal(h.flatten(2)))
        h = self.fc(self.drop(h.mean(2)))
        return self.fc(torch.relu(h))


def network():
    torch.manual_seed(0)
    model = Net()
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    model.train()(torch.randn(8, 1, 6, 6))  # statistics to fold
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "dense", [[], ["dense.onednn"], ["dense.conv2d.onednn"], ["dense.conv2d.eager"]]
)
def test_a_model_is_traced_once(dense, exports):
    kinds = {KERNELS[name].operation for name in dense}
    kernels = dense + [k for k in SPARSE if KERNELS[k].operation not in kinds]
    if any(KERNELS[k].refuses() is not None for k in kernels):
        pytest.skip(f"one of {kernels} cannot serve here")
    model, x = network(), torch.randn(2, 1, 6, 6)
    fast = sw.deploy(model, x, kernels=kernels, seconds=0, cache=False)
    assert exports == ["Net"]
    for batch in (1, 2, 5):
        x = torch.randn(batch, 1, 6, 6)
        got = fast.program.run(x)
        assert got is not MISS
        torch.testing.assert_close(got, fast.run_modules(x))
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)  # other sums, four layers


def test_a_swapped_graph_is_the_graph_that_is_traced(tmp_path):
    model, x = network(), torch.randn(2, 1, 6, 6)
    fast = sw.deploy(model, x, kernels=SPARSE, seconds=0, cache=False)
    ops = [node["op"] for node in fast.graph.document["nodes"]]
    fast.drop_program()
    sw.save(fast, tmp_path / "file")  # traces the deployed model itself
    again = sw.load(tmp_path / "file")
    assert ops == [node["op"] for node in again.source[0]["graph"]["nodes"]]
    fast = sw.deploy(model, x, kernels=SPARSE, seconds=0, cache=False)
    assert torch.equal(fast(x), again(x))


def test_the_trace_stays_as_it_is():
    model, x = network(), torch.randn(2, 1, 6, 6)
    found = traced(model, (x,))
    before = str(found.graph)
    fast = sw.deploy(model, x, kernels=SPARSE, seconds=0, fold=False, cache=False)
    first, second = (swap(found, fast.model) for _ in range(2))
    assert str(first.graph) == str(second.graph)
    assert "csb_conv2d" in str(first.graph)
    assert str(found.graph) == before


def test_what_cannot_be_swapped_is_traced_anew(exports):
    """The plain reference, by name, is many operations of torch."""
    model, x = network(), torch.randn(2, 1, 6, 6)
    names = ["csr.reference", "csb.conv2d.reference"]
    fast = sw.deploy(model, x, kernels=names, seconds=0, cache=False)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    if kernel_info().native:
        assert len(exports) > 1


def test_a_read_weight_is_no_call_of_its_layer():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return nn.functional.linear(x, self.fc.weight) + x

    model = Reads().eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(2, 8)
    fast = sw.deploy(model, x, kernels=SPARSE, seconds=0, cache=False)
    assert fast.plan.layers[0].candidates[0].refused == "the example does not call it"
    assert torch.equal(fast(x), model(x))
