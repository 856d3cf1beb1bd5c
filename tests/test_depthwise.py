"""Depthwise convolutions equal F.conv2d in float64, alone, fused, and saved.

Tolerance: that of test_conv.py.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_artifact import contents, forge
from test_conv import check
from torch import Tensor, nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.errors import ArtifactError, KernelError
from sparsewright.kernels import KERNELS, Conv2d, Kernel, choose, depthwise, kernel_info, reference
from sparsewright.nn import PrepackedConv2d, build_conv, task_of
from sparsewright.program import MISS

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

SERVING = [name for name in depthwise.NAMES if KERNELS[name].refuses() is None]
SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 14, 15, 16, 17, 23, 31, 33, 40])
SIDES = st.one_of(st.sampled_from([(3, 3), (5, 5), (7, 7)]),
                  st.tuples(st.integers(1, 6), st.integers(1, 6)))  # fmt: skip
STEPS = st.one_of(st.sampled_from([(1, 1), (2, 2)]),
                  st.tuples(st.integers(1, 4), st.integers(1, 4)))  # fmt: skip
HOLES = st.one_of(st.just((1, 1)), st.tuples(st.integers(1, 3), st.integers(1, 3)))
PADDING = st.tuples(st.integers(0, 7), st.integers(0, 7))


@pytest.fixture(params=depthwise.NAMES)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found = KERNELS[request.param]
    if found.refuses() is not None:
        pytest.skip(f"{found.name}: {found.refuses()}")
    return found


def between_nans(x: Tensor) -> Tensor:
    """The same tensor, contiguous, with NaN right before and after it in memory."""
    flat = torch.full((x.numel() + 64,), float("nan"))
    flat[32 : 32 + x.numel()] = x.flatten()
    return flat[32 : 32 + x.numel()].view(x.shape)


def run(kernel: Kernel, conv: Conv2d, weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN: what is not written shows
    try:
        return kernel.run(x, conv.prepare(kernel, weight, tuple(x.shape)), bias)
    finally:
        torch.use_deterministic_algorithms(False)


@given(
    size=st.tuples(SIZES, SIZES), sides=SIDES, stride=STEPS, padding=PADDING, holes=HOLES,
    counts=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)), biased=st.booleans(),
)  # fmt: skip
def test_equals_the_dense_convolution(
    size: tuple[int, int],
    sides: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    holes: tuple[int, int],
    counts: tuple[int, int, int],
    biased: bool,
) -> None:
    batch, channels, times = counts
    conv = Conv2d(sides, stride, padding, holes, channels)
    axes = zip(size, padding, sides, holes, strict=True)
    if any(s + 2 * p <= (k - 1) * d for s, p, k, d in axes):
        return  # the kernel exceeds the image
    weight = torch.randn(channels * times, 1, *sides)
    x, bias = between_nans(torch.randn(batch, channels, *size)), torch.randn(len(weight))
    for name in SERVING:
        start = bias if biased else None
        check(run(KERNELS[name], conv, weight, x, start), conv, weight, x, start)


USUAL = {
    "3x3": (Conv2d((3, 3), (1, 1), (1, 1), (1, 1), 6), (2, 6, 14, 14)),
    "3x3 stride": (Conv2d((3, 3), (2, 2), (1, 1), (1, 1), 6), (1, 6, 29, 40)),
    "5x5": (Conv2d((5, 5), (1, 1), (2, 2), (1, 1), 3), (1, 3, 28, 28)),
    "5x5 stride": (Conv2d((5, 5), (2, 2), (2, 2), (1, 1), 3), (1, 3, 14, 57)),
    "7x7": (Conv2d((7, 7), (1, 1), (3, 3), (1, 1), 3), (1, 3, 7, 23)),
    "7x7 stride": (Conv2d((7, 7), (2, 2), (3, 3), (1, 1), 3), (1, 3, 20, 20)),
    "dilated": (Conv2d((3, 3), (1, 1), (2, 2), (2, 2), 3), (1, 3, 9, 70)),
    "signal": (Conv2d((1, 31), (1, 1), (0, 15), (1, 1), 3), (2, 3, 1, 100)),
    "wide": (Conv2d((3, 3), (3, 3), (1, 1), (1, 1), 2), (1, 2, 40, 3000)),
    "no image": (Conv2d((3, 3), (1, 1), (1, 1), (1, 1), 2), (0, 2, 5, 5)),
}


@pytest.mark.parametrize("name", USUAL)
def test_the_usual_ones(kernel: Kernel, name: str) -> None:
    conv, shape = USUAL[name]
    weight, bias = torch.randn(2 * conv.groups, 1, *conv.kernel), torch.randn(2 * conv.groups)
    x = between_nans(torch.randn(shape))
    got = run(kernel, conv, weight, x, bias)
    check(got, conv, weight, x, bias)
    assert got.is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    other = weight.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(run(kernel, conv, other, last, bias), got)


@pytest.mark.parametrize("name", ["3x3", "3x3 stride", "dilated"])
@pytest.mark.parametrize("activation", range(len(reference.ACTIVATIONS)))
def test_residual_and_activation_follow_the_sums(
    kernel: Kernel, name: str, activation: int
) -> None:
    conv, shape = USUAL[name]
    weight, x = torch.randn(conv.groups, 1, *conv.kernel), torch.randn(shape)
    x[0, 0, 3, 4] = float("nan")
    plain = run(kernel, conv, weight, x, None)
    residual = torch.randn_like(plain)
    for other in (None, residual, residual.contiguous(memory_format=torch.channels_last)):
        got = depthwise.dense_conv2d(
            x, weight, None, other, *conv.numbers, activation, _isa(kernel, conv, weight)
        )
        total = plain if other is None else plain + other
        expected = reference.ACTIVATIONS[activation][1](total.double()).float()
        # erf by a polynomial is off by 1.5e-7, times |x| / 2
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert bool(got.isnan().any())


def _isa(kernel: Kernel, conv: Conv2d, weight: Tensor) -> int:
    number = conv.prepare(kernel, weight, ()).numbers[-1]
    assert number is not None
    return number


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "channels": ({"x": torch.ones(1, 3, 8, 8)}, "groups must be the channels"),
    "two dimensions": ({"x": torch.ones(4, 8)}, "x must have shape"),
    "a weight of two channels": ({"weight": torch.ones(4, 2, 3, 3)}, "weight must have shape"),
    "another kernel": ({"weight": torch.ones(4, 1, 3, 5)}, "weight must have shape"),
    "float64": ({"weight": torch.ones(4, 1, 3, 3).double()}, "weight must be float32"),
    "a bias of three": ({"bias": torch.ones(3)}, "bias must have shape"),
    "a residual": ({"residual": torch.ones(1, 4, 8, 7)}, "residual must have the output's shape"),
    "no stride": ({"stride_h": 0}, "stride_h"),
    "beyond": ({"dilation_h": 9}, "the kernel reaches over"),
    "an activation beyond": ({"activation": 99}, "activation must be"),
}


@pytest.mark.skipif(not kernel_info().native, reason="checks of the compiled op")
@pytest.mark.parametrize("name", WRONG)
def test_the_op_checks_its_arguments(name: str) -> None:
    change, message = WRONG[name]
    given: dict[str, Any] = {
        "x": torch.ones(1, 4, 8, 8), "weight": torch.ones(4, 1, 3, 3), "bias": None,
        "residual": None, "kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 1,
        "padding_h": 1, "padding_w": 1, "dilation_h": 1, "dilation_w": 1, "groups": 4,
        "activation": 0, "isa": 0,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparsewright.dense_conv2d(**{**given, **change})


def test_the_op_passes_torch_s_own_checks() -> None:
    conv, shape = USUAL["3x3 stride"]
    weight, x = torch.randn(12, 1, 3, 3), torch.randn(shape)
    for other in (None, torch.randn_like(conv.dense(x, weight, None))):
        args = (x, weight, torch.randn(12), other, *conv.numbers, 1, 0)
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(depthwise.dense_conv2d, args, test_utils=checks)


def test_other_convolutions_are_refused(kernel: Kernel) -> None:
    assert "reads 2" in str(kernel.refuses(torch.ones(4, 2, 3, 3)))
    with pytest.raises(KernelError, match="each output must read one channel; here it reads 2"):
        PrepackedConv2d(torch.ones(4, 2, 1, 1), None, Conv2d((1, 1)), (), kernel.name)


# ---- modules, models, files -----------------------------------------------------------------


LAYERS = {
    "plain": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 9, 9)),
    "one image": (nn.Conv2d(4, 4, 5, groups=4, stride=2, bias=False), (4, 9, 9)),
    "signal": (nn.Conv1d(4, 4, 4, groups=4, padding=3), (2, 4, 19)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_built_modules_follow_the_choice(kernel: Kernel, name: str) -> None:
    layer, shape = LAYERS[name]
    layer, x = copy.deepcopy(layer).requires_grad_(False), torch.randn(shape)
    task = task_of(layer, x)
    assert not isinstance(task, str)
    choice = choose(
        task.weight, task.bias, task.x, operation=task.operation, kernels=[kernel.name], seconds=0
    )
    built = build_conv(choice, layer)
    # float32 sums of at most 25 products in another order
    torch.testing.assert_close(built(x), layer(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(copy.deepcopy(built)(x), built(x))
    exported = torch.export.export(built, (x,))
    assert "sparsewright.dense_conv2d" in str(exported.graph)
    assert torch.equal(exported.module()(x), built(x))
    wanting = x.clone().requires_grad_()
    built(wanting).sum().backward()  # by the formula
    assert wanting.grad is not None


@pytest.mark.parametrize("name", ["csb.conv2d", "csr.conv2d.reference"])
def test_a_pruned_depthwise_convolution_is_packed_where_that_is_asked_for(name: str) -> None:
    layer = nn.Conv2d(40, 40, 3, groups=40, padding=1).requires_grad_(False)
    sw.prune(layer, sparsity=0.4, pattern="fan_in", allocate="uniform_all")
    kernels = [n for n in KERNELS.names() if n.startswith(name) and not KERNELS[n].refuses()]
    x = torch.randn(2, 40, 11, 11)
    fast = sw.deploy(layer, x, kernels=kernels, seconds=0)
    assert fast.plan.layers[0].is_sparse
    assert fast.model.packed.shape == (40, 9)
    torch.testing.assert_close(fast(x), layer(x), rtol=1e-5, atol=1e-5)


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, as MobileNets have them, with a way around."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.point, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.deep(x)))
        return self.last(F.relu(self.point(y))) + x


@pytest.fixture(scope="module")
def separable() -> tuple[nn.Module, sw.Deployed]:
    if not SERVING:
        pytest.skip("no compiled kernels")
    torch.manual_seed(0)
    model = Separable().eval().requires_grad_(False)
    sw.prune(model, 0.5, allocate="uniform_all", skip=["deep", "last"])
    kernels = [SERVING[-1], "csr.conv2d.reference"]
    return model, sw.deploy(model, torch.randn(2, 8, 9, 9), kernels=kernels, seconds=0)


def test_what_surrounds_it_is_folded_and_fused(separable: tuple[nn.Module, sw.Deployed]) -> None:
    model, fast = separable
    nodes = [n for n in fast.graph.document["nodes"] if "conv2d" in n["op"]]  # type: ignore[union-attr]
    assert [n["op"].split(".")[1] for n in nodes] == ["dense_conv2d", "csr_conv2d", "dense_conv2d"]
    assert len(fast.graph.document["nodes"]) == 3  # type: ignore[union-attr]
    first, last = nodes[0]["args"], nodes[2]["args"]
    assert (first[3], first[-2]) == (None, 1)
    assert (last[3] is not None, last[-2]) == (True, 0)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 8, 9, 9)
        got = fast.program.run(x)  # type: ignore[union-attr]
        assert got is not MISS
        # float32 sums in another order, through three layers
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)


def test_a_dense_model_of_them_is_fused_too() -> None:
    if not SERVING:
        pytest.skip("no compiled kernels")
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU()).eval()
    fast = sw.deploy(model, torch.randn(1, 4, 8, 8), kernels=[SERVING[0]], seconds=0)
    assert fast.graph is not None
    assert len(fast.graph.document["nodes"]) == 1
    fast = sw.deploy(model, torch.randn(1, 4, 8, 8), kernels=["dense.conv2d.eager"], seconds=0)
    assert fast.graph is None


def test_it_is_saved_and_loaded(separable: tuple[nn.Module, sw.Deployed], tmp_path: Path) -> None:
    _, fast = separable
    sw.save(fast, tmp_path / "file")
    again = sw.load(tmp_path / "file")
    x = torch.randn(3, 8, 9, 9)
    assert torch.equal(again(x), fast(x))
    document, tensors = contents(tmp_path / "file")
    layers = {entry["name"]: entry for entry in document["layers"]}
    assert layers["deep"]["layout"] == "dense"
    assert layers["deep"]["shape"] == [8, 1, 3, 3]
    sw.save(again, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    for kernel in ("dense.of_tomorrow", "dense.conv2d.onednn", "csr.conv2d.reference"):
        layers["deep"]["kernel"] = kernel  # a hint
        other = sw.load(forge(tmp_path / "file", document, tensors))
        torch.testing.assert_close(other(x), fast(x), rtol=1e-4, atol=1e-5)


def reshaped(document: Any, tensors: dict[str, Tensor]) -> None:
    entry = next(e for e in document["layers"] if e["name"] == "deep")
    name, shape = entry["tensors"]["weight"], (4, 2, 3, 3)
    tensors[name] = tensors[name].reshape(shape)
    entry["shape"] = list(shape)


def flattened(document: Any, tensors: dict[str, Tensor]) -> None:
    entry = next(e for e in document["layers"] if e["name"] == "deep")
    name = entry["tensors"]["weight"]
    tensors[name] = tensors[name].reshape(8, 9)
    entry["shape"], entry["meta"] = [8, 9], {"rows": 1}


def deep(document: Any) -> Any:
    return next(n for n in document["graph"]["nodes"] if "dense_conv2d" in n["op"])["args"]


HOSTILE = {
    "two channels": (reshaped, "do not divide|needs a weight|bias must be"),
    "a matrix": (flattened, "needs a weight"),
    "another kernel": (lambda d, t: deep(d).__setitem__(slice(4, 6), [1, 9]), "needs a weight"),
    "another stride": (lambda d, t: deep(d).__setitem__(6, 0), "stride_h must be in"),
    "fewer groups": (lambda d, t: deep(d).__setitem__(12, 4), "takes inputs"),
    "a linear of it": (
        lambda d, t: d["graph"]["nodes"][0].update(op="sparsewright.dense_linear.default"),
        "no operation",
    ),
    "a packed layer's weight": (
        lambda d, t: deep(d).__setitem__(1, d["graph"]["nodes"][1]["args"][1]),
        "those of no declared layer",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(
    separable: tuple[nn.Module, sw.Deployed], name: str, tmp_path: Path
) -> None:
    sw.save(separable[1], tmp_path / "file")
    document, tensors = contents(tmp_path / "file")
    change, message = HOSTILE[name]
    change(document, tensors)
    with pytest.raises(ArtifactError, match=message):
        sw.load(forge(tmp_path / "file", document, tensors))
