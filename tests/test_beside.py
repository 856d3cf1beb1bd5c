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
from sparsewright.beside import IMAGES, beside, is_full
from sparsewright.errors import ArtifactError, KernelError
from sparsewright.kernels import library
from sparsewright.kernels.bound import bind_beside
from sparsewright.layouts import store, unpack
from sparsewright.layouts.csb import Csb
from sparsewright.plan import Pieces, PieceTiming, Plan

pytestmark = pytest.mark.skipif(library.LIBRARY.path is None, reason="needs the compiled kernels")
OPS = torch.ops.sparsewright
ISAS = [isa for isa in library.ISAS if library.why_no_isa(isa, "csb_conv2d") is None]
ACTIVATIONS = [lambda y: y, F.relu, F.gelu, F.silu, F.relu6, F.hardswish]


def number(isa: str) -> int:
    return library.ISAS[isa]


@given(
    st.integers(0, 40), st.integers(1, 5), st.integers(1, 9), st.integers(1, 40),
    st.sampled_from(ISAS),
)  # fmt: skip
def test_the_way_there_and_back(batch, channels, height, width, isa) -> None:
    x = torch.randn(batch, channels, height, width)
    there = OPS.to_beside(x, number(isa))
    groups, rows, tiles, planes, columns, images = there.shape
    assert (rows, planes, images) == (height, channels, IMAGES)
    assert groups == -(-batch // IMAGES)
    assert tiles * columns >= width > (tiles - 1) * columns
    assert torch.equal(OPS.from_beside(there, batch, width, number(isa)), x)
    if batch:
        last = there[-1, :, :, :, :, (batch - 1) % IMAGES + 1 :]
        assert not last.any(), "what is no image is zero"


class Conv:
    """A convolution in layout csb, by torch and as a stage."""

    def __init__(self, draw, channels: int, width: int, flat: bool):
        self.out = draw(st.integers(1, 70))
        sizes = st.integers(1, 3)
        self.kernel = (1, 1) if flat else (draw(sizes), draw(sizes))
        self.stride = (1, 1) if flat else (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
        self.padding = (0, 0) if flat else (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
        self.dilation = (1, 1) if flat else (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
        self.then = draw(st.integers(0, 5))
        self.adds = draw(st.booleans())
        present = torch.rand(self.out, channels, *self.kernel) < draw(st.sampled_from([0.1, 0.5]))
        weight = torch.randn(present.shape) * present
        self.bias = torch.randn(self.out) if draw(st.booleans()) else None
        block = draw(st.sampled_from([3, 64, 128]))
        sizes = {"chunk": draw(st.sampled_from([5, 160])), "block": block}
        values = draw(st.sampled_from(["fp32", "bf16", "int8"]))
        self.packed = store(lambda w: Csb().pack(w, **sizes), weight.flatten(1), values)
        self.weight = unpack(self.packed).view(weight.shape)
        self.channels, self.width = channels, width

    def bound(self, isa: str):
        t, meta = self.packed.tensors, self.packed.meta
        head = [t["starts"], t["pairs"], t["columns"], t["values"], t.get("scales"), self.bias]
        numbers = [*self.kernel, *self.stride, *self.padding, *self.dilation, self.then]
        sizes = [self.channels, self.width, number(isa)]
        return bind_beside([*head, self.out, meta["chunk"], meta["block"], *numbers, *sizes])

    def plain(self, x: Tensor, more: Tensor | None) -> Tensor:
        given = self.stride, self.padding, self.dilation
        bias = None if self.bias is None else self.bias.double()
        y = F.conv2d(x.double(), self.weight.double(), bias, *given)
        return ACTIVATIONS[self.then](y if more is None else y + more.double()).float()


@given(st.data(), st.sampled_from(ISAS))
def test_a_chain_gives_what_torch_gives(data, isa) -> None:
    draw = data.draw
    batch, channels = draw(st.integers(1, 34)), draw(st.sampled_from([1, 3, 40]))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 17))
    x = torch.randn(batch, channels, height, width)
    given, convs, wanted, residuals = x, [], [], []
    for i in range(draw(st.integers(1, 3))):
        conv = Conv(draw, given.shape[1], given.shape[3], flat=i > 0)
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
    bound = [conv.bound(isa) for conv in convs]
    more = [OPS.to_beside(r, 0) for r in residuals if r is not None]
    numbers = [b.number for b in bound]
    got = OPS.beside_chain(OPS.to_beside(x, 0), more, numbers, adds, kept, over)
    expected = [y for i, y in enumerate(wanted) if kept >> i & 1]
    assert len(got) == len(expected)
    for y, right in zip(got, expected, strict=True):
        assert torch.allclose(
            OPS.from_beside(y, batch, right.shape[3], 0), right, rtol=1e-4, atol=1e-4
        )
    written = [i for i, conv in enumerate(convs) if conv.adds and over >> i & 1]
    outputs = [i for i in range(len(convs)) if kept >> i & 1]
    for i in written:
        place = sum(1 for conv in convs[:i] if conv.adds)
        assert got[outputs.index(i)].data_ptr() == more[place].data_ptr()


@pytest.mark.parametrize("isa", ISAS)
def test_no_image_sees_another_one(isa) -> None:
    """NaN and infinity reach what the dense convolution would have them reach, of their image."""
    torch.manual_seed(0)
    weight = torch.randn(20, 6, 3, 3)
    weight[torch.rand(weight.shape) < 0.7] = 0
    packed = Csb().pack(weight.flatten(1), chunk=20)
    head = [*(packed.tensors[n] for n in ("starts", "pairs", "columns", "values")), None, None]
    rest = [20, 20, packed.meta["block"], 3, 3, 1, 1, 1, 1, 1, 1, 0, 6, 9, number(isa)]
    bound = bind_beside([*head, *rest])
    x = torch.randn(18, 6, 8, 9)
    clean = F.conv2d(x, weight, padding=1)
    x[3, 2, 4, 4], x[17, 0, 0, 8] = float("nan"), float("inf")
    (y,) = OPS.beside_chain(OPS.to_beside(x, 0), [], [bound.number], 0, 1, 0)
    y = OPS.from_beside(y, 18, 9, 0)
    others = [i for i in range(18) if i not in (3, 17)]
    assert torch.allclose(y[others], clean[others], atol=1e-5)
    reached = (weight[:, 2] != 0).flip(1, 2)  # the outputs around (4, 4)
    assert torch.equal(y[3, :, 3:6, 3:6].isnan(), reached)
    assert int(y[3].isnan().sum()) == int(reached.sum())
    finite = (weight[:, 0, :2, 1:] == 0).flip(1, 2)
    assert torch.equal(y[17, :, :2, 7:].isfinite(), finite)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 1, 0), (5, 3, 2)])
def test_max_pooling(isa, kernel, stride, padding) -> None:
    x = torch.randn(20, 3, 11, 13)
    x[1, 0, 3, 3], x[2, 1, 5, 5] = float("nan"), -float("inf")
    numbers = [kernel, kernel, stride, stride, padding, padding]
    y = OPS.max_pool2d_beside(OPS.to_beside(x, 0), *numbers, 13, number(isa))
    right = F.max_pool2d(x, kernel, stride, padding)
    got = OPS.from_beside(y, 20, right.shape[3], 0)
    assert torch.equal(got.nan_to_num(nan=1e9), right.nan_to_num(nan=1e9))


def test_what_does_not_fit_is_refused() -> None:
    packed = Csb().pack(torch.eye(4))
    head = [*(packed.tensors[n] for n in ("starts", "pairs", "columns", "values")), None, None]
    meta = [4, packed.meta["chunk"], packed.meta["block"]]
    flat = bind_beside([*head, *meta, 1, 1, 1, 1, 0, 0, 1, 1, 0, 4, 5, 0])
    wide = bind_beside([*head, *meta, 1, 1, 1, 1, 1, 1, 1, 1, 0, 4, 5, 0])
    x = OPS.to_beside(torch.randn(2, 4, 3, 5), 0)

    def chain(*given):
        return OPS.beside_chain(*given)

    with pytest.raises(RuntimeError, match="takes 4 channels; got 3"):
        chain(OPS.to_beside(torch.randn(2, 3, 3, 5), 0), [], [flat.number], 0, 1, 0)
    with pytest.raises(RuntimeError, match="convolution 1 of the chain must be 1x1"):
        chain(x, [], [flat.number, wide.number], 0, 2, 0)
    with pytest.raises(RuntimeError, match="columns lie in tiles of"):
        chain(x[:, :, :, :, :4], [], [flat.number], 0, 1, 0)
    with pytest.raises(RuntimeError, match="groups, height, tiles"):
        chain(torch.randn(2, 4, 3, 5), [], [flat.number], 0, 1, 0)
    with pytest.raises(RuntimeError, match="more convolutions add something"):
        chain(x, [], [flat.number], 1, 1, 0)
    with pytest.raises(RuntimeError, match="have its output's shape"):
        chain(x, [x[:, :2].contiguous()], [flat.number], 1, 1, 0)
    with pytest.raises(RuntimeError, match="writes over nothing"):
        chain(x, [], [flat.number], 0, 1, 1)
    with pytest.raises(RuntimeError, match="1 to 32 convolutions; got 0"):
        chain(x, [], [], 0, 1, 0)
    with pytest.raises(RuntimeError, match="no call is bound"):
        chain(x, [], [10**9], 0, 1, 0)
    with pytest.raises(RuntimeError, match="batch must be in"):
        OPS.from_beside(x, 17, 5, 0)


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
        return F.silu(self.b(y) * 2.0).flatten(1).softmax(-1)


MODELS = {
    "residual": (residual, (3, 37, 41)),
    "crossed": (Crossed, (6, 9, 8)),
    "again": (Again, (6, 5, 15)),
    "pooled": (Pooled, (6, 11, 10)),
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
    assert [n.target for n in graph.nodes].count(OPS.from_beside.default) == 1
    assert [n.target for n in graph.nodes].count(OPS.max_pool2d_beside.default) == 1
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
        "sparsewright.beside.bind_beside", lambda rest: taken.append(rest[-1]) or bind_beside(rest)
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


def test_fewer_convolutions_than_turns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1)).eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(16, 3, 12, 12)
    fast = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0, cache=False)
    assert fast.program.beside() is None
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


@pytest.fixture
def wins(monkeypatch):
    """Let images side by side be the fastest way, whatever the clock says."""

    def fake(runs, rounds=0):
        for run in runs.values():
            run()
        timings = [PieceTiming(*way[:2], 2.0, 1.0, 3.0, way[2]) for way in runs]
        return sorted(timings, key=lambda t: not t.side_by_side)

    monkeypatch.setattr("sparsewright.make.time_runs", fake)


@pytest.mark.parametrize("batch", [16, 40])
def test_plans_name_it(wins, tmp_path, batch) -> None:
    fast, model = deployed("again", batch)
    pieces = fast.plan.pieces
    assert (pieces.size, pieces.side_by_side) == (16, True)
    assert "The batch runs 16 images side by side, by kernels for" in str(fast.plan)
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


def test_plans_are_kept(wins, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = Again().eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(16, 6, 5, 15)
    first = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0)
    again = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0)
    assert again.plan.pieces == first.plan.pieces
    assert again.program.side_by_side


def test_a_plan_that_cannot_be() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(16, 8)
    fast = sw.deploy(model, x, kernels=["csr.portable"], seconds=0, cache=False)
    pieces = Pieces(16, 16, side_by_side=True)
    plan = Plan(fast.plan.threads, 16, fast.plan.layers, (), pieces)
    with pytest.raises(KernelError, match="no convolutions that take images side by side"):
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
