"""deploy picks kernels by timing, keeps the outputs, and says what it did not do and why."""

from __future__ import annotations

import copy
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.errors import KernelError, StateError
from sparsewright.kernels import KERNELS, Kernel, kernel_info
from sparsewright.measure.dense import relative_error
from sparsewright.nn import LayoutLinear
from sparsewright.plan import Plan, pattern_of

MODULE = sys.modules["sparsewright.serve"]
BUILD = sys.modules["sparsewright.nn.build"]
pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

KIND = "portable" if kernel_info().native else "reference"
CSR, NM = f"csr.{KIND}", f"nm.{KIND}"


def mlp(*widths, sparsity=0.9):
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    model = nn.Sequential(nn.Flatten(), *layers)
    sw.prune(model, sparsity=sparsity, allocate="uniform_all")
    return model


def row(fast, name):
    return next(r for r in fast.plan.layers if r.layer == name)


def test_the_original_is_left_as_it_was():
    model = mlp(16, 16).train()
    before = copy.deepcopy(model)
    x = torch.randn(2, 16)
    fast = sw.deploy(model, x, kernels=[CSR], seconds=0)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not any(p.requires_grad for p in fast.parameters())
    assert not any(hasattr(m, "_forward_hooks") and m._forward_hooks for m in fast.modules())


@pytest.mark.parametrize("kernel", [CSR, NM, "dense.eager", "dense.onednn"])
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_equal_the_masked_model(kernel, batch):
    if KERNELS[kernel].refuses() is not None:
        pytest.skip(f"{kernel}: {KERNELS[kernel].refuses()}")
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8, bias=False))
    sw.prune(model, pattern="2:4", allocate="uniform_all")
    x = torch.randn(batch, 5, 64)
    fast = sw.deploy(model, x, kernels=[kernel], seconds=0)
    assert {r.kernel for r in fast.plan.layers} == {kernel}
    assert relative_error(fast(x), model(x)) < 1e-5
    assert relative_error(fast(x[:, :1]), model(x[:, :1])) < 1e-5


def test_the_plan_says_what_was_chosen_and_why():
    model = mlp(64, 32)
    fast = sw.deploy(model, torch.randn(4, 64), kernels=[CSR, NM, "dense.eager"], seconds=0)
    (only,) = fast.plan.layers
    weight = model[1][0].weight
    present = int(torch.count_nonzero(weight))
    assert (only.layer, only.shape, only.present) == ("1.0", (32, 64), present)
    assert only.sparsity == 1 - present / weight.numel()
    assert (only.pattern, only.dense_bytes) == ("unstructured", 4 * weight.numel())
    assert {c.kernel for c in only.candidates} == {CSR, NM, "dense.eager"}
    timed = {c.kernel: c.median_ms for c in only.candidates if c.refused is None}
    assert only.kernel == min(timed, key=timed.get)
    assert only.speedup == pytest.approx(timed["dense.eager"] / timed[only.kernel])
    assert fast.plan.batch == 4
    assert fast.plan.threads == torch.get_num_threads()
    assert Plan.from_dict(fast.plan.to_dict()) == fast.plan


def test_bytes_are_those_of_the_packed_tensors():
    model = mlp(64, 32)
    fast = sw.deploy(model, torch.randn(1, 64), kernels=[CSR], seconds=0)
    only = fast.plan.layers[0]
    assert only.bytes == 4 * 33 + only.present * (2 + 4)
    assert only.layout == "csr"
    assert only.speedup is None  # no dense way was timed


def test_the_printed_plan_names_refusals_and_reasons():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.fc = nn.Linear(72, 8)
            self.unused = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(self.conv(x).flatten(1))

    fast = sw.deploy(Net(), torch.randn(1, 1, 8, 8), kernels=["dense.eager"], seconds=0)
    text = str(fast.plan)
    assert "No layer is served sparse." in text
    assert "'conv': none of the kernels asked for computes conv2d" in text
    assert "'unused': the example does not call it" in text
    assert row(fast, "conv").speedup is None
    assert row(fast, "fc").speedup == 1.0
    for name in ("conv", "fc", "8x72", "dense.eager", "batch 1"):
        assert name in text
    assert not any(isinstance(m, LayoutLinear) for m in fast.modules())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        return self.encoder(x)


def test_attention_keeps_its_own_weights_and_its_mlp_is_packed():
    model = Attention().eval()
    x = torch.randn(2, 5, 16)
    fast = sw.deploy(model, x, kernels=[CSR], seconds=0)
    for name in ("in_proj_weight", "out_proj"):
        kept = row(fast, f"encoder.layers.0.self_attn.{name}")
        assert kept.layout == "dense"
        assert "MultiheadAttention reads its weights itself" in kept.candidates[0].refused
    assert row(fast, "encoder.layers.1.linear2").layout == "csr"
    with torch.no_grad():  # where torch would take its fused path, which reads linear1.weight
        assert relative_error(fast(x), model(x)) < 1e-5
    assert torch.backends.mha.get_fastpath_enabled()


def test_tied_layers_share_what_is_packed():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
            self.b.weight = self.a.weight
            self.again = self.a

        def forward(self, x):
            return self.again(self.b(self.a(x)))

    model = Tied()
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    x = torch.randn(2, 32)
    fast = sw.deploy(model, x, kernels=[CSR], seconds=0)
    assert len(fast.plan.layers) == 1
    assert fast.model.a is fast.model.again
    assert fast.model.a.values.data_ptr() == fast.model.b.values.data_ptr()
    assert not torch.equal(fast.model.a.bias, fast.model.b.bias)
    assert relative_error(fast(x), model(x)) < 1e-5


def test_a_layer_called_twice_is_planned_on_its_first_input(monkeypatch):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(self.fc(x)[:1])

    shapes = []
    real = MODULE.choose

    def choose(weight, bias, example, **more):
        shapes.append(tuple(example.shape))
        return real(weight, bias, example, **more)

    monkeypatch.setattr(MODULE, "choose", choose)
    sw.deploy(Twice(), torch.randn(3, 8), kernels=["dense.eager"], seconds=0)
    assert shapes == [(3, 8)]


def test_subclasses_and_parametrized_layers_stay_dense():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Scaled(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    x = torch.randn(2, 8)
    fast = sw.deploy(model, x, kernels=[CSR], seconds=0)
    assert all(r.layout == "dense" for r in fast.plan.layers)
    assert "Scaled is no plain Linear" in row(fast, "0").candidates[0].refused
    assert torch.equal(fast(x), model(x))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_are_refused(kind):
    with pytest.raises(KernelError, match=rf"'0.weight' is {str(kind)[6:]}: call model.float\(\)"):
        sw.deploy(nn.Sequential(nn.Linear(2, 2).to(kind)), torch.ones(1, 2, dtype=kind))


def test_other_devices_are_refused():
    with pytest.raises(KernelError, match=r"'weight' is on meta: call model.cpu\(\)"):
        sw.deploy(nn.Linear(2, 2, device="meta"), torch.ones(1, 2))
    with pytest.raises(KernelError, match="'example 0' is on meta"):
        sw.deploy(nn.Linear(2, 2), torch.ones(1, 2, device="meta"))


def test_wrong_calls_are_refused():
    fast = sw.deploy(nn.Linear(2, 2), torch.ones(1, 2), kernels=["dense.eager"], seconds=0)
    with pytest.raises(KernelError, match="deployed already"):
        sw.deploy(fast, torch.ones(1, 2))
    with pytest.raises(KernelError, match="needs an example"):
        sw.deploy(nn.Linear(2, 2), [])
    with pytest.raises(StateError, match="is for inference"):
        fast.train()
    assert fast.eval() is fast
    with pytest.raises(KernelError, match=r"kernels must be a list of names; got 'csr.portable'"):
        sw.deploy(nn.Linear(4, 2), torch.ones(1, 4), kernels="csr.portable")
    with pytest.raises(KernelError, match=r"plan must be a Plan; got str: Plan.load"):
        sw.deploy(nn.Linear(4, 2), torch.ones(1, 4), plan="plan.json")
    with pytest.raises(KernelError, match=r"example 1 must be a tensor; got ndarray"):
        sw.deploy(nn.Linear(4, 2), [torch.ones(1, 4), torch.ones(1, 4).numpy()])
    with pytest.raises(sw.UnknownNameError, match="no kernel is called 'cs'"):
        sw.deploy(nn.Linear(2, 2), torch.ones(1, 2), kernels=["cs"])


def test_several_inputs_and_no_linear_at_all():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

    fast = sw.deploy(Sum(), (torch.ones(2), torch.ones(2)))
    assert torch.equal(fast(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))
    assert fast.plan.layers == ()
    assert "No layer is served sparse." in str(fast.plan)


def test_one_linear_is_a_model():
    fast = sw.deploy(nn.Linear(8, 8), torch.ones(1, 8), kernels=[CSR], seconds=0)
    assert isinstance(fast.model, LayoutLinear)


def test_a_wrong_kernel_is_caught_with_the_layers_name():
    def wrong(x, *weight_and_numbers):
        return torch.ops.sparsewright.csr_linear(x, *weight_and_numbers) + 1

    good = KERNELS[CSR]
    bad = Kernel("csr.wrong", "csr", "cpu", lambda *weight: None, good.prepare, wrong)
    KERNELS._parts["csr.wrong"] = bad
    try:
        with pytest.raises(KernelError, match=r"layer '1\.0': csr\.wrong disagrees"):
            sw.deploy(mlp(16, 16), torch.randn(1, 16), kernels=["csr.wrong"], seconds=0)
    finally:
        del KERNELS._parts["csr.wrong"]


def test_a_module_built_wrong_is_caught_with_the_layers_name(monkeypatch):
    real = BUILD.build_linear
    monkeypatch.setattr(
        BUILD, "build_linear", lambda choice, weight, bias: real(choice, 2 * weight, bias)
    )
    with pytest.raises(KernelError, match=r"layer '1.0': kernel dense.eager must equal"):
        sw.deploy(mlp(16, 16), torch.randn(1, 16), kernels=["dense.eager"], seconds=0)


def test_a_model_that_magnifies_differences_is_refused():
    class Chaos(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 8)

        def forward(self, x):
            y = self.fc(x)
            return torch.sin(1e9 * y)

    torch.manual_seed(3)
    with pytest.raises(KernelError, match=r"within 0\.001 of (its|the) largest"):
        sw.deploy(Chaos(), torch.randn(4, 64), kernels=[CSR], seconds=0)


def test_the_printed_plan_says_each_reason_once():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 32), nn.Linear(32, 8)
    )
    text = str(sw.deploy(model, torch.randn(1, 1, 8, 8), seconds=0).plan)
    assert "4x1x3x3 stride 2" in text
    assert "it is the specification" not in text
    reasons = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("not ")]
    assert len(reasons) == len(set(reasons))
    for line in text.splitlines():
        if "has no AVX-512" in line:
            assert "'2', '3'" in line
    for column in ("time", "best dense", "speed-up"):
        assert column in text
    assert len([line for line in text.splitlines() if "dense" in line and " ms " in line]) == 3


def test_patterns_are_read_from_the_zeros():
    model = nn.Linear(64, 8)
    assert pattern_of(model.weight) == "dense"
    for pattern in ("2:4", "3:32", "1:2"):
        pruned = copy.deepcopy(model)
        sw.prune(pruned, pattern=pattern, allocate="uniform_all")
        assert pattern_of(pruned.weight) == pattern
    pruned = copy.deepcopy(model)
    sw.prune(pruned, sparsity=0.5, allocate="uniform_all")
    assert pattern_of(pruned.weight) == "unstructured"
    for pattern in ("block:4x1", "block:8x1", "block:16x1", "block:4x4", "block:16x16"):
        pruned = nn.Linear(64, 32)
        sw.prune(pruned, 0.75, pattern=pattern, allocate="uniform_all")
        assert pattern_of(pruned.weight) == pattern
        assert pattern_of(pruned.weight.t().contiguous().t()) == pattern  # of any strides
        with torch.no_grad():
            row, column = pruned.weight.nonzero()[0].tolist()
            pruned.weight[row, column] = 0.0
        assert pattern_of(pruned.weight) == "unstructured"
    for pattern in ("2:4", "3:32", "block:4x4", "channel"):
        for conv in (nn.Conv2d(64, 32, 3, groups=2), nn.Conv1d(32, 32, 5), nn.Conv2d(32, 32, 1)):
            sw.prune(conv, None if pattern[0] in "23" else 0.75, pattern, allocate="uniform_all")
            assert pattern_of(conv.weight) == pattern
    assert pattern_of(torch.ones(4, 3, 2, 2).triu()) == "block:4x1"  # 3 inputs hold no wider tile
    assert pattern_of(torch.zeros(4, 4)) == "unstructured"
    rows = torch.ones(70, 9)
    rows[3] = 0.0
    assert pattern_of(rows) == "channel"
    rows[69, 1] = 0.0  # behind the first rows, which are looked at before all are
    assert pattern_of(rows) == "unstructured"
    assert pattern_of(torch.zeros(0, 4)) == "dense"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("layers"),
        lambda d: d.update(threads=-1),
        lambda d: d.update(batch=True),
        lambda d: d["layers"][0].update(shape="wide"),
        lambda d: d["layers"][0].update(sparsity="most"),
        lambda d: d["layers"][0].update(speedup=float("inf")),
        lambda d: d["layers"][0].update(candidates=[{"kernel": 3}]),
        lambda d: d["layers"][0].update(candidates=[7]),
    ],
)
def test_a_plan_of_nonsense_is_none(change):
    fast = sw.deploy(nn.Linear(8, 8), torch.ones(1, 8), kernels=["dense.eager"], seconds=0)
    entry = fast.plan.to_dict()
    change(entry)
    with pytest.raises((KeyError, TypeError, ValueError)):
        Plan.from_dict(entry)
