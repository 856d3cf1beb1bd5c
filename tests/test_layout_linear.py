"""LayoutLinear and PrepackedLinear: as modules, compiled, exported, copied, saved, and refused."""

from __future__ import annotations

import copy
import dataclasses
import io

import pytest
import torch
from torch import Tensor, nn

from sparsewright.errors import KernelError, LayoutError
from sparsewright.kernels import KERNELS
from sparsewright.layouts import LAYOUTS, pack
from sparsewright.nn import LayoutLinear, PrepackedLinear


@pytest.fixture(params=LAYOUTS.names())
def layer(request: pytest.FixtureRequest) -> LayoutLinear:
    return LayoutLinear(pack(request.param, sparse_weight()), torch.randn(24))


def sparse_weight() -> Tensor:
    keep = torch.rand(24 * 2, 32).argsort(dim=1) < 3
    return torch.randn(24, 64) * keep.view(24, 64)


def test_equals_a_linear_with_zeros(layer: LayoutLinear) -> None:
    linear = nn.Linear(64, 24)
    linear.weight.data, linear.bias.data = layer.to_dense(), layer.bias
    for shape in ((64,), (1, 64), (3, 64), (2, 5, 64), (0, 64), (70, 64)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), linear(x))


def test_repr_tells_what_runs(layer: LayoutLinear) -> None:
    text = repr(layer)
    assert text == (
        f"LayoutLinear(in_features=64, out_features=24, bias=True, layout={layer.layout}, "
        f"kernel={layer.kernel}, values=fp32, nnz=144)"
    )


def test_buffers_have_the_layout_s_names(layer: LayoutLinear) -> None:
    assert set(dict(layer.named_buffers())) == {*layer.packed.tensors, "bias"}
    assert not list(layer.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_round_trip(layer: LayoutLinear, bias: bool) -> None:
    first = LayoutLinear(layer.packed, layer.bias if bias else None)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    other = LayoutLinear(
        dataclasses.replace(
            first.packed, tensors={k: t.clone() for k, t in first.packed.tensors.items()}
        ),
        torch.zeros(24) if bias else None,
    )
    other.values.mul_(2)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(3, 64)
    assert torch.equal(other(x), first(x))


def test_loading_hostile_indices_is_refused(layer: LayoutLinear) -> None:
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["columns"].view(-1)[0] = 99
    with pytest.raises(LayoutError):
        layer.load_state_dict(state)


def test_deepcopy_shares_nothing(layer: LayoutLinear) -> None:
    x = torch.randn(3, 64)
    expected = layer(x)
    other = copy.deepcopy(layer)
    assert torch.equal(other(x), expected)
    other.values.zero_()
    assert torch.equal(layer(x), expected)


def test_torch_compile_takes_it_whole(layer: LayoutLinear) -> None:
    torch._dynamo.reset()  # its cache holds eight forms of one forward, whatever test made them
    model = nn.Sequential(layer, nn.ReLU())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (1, 5):
        x = torch.randn(batch, 64)
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_takes_it_at_any_batch(layer: LayoutLinear, strict: bool) -> None:
    model = nn.Sequential(layer, nn.ReLU())
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (torch.randn(3, 64),), dynamic_shapes={"input": {0: batch}}, strict=strict
    )
    ops = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert ops == [f"sparsewright.{layer.layout}_linear.default", "aten.relu.default"]
    assert set(program.state_dict) == {f"0.{name}" for name in layer.state_dict()}
    for size in (1, 7):
        x = torch.randn(size, 64)
        assert torch.equal(program.module()(x), model(x))


def test_a_graph_of_the_best_kernel_names_no_instruction_set(layer: LayoutLinear) -> None:
    assert layer._numbers[-1] == 0  # so that it runs on other CPUs too


def test_gradients_are_refused(layer: LayoutLinear) -> None:
    x = torch.randn(3, 64, requires_grad=True)
    with pytest.raises(KernelError, match="forwards only, and x requires a gradient"):
        layer(x)
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        layer(x)


def test_wrong_width_is_named(layer: LayoutLinear) -> None:
    with pytest.raises(KernelError, match=r"needs x \(..., 64\); got \(3, 63\)"):
        layer(torch.randn(3, 63))


def test_construction_checks_everything() -> None:
    packed = pack("csr", sparse_weight())
    with pytest.raises(KernelError, match=r"bias must be float32 of shape \(24,\)"):
        LayoutLinear(packed, torch.zeros(3))
    with pytest.raises(KernelError, match="bias must be float32"):
        LayoutLinear(packed, torch.zeros(24).double())
    with pytest.raises(
        KernelError, match=r"kernel nm\.portable serves linear in layout nm; this weight is"
    ):
        LayoutLinear(packed, kernel="nm.portable")
    broken = {
        **packed.tensors,
        "columns": packed.tensors["columns"].long().flip(0).to(torch.uint16),
    }
    with pytest.raises(LayoutError, match="columns must ascend"):
        LayoutLinear(dataclasses.replace(packed, tensors=broken))
    for name in ("csr.avx2", "csr.avx512"):
        if KERNELS[name].refuses():
            with pytest.raises(KernelError, match=f"kernel {name} cannot serve"):
                LayoutLinear(packed, kernel=name)


# ---- PrepackedLinear ------------------------------------------------------------------------


@pytest.fixture
def prepacked() -> PrepackedLinear:
    reason = KERNELS["dense.onednn"].refuses()
    if reason:
        pytest.skip(reason)
    return PrepackedLinear(torch.randn(24, 64), torch.randn(24))


def plainly(layer: PrepackedLinear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, layer.weight, layer.bias)


def test_prepacked_equals_linear(prepacked: PrepackedLinear) -> None:
    for shape in ((64,), (1, 64), (3, 64), (2, 5, 64), (0, 64)):
        x = torch.randn(shape)
        torch.testing.assert_close(prepacked(x), plainly(prepacked, x))


def test_prepacked_exports_as_a_plain_linear(prepacked: PrepackedLinear) -> None:
    x = torch.randn(3, 64)
    program = torch.export.export(prepacked, (x,))
    ops = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert ops == ["aten.linear.default"]
    assert set(program.state_dict) == {"weight", "bias"}
    compiled = torch.compile(prepacked, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), plainly(prepacked, x))


def test_prepacked_follows_its_weight(prepacked: PrepackedLinear) -> None:
    x = torch.randn(3, 64)
    other = copy.deepcopy(prepacked)
    torch.testing.assert_close(other(x), prepacked(x))
    other.load_state_dict({"weight": torch.ones(24, 64), "bias": torch.zeros(24)})
    torch.testing.assert_close(other(x), x.sum(1, keepdim=True).expand(3, 24))
    assert not torch.equal(other(x), prepacked(x))
    other.load_state_dict(prepacked.state_dict())
    torch.testing.assert_close(other.to(torch.float32)(x), prepacked(x))
    assert "kernel=dense.onednn" in repr(prepacked)


def test_prepacked_passes_gradients(prepacked: PrepackedLinear) -> None:
    x = torch.randn(3, 64, requires_grad=True)
    prepacked(x).sum().backward()
    torch.testing.assert_close(x.grad, prepacked.weight.sum(0).expand(3, 64))
