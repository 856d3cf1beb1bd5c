"""Packed convolutions equal F.conv2d in float64, as kernels, modules and parts of a deployed model.

Tolerance: as in test_kernels.py, a float32 sum of n products is off by at most about n * eps *
sum |w| |x|, in any order (Higham 2002, section 3.1).
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright import library
from sparsewright.errors import KernelError
from sparsewright.kernels import (
    KERNELS,
    Conv2d,
    Kernel,
    choose,
    depthwise,
    explain,
    reference,
)
from sparsewright.layouts import VALUES, pack, rounded
from sparsewright.nn import LayoutConv1d, LayoutConv2d, PrepackedConv2d, build_conv, task_of

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

NAMES = [name for name, kernel in KERNELS.items() if kernel.operation == "conv2d"]
GENERAL = [name for name in NAMES if name not in depthwise.NAMES]  # those: test_depthwise.py
EXPORTED = [name for name in GENERAL if name != "csb.conv2d.reference"]  # plain code, no op
SPARSE = [name for name in NAMES if KERNELS[name].layout != "dense"]
MARGIN = 8
CONVS = {
    "1x1": (Conv2d((1, 1)), (24, 16), (2, 16, 7, 5)),
    "1x1 stride": (Conv2d((1, 1), (2, 2)), (8, 16), (1, 16, 9, 8)),
    "3x3": (Conv2d((3, 3), padding=(1, 1)), (20, 8), (3, 8, 14, 14)),
    "3x3 stride": (Conv2d((3, 3), (2, 2), (1, 1)), (17, 5), (2, 5, 15, 16)),
    "3x3 groups": (Conv2d((3, 3), (1, 1), (1, 1), (1, 1), 4), (16, 3), (2, 12, 9, 9)),
    "5x3 dilated": (Conv2d((5, 3), (1, 2), (4, 0), (2, 1)), (8, 4), (1, 4, 12, 20)),
    "1x5": (Conv2d((1, 5), (1, 1), (0, 2)), (8, 4), (2, 4, 1, 33)),
    "7x7": (Conv2d((7, 7), (2, 2), (3, 3)), (16, 3), (1, 3, 33, 31)),
    "one output": (Conv2d((3, 3)), (1, 1), (1, 1, 3, 3)),
    "padding beyond": (Conv2d((2, 2), (3, 3), (5, 4)), (3, 2), (2, 2, 2, 3)),
    "1x1 padding": (Conv2d((1, 1), padding=(1, 2)), (8, 16), (2, 16, 9, 8)),
    "padding beyond reach": (Conv2d((3, 3), padding=(5, 4)), (8, 4), (2, 4, 6, 5)),
    "no image": (Conv2d((3, 3), padding=(1, 1)), (8, 4), (0, 4, 5, 5)),
    "1x1 groups": (Conv2d((1, 1), groups=3), (144, 20), (2, 60, 8, 8)),
    "groups across blocks": (Conv2d((3, 3), padding=(1, 1), groups=6), (150, 4), (3, 24, 7, 6)),
    "groups of two chunks": (Conv2d((3, 3), (2, 1), (1, 1), groups=2), (70, 30), (2, 60, 9, 7)),
    "depthwise": (Conv2d((3, 3), (1, 1), (1, 1), groups=80), (80, 1), (2, 80, 9, 11)),
    "one channel of each": (Conv2d((3, 3), (1, 1), (1, 1), (1, 1), 2), (4, 1), (1, 2, 6, 6)),
}
"""Geometry, (out, channels of one group), shape of x."""


@pytest.fixture(params=GENERAL)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found = KERNELS[request.param]
    reason = found.refuses()
    if reason:
        pytest.skip(f"{found.name}: {reason}")
    return found


def random_weight(conv: Conv2d, sides: tuple[int, int], density: float) -> Tensor:
    shape = (*sides, *conv.kernel)
    return torch.randn(shape) * (torch.rand(shape) < density)


def run(
    kernel: Kernel,
    conv: Conv2d,
    weight: Tensor,
    x: Tensor,
    bias: Tensor | None,
    values: str = "fp32",
) -> Tensor:
    matrix = conv.matrix(weight)
    ready = weight if kernel.layout == "dense" else pack(kernel.layout, matrix, values)
    return kernel.run(x, conv.prepare(kernel, ready, tuple(x.shape)), bias)


def check(got: Tensor, conv: Conv2d, weight: Tensor, x: Tensor, bias: Tensor | None) -> None:
    start = None if bias is None else bias.double()
    expected = conv.dense(x.double(), weight.double(), start)
    size = conv.dense(
        x.double().abs(), weight.double().abs(), None if bias is None else start.abs()
    )
    fan_in = int((conv.matrix(weight) != 0).sum(dim=1).max())
    allowed = (fan_in + MARGIN) * torch.finfo(torch.float32).eps * size
    assert (got.dtype, got.shape) == (torch.float32, expected.shape)
    assert bool(((got.double() - expected).abs() <= allowed).all())


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_equals_the_dense_convolution(kernel: Kernel, name: str, density: float) -> None:
    conv, sides, shape = CONVS[name]
    weight, x = random_weight(conv, sides, density), torch.randn(shape)
    for values in kernel.values:
        held = rounded(conv.matrix(weight), values).view_as(weight)
        for bias in (None, torch.randn(sides[0])):
            got = run(kernel, conv, weight, x, bias, values)
            check(got, conv, held, x, bias)
            assert got.is_contiguous()


def test_any_strides_of_x(kernel: Kernel) -> None:
    conv, sides, shape = CONVS["3x3 stride"]
    weight, x = random_weight(conv, sides, 0.3), torch.randn(shape)
    wide = torch.randn(2, 10, 15, 32)
    for strided in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        wide[:, ::2, :, ::2],
        x[:1].expand(4, -1, -1, -1),
    ):
        check(run(kernel, conv, weight, strided, None), conv, weight, strided, None)


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("activation", range(len(reference.ACTIVATIONS)))
def test_residual_and_activation_follow_the_sums(name: str, activation: int) -> None:
    if KERNELS[name].refuses():
        pytest.skip(f"{name}: {KERNELS[name].refuses()}")
    conv, sides, shape = CONVS["3x3"]
    weight, x, bias = random_weight(conv, sides, 0.2), torch.randn(shape), torch.randn(sides[0])
    packed = pack(KERNELS[name].layout, conv.matrix(weight), VALUES.names()[activation % 3])
    prepared = conv.prepare(KERNELS[name], packed, shape)
    plain = KERNELS[name].run(x, prepared, bias)
    residual = torch.randn_like(plain)
    _, *numbers, _, isa = prepared.numbers
    for other in (residual, residual.contiguous(memory_format=torch.channels_last)):
        given = (*prepared.tensors.values(), bias, other, *numbers, activation, isa)
        got = KERNELS[name].op(x, *given)
        expected = reference.ACTIVATIONS[activation][1]((plain + residual).double()).float()
        # The residual may be added first; erf by a polynomial is off by 1.5e-7, times |x| / 2.
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert got.is_contiguous()


@pytest.mark.parametrize("name", SPARSE)
def test_infinite_activations_reach_present_weights_only(name: str) -> None:
    if KERNELS[name].refuses():
        pytest.skip(f"{name}: {KERNELS[name].refuses()}")
    for which in ("1x1", "3x3", "5x3 dilated", "groups across blocks"):
        conv, sides, shape = CONVS[which]
        weight, x = random_weight(conv, sides, 0.2), torch.randn(shape)
        weight[:, 2], weight[3] = 0.0, 0.0
        clean = x.clone()
        x[:, 2], clean[:, 2] = float("nan"), 0.0
        x[0, 0, 0, 0] = clean[0, 0, 0, 0] = float("inf")
        got = run(KERNELS[name], conv, weight, x, None)
        matrix = pack("csr", conv.matrix(weight)).tensors
        expected = reference.csr_conv2d(clean, *matrix.values(), None, None, None, *conv.numbers)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert bool((got[:, 3] == 0).all())


def test_the_op_passes_torch_s_own_checks() -> None:
    for name in ("3x3", "3x3 groups", "5x3 dilated"):
        conv, sides, shape = CONVS[name]
        weight, x = random_weight(conv, sides, 0.3), torch.randn(shape)
        tensors = pack("csr", conv.matrix(weight)).tensors.values()
        residual = torch.randn_like(conv.dense(x, weight, None))
        for other in (None, residual):
            args = (x, *tensors, None, torch.randn(sides[0]), other, *conv.numbers, 1, 0)
            checks = ("test_schema", "test_faketensor")
            torch.library.opcheck(
                torch.ops.sparsewright.csr_conv2d.default, args, test_utils=checks
            )


def test_a_missing_op_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "MISSING", {"csr_linear"})
    if library.LIBRARY.path is None:
        pytest.skip(f"no compiled kernels: {library.LIBRARY.why_not}")
    assert "the compiled library has no csr_linear" in str(KERNELS["csr.portable"].refuses())
    assert KERNELS["csb.conv2d.portable"].refuses() is None


# ---- the choice and the modules -------------------------------------------------------------


def test_every_kernel_is_timed_or_gives_its_reason() -> None:
    conv, sides, shape = CONVS["3x3"]
    weight, x = random_weight(conv, sides, 0.2), torch.randn(shape)
    choice = choose(weight, None, x, operation=conv, seconds=0)
    timed, refused = {t.kernel for t in choice.timings}, dict(choice.refusals)
    assert timed | set(refused) == set(NAMES)
    assert choice.batch == 3
    assert choice.best_dense is not None
    assert "(batch 3, 2 threads)" in explain(choice)


def test_wrong_shapes_are_named() -> None:
    conv = Conv2d((3, 3))
    with pytest.raises(KernelError, match=r"needs a weight \(out, C / 1, 3, 3\).*got \(4, 2, 1, 3"):
        choose(torch.ones(4, 2, 1, 3), None, torch.ones(1, 2, 8, 8), operation=conv)
    with pytest.raises(KernelError, match="it serves conv2d, not linear"):
        choose(torch.eye(4), None, torch.ones(1, 4), kernels=["dense.conv2d.eager"], seconds=0)


LAYERS = {
    "plain": (nn.Conv2d(4, 8, 3), (2, 4, 9, 9)),
    "same": (nn.Conv2d(4, 8, (3, 5), padding="same", dilation=2), (2, 4, 9, 9)),
    "valid": (nn.Conv2d(4, 8, 3, padding="valid", bias=False), (2, 4, 9, 9)),
    "groups": (nn.Conv2d(4, 8, 3, groups=2, stride=(2, 1), padding=(0, 2)), (2, 4, 9, 9)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, stride=2, padding=1), (2, 4, 9, 9)),
    "depthwise signal": (nn.Conv1d(4, 4, 3, groups=4, padding=1), (2, 4, 19)),
    "signal in groups": (nn.Conv1d(8, 6, 3, groups=2, padding=2, dilation=2), (2, 8, 19)),
    "one image": (nn.Conv2d(4, 8, 3), (4, 9, 9)),
    "signal": (nn.Conv1d(4, 8, 3, stride=2, padding=1, dilation=2), (2, 4, 19)),
    "same signal": (nn.Conv1d(4, 8, 5, padding="same"), (2, 4, 19)),
    "one signal": (nn.Conv1d(4, 8, 3), (4, 19)),
}


@pytest.mark.parametrize("kernel_name", EXPORTED)
@pytest.mark.parametrize("name", LAYERS)
def test_built_modules_follow_the_choice(name: str, kernel_name: str) -> None:
    if KERNELS[kernel_name].refuses():
        pytest.skip(f"{kernel_name}: {KERNELS[kernel_name].refuses()}")
    layer, shape = LAYERS[name]
    layer = copy.deepcopy(layer).requires_grad_(False)
    layer.weight *= torch.rand_like(layer.weight) < 0.3
    x = torch.randn(shape)
    task = task_of(layer, x)
    assert not isinstance(task, str)
    given = {"operation": task.operation, "kernels": [kernel_name], "seconds": 0}
    built = build_conv(choose(task.weight, task.bias, task.x, **given), layer)
    # float32 sums of at most 60 products in another order
    torch.testing.assert_close(built(x), layer(x), rtol=1e-5, atol=1e-5)
    twin = copy.deepcopy(built)
    assert torch.equal(twin(x), built(x))
    exported = torch.export.export(built, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode 'reflect'"),
        (nn.Conv2d(4, 4, 2, padding="same"), "pads one side more"),
        (nn.Conv3d(4, 4, 2), "no sparse kernel for Conv3d"),
        (nn.ConvTranspose2d(4, 4, 2), "no sparse kernel for ConvTranspose2d"),
    ],
)
def test_what_stays_dense_says_why(layer: nn.Module, reason: str) -> None:
    assert reason in str(task_of(layer, torch.ones(1, 4, 8, 8)))


def test_layout_convolutions_check_everything() -> None:
    packed = pack("csr", torch.eye(6))
    conv = LayoutConv2d(packed, Conv2d((1, 3)))
    assert (conv.in_channels, conv.out_channels) == (2, 6)
    assert "2, 6, kernel_size=(1, 3)" in repr(conv)
    with pytest.raises(KernelError, match=r"needs x \(N, 2, H, W\); got \(1, 3, 4, 4\)"):
        conv(torch.ones(1, 3, 4, 4))
    with pytest.raises(KernelError, match=r"needs x \(N, 2, L\); got \(1, 3, 4\)"):
        LayoutConv1d(packed, Conv2d((1, 3)))(torch.ones(1, 3, 4))
    with pytest.raises(KernelError, match="requires a gradient"):
        conv(torch.ones(1, 2, 4, 4, requires_grad=True))
    with pytest.raises(KernelError, match="needs a fan-in divisible by 4"):
        LayoutConv2d(packed, Conv2d((2, 2)))
    with pytest.raises(KernelError, match="outputs divisible by 4"):
        LayoutConv2d(packed, Conv2d((1, 3), groups=4))
    with pytest.raises(KernelError, match=r"csr\.portable serves linear in layout csr"):
        LayoutConv2d(packed, Conv2d((1, 3)), kernel="csr.portable")


def test_a_dense_kernel_that_cannot_serve_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = KERNELS["dense.conv2d.eager"]
    rainy = Kernel("dense.rainy", "dense", "cpu", lambda w: "rainy", eager.prepare, eager.op)
    monkeypatch.setitem(KERNELS._parts, "dense.rainy", rainy)
    with pytest.raises(KernelError, match=r"dense\.rainy cannot serve: rainy"):
        PrepackedConv2d(torch.ones(1, 1, 1, 1), None, Conv2d((1, 1)), (), "dense.rainy")


def test_convolutions_are_deployed() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 1), nn.Flatten(2), nn.Conv1d(16, 8, 3, padding="same"), nn.Flatten(1),
        nn.Linear(8 * 36, 10),
    ).eval()  # fmt: skip
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    x = torch.randn(2, 3, 16, 16)
    fast = sw.deploy(model, x, kernels=["csr.conv2d.reference", "csr.reference"], seconds=0)
    rows = {row.layer: row for row in fast.plan.layers}
    assert [rows[n].layout for n in "02357"] == ["csr"] * 5
    assert rows["0"].operation == "conv2d 3x3 stride 2 padding 1"
    assert rows["2"].operation == "conv2d 3x3 groups 8"
    for batch in (1, 2, 5):
        y = torch.randn(batch, 3, 16, 16)
        for z in (y, y.contiguous(memory_format=torch.channels_last)):
            # float32 sums in another order, through four layers
            torch.testing.assert_close(fast(z), model(z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "pattern", ["unstructured", "2:4", "3:32", "block:4x4", "channel", "fan_in"]
)
@pytest.mark.parametrize("name", ["images", "groups", "signals in groups"])
def test_every_pattern_is_packed_and_served(pattern: str, name: str) -> None:
    layer, shape = {
        "images": (nn.Conv2d(32, 16, 3, padding=1), (2, 32, 9, 9)),
        "groups": (nn.Conv2d(64, 32, 3, stride=2, groups=2), (2, 64, 9, 9)),
        "signals in groups": (nn.Conv1d(64, 32, 3, padding=1, groups=2), (2, 64, 19)),
    }[name]
    sparsity = None if pattern in ("2:4", "3:32") else 0.75
    sw.prune(layer, sparsity, pattern, allocate="uniform_all")
    x = torch.randn(shape)
    kernels = [n for n in SPARSE if KERNELS[n].layout == "csb" and KERNELS[n].refuses() is None]
    fast = sw.deploy(layer, x, kernels=kernels, seconds=0)
    row = fast.plan.layers[0]
    assert row.layout == "csb"
    assert row.pattern == ("unstructured" if pattern == "fan_in" else pattern)
    assert torch.equal(fast.model.to_dense(), layer.weight)
    # float32 sums of a few hundred products in another order
    torch.testing.assert_close(fast(x), layer(x), rtol=1e-5, atol=1e-5)


def test_tied_convolutions_share_what_is_packed_unless_they_differ() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.c = nn.Conv2d(4, 4, 3, stride=2)
            self.b.weight = self.c.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)))

    model, x = Tied(), torch.randn(1, 4, 9, 9)
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    fast = sw.deploy(model, x, kernels=["csr.conv2d.reference"], seconds=0)
    assert fast.model.a.values.data_ptr() == fast.model.b.values.data_ptr()
    assert type(fast.model.c) is nn.Conv2d
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-6)


def test_the_formula_is_torch_s() -> None:
    """Conv2d.dense and the reference in float64, against F.conv2d called by hand."""
    x, weight = torch.randn(2, 4, 9, 8).double(), torch.randn(6, 2, 3, 3).double()
    conv = Conv2d((3, 3), (2, 1), (1, 2), (1, 2), 2)
    expected = F.conv2d(x, weight, None, (2, 1), (1, 2), (1, 2), 2)
    assert torch.equal(conv.dense(x, weight, None), expected)
    rows, columns, values = pack("csr", weight.float().flatten(1)).tensors.values()
    got = reference.csr_conv2d(
        x, rows, columns, values.double(), None, None, None, 3, 3, 2, 1, 1, 2, 1, 2, 2
    )
    torch.testing.assert_close(got, conv.dense(x, weight.float().double(), None))
