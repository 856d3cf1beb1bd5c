"""Convolutions of images side by side give what those of one image after the other give."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright import library
from sparsewright.beside import beside
from sparsewright.errors import ArtifactError, KernelError
from sparsewright.image_units import IMAGES, images_for, is_full
from sparsewright.kernels.bound import bind_beside, bind_depthwise_beside, bind_pool_beside
from sparsewright.kernels.depthwise import dense_conv2d
from sparsewright.layouts import store, unpack
from sparsewright.layouts.csb import Csb
from sparsewright.plan import Pieces, PieceTiming, Plan

pytestmark = pytest.mark.skipif(library.LIBRARY.path is None, reason="needs the compiled kernels")
OPS = torch.ops.sparsewright
ISAS = [isa for isa in library.ISAS if library.why_no_isa(isa, "csb_conv2d") is None]
CODE = ["0", "1"] if library.why_no_isa("avx512") is None else ["0"]
ACTIVATIONS = [lambda y: y, F.relu, F.gelu, F.silu, F.relu6, F.hardswish]


def number(isa: str) -> int:
    return library.ISAS[isa]


@pytest.fixture(autouse=True, scope="module", params=CODE, ids=lambda code: f"code={code}")
def code(request):
    """Every test, with weights that are made code and without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEWRIGHT_CODE", request.param)
        yield


# Images that lie side by side, for how many threads, and of what batch: few lie in patches.
SPREADS = st.tuples(
    st.one_of(
        st.tuples(st.just(IMAGES), st.integers(1, 40)),
        st.integers(1, IMAGES - 1).map(lambda images: (images, images)),
    ),
    st.integers(1, 9),
).map(lambda drawn: ((drawn[0][0], drawn[1]), drawn[0][1]))
Spread = tuple[int, int]


def there(x: Tensor, spread: Spread, isa: int = 0) -> Tensor:
    return OPS.to_beside(x, *spread, isa)


def back(y: Tensor, batch: int, sizes: tuple[int, int], spread: Spread, isa: int = 0) -> Tensor:
    return OPS.from_beside(y, batch, *sizes, *spread, isa)


@given(
    SPREADS, st.booleans(), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40),
    st.sampled_from(ISAS),
)  # fmt: skip
def test_the_way_there_and_back(drawn, empty, channels, height, width, isa) -> None:
    (images, threads), batch = spread, _ = drawn
    batch = 0 if empty and images == IMAGES else batch
    x = torch.randn(batch, channels, height, width)
    y = there(x, spread, number(isa))
    groups, rows, tiles, planes, columns, lanes = y.shape
    assert (planes, lanes) == (channels, IMAGES)
    assert groups * rows * tiles * columns * lanes >= batch * height * width
    if images == IMAGES:
        assert (rows, groups) == (height, -(-batch // IMAGES))
        assert tiles * columns >= width > (tiles - 1) * columns
    elif height % 4 == width % 4 == 0 and threads == 1:  # at most half of it is empty
        assert groups * rows * tiles * columns <= -(-batch * height * width // 8)
    assert torch.equal(back(y, batch, (height, width), spread, number(isa)), x)
    # What is no image is zero: nothing is lost, and nothing comes to it.
    sums = y.double().sum((0, 1, 2, 4, 5)), x.double().sum((0, 2, 3))
    assert torch.allclose(*sums, rtol=1e-12, atol=1e-9)
    assert int((y != 0).sum()) == int((x != 0).sum())


class Conv:
    """A convolution in layout csb, by torch and as a stage."""

    def __init__(self, draw, shape: tuple[int, ...], flat: bool):
        channels, self.sizes = shape[1], shape[1:]
        self.out = draw(st.integers(1, 70))
        sizes = st.integers(1, 3)
        self.kernel = (1, 1) if flat else (draw(sizes), draw(sizes))
        self.stride = (1, 1) if flat else (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
        self.padding = (0, 0) if flat else (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
        self.dilation = (1, 1) if flat else (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
        self.groups, self.then = 1, draw(st.integers(0, 5))
        self.adds = draw(st.booleans())
        present = torch.rand(self.out, channels, *self.kernel) < draw(st.sampled_from([0.1, 0.5]))
        if draw(st.booleans()):  # all rows read the same: what they read is loaded once for two
            present = present[:1].expand(present.shape)
        weight = torch.randn(present.shape) * present
        self.bias = torch.randn(self.out) if draw(st.booleans()) else None
        block = draw(st.sampled_from([3, 64, 128]))
        sizes = {"chunk": draw(st.sampled_from([5, 160])), "block": block}
        values = draw(st.sampled_from(["fp32", "bf16", "int8"]))
        self.packed = store(lambda w: Csb().pack(w, **sizes), weight.flatten(1), values)
        self.weight = unpack(self.packed).view(weight.shape)

    def bound(self, spread: Spread, isa: str):
        t, meta = self.packed.tensors, self.packed.meta
        head = [t["starts"], t["pairs"], t["columns"], t["values"], t.get("scales"), self.bias]
        numbers = [*self.kernel, *self.stride, *self.padding, *self.dilation, self.then]
        sizes = [*self.sizes, *spread, number(isa)]
        return bind_beside([*head, self.out, meta["chunk"], meta["block"], *numbers, *sizes])

    def plain(self, x: Tensor, more: Tensor | None) -> Tensor:
        given = self.stride, self.padding, self.dilation, self.groups
        bias = None if self.bias is None else self.bias.double()
        y = F.conv2d(x.double(), self.weight.double(), bias, *given)
        return ACTIVATIONS[self.then](y if more is None else y + more.double()).float()


class Depthwise(Conv):
    """The same of a dense weight, each of whose outputs reads one channel."""

    def __init__(self, draw, shape: tuple[int, ...], flat: bool):
        super().__init__(draw, shape, flat)
        self.groups = shape[1]
        self.out = draw(st.sampled_from([1, 1, 2])) * self.groups
        self.weight = torch.randn(self.out, 1, *self.kernel)
        self.bias = torch.randn(self.out) if self.bias is not None else None

    def bound(self, spread: Spread, isa: str):
        numbers = [*self.kernel, *self.stride, *self.padding, *self.dilation, self.then]
        sizes = [*self.sizes, *spread, number(isa)]
        return bind_depthwise_beside([self.weight, self.bias, *numbers, *sizes])


@given(st.data(), SPREADS, st.sampled_from(ISAS))
def test_a_chain_gives_what_torch_gives(data, drawn, isa) -> None:
    draw = data.draw
    (spread, batch), channels = drawn, draw(st.sampled_from([1, 3, 40]))
    height, width = draw(st.integers(1, 25)), draw(st.integers(1, 25))
    x = torch.randn(batch, channels, height, width)
    given, convs, wanted, residuals = x, [], [], []
    for i in range(draw(st.integers(1, 3))):
        conv = draw(st.sampled_from([Conv, Depthwise]))(draw, given.shape, flat=i > 0)
        sizes = zip(given.shape[2:], conv.padding, conv.dilation, conv.kernel, strict=True)
        if any(s + 2 * p <= d * (k - 1) for s, p, d, k in sizes):
            return  # the kernel does not fit the image
        shape = conv.plain(given, None).shape
        residuals.append(torch.randn(shape) if conv.adds else None)
        given = conv.plain(given, residuals[-1])
        convs.append(conv)
        wanted.append(given)
    kept = draw(st.integers(0, 2 ** len(convs) - 1)) | 1 << len(convs) - 1
    adds = sum(1 << i for i, conv in enumerate(convs) if conv.adds)
    over = draw(st.integers(0, 2 ** len(convs) - 1)) & adds & kept
    bound = [conv.bound(spread, isa) for conv in convs]
    more = [there(r, spread) for r in residuals if r is not None]
    numbers = [b.number for b in bound]
    got = OPS.beside_chain(there(x, spread), more, numbers, adds, kept, over)
    expected = [y for i, y in enumerate(wanted) if kept >> i & 1]
    assert len(got) == len(expected)
    for y, right in zip(got, expected, strict=True):
        y = back(y, batch, right.shape[2:], spread)
        assert float((y - right).abs().max()) <= 1e-4 + 1e-5 * float(right.abs().max())
    written = [i for i, conv in enumerate(convs) if conv.adds and over >> i & 1]
    outputs = [i for i in range(len(convs)) if kept >> i & 1]
    for i in written:
        place = sum(1 for conv in convs[:i] if conv.adds)
        assert got[outputs.index(i)].data_ptr() == more[place].data_ptr()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("spread", "batch"), [((16, 1), 18), ((4, 1), 4), ((7, 3), 7)])
def test_no_image_sees_another_one(spread, batch, isa) -> None:
    """NaN and infinity reach what the dense convolution would have them reach, of their image."""
    torch.manual_seed(0)
    weight = torch.randn(20, 6, 3, 3)
    weight[torch.rand(weight.shape) < 0.7] = 0
    packed = Csb().pack(weight.flatten(1), chunk=20)
    head = [*(packed.tensors[n] for n in ("starts", "pairs", "columns", "values")), None, None]
    rest = [20, 20, packed.meta["block"], 3, 3, 1, 1, 1, 1, 1, 1, 0, 6, 8, 9, *spread, number(isa)]
    bound = bind_beside([*head, *rest])
    x = torch.randn(batch, 6, 8, 9)
    clean = F.conv2d(x, weight, padding=1)
    last = batch - 1
    x[1, 2, 4, 4], x[last, 0, 0, 8] = float("nan"), float("inf")
    (y,) = OPS.beside_chain(there(x, spread), [], [bound.number], 0, 1, 0)
    y = back(y, batch, (8, 9), spread)
    others = [i for i in range(batch) if i not in (1, last)]
    assert torch.allclose(y[others], clean[others], atol=1e-5)
    reached = (weight[:, 2] != 0).flip(1, 2)  # the outputs around (4, 4)
    assert torch.equal(y[1, :, 3:6, 3:6].isnan(), reached)
    assert int(y[1].isnan().sum()) == int(reached.sum())
    finite = (weight[:, 0, :2, 1:] == 0).flip(1, 2)
    assert torch.equal(y[last, :, :2, 7:].isfinite(), finite)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("spread", "batch"), [((16, 1), 18), ((4, 1), 4), ((7, 3), 7)])
@pytest.mark.parametrize(("stride", "places"), [(1, 9), (2, 6)])  # that read what is not finite
def test_no_channel_sees_another_one(spread, batch, stride, places, isa) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 1, 3, 3)
    rest = [3, 3, stride, stride, 1, 1, 1, 1, 0, 6, 8, 9, *spread, number(isa)]
    bound = bind_depthwise_beside([weight, None, *rest])
    x = torch.randn(batch, 6, 8, 9)
    clean = F.conv2d(x, weight, None, stride, 1, groups=6)
    last = batch - 1
    x[1, 2, 4, 3], x[last, 5, 0, 8] = float("nan"), float("inf")
    right = F.conv2d(x, weight, None, stride, 1, groups=6)
    (y,) = OPS.beside_chain(there(x, spread), [], [bound.number], 0, 1, 0)
    y = back(y, batch, right.shape[2:], spread)
    assert torch.allclose(y[right.isfinite()], clean[right.isfinite()], atol=1e-5)
    assert torch.equal(y.isfinite(), right.isfinite())
    assert int((~right.isfinite()).sum()) == (9 if stride == 1 else 2) + (4 if stride == 1 else 1)


@pytest.mark.parametrize("shape", [(16, 3, 4, 0), (16, 3, 0, 4), (3, 2, 0, 0)])
def test_images_of_no_size(shape) -> None:
    assert there(torch.zeros(shape), (16 if shape[0] == 16 else 3, 1)).numel() == 0


def test_depthwise_weights_that_lie_in_any_order() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    conv.weight = nn.Parameter(torch.randn(3, 3, 1, 8).permute(3, 2, 0, 1))
    model = nn.Sequential(conv, nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)).eval()
    model.requires_grad_(False)
    sw.prune(model, sparsity=0.5, allocate="uniform_all", skip=["0"])
    x = torch.randn(16, 8, 12, 12)
    fast = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0, cache=False)
    assert torch.allclose(fast.program.beside().run(x), model(x), rtol=1e-4, atol=1e-5)


def test_weights_of_a_depthwise_one_are_checked() -> None:
    rest = [3, 3, 1, 1, 1, 1, 1, 1, 0, 6, 8, 9, 16, 1, 0]
    for weight in (torch.randn(6, 2, 3, 3), torch.randn(6, 1, 3, 2), torch.randn(6, 9)):
        with pytest.raises(RuntimeError, match=r"weight must have shape \(out, 1, 3, 3\)"):
            bind_depthwise_beside([weight, None, *rest])
    with pytest.raises(RuntimeError, match="each of 6 channels must give as many of 8 outputs"):
        bind_depthwise_beside([torch.randn(8, 1, 3, 3), None, *rest])
    with pytest.raises(RuntimeError, match="bias"):
        bind_depthwise_beside([torch.randn(6, 1, 3, 3), torch.randn(5), *rest])
    with pytest.raises(RuntimeError, match="float32"):
        bind_depthwise_beside([torch.randn(6, 1, 3, 3).double(), None, *rest])
    one = bind_depthwise_beside([torch.randn(6, 1, 3, 3), None, *rest])
    with pytest.raises(RuntimeError, match="takes 6 channels; got 5"):
        OPS.beside_chain(there(torch.randn(16, 5, 8, 9), (16, 1)), [], [one.number], 0, 1, 0)


def alike(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=1e9), b.nan_to_num(nan=1e9))


@given(st.data(), SPREADS, st.booleans(), st.sampled_from(ISAS))
def test_max_pooling(data, drawn, relu, isa) -> None:
    spread, batch = drawn
    numbers = st.tuples(st.integers(1, 5), st.integers(1, 5))
    kernel, stride = data.draw(numbers), data.draw(numbers)
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    height, width = (data.draw(st.integers(k, 25)) for k in kernel)
    x = torch.randn(batch, 3, height, width)
    x[0, 0, height // 2, width // 2], x[-1, 1, -1, -1] = float("nan"), -float("inf")
    given = [*kernel, *stride, *padding, relu, *x.shape[1:], *spread, number(isa)]
    y = bind_pool_beside(given)(there(x, spread))
    right = F.max_pool2d(x, kernel, stride, padding)
    got = back(y, batch, right.shape[2:], spread)
    assert alike(got, right.relu() if relu else right)


@given(SPREADS, st.integers(1, 25), st.integers(1, 25), st.integers(1, 4))
def test_the_mean_of_channels(drawn, height, width, channels) -> None:
    spread, batch = drawn
    x = torch.randn(batch, channels, height, width)
    y = there(x, spread)
    if batch < IMAGES:  # what lies where no image does is not counted, whatever it is
        y = y.where(there(torch.ones_like(x), spread) > 0, float("nan"))
    mean = OPS.mean_beside(y, batch, height, width, *spread)
    assert torch.allclose(mean, x.mean((2, 3), keepdim=True), atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 5])
def test_what_lies_where_no_image_does_is_not_seen(threads, isa) -> None:
    """The patches of 13 times 17 places are not all full."""
    spread = 1, threads
    weight = torch.tensor([[[[0.0, 1, 0], [1, 1, 1], [0, 1, 0]]]])  # a dense one is not made code
    conv = bind_beside(_dense(weight, 1, [1, 13, 17, *spread, number(isa)]))
    pool = bind_pool_beside([3, 3, 1, 1, 1, 1, False, 1, 13, 17, *spread, number(isa)])
    x = torch.rand(1, 1, 13, 17)
    real = there(torch.ones_like(x), spread) > 0
    assert not real.all()
    y = there(x, spread).where(real, float("nan"))
    right = F.max_pool2d(x, 3, 1, 1)
    assert torch.equal(back(pool(y), 1, (13, 17), spread), right)
    (y,) = OPS.beside_chain(y, [], [conv.number], 0, 1, 0)
    right = F.conv2d(x, weight, padding=1)
    assert torch.allclose(back(y, 1, (13, 17), spread), right, atol=1e-5)


def test_more_threads_get_more_tiles() -> None:
    """As long as they are not too small: the cost is that of the thread with most columns."""

    def shape(threads: int, side: int) -> tuple[int, ...]:
        return tuple(there(torch.zeros(1, 1, side, side), (1, threads)).shape)

    assert shape(1, 14) == shape(2, 14) == (1, 2, 1, 1, 7, 16)
    assert shape(4, 14) == (1, 4, 1, 1, 4, 16)
    assert shape(1, 56) == shape(4, 56) == (1, 14, 2, 1, 7, 16)
    for side in (7, 14, 56):
        costs = [OPS.beside_cost(1, threads, side, side) for threads in range(1, 65)]
        assert costs == sorted(costs, reverse=True)
        assert all(costs[0] <= 1.01 * n * cost for n, cost in enumerate(costs, 1))
    assert OPS.beside_cost(16, 1, 14, 14) == 28 * (2 * 7 + 3)


def _dense(weight: Tensor, padding: int, rest: list[int]) -> list:
    """What `bind_beside` takes for a convolution at stride one."""
    packed = Csb().pack(weight.flatten(1))
    head = [*(packed.tensors[n] for n in ("starts", "pairs", "columns", "values")), None, None]
    meta = [len(weight), packed.meta["chunk"], packed.meta["block"], *weight.shape[2:]]
    return [*head, *meta, 1, 1, padding, padding, 1, 1, 0, *rest]


def test_what_does_not_fit_is_refused() -> None:
    eye = torch.eye(4)[:, :, None, None]
    flat = bind_beside(_dense(eye, 0, [4, 3, 5, 16, 1, 0]))
    wide = bind_beside(_dense(eye, 1, [4, 3, 5, 16, 1, 0]))
    few = bind_beside(_dense(eye, 0, [4, 3, 5, 2, 1, 0]))
    x = there(torch.randn(2, 4, 3, 5), (16, 1))

    def chain(*given):
        return OPS.beside_chain(*given)

    with pytest.raises(RuntimeError, match="takes 4 channels; got 3"):
        chain(there(torch.randn(2, 3, 3, 5), (16, 1)), [], [flat.number], 0, 1, 0)
    with pytest.raises(RuntimeError, match="convolution 1 of the chain must be 1x1"):
        chain(x, [], [flat.number, wide.number], 0, 2, 0)
    with pytest.raises(RuntimeError, match="chain must be 1x1, at stride one, of 16 images"):
        chain(x, [], [flat.number, few.number], 0, 2, 0)
    with pytest.raises(RuntimeError, match="3 rows and 5 columns lie in 1 groups of 3 rows"):
        chain(x[:, :, :, :, :4], [], [flat.number], 0, 1, 0)
    with pytest.raises(RuntimeError, match="2 images of 3 rows and 5 columns lie in"):
        chain(x, [], [few.number], 0, 1, 0)
    with pytest.raises(RuntimeError, match="groups, rows, tiles"):
        chain(torch.randn(2, 4, 3, 5), [], [flat.number], 0, 1, 0)
    with pytest.raises(RuntimeError, match="groups, rows, tiles"):
        chain(torch.randn(2, 4, 3, 5), [], [few.number], 0, 1, 0)
    with pytest.raises(RuntimeError, match="more convolutions add something"):
        chain(x, [], [flat.number], 1, 1, 0)
    with pytest.raises(RuntimeError, match="have its output's shape"):
        chain(x, [x[:, :2].contiguous()], [flat.number], 1, 1, 0)
    with pytest.raises(RuntimeError, match="have its output's shape"):
        chain(x, [torch.randn(4)], [flat.number], 1, 1, 0)
    with pytest.raises(RuntimeError, match="writes over nothing"):
        chain(x, [], [flat.number], 0, 1, 1)
    with pytest.raises(RuntimeError, match="1 to 32 convolutions; got 0"):
        chain(x, [], [], 0, 1, 0)
    with pytest.raises(RuntimeError, match="no call is bound"):
        chain(x, [], [10**9], 0, 1, 0)
    with pytest.raises(RuntimeError, match="batch must be in"):
        back(x, 17, (3, 5), (16, 1))
    with pytest.raises(RuntimeError, match="batch must be in"):
        OPS.mean_beside(x, 17, 3, 5, 16, 1)
    for images in (0, 17):
        with pytest.raises(RuntimeError, match=f"images must be in .1, 16.; got {images}"):
            bind_beside(_dense(eye, 0, [4, 3, 5, images, 1, 0]))
    with pytest.raises(RuntimeError, match="threads must be positive; got 0"):
        there(torch.randn(2, 4, 3, 5), (16, 0))
    with pytest.raises(RuntimeError, match="a whole batch; got 2 where 3"):
        there(torch.randn(2, 4, 3, 5), (3, 1))
    with pytest.raises(RuntimeError, match="height and width must be positive; got 0 and 5"):
        OPS.mean_beside(x, 2, 0, 5, 16, 1)
    with pytest.raises(RuntimeError, match="stride_h"):
        bind_beside(
            [*_dense(eye, 0, [4, 3, 5, 2, 1, 0])[:11], 0, 1, 0, 0, 1, 1, 0, 4, 3, 5, 2, 1, 0]
        )
    with pytest.raises(RuntimeError, match="patches of 2148794368 floats are too many"):
        bind_beside(_dense(eye, 1, [4, 16384, 32768, 1, 1, 0]))
    pool = bind_pool_beside([2, 2, 2, 2, 0, 0, False, 3, 3, 5, 16, 1, 0])
    with pytest.raises(RuntimeError, match="of 3 channels; got 4"):
        pool(x)
    with pytest.raises(RuntimeError, match="takes no residual"):
        pool(x, x)


# Whole models


class Bottleneck(nn.Module):
    def __init__(self, width: int, out: int, stride: int = 1):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, 8, 1), nn.Conv2d(8, 8, 3, stride, 1)
        self.c = nn.Conv2d(8, out, 1)
        self.around = nn.Conv2d(width, out, 1, stride) if (width, stride) != (out, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return torch.relu(y + (x if self.around is None else self.around(x)))


def residual() -> nn.Module:
    body = [Bottleneck(12, 16), Bottleneck(16, 16), Bottleneck(16, 24, 2), Bottleneck(24, 24)]
    stem = [nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))


class Crossed(nn.Module):
    """Two branches, each of which adds what the other one has in between."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(6, 6, 1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.first(x), self.second(x)
        c, d = self.a(a) + b, self.b(b) + a
        return self.c(c) * d, torch.cat([c, x], 1)


class Again(nn.Module):
    """What is added is needed afterwards, twice, and is an output."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.a(x)
        b = self.b(a) + a
        return self.c(b) + a, a


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 9, 3, padding=1), nn.Conv2d(9, 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(torch.tanh(self.a(x)), 2)
        y = F.max_pool2d(y, 2, 1, 1).relu()
        return F.silu(self.b(y) * 2.0).flatten(1).softmax(-1)


class Means(nn.Module):
    """Means of what is not needed otherwise and of what is, in every way to ask for them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 9, 3, padding=1), nn.Conv2d(9, 9, 3)
        self.c = nn.Conv2d(9, 9, 3, padding=1)
        self.squeeze, self.excite = nn.Linear(9, 4), nn.Linear(4, 9)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a = self.a(x)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(a.mean((2, 3))))))
        b = self.c(self.b(torch.relu(a)))
        means = b.mean((-1, 2), keepdim=True), F.adaptive_avg_pool2d(b, 1), b.mean((1, 2))
        return gate.unsqueeze(-1).unsqueeze(-1) * a, *means, b.mean(3)


MODELS = {
    "residual": (residual, (3, 37, 41)),
    "crossed": (Crossed, (6, 9, 8)),
    "again": (Again, (6, 5, 15)),
    "pooled": (Pooled, (6, 11, 10)),
    "means": (Means, (6, 9, 11)),
}


def deployed(name: str, batch: int = 16, **more) -> sw.deploy:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    kernels = ["csb.conv2d.portable", "csb.portable"]
    return sw.deploy(
        model, torch.randn(batch, *shape), kernels=kernels, seconds=0, cache=False, **more
    ), model


def leaves(y):
    return [y] if isinstance(y, Tensor) else list(y)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [12, 16, 20, 33, 5, 1])
def test_a_model_side_by_side(name, batch) -> None:
    fast, model = deployed(name)
    program = fast.program.beside()
    assert program is not None
    x = torch.randn(batch, *MODELS[name][1])
    kept = x.clone()
    for _ in range(2):  # memory that the first call gave back
        for y, right in zip(leaves(program.run(x)), leaves(model(x)), strict=True):
            assert torch.allclose(y, right, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 2, 3, 8, 11])
def test_a_model_in_patches(name, batch) -> None:
    fast, model = deployed(name)
    program = fast.program.cut(batch, side_by_side=True, threads=1)
    assert (program.size, program.side_by_side) == (batch, True)
    for n in (batch, batch + 1, 2 * batch + 1):  # the program itself, and what else is called for
        x = torch.randn(n, *MODELS[name][1])
        kept = x.clone()
        for _ in range(2):
            for y, right in zip(leaves(program.run(x)), leaves(model(x)), strict=True):
                assert torch.allclose(y, right, rtol=1e-4, atol=1e-5)
        assert torch.equal(x, kept)


def test_a_relu_goes_with_the_pooling_before_it() -> None:
    fast, _ = deployed("pooled")
    graph = beside(fast.program.module, lambda graph: None)
    targets = [n.target for n in graph.nodes]
    assert targets.count(OPS.bound.default) == 2
    assert torch.ops.aten.relu.default not in targets


def test_means_need_no_way_back() -> None:
    fast, _ = deployed("means")
    graph = beside(fast.program.module, lambda graph: None)
    targets = [n.target for n in graph.nodes]
    assert targets.count(OPS.mean_beside.default) == 3
    assert targets.count(OPS.from_beside.default) == 2  # what is scaled, and other means


def test_patches_keep_the_threads_busy(monkeypatch) -> None:
    """A convolution of few small images has too few tiles for many threads, and stays."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)]
    rest = [nn.MaxPool2d(4), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)]
    model = nn.Sequential(*layers, *rest).eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(1, 4, 56, 56)
    fast = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0, cache=False)

    def served(threads: int, images: int = 1) -> int:
        graph = beside(fast.program.module, lambda graph: None, images, threads)
        chains = [n for n in graph.nodes if n.target is OPS.beside_chain.default] if graph else []
        return sum(len(n.args[2]) for n in chains)

    assert [served(threads) for threads in (1, 2, 4, 6, 28, 64)] == [4, 4, 4, 2, 2, 0]
    assert served(64, IMAGES) == 4
    program = fast.program.cut(1, side_by_side=True, threads=6)
    assert torch.allclose(program.run(x), model(x), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("sparsewright.image_units.MOST_FLOATS", 8 * 56 * 56 - 1)
    assert served(1) == 2  # those of 14 times 14 alone, behind a head of the others
    program = fast.program.cut(1, side_by_side=True, threads=1)
    assert torch.allclose(program.run(x), model(x), rtol=1e-4, atol=1e-5)


def test_convolutions_are_called_at_once() -> None:
    """A residual network's 1x1 convolutions go with the one before them, and write over what they
    add where nothing needs it any more."""
    fast, _ = deployed("residual")
    heads = []

    def cut(graph):
        heads.append([str(n.target) for n in graph.nodes if n.op == "call_function"])
        return lambda *x: x

    graph = beside(fast.program.module, cut)
    chains = [n for n in graph.nodes if n.target is OPS.beside_chain.default]
    # (convolutions, additions, what it writes over) of the stem, then block by block: the first
    # takes in, `around`, the rest with the next block's first.
    found = [(len(n.args[2]), bin(n.args[3]).count("1"), n.args[5]) for n in chains]
    assert (3, 1, 2) in found
    assert sum(count for count, _, _ in found) == 15
    assert sum(adds for _, adds, _ in found) == 4
    targets = [n.target for n in graph.nodes]
    assert targets.count(OPS.from_beside.default) == 0
    assert (targets.count(OPS.bound.default), targets.count(OPS.mean_beside.default)) == (1, 1)
    assert heads == []  # the first convolution takes images side by side


def test_what_is_needed_again_is_not_written_over() -> None:
    fast, _ = deployed("again")
    graph = beside(fast.program.module, lambda graph: None)
    chains = [n for n in graph.nodes if n.target is OPS.beside_chain.default]
    assert [n.args[3] for n in chains] == [0, 1, 1]
    assert [n.args[5] for n in chains] == [0, 0, 0]


def test_what_comes_before_runs_in_pieces() -> None:
    """What a convolution in groups gives for a whole batch would leave the cache."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 8, 3, groups=2), nn.Softmax(1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)]
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(16, 4, 12, 12)
    fast = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0, cache=False)
    heads = []

    def cut(graph):
        heads.append([str(n.target) for n in graph.nodes if n.op == "call_function"])
        return lambda *x: x

    beside(fast.program.module, cut)
    names = [name.rpartition(" ")[2] for name in heads[0]]
    assert len(heads) == 1
    assert names[1:] == ["sparsewright.csb_conv2d.default", "aten.softmax.int"]
    assert torch.allclose(fast.program.beside().run(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(len(ISAS) < 2, reason="needs two instruction sets")
def test_the_best_instruction_set_of_all_serves(monkeypatch) -> None:
    fast, _ = deployed("again")
    convs = [n for n in fast.program.module.graph.nodes if str(n.target).count("csb_conv2d")]
    convs[1].update_arg(len(convs[1].args) - 1, number(ISAS[-1]))
    taken = []
    monkeypatch.setattr(
        "sparsewright.shared_calls.bind_beside",
        lambda rest: taken.append(rest[-1]) or bind_beside(rest),
    )
    beside(fast.program.module, lambda graph: None)
    assert taken == [max(number(ISAS[-1]), number("portable"))] * 3


@pytest.mark.parametrize(
    ("conv", "serves"),
    [
        (nn.Conv2d(3, 20, (7, 5), (2, 3), (3, 1), bias=False), True),
        (nn.Conv2d(3, 20, 5, dilation=2), True),
        (nn.Conv2d(255, 4, 1), True),
        (nn.Conv2d(256, 4, 1), False),
        (nn.Conv2d(4, 6, 3, groups=2), False),
    ],
    ids=str,
)
def test_a_dense_convolution_of_few_numbers(conv, serves) -> None:
    """The first of a network, which is mostly left dense."""
    model = nn.Sequential(conv, nn.Conv2d(conv.out_channels, 9, 3), nn.Conv2d(9, 9, 3))
    model = model.eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all", skip=["0"])
    x = torch.randn(16, conv.in_channels, 31, 34)
    fast = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0, cache=False)
    first, *rest = fast.plan.layers  # no clock says that the first one stays dense
    first = replace(first, kernel="dense.eager", layout="dense", candidates=())
    fast = sw.deploy(model, x, plan=replace(fast.plan, layers=(first, *rest), pieces=None))
    convs = [n for n in fast.program.module.graph.nodes if "conv2d" in str(n.target)]
    assert convs[0].target is torch.ops.aten.conv2d.default or conv.groups > 1
    graph = beside(fast.program.module, lambda graph: None)
    chains = [n for n in graph.nodes if n.target is OPS.beside_chain.default]
    assert (sum(len(n.args[2]) for n in chains) == len(convs)) == serves
    for n in (16, 13):
        expected = model(x[:n])
        assert torch.allclose(fast.program.beside().run(x[:n]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ours", [True, False], ids=["depthwise", "eager"])
def test_depthwise_ones_need_no_turn(ours) -> None:
    """Nor does a ReLU after a dense convolution take a call of its own."""
    torch.manual_seed(0)
    net: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()]
    for width, out, stride in ((8, 16, 1), (16, 24, 2), (24, 24, 1)):
        net += [nn.Conv2d(width, width, 3, stride, 1, groups=width), nn.ReLU()]
        net += [nn.Conv2d(width, out, 1), nn.ReLU6()]
    model = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1)).eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, skip=["0", "2", "6", "10"])
    x = torch.randn(16, 3, 31, 34)
    own = "dense.conv2d.depthwise.portable"
    kernels = ["csb.conv2d.portable", *([own] if ours else [])]
    fast = sw.deploy(model, x, kernels=kernels, seconds=0, cache=False)
    eager = {"kernel": "dense.eager", "layout": "dense", "candidates": ()}
    single = {"kernel": own, "layout": "dense"} if ours else eager
    stays = {"0": eager} | dict.fromkeys(["2", "6", "10"], single)
    layers = [replace(n, **stays.get(n.layer, {})) for n in fast.plan.layers]  # without a clock
    fast = sw.deploy(model, x, plan=replace(fast.plan, layers=tuple(layers), pieces=None))
    convs = [n.target for n in fast.program.module.graph.nodes if "conv2d" in str(n.target)]
    assert convs.count(dense_conv2d if ours else torch.ops.aten.conv2d.default) == 3 + (not ours)
    graph = beside(fast.program.module, lambda graph: None)
    targets = [n.target for n in graph.nodes if n.op == "call_function"]
    assert torch.ops.aten.relu.default not in targets
    assert targets.count(OPS.to_beside.default) == 1
    chains = [len(n.args[2]) for n in graph.nodes if n.target is OPS.beside_chain.default]
    assert chains == [1, 2, 2, 2]
    assert targets.count(OPS.from_beside.default) == 0
    for n in (16, 13):
        assert torch.allclose(fast.program.beside().run(x[:n]), model(x[:n]), atol=1e-5)
    few = fast.program.cut(3, side_by_side=True, threads=1)
    assert torch.allclose(few.run(x[:3]), model(x[:3]), atol=1e-5)
    with torch.no_grad():  # a plain view of what is kept, and the next convolution's input
        assert torch.allclose(fast(x), model(x), atol=1e-5)


class Around(nn.Module):
    """One convolution, and two turns before it: of what it reads, and of what is added to it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + x.softmax(1)).softmax(1)


def test_more_turns_than_two_for_each_convolution() -> None:
    alone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1))
    for model, serves in ((alone, True), (Around(), False)):
        model.eval().requires_grad_(False)
        sw.prune(model, sparsity=0.7, allocate="uniform_all")
        x = torch.randn(16, 3, 12, 12)
        fast = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0, cache=False)
        turned = fast.program.beside()
        assert (turned is not None) == serves
        if turned is not None:
            assert torch.allclose(turned.run(x), model(x), atol=1e-5)
            continue
        with pytest.raises(KernelError, match="no convolutions that take images side by side"):
            fast.program.cut(16, side_by_side=True)


class Constant(nn.Module):
    """A convolution of what is the same for all samples."""

    def __init__(self):
        super().__init__()
        self.image = nn.Parameter(torch.randn(1, 6, 9, 9))
        self.a, self.b, self.c = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.last = nn.Sequential(*(nn.Conv2d(6, 6, 1) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        same = self.b(torch.tanh(torch.sin(self.image)))
        return self.last(self.c(self.a(x) + same))


def test_what_is_no_image_of_a_sample_stays() -> None:
    torch.manual_seed(0)
    model = Constant().eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(16, 6, 9, 9)
    fast = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0, cache=False)
    program = fast.program.beside()
    for n in (16, 12, 3):
        assert torch.allclose(program.run(x[:n]), model(x[:n]), rtol=1e-4, atol=1e-5)


def test_batches_that_fill_vectors() -> None:
    full = [n for n in range(40) if is_full(n)]
    assert full == [12, 13, 14, 15, 16, *range(24, 33), *range(36, 40)]


def test_how_many_lie_side_by_side() -> None:
    assert [images_for(n) for n in (0, 1, 11, 12, 16, 17, 23, 24)] == [
        None, 1, 11, 16, 16, None, None, 16,
    ]  # fmt: skip
    fast, _ = deployed("again")
    for wrong in (12, 17, 32):
        with pytest.raises(KernelError, match=f"lie 16 images, or fewer .* got {wrong}"):
            fast.program.cut(wrong, side_by_side=True)


@pytest.fixture
def wins(monkeypatch):
    """Let images side by side be the fastest way, whatever the clock says."""

    def fake(runs, rounds=0, seconds=0.0):
        for run in runs.values():
            run()
        timings = [PieceTiming(*way[:2], 2.0, 1.0, 3.0, way[2]) for way in runs]
        return sorted(timings, key=lambda t: not t.side_by_side)

    monkeypatch.setattr("sparsewright.make.time_runs", fake)
    monkeypatch.setattr("sparsewright.image_units.BUSY", 0.0)


@pytest.mark.parametrize(
    ("batch", "size", "text"),
    [
        (16, 16, "16 images side by side"),
        (40, 16, "16 images side by side"),
        (1, 1, "side by side in patches of 1 image"),
        (3, 3, "side by side in patches of 3 images"),
    ],
)
def test_plans_name_it(wins, tmp_path, batch, size, text) -> None:
    fast, model = deployed("again", batch)
    pieces = fast.plan.pieces
    assert (pieces.size, pieces.side_by_side) == (size, True)
    assert f"The batch runs {text}, by kernels for" in str(fast.plan)
    assert "; whole: 2 ms" in str(fast.plan)
    fast.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan == fast.plan
    again = sw.deploy(model, torch.randn(batch, 6, 5, 15), plan=plan)
    assert again.program.side_by_side
    sw.save(fast, tmp_path / "model")
    loaded = sw.load(tmp_path / "model")
    assert loaded.program.side_by_side
    for n in (1, 16, 21, 40):
        x = torch.randn(n, 6, 5, 15)
        for a, b, c in zip(fast(x), again(x), loaded(x), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)
    copied = copy.deepcopy(fast)
    x = torch.randn(16, 6, 5, 15)
    assert torch.equal(copied(x)[0], fast(x)[0])


@pytest.mark.parametrize(("batch", "sizes"), [(20, {4}), (16, {4, 16}), (8, {8}), (1, {1})])
def test_a_few_at_a_time_are_tried_as_well(wins, batch, sizes) -> None:
    fast, model = deployed("again", batch)
    assert {t.size for t in fast.plan.pieces.timings if t.side_by_side} == sizes
    program = fast.program.cut(min(sizes), side_by_side=True)
    x = torch.randn(batch + 1, 6, 5, 15)
    for y, right in zip(program.run(x), model(x), strict=True):
        assert torch.allclose(y, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [16, 1])
def test_plans_are_kept(wins, tmp_path, monkeypatch, batch) -> None:
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = Again().eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(batch, 6, 5, 15)
    first = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0)
    again = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0)
    assert again.plan.pieces == first.plan.pieces
    assert again.program.side_by_side


def test_a_plan_says_for_how_many_threads(wins, tmp_path, monkeypatch) -> None:
    """It is repeated as it was, however many threads there are where it is read."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("sparsewright.image_units.BUSY", 1.0)
    try:
        fast, model = deployed("again", 1)
        sw.save(fast, tmp_path / "model")
        torch.set_num_threads(4)
        assert fast.program.beside(1) is None
        x = torch.randn(1, 6, 5, 15)
        loaded, again = sw.load(tmp_path / "model"), sw.deploy(model, x, plan=fast.plan)
        for other in (loaded, again, copy.deepcopy(fast)):
            assert other.program.side_by_side
            assert torch.equal(other(x)[0], fast(x)[0])
    finally:
        torch.set_num_threads(threads)


def test_a_plan_that_cannot_be(monkeypatch) -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(16, 8)
    fast = sw.deploy(model, x, kernels=["csr.portable"], seconds=0, cache=False)
    pieces = Pieces(16, 16, side_by_side=True)
    plan = Plan(fast.plan.threads, 16, fast.plan.layers, (), pieces)
    with pytest.raises(KernelError, match="no convolutions that take images side by side"):
        sw.deploy(model, x, plan=plan)
    with monkeypatch.context() as patch:
        patch.setattr(library, "MISSING", {"beside_cost"})
        with pytest.raises(KernelError, match="the compiled library has no beside_cost"):
            sw.deploy(model, x, plan=plan)
    entry = plan.to_dict()
    entry["pieces"]["side_by_side"] = 1
    with pytest.raises(TypeError, match="side_by_side is true or false; got 1"):
        Plan.from_dict(entry)
    entry["pieces"]["side_by_side"] = True
    entry["pieces"]["timings"] = [[16, 16, 1.0, 1.0, 1.0, "yes"]]
    with pytest.raises(TypeError, match="side_by_side is true or false; got yes"):
        Plan.from_dict(entry)
    del entry["pieces"]["side_by_side"]  # as plans were written before there was such a way
    entry["pieces"]["timings"] = [[16, 16, 1.0, 1.0, 1.0]]
    assert Plan.from_dict(entry).pieces.side_by_side is False


def test_a_file_that_claims_it(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    fast = sw.deploy(model, torch.randn(16, 8), kernels=["csr.portable"], seconds=0, cache=False)
    fast.plan = Plan(1, 16, fast.plan.layers, (), Pieces(16, 16, side_by_side=True))
    sw.save(fast, tmp_path / "model")
    with pytest.raises(ArtifactError, match="no convolutions that take images side by side"):
        sw.load(tmp_path / "model")


def test_several_threads_at_once(wins) -> None:
    fast, _ = deployed("residual")
    given = [torch.randn(16, 3, 37, 41) for _ in range(4)]
    right = [fast(x) for x in given]
    wrong = []

    def call(x: Tensor, expected: Tensor) -> None:
        for _ in range(5):
            if not torch.equal(fast(x), expected):
                wrong.append(x)

    threads = [threading.Thread(target=call, args=pair) for pair in zip(given, right, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
