"""A program gives the bits that the modules give, and leaves to them what it does not serve."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.errors import KernelError
from sparsewright.kernels import KERNELS, kernel_info
from sparsewright.operations import expect_width
from sparsewright.program import MISS, hooks_of

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

KIND = "portable" if kernel_info().native else "reference"
CSR, NM = f"csr.{KIND}", f"nm.{KIND}"


def mlp(kernels=(CSR,), example=(1, 1, 8, 8)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    sw.prune(model, pattern="2:16", allocate="uniform_all")
    return sw.deploy(model, torch.randn(example), kernels=list(kernels), seconds=0)


class Net(nn.Module):
    """A convolution, attention, a sum, two inputs and two outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, a, b):
        h = self.conv(a).flatten(2).transpose(1, 2)
        h = self.block(h + h)
        return self.head(h.mean(1)) + b, [h, float("inf") * b]


def leaves(output):
    return [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]


def same(a, b):
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    return bool(pairs) and all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in pairs)


@pytest.mark.parametrize("kernels", [(CSR,), (NM,), (CSR, "dense.eager"), (CSR, "dense.onednn")])
def test_a_program_gives_the_bits_of_the_modules(kernels, tmp_path):
    if any(KERNELS[k].refuses() is not None for k in kernels):
        pytest.skip(f"one of {kernels} cannot serve here")
    fast = mlp(kernels)
    sw.save(fast, tmp_path / "file")
    again = sw.load(tmp_path / "file")
    for batch in (1, 2, 3, 40):
        x = torch.randn(batch, 1, 8, 8)
        for model in (fast, again) if fast.program else (again,):
            output = model.program.run(x)
            assert output is not MISS
            assert torch.equal(output, model.run_modules(x))
            assert torch.equal(output, model(x))


def test_models_of_several_inputs_have_programs():
    torch.manual_seed(0)
    model = Net().eval()
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    fast = sw.deploy(model, (torch.randn(2, 1, 4, 4), torch.randn(2, 4)), kernels=[CSR], seconds=0)
    for batch in (1, 2, 5):
        inputs = torch.randn(batch, 1, 4, 4), torch.randn(batch, 4)
        output = fast.program.run(*inputs)
        assert same(output, fast.run_modules(*inputs))
        assert isinstance(output, tuple)
        assert isinstance(output[1], list)
    assert fast.program.run(torch.randn(2, 1, 4, 4), torch.randn(1, 4)) is MISS
    assert fast.program.run(torch.randn(2, 1, 4, 4)) is MISS
    assert fast(torch.randn(2, 1, 4, 4), torch.randn(1, 4))[0].shape == (2, 4)  # they broadcast


def test_other_inputs_run_on_the_modules():
    fast = mlp()
    wide = torch.randn(2, 64)  # Flatten takes it as well
    assert fast.program.run(wide) is MISS
    assert torch.equal(fast(wide), fast(wide.view(2, 1, 8, 8)))
    assert fast(torch.randn(0, 1, 8, 8)).shape == (0, 10)
    special = nn.Parameter(torch.ones(1, 1, 8, 8), requires_grad=False)  # or a tracer's
    assert fast.program.run(special) is MISS
    assert torch.equal(fast(special), fast(special.data))
    with pytest.raises(KernelError, match=r"^layer '1': needs x \(..., 64\); got \(1, 81\)"):
        fast(torch.ones(1, 1, 9, 9))
    with pytest.raises(RuntimeError, match="x must be float32"):
        fast(torch.ones(1, 1, 8, 8, dtype=torch.float64))
    with pytest.raises(KernelError, match="requires a gradient"):
        fast(torch.ones(1, 1, 8, 8, requires_grad=True))
    with pytest.raises(TypeError):
        fast(torch.ones(1, 1, 8, 8), torch.ones(1))


def test_a_model_that_cannot_be_traced_is_deployed_all_the_same():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 8)

        def forward(self, x):
            return self.fc(x) if float(x.sum()) > 0 else -self.fc(x)

    model = Branch()
    sw.prune(model, sparsity=0.9, allocate="uniform_all")
    fast = sw.deploy(model, torch.ones(1, 64), kernels=[CSR], seconds=0)
    assert fast.program is None
    assert torch.equal(fast(-torch.ones(1, 64)), -fast.model.fc(-torch.ones(1, 64)))


def test_a_trace_that_gives_other_numbers_is_not_used():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 8)

        def forward(self, x):
            return self.fc(x) * (2.0 if torch.compiler.is_exporting() else 1.0)

    model = Counts()
    sw.prune(model, sparsity=0.9, allocate="uniform_all")
    fast = sw.deploy(model, torch.ones(1, 64), kernels=[CSR], seconds=0)
    assert fast.program is None
    assert torch.equal(fast(torch.ones(1, 64)), fast.model.fc(torch.ones(1, 64)))


def test_a_model_of_one_batch_alone_is_deployed_all_the_same():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 8)

        def forward(self, x):
            if not torch.compiler.is_exporting() and len(x) != 2:
                raise KeyError("two rows")
            return self.fc(x)

    model = Pair()
    sw.prune(model, sparsity=0.9, allocate="uniform_all")
    fast = sw.deploy(model, torch.ones(2, 64), kernels=[CSR], seconds=0)
    assert fast.program is None
    assert fast(torch.ones(2, 64)).shape == (2, 8)


def test_a_dense_model_is_not_traced():
    fast = sw.deploy(nn.Linear(8, 8), torch.ones(1, 8), kernels=["dense.eager"], seconds=0)
    assert fast.program is None


def test_a_model_with_hooks_is_not_traced():
    model = nn.Sequential(nn.Linear(64, 8))
    sw.prune(model, sparsity=0.9, allocate="uniform_all")
    kinds = []
    model.register_forward_hook(lambda module, given, made: kinds.append(type(made)))
    fast = sw.deploy(model, torch.ones(1, 64), kernels=[CSR], seconds=0)
    assert fast.program is None
    fast(torch.ones(1, 64))
    assert set(kinds) == {torch.Tensor}


def test_hooks_are_heard():
    fast, heard = mlp(), []
    x = torch.randn(1, 1, 8, 8)
    handle = fast.model[1].register_forward_hook(lambda *call: heard.append("own"))
    assert any(hooks_of(fast.model))
    fast(x)
    handle.remove()
    fast(x)
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *c: heard.append("all"))
    try:
        fast(x)
    finally:
        handle.remove()
    assert heard[0] == "own"
    assert heard.count("own") == 1
    assert heard.count("all") == 1 + len(list(fast.model.modules()))


def test_a_copy_has_a_program_of_its_own(tmp_path):
    fast = mlp()
    sw.save(fast, tmp_path / "file")
    x = torch.randn(1, 1, 8, 8)
    for model in (fast, sw.load(tmp_path / "file")):
        before = model(x)
        twin = copy.deepcopy(model)
        assert torch.equal(twin.program.run(x), before)
        for buffer in twin.buffers():
            if buffer.is_floating_point():
                buffer.zero_()
        assert not twin.program.run(x).any()
        assert torch.equal(model(x), before)
        twin.model.register_forward_hook(lambda *call: None)
        assert twin.program.run(x) is MISS


def test_changed_tensors_are_followed():
    x = torch.randn(1, 1, 8, 8)
    for change in (
        lambda m: m.load_state_dict({k: v * 1 for k, v in m.state_dict().items()}, assign=True),
        lambda m: m._apply(torch.clone),
        lambda m: m.requires_grad_(False),
    ):
        fast = mlp()
        assert fast.program is not None
        before = fast(x)
        change(fast)
        assert fast.program is None
        assert torch.equal(fast(x), before)


@pytest.mark.parametrize(
    ("kernel", "size", "batch"),
    [("csb.portable", 64, 33), ("csb.avx2", 512, 24), ("csb.avx512", 512, 33)],
)
def test_a_chain_may_round_otherwise_than_its_layers(kernel, size, batch):
    """On several threads it takes other numbers of rows at once, and its last bits are others."""
    if KERNELS[kernel].refuses():
        pytest.skip(KERNELS[kernel].refuses())
    layers = [layer for _ in range(3) for layer in (nn.Linear(size, size), nn.ReLU())]
    model = nn.Sequential(*layers).eval()
    sw.prune(model, sparsity=0.9, allocate="uniform_all")
    x = torch.randn(batch, size)
    fast = sw.deploy(model, x, kernels=[kernel], seconds=0, cache=False)
    assert fast.program is not None
    assert fast.plan.pieces.why_whole is None
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_trace_that_gives_other_outputs_is_named(monkeypatch):
    monkeypatch.setattr("sparsewright.program._agree", lambda *given: False)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    sw.prune(model, sparsity=0.9, allocate="uniform_all")
    fast = sw.deploy(model, torch.randn(4, 64), kernels=["csr.portable"], seconds=0, cache=False)
    why = "the model's trace does not give the outputs of its modules"
    assert fast.plan.pieces.why_whole == why
    assert f"The batch runs whole: {why}." in str(fast.plan)


def test_saving_checks_the_modules_as_they_are_now(tmp_path):
    fast = mlp()
    fast.model[1].values.mul_(2)  # in place: the trace holds the same memory
    sw.save(fast, tmp_path / "file")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(sw.load(tmp_path / "file")(x), fast.run_modules(x))


def test_only_width_checks_that_cannot_fail_are_left_out(tmp_path):
    class Wide(nn.Module):
        """The last size of what the layer gets depends on the batch."""

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 32)
            self.out = nn.Linear(32, 8)

        def forward(self, x):
            return self.out(torch.relu(self.fc(x.t())))

    torch.manual_seed(0)
    model = Wide()
    sw.prune(model, sparsity=0.9, allocate="uniform_all")
    fast = sw.deploy(model, torch.randn(64, 3), kernels=[CSR], seconds=0)
    assert checks(fast) == 1  # the first layer's; the second gets what the first one gives
    with pytest.raises(KernelError, match=r"takes inputs|needs x"):
        fast(torch.randn(65, 3))
    assert checks(mlp()) == 0


def checks(fast):
    bound = [c.cell_contents for c in fast.program.run.__closure__]
    return sum(value is expect_width for value in bound)
