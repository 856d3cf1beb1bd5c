"""A model that was deployed before is not traced again; one that does something else is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright import kept_trace
from sparsewright.errors import SparsityWarning
from sparsewright.traced import traced

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

FACTOR = 2.0


class Net(nn.Module):
    """Norms, several outputs, a reshaped batch, tied weights, a split, a float and a list."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc, self.again = nn.Linear(32, 32), nn.Linear(32, 32)
        self.again.weight = self.fc.weight
        self.register_buffer("shift", torch.ones(32), persistent=False)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x))).mean(3)
        a, b = self.fc(h.reshape(h.shape[0], 32)).chunk(2, dim=1)
        h = self.again(torch.cat([b, a], 1) + self.shift) * FACTOR
        return {"out": h.masked_fill(h < 0, float("-inf")), "two": (a, [b.to(torch.float64)])}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path))
    return tmp_path / "traces"


def network(seed=0):
    torch.manual_seed(seed)
    model = Net()
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    model.train()(torch.randn(8, 2, 4, 4))  # statistics to fold
    return model.eval()


def inputs(batch=2):
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def deployed(model=None, batch=2, **more):
    return sw.deploy(model or network(), inputs(batch), seconds=0, **more)


def assert_right(fast, model):
    for batch in (1, 2, 3):
        got, expected = fast(inputs(batch)), model(inputs(batch))
        assert list(got) == list(expected)
        torch.testing.assert_close(got["out"], expected["out"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got["two"][0], expected["two"][0], rtol=1e-4, atol=1e-5)
        assert got["two"][1][0].dtype == torch.float64


def test_a_model_is_traced_once_for_all_weights(exports, folder):
    first = deployed()
    assert exports == ["Net"]
    assert len(list(folder.iterdir())) == 1
    for seed in (0, 1):
        model = network(seed)
        again = deployed(model)
        assert exports == ["Net"]
        assert again.plan.notes == first.plan.notes  # which say what was folded
        assert again.graph.document == first.graph.document
        assert (again.program is None) == (first.program is None)
        assert_right(again, model)


def test_a_trace_that_was_kept_is_the_trace(folder):
    model, x = network(), (inputs(),)
    found = traced(model, x)
    key = kept_trace.circumstances(model, x)
    assert kept_trace.read(key, model) is None
    kept_trace.write(key, found, model, [])
    kept, right = kept_trace.read(key, model)
    assert not right
    assert (kept.places, kept.output, kept.batch) == (found.places, found.output, found.batch)
    assert kept.refused is None
    assert kept.is_plain
    both = [
        [(n.op, n.name, n.target, str(n.args), str(n.kwargs)) for n in trace.graph.nodes]
        for trace in (kept, found)
    ]
    assert both[0] == both[1]
    for a, b in zip(kept.graph.nodes, found.graph.nodes, strict=True):
        if a.op != "output":
            assert a.meta == b.meta
    used = {place.name for place in found.places if place.kind == "tensor"}
    assert all(
        kept.tensors[name] is dict(model.named_parameters()).get(name)
        for name in used
        if name in dict(model.named_parameters())
    )
    kept_trace.write(key, kept, model, kept_trace.RIGHT)
    assert kept_trace.read(key, model)[1] == kept_trace.RIGHT


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(sys.modules[__name__], "FACTOR", 2.0001),
        lambda patch: patch.setattr(Net, "forward", lambda self, x: self.fc(x.flatten(1))),
        lambda patch: patch.setattr(kept_trace, "_own_digest", lambda: "new"),
        lambda patch: patch.setattr(torch, "get_default_dtype", lambda: torch.float64),
    ],
)
def test_another_code_is_traced(change, exports, folder, monkeypatch):
    deployed()
    change(monkeypatch)
    fast = deployed()
    assert exports == ["Net", "Net"]
    expected = network()(inputs())
    expected = expected["out"] if isinstance(expected, dict) else expected
    got = fast(inputs())
    torch.testing.assert_close(
        got["out"] if isinstance(got, dict) else got, expected, rtol=1e-5, atol=1e-6
    )


def test_another_batch_and_no_cache_are_traced(exports, folder):
    deployed()
    deployed(batch=3)
    assert len(exports) == 2
    deployed(cache=False)
    assert len(exports) == 3
    assert len(list(folder.iterdir())) == 2
    deployed()
    assert len(exports) == 3


def test_circumstances_that_no_digest_tells_are_not_kept(exports, folder):
    model = network()
    model.note = object()  # whatever a forward may ask of it
    for count in (1, 2):
        deployed(model)
        assert len(exports) == count
    assert not folder.exists()
    with torch.device("cpu"):  # a mode that sees every call of torch
        assert kept_trace.circumstances(network(), (inputs(),)) is None
    with torch.autocast("cpu"):
        assert kept_trace.circumstances(network(), (inputs(),)) is None


def test_what_no_longer_gives_the_outputs_is_traced_anew(exports, folder):
    """As after a change that nothing in the code tells: another build of something in C."""
    deployed()
    (file,) = folder.iterdir()
    text = file.read_text()
    assert '{"float": 2.0}' in text
    file.write_text(text.replace('{"float": 2.0}', '{"float": 3.0}'))
    model = network()
    fast = deployed(model)
    assert exports == ["Net", "Net"]
    assert fast.program is not None
    assert_right(fast, model)
    assert '{"float": 2.0}' in file.read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: text.replace("aten.relu.default", "aten.relu_.default"),
        lambda text: text.replace("aten.relu.default", "os.system"),
        lambda text: text.replace('"val"', '"other"'),
        lambda text: text.replace('"varies"', '"varied"'),
        lambda text: json.dumps({**json.loads(text), "trace": []}),
        lambda text: json.dumps({**json.loads(text), "key": {}}),
        lambda text: text.replace('"places": [[', '"places": [["tensor", "fc.bias"], ['),
    ],
)
def test_a_broken_file_is_named_and_replaced(damage, exports, folder):
    model = network()
    deployed(model)
    (file,) = folder.iterdir()
    text = file.read_text()
    assert damage(text) != text
    file.write_text(damage(text))
    with pytest.warns(SparsityWarning, match="the cached trace .* is not used, and traced anew"):
        fast = deployed(model)
    assert len(exports) == 2
    assert_right(fast, model)
    deployed(model)
    assert len(exports) == 2


def test_batches_are_tried_once(folder, monkeypatch):
    """What was made of a trace gave the model's outputs at other batches when it was kept."""
    batches, real = [], sw.program._agree
    monkeypatch.setattr(
        sw.program, "_agree", lambda *given: batches.append(len(given[2][0])) or real(*given)
    )
    names = [k for k in sw.kernels.KERNELS if k.startswith("csr.")]
    fast = deployed(batch=1, kernels=names)  # of one sample no pieces are timed, and tried
    assert fast.program is not None
    assert batches == [1, 3]
    deployed(batch=1, kernels=names)
    assert batches == [1, 3, 1]


SCRIPT = """
import sys
import torch, sparsewright as sw
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                                  nn.Linear(8 * 36, 64), nn.GELU(), nn.Linear(64, 8))
    def forward(self, x):
        return self.body(x)

torch.manual_seed(0)
torch.set_num_threads(1)
model, x = Net().eval(), torch.randn(1, 1, 8, 8)
sw.prune(model, sparsity=0.9, allocate="uniform_all")
names = [k for k in sw.kernels.KERNELS if k.startswith(("csr.", "csb.conv2d"))]
fast = sw.deploy(model, x, kernels=names, seconds=0)
assert fast.program is not None
assert torch.allclose(fast(x), model(x), atol=1e-5)
print("torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""


def test_another_process_does_not_even_import_the_tracer(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    run = [sys.executable, "-W", "ignore", "script.py"]
    env = {"SPARSEWRIGHT_CACHE": str(tmp_path / "cache"), "PATH": ""}
    made = [
        subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [m.stdout.strip() for m in made] == ["True True", "False False"]


class Selects(nn.Module):
    """Gives as many rows as the values say."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)

    def forward(self, x):
        x = self.norm(self.fc(x))
        return x[x[:, 0] > 0]


def test_sizes_that_follow_values_are_no_batch(folder):
    """The norm is folded all the same, and the modules serve."""
    model = Selects().eval()
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    names = [k for k in sw.kernels.KERNELS if k.startswith("csr.")]
    for _ in range(2):
        fast = sw.deploy(model, torch.randn(4, 16), kernels=names, seconds=0)
        assert fast.program is None
        assert "BatchNorm folded: 'norm' into 'fc'" in fast.plan.notes
        for batch in (1, 2, 5):
            x = torch.randn(batch, 16)
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


CSR = [k for k in sw.kernels.KERNELS if k.startswith(("csr.", "csb.conv2d."))]


@pytest.fixture
def runs(monkeypatch):
    """One entry for every time that deploy runs the dense model."""
    found, real = [], sw.serve.record
    module = sys.modules["sparsewright.deploy"]
    monkeypatch.setattr(module, "record", lambda *given: found.append(1) or real(*given))
    return found


def test_a_model_that_was_folded_before_runs_once(folder, runs):
    """Its layers and norms tell what the folded ones are to give."""
    for seed, expected in ((0, 2), (1, 3), (2, 4)):
        model = network(seed)
        fast = deployed(model, kernels=CSR)
        assert len(runs) == expected
        assert fast.plan.notes == ("BatchNorm folded: 'norm' into 'conv'",)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.model.modules())
        assert_right(fast, model)
    deployed(network(), kernels=CSR, fold=False)
    assert len(runs) == 5


def test_weights_that_cannot_be_folded_are_seen_though_others_were(folder):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 4))
    sw.prune(model.eval(), sparsity=0.7, allocate="uniform_all")
    x, names = torch.randn(1, 2, 6, 6), [k for k in CSR if "conv" not in k]
    for _ in range(2):
        assert "folded: '1' into" in sw.deploy(model, x, kernels=names, seconds=0).plan.notes[0]
    with torch.no_grad():
        for far in (model[0].bias, model[1].running_mean):
            far += 1e6  # whose rounding is all that the norm sees of small sums
        model[1].running_var.fill_(1e-6)
    for _ in range(2):
        fast = sw.deploy(model, x, kernels=names, seconds=0)
        assert "BatchNorm is not folded: outputs would then be off" in fast.plan.notes[0]
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)


class Asks(nn.Module):
    """Reads what its norm is, which an Identity cannot tell."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x)) * self.norm.num_features


def test_what_could_not_be_folded_is_tried_at_every_time(folder, runs):
    torch.manual_seed(0)
    model, x = Asks().eval(), torch.randn(2, 2, 6, 6)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    for time in (1, 2, 3):
        fast = sw.deploy(model, x, kernels=CSR, seconds=0)
        assert len(runs) == 2 * time
        assert "BatchNorm is not folded: the model then raises" in fast.plan.notes[0]
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
