"""Convolutions that follow one another in a wave give what they give one after the other."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsewright as sw
from sparsewright import library, waves
from sparsewright.beside import beside
from sparsewright.image_units import IMAGES
from sparsewright.kernels.bound import Bound, bind_beside, bind_depthwise_beside
from sparsewright.layouts.csb import Csb
from sparsewright.measure.environment import threads as set_threads

pytestmark = pytest.mark.skipif(library.LIBRARY.path is None, reason="needs the compiled kernels")
OPS = torch.ops.sparsewright
CODE = ["0", "1"] if library.why_no_isa("avx512") is None else ["0"]


@pytest.fixture(autouse=True, scope="module", params=CODE, ids=lambda code: f"code={code}")
def code(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEWRIGHT_CODE", request.param)
        yield


def bound(
    shape: tuple[int, ...],
    out: int,
    kernel: int = 1,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
) -> Bound:
    """A convolution of images (channels, height, width), a third of its weights present; padding:
    half of the kernel where it is not given."""
    padding = kernel // 2 if padding is None else padding
    channels, *_ = shape
    present = torch.rand(out, channels, kernel, kernel) < 0.3
    packed = Csb().pack((torch.randn(present.shape) * present).flatten(1))
    head = [packed.tensors[n] for n in ("starts", "pairs", "columns", "values")]
    sizes = [out, packed.meta["chunk"], packed.meta["block"], kernel, kernel, stride, stride]
    rest = [*sizes, padding, padding, dilation, dilation, 1, *shape, IMAGES, 1, 0]
    return bind_beside([*head, None, torch.randn(out), *rest])


def depthwise(
    shape: tuple[int, ...], kernel: int, stride: int, padding: int, dilation: int
) -> Bound:
    weight, pairs = torch.randn(shape[0], 1, kernel, kernel), [kernel, stride, padding, dilation]
    numbers = [n for n in pairs for _ in range(2)]
    return bind_depthwise_beside([weight, torch.randn(shape[0]), *numbers, 1, *shape, IMAGES, 1, 0])


@dataclass
class Chain:
    """Stages of one call: the value that it takes, what stages add, which are kept."""

    calls: list[Bound]
    x: int
    residuals: list[int]
    adds: int
    kept: int
    over: int = 0

    def links(self) -> list[int]:
        numbers = [call.number for call in self.calls]
        several = [len(numbers), *numbers, len(self.residuals), *self.residuals]
        return [*several, self.x, self.adds, self.kept, self.over]


def one_after_the_other(inputs: list[Tensor], chains: list[Chain]) -> list[Tensor]:
    values = list(inputs)
    for c in chains:
        added = [values[i].clone() for i in c.residuals]
        numbers = [call.number for call in c.calls]
        values += OPS.beside_chain(values[c.x], added, numbers, c.adds, c.kept, c.over)
    return values


def drawn_chains(draw, shapes: list[tuple[int, ...]]) -> list[Chain]:
    """Chains of what is there, `shapes`, which grow by what they give."""
    chains: list[Chain] = []
    for _ in range(draw(st.integers(1, 5))):
        x = draw(st.integers(max(0, len(shapes) - 3), len(shapes) - 1))
        kernel, stride = draw(st.sampled_from([(1, 1), (1, 2), (1, 3), (3, 1), (3, 2), (5, 1)]))
        dilation, more = draw(st.integers(1, 2)), draw(st.integers(0, 2))
        reach = dilation * (kernel - 1)
        padding = -(-reach // 2) + more
        at, calls, residuals, adds, made = shapes[x], list[Bound](), list[int](), 0, []
        for i in range(draw(st.integers(1, 3))):
            first = i == 0
            geometry = (kernel, stride, padding, dilation) if first else (1, 1, 0, 1)
            if draw(st.booleans()):
                out = draw(st.sampled_from([3, 8]))
                calls.append(bound(at, out, *geometry))
            else:
                out = at[0]
                calls.append(depthwise(at, *geometry))
            side = [(n + 2 * padding - reach - 1) // stride + 1 for n in at[1:]]
            side = side if first else at[1:]
            at = (out, *side)
            made.append(at)
            alike = [v for v, shape in enumerate(shapes) if shape == at]
            if alike and draw(st.booleans()):
                residuals.append(draw(st.sampled_from(alike)))
                adds |= 1 << i
        kept = draw(st.integers(0, 2 ** len(calls) - 1)) | 1 << len(calls) - 1
        shapes += [shape for i, shape in enumerate(made) if kept >> i & 1]
        chains.append(Chain(calls, x, residuals, adds, kept))
    return chains


def write_over(chains: list[Chain], inputs: int, wanted: list[int]) -> None:
    """Wherever nothing reads later what a stage adds, of what chains gave."""
    for n, c in enumerate(chains):
        later = [v for d in chains[n + 1 :] for v in (d.x, *d.residuals)]
        stages = [i for i in range(len(c.calls)) if c.adds >> i & 1]
        for stage, v in zip(stages, c.residuals, strict=True):
            alone = v not in (*later, *wanted, c.x) and c.residuals.count(v) == 1 and v >= inputs
            if alone and c.kept >> stage & 1:
                c.over |= 1 << stage


@given(st.data(), st.integers(1, 2 * IMAGES + 1), st.sampled_from([1, 2, 3, 4]))
def test_a_wave_gives_the_same_bits(data, batch, count) -> None:
    draw = data.draw
    shapes = [(draw(st.sampled_from([3, 8])), draw(st.integers(5, 19)), draw(st.integers(5, 19)))]
    x = torch.randn(batch, *shapes[0])
    inputs = [OPS.to_beside(x, IMAGES, 1, 0)]
    chains = drawn_chains(draw, shapes)
    wanted = draw(st.lists(st.integers(1, len(shapes) - 1), min_size=1, unique=True))
    right = one_after_the_other(inputs, chains)
    if draw(st.booleans()):
        write_over(chains, 1, wanted)
    kept = inputs[0].clone()
    links = [number for chain in chains for number in chain.links()]
    with set_threads(count):
        for _ in range(3):
            got = OPS.beside_wave(inputs, links, wanted)
            assert len(got) == len(wanted)
            for y, v in zip(got, wanted, strict=True):
                assert torch.equal(y, right[v])
    assert torch.equal(inputs[0], kept)


def test_memory_that_nobody_needs_any_more_is_used_again() -> None:
    """Twelve convolutions, two of whose outputs are alive at a time; of what is written over, rows
    are read until two more have been computed."""
    torch.manual_seed(0)
    shape = (8, 12, 12)
    chains = [Chain([bound(shape, 8, (1, 5)[i % 2])], i, [], 0, 1) for i in range(12)]
    x = OPS.to_beside(torch.randn(16, *shape), IMAGES, 1, 0)
    right = one_after_the_other([x], chains)
    links = [number for chain in chains for number in chain.links()]
    for count in (1, 4):
        with set_threads(count):
            *_, y = OPS.beside_wave([x], links, [12])
            assert torch.equal(y, right[12])
    # All outputs wanted: none of them may be written over.
    got = OPS.beside_wave([x], links, list(range(1, 13)))
    assert len({y.data_ptr() for y in got}) == 12
    assert all(torch.equal(y, r) for y, r in zip(got, right[1:], strict=True))


def test_waves_of_several_threads_at_once() -> None:
    torch.manual_seed(0)
    shape = (8, 21, 21)
    chains = [Chain([bound(shape, 8, 3), bound(shape, 8)], i, [i], 2, 2) for i in range(4)]
    links = [number for chain in chains for number in chain.links()]
    xs = [OPS.to_beside(torch.randn(32, *shape), IMAGES, 1, 0) for _ in range(4)]
    right = [one_after_the_other([x], chains)[-1] for x in xs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(20):
            (y,) = OPS.beside_wave([xs[i]], links, [4])
            if not torch.equal(y, right[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_an_empty_batch() -> None:
    shape = (3, 5, 6)
    chains = [Chain([bound(shape, 3, 3)], i, [], 0, 1) for i in range(2)]
    links = [number for chain in chains for number in chain.links()]
    x = OPS.to_beside(torch.randn(0, *shape), IMAGES, 1, 0)
    (y,) = OPS.beside_wave([x], links, [2])
    assert y.shape == x.shape
    tall = (3, 1 << 30, 6)  # a count for each row would be 256 GiB
    x = torch.empty(0, tall[1], 1, *x.shape[3:])
    conv = bound(tall, 3)
    (y,) = OPS.beside_wave([x], Chain([conv], 0, [], 0, 1).links(), [1])
    assert y.shape == x.shape


def test_bytes_of_weights_are_those_of_their_code_or_of_their_tensors() -> None:
    conv, present = bound((32, 12, 12), 32, 3), 32 * 32 * 9 * 0.3
    bytes_of_one = OPS.weight_bytes([conv.number])
    assert 4 * 0.9 * present < bytes_of_one < 20 * present
    code = OPS.code_bytes(conv.number)
    assert code in (0, bytes_of_one)
    assert OPS.weight_bytes([conv.number] * 3) == 3 * bytes_of_one
    assert OPS.weight_bytes([]) == 0


def test_what_does_not_hang_together_is_refused() -> None:
    shape = (3, 5, 6)
    conv, narrow = bound(shape, 3), bound((4, 5, 6), 3)
    x = OPS.to_beside(torch.randn(16, *shape), IMAGES, 1, 0)
    good = Chain([conv], 0, [], 0, 1).links()
    for bad in (good[:-1], good[:1], [2, *good[1:]], [-1], [99]):
        with pytest.raises(RuntimeError, match=r"links of the chains end early|is no convolution"):
            OPS.beside_wave([x], bad, [0])
    with pytest.raises(RuntimeError, match="there is no value 2 yet"):
        OPS.beside_wave([x], [*good, *Chain([conv], 2, [], 0, 1).links()], [1])
    with pytest.raises(RuntimeError, match="there is no value -1 yet"):
        OPS.beside_wave([x], Chain([conv], -1, [], 0, 1).links(), [1])
    with pytest.raises(RuntimeError, match="there is no value 7 yet"):
        OPS.beside_wave([x], good, [7])
    with pytest.raises(RuntimeError, match="takes 4 channels; got 3"):
        OPS.beside_wave([x], Chain([narrow], 0, [], 0, 1).links(), [1])
    two = OPS.to_beside(torch.randn(32, *shape), IMAGES, 1, 0)
    with pytest.raises(RuntimeError, match="the chains have 1 and 2 groups of images"):
        OPS.beside_wave([x, two], [*good, *Chain([conv], 1, [], 0, 1).links()], [2])
    with pytest.raises(RuntimeError, match="a chain has 1 to 32 convolutions; got 0"):
        OPS.beside_wave([x], Chain([], 0, [], 0, 1).links(), [1])


class Block(nn.Module):
    """A residual block, as those of ResNet-50 are."""

    def __init__(self, width: int, out: int, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(out if stride == 1 else out // 2, width, 1), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1), nn.ReLU(), nn.Conv2d(width, out, 1),
        )  # fmt: skip
        self.around = nn.Identity() if stride == 1 else nn.Conv2d(out // 2, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.around(x))


def deployed() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    blocks = [Block(6, 16), Block(6, 16), Block(12, 32, 2), Block(12, 32)]
    model = nn.Sequential(*stem, *blocks).eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(IMAGES, 3, 19, 23)
    fast = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0, cache=False)
    return fast, model, x


def sizes_of(graph) -> list[int]:
    """How many convolutions each call of the graph has: chains, and waves as negative numbers."""
    found = []
    for node in graph.nodes:
        if node.target is OPS.beside_chain.default:
            found.append(len(node.args[2]))
        if node.target is OPS.beside_wave.default:
            found.append(-len(node.meta["held"]))
    return found


def test_large_images_go_through_a_model_in_waves(monkeypatch) -> None:
    """Those of one size as one wave, where what they write is large and their code is not; and of
    several sizes, where their code is small."""
    fast, model, x = deployed()
    alone = sizes_of(beside(fast.program.module, lambda graph: None))
    assert len(alone) > 2
    assert min(alone) > 0  # a small model
    plain = fast.program.beside()
    large = 4 * IMAGES * 16 * 19 * 23  # bytes of the first block's output
    monkeypatch.setattr(waves, "LEAST_BYTES", large)
    together = sizes_of(beside(fast.program.module, lambda graph: None))
    assert together == [-sum(alone)]
    whole = fast.program.beside()
    monkeypatch.setattr(waves, "FEW_WEIGHTS", 0)
    graph = beside(fast.program.module, lambda graph: None)
    first, *rest = sizes_of(graph)
    assert first < -5
    assert min(rest) > 0
    assert sum(map(abs, (first, *rest))) == sum(alone)
    monkeypatch.setattr(waves, "LEAST_BYTES", 0)
    both = sizes_of(beside(fast.program.module, lambda graph: None))
    assert len(both) == 2
    assert max(both) < 0
    wave = fast.program.beside()
    for n in (IMAGES, 2 * IMAGES, 7, 21):
        given = torch.randn(n, *x.shape[1:])
        kept = given.clone()
        for count in (1, 3):
            with set_threads(count):
                assert torch.equal(wave.run(given), plain.run(given))
                assert torch.equal(whole.run(given), plain.run(given))
        assert torch.allclose(wave.run(given), model(given), rtol=1e-4, atol=1e-4)
        assert torch.equal(given, kept)
    monkeypatch.setattr(waves, "MOST_WEIGHTS", -1)
    assert sizes_of(beside(fast.program.module, lambda graph: None)) == alone


def test_patches_do_not_go_in_waves(monkeypatch) -> None:
    fast, _, _ = deployed()
    monkeypatch.setattr(waves, "LEAST_BYTES", 0)
    graph = beside(fast.program.module, lambda graph: None, 4, 1)
    assert min(sizes_of(graph)) > 0
