"""Packed convolutions and embeddings equal the dense modules with the same zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from training import close

import sparsewright as sw
from sparsewright.errors import KernelError
from sparsewright.kernels import packed_ops
from sparsewright.kernels.packed_embedding import lookup
from sparsewright.nn import PackedConv1d, PackedConv2d, PackedEmbedding, PackedLinear

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "groups": 2, "padding": "same"},
    {"kernel_size": 2, "stride": 3, "groups": 4, "bias": False},
]


def sparse_conv(kind: type, dtype: torch.dtype = torch.float32, **geometry) -> nn.Module:
    conv = kind(8, 12, **geometry, dtype=dtype)
    with torch.no_grad():
        conv.weight[torch.rand_like(conv.weight) < 0.6] = 0.0
    return conv


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("kind", "size"), [(nn.Conv1d, (9,)), (nn.Conv2d, (9, 7))])
def test_a_convolution_equals_the_masked_dense_one(kind: type, size: tuple, geometry: dict) -> None:
    dense = sparse_conv(kind, **geometry)
    packed = sw.pack(copy.deepcopy(dense))
    assert packed.nnz == int(dense.weight.count_nonzero())
    packed.watch.wanted = lambda: True
    for lead in [(3,), (), (0,)]:
        x = torch.randn(*lead, 8, *size)
        xs = [x.clone().requires_grad_() for _ in range(2)]
        ys = [layer(x) for layer, x in zip((dense, packed), xs, strict=True)]
        assert close(ys[1].detach(), ys[0].detach(), 8 * 9)
        dy = torch.randn_like(ys[0])
        for layer, y in zip((dense, packed), ys, strict=True):
            layer.zero_grad()
            y.backward(dy)
        assert close(xs[1].grad, xs[0].grad, 12 * 9)
        terms = max(1, dy.numel())
        mask = dense.weight != 0
        assert close(packed.weight.grad, dense.weight.grad[mask], terms)
        if dense.bias is not None:
            assert close(packed.bias.grad, dense.bias.grad, terms)
        whole = dense.weight.grad.flatten(1)
        rows = torch.cat([packed.dense_gradient(0, 5), packed.dense_gradient(5, 12)])
        assert close(rows, whole, terms)
        some = torch.randperm(whole.numel())[:20]
        assert close(packed.gradient_at(some), whole.flatten()[some], terms)
        packed.watch.seen.clear()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("kind", "size"), [(nn.Conv1d, (7,)), (nn.Conv2d, (5, 6))])
def test_gradients_of_convolutions_are_right_in_float64(
    kind: type, size: tuple, geometry: dict
) -> None:
    small = kind(4, 4, **geometry, dtype=torch.float64)
    packed = sw.pack(small, masks={"weight": torch.rand_like(small.weight) < 0.5})
    names = [name for name, _ in packed.named_parameters()]

    def run(x: Tensor, *own: Tensor) -> Tensor:
        return torch.func.functional_call(packed, dict(zip(names, own, strict=True)), (x,))

    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *packed.parameters()))


def test_convolutions_that_no_kernel_computes_are_refused() -> None:
    with pytest.raises(KernelError, match="padding_mode 'circular'"):
        PackedConv2d(2, 2, 3, padding_mode="circular", sparsity=0.5)
    with pytest.raises(KernelError, match="one side more"):
        PackedConv1d(2, 2, 2, padding="same", sparsity=0.5)
    with pytest.raises(KernelError, match=r"needs x \(N, 2, H, W\)"):
        PackedConv2d(2, 2, 3, sparsity=0.5)(torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"scale_grad_by_freq": True}], ids=str)
@pytest.mark.parametrize("lead", [(), (5,), (4, 6), (0,)])
def test_an_embedding_equals_the_masked_dense_one(lead: tuple, options: dict) -> None:
    dense = nn.Embedding(10, 6, **options)
    with torch.no_grad():
        dense.weight[torch.rand(10, 6) < 0.6] = 0.0
        dense.weight[3] = 0.5
    packed = sw.pack(copy.deepcopy(dense))
    packed.watch.wanted = lambda: True
    ids = torch.randint(10, lead)
    y, z = dense(ids), packed(ids)
    assert torch.equal(y, z)
    dy = torch.randn_like(y)
    y.backward(dy)
    z.backward(dy)
    assert close(packed.weight.grad, dense.weight.grad[dense.weight != 0], 24)
    if not ids.numel():
        return
    rows = torch.cat([packed.dense_gradient(0, 4), packed.dense_gradient(4, 10)])
    assert close(rows, dense.weight.grad, 24)
    some = torch.randperm(60)[:20]
    assert close(packed.gradient_at(some), dense.weight.grad.flatten()[some], 24)


def test_what_an_embedding_does_not_do_is_refused() -> None:
    for option in ({"max_norm": 1.0}, {"sparse": True}):
        with pytest.raises(KernelError, match=next(iter(option))):
            PackedEmbedding(4, 2, sparsity=0.5, **option)
    table = PackedEmbedding(4, 2, sparsity=0.5, padding_idx=-1)
    assert not table.to_dense()[3].any()
    with pytest.raises(KernelError, match=r"ids in \[0, 4\); got 0 to 4"):
        table(torch.tensor([0, 4]))
    with pytest.raises(KernelError, match="int64 or int32"):
        table(torch.ones(2))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_operations_are_what_torch_expects(layout: torch.memory_format) -> None:
    """Schemas, fakes and gradients, as torch.compile takes them."""
    conv = PackedConv2d(4, 4, 3, padding=1, sparsity=0.5)
    table, linear = PackedEmbedding(5, 4, sparsity=0.5), PackedLinear(4, 3, sparsity=0.5)
    x = torch.randn(2, 4, 5, 5).to(memory_format=layout).requires_grad_()
    rows, ids = torch.randn(2, 4, requires_grad=True), torch.tensor([[0, 4, 4]])
    numbers = [list(conv.operation.numbers)]
    check = torch.library.opcheck
    check(packed_ops.conv2d, (x, conv.weight, conv.bias, conv.topology.number, 4, *numbers))
    check(packed_ops.linear, (rows, linear.weight, linear.bias, linear.topology.number, 3))
    check(lookup, (ids, table.weight, None, table.topology.number, 4, -1, False))
