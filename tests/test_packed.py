"""A packed model trains as the masked dense one does, with whatever torch puts around it."""

from __future__ import annotations

import copy
import io
import os
import resource
import shutil
import tracemalloc
import warnings

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from training import OPTIMIZERS, close, loss_of, small_model, train_step

import sparsewright as sw
from sparsewright.errors import SparsityWarning, StateError, UnknownNameError
from sparsewright.nn import PackedLinear, PackedModule

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

STEPS = 5


def pruned(sparsity: float = 0.8) -> nn.Sequential:
    model = small_model()
    sw.prune(model, sparsity, allocate="uniform_all")
    return model


def masked(model: nn.Sequential) -> nn.Sequential:
    """The dense model, whose absent weights take no part: their gradient is zero."""
    for layer in (model[0], model[2]):
        mask = layer.weight.detach() != 0
        layer.weight.register_hook(lambda g, mask=mask: g * mask)
    return model


class Double(nn.Module):
    """A model in float64, where the order of sums plays no part that counts."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.double())


MIXERS = {"Adafactor": "its second moments are those of rows and columns", "Muon": "2D"}


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(MIXERS)))
def test_every_optimizer_trains_as_on_the_masked_dense_model(name: str) -> None:
    model = pruned()
    packed, dense = Double(sw.pack(copy.deepcopy(model))), Double(masked(model))
    ours, theirs = OPTIMIZERS[name](packed), OPTIMIZERS[name](dense)
    first = loss_of(packed, 0).item()
    for _ in range(STEPS):
        train_step(packed, ours, 0)
        train_step(dense, theirs, 0)
    assert loss_of(packed, 0).item() < first
    assert packed.model[0].weight.dim() == 1
    sw.unpack(packed)
    for layer, other in zip(packed.parameters(), dense.parameters(), strict=True):
        assert torch.allclose(layer, other, rtol=1e-9, atol=1e-12), name


def test_optimizers_of_matrices_say_so_or_see_a_vector() -> None:
    packed = sw.pack(pruned())
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon(packed.parameters())
    adafactor = torch.optim.Adafactor(packed.parameters())
    first = loss_of(packed, 0).item()
    for _ in range(STEPS):
        train_step(packed, [adafactor], 0)
    assert loss_of(packed, 0).item() < first


def test_clipping_and_accumulation_are_those_of_the_masked_dense_model() -> None:
    model = pruned()
    packed, dense = sw.pack(copy.deepcopy(model)), masked(model)
    for step in range(3):  # accumulated
        for each in (packed, dense):
            loss_of(each, step).backward()
    norms = [nn.utils.clip_grad_norm_(m.parameters(), 0.01) for m in (packed, dense)]
    assert torch.allclose(*norms, rtol=1e-5)
    mask = model[0].weight != 0
    assert torch.allclose(packed[0].weight.grad, model[0].weight.grad[mask], rtol=1e-4, atol=1e-7)


def test_autocast_computes_packed_layers_in_float32_under_a_scaler() -> None:
    packed = sw.pack(pruned())
    optimizer = torch.optim.AdamW(packed.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            assert packed[0](torch.ones(2, 32).bfloat16()).dtype == torch.float32
            loss = loss_of(packed, 0)
        scaler.scale(loss).backward()
        assert packed[0].weight.grad.dtype == torch.float32
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_computes_the_same_before_and_after_a_move(backend: str) -> None:
    if backend == "inductor" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("inductor needs a C++ compiler")
    torch._dynamo.reset()
    packed = sw.pack(pruned())
    eager = copy.deepcopy(packed)
    compiled = torch.compile(packed, fullgraph=True, backend=backend)
    x = torch.randn(16, 32)

    def same() -> None:
        packed.zero_grad()
        eager.zero_grad()
        y, z = eager(x), compiled(x)
        assert close(z.detach(), y.detach(), 64)
        y.square().sum().backward()
        z.square().sum().backward()
        assert close(packed[0].weight.grad, eager[0].weight.grad, 16 * 64)

    same()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    packed[0].watch.wanted = lambda: True
    for nnz in (packed[0].nnz, packed[0].nnz, 50, 60):
        places = torch.randperm(32 * 64)[:nnz].sort().values
        values = torch.randn(nnz)
        for model in (packed, eager):
            model[0].move(places, values)
        same()
        assert len(packed[0].watch.seen) == 1
    assert close(packed[0].watch.seen[0][0], x, 0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs + 2


def test_a_checkpoint_of_other_places_goes_on_as_if_never_stopped() -> None:
    packed = sw.pack(pruned(0.8))
    optimizer = torch.optim.AdamW(packed.parameters(), 1e-2)
    train_step(packed, [optimizer], 0)
    file = io.BytesIO()
    torch.save({"model": packed.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    again = sw.pack(pruned(0.5))
    other = torch.optim.AdamW(again.parameters(), 1e-2)  # before the places come
    train_step(again, [other], 0)
    again.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    for step in range(1, 3):
        train_step(packed, [optimizer], step)
        train_step(again, [other], step)
    for one, two in zip(packed.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_goes_through_safetensors(assign: bool) -> None:
    packed, again = sw.pack(pruned(0.8)), sw.pack(pruned(0.5))
    again.load_state_dict(load(save(packed.state_dict())), assign=assign)
    x = torch.randn(3, 32)
    assert torch.equal(again(x), packed(x))
    assert again[0].weight.requires_grad


def test_a_moving_average_of_a_packed_model_is_one() -> None:
    packed = sw.pack(pruned())
    average = torch.optim.swa_utils.AveragedModel(packed)
    average.update_parameters(packed)
    x = torch.randn(3, 32)
    assert torch.equal(average(x), packed(x))


def test_a_packed_model_is_deployed_and_saved() -> None:
    packed = sw.pack(pruned()).train()
    x = torch.randn(4, 32)
    fast = sw.deploy(packed, x, seconds=0)
    assert torch.allclose(fast(x), packed(x), atol=1e-5)
    assert all(isinstance(packed[i], PackedLinear) for i in (0, 2))
    assert packed.training
    assert [row.layer for row in fast.plan.layers] == ["0", "2"]
    assert not any(isinstance(module, PackedModule) for module in fast.modules())


def test_what_cannot_be_packed_stays_dense() -> None:
    class Mine(nn.Linear):
        pass

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
            self.head.weight = self.table.weight
            self.mine, self.ring = Mine(4, 4), nn.Conv1d(2, 2, 3, padding_mode="circular")
            self.attention = nn.MultiheadAttention(4, 2)
            self.more = nn.Linear(4, 4)
            self.more.register_buffer("count", torch.zeros(1))
            self.one = self.two = nn.Linear(4, 4)

    model = sw.pack(Tied())
    packed = {n for n, m in model.named_modules() if isinstance(m, PackedModule)}
    assert packed == {"one"}
    assert model.one is model.two
    with pytest.raises(UnknownNameError):
        sw.pack(Tied(), skip=["nothing"])
    with pytest.warns(SparsityWarning, match="'mine': Mine is none of Linear, Conv1d"):
        sw.pack(Tied(), skip=["one"])
    with pytest.raises(StateError, match="another module shares its weight"):
        sw.pack(Tied(), masks={"table": torch.ones(8, 4, dtype=torch.bool)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sw.pack(model)  # nothing to do: it is packed


def test_masks_keep_present_zeros() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight[0] = 0.0
    mask = torch.tensor([[True, True, False, False], [False, True, False, True]])
    packed = sw.pack(nn.Sequential(layer), masks={"0": mask})[0]
    assert packed.nnz == 4
    assert torch.equal(packed.to_dense(), layer.weight * mask)
    with pytest.raises(UnknownNameError):
        sw.pack(nn.Sequential(nn.Linear(4, 2)), masks={"1": mask})


def test_hooks_are_never_lost() -> None:
    model = small_model()
    sparse = sw.attach(
        model, torch.optim.SGD(model.parameters(), 0.1), method="static", sparsity=0.5
    )
    with pytest.raises(StateError, match=r"held by a Sparsifier: call its detach\(\) first"):
        sw.pack(model)
    assert type(model[0]) is nn.Linear
    sparse.detach()
    for add in (
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.weight.register_hook(lambda g: g),
        lambda layer: layer.weight.register_post_accumulate_grad_hook(lambda p: None),
    ):
        handle = add(model[2])
        with pytest.raises(StateError, match="'2'"):
            sw.pack(model)
        handle.remove()
        assert type(model[0]) is nn.Linear  # nothing was changed
    sw.pack(model)
    handle = model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(StateError, match="'0' has forward hooks"):
        sw.unpack(model)
    handle.remove()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_torchs_fused_encoder_leaves_packed_layers_alone() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, padded = torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.bool)
    padded[0, 3:] = True
    with torch.no_grad():
        expected = model(x), model(x, src_key_padding_mask=padded)
        sw.pack(model)
        assert isinstance(model.layers[0].linear1, PackedLinear)
        got = model(x), model(x, src_key_padding_mask=padded)
        sw.unpack(model)
        again = model(x), model(x, src_key_padding_mask=padded)
    assert torch.allclose(got[0], expected[0], atol=1e-5)
    assert torch.allclose(got[1][~padded], expected[1][~padded], atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.slow
def test_a_layer_of_a_million_neurons_needs_no_table() -> None:
    """10 weights for each neuron; dense it would have 4 terabytes."""
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layer = PackedLinear(1_000_000, 1_000_000, sparsity=1 - 1e-5, pattern="fan_in")
    x = torch.randn(1, 1_000_000)
    layer(x).sum().backward()
    assert layer.nnz == 10_000_000
    assert int(layer.topology.starts.diff().min()) == 10
    assert layer.weight.grad.count_nonzero() > 9_000_000
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kilobytes < 200 * layer.nnz / 1024  # 25 numbers of 8 bytes for each weight
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
