"""A batch in pieces gives what the whole batch gives, and only where its samples are apart."""

from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright import pieces
from sparsewright.errors import KernelError
from sparsewright.kernels import kernel_info
from sparsewright.pieces import MISS, in_pieces, sizes, time_runs
from sparsewright.plan import Pieces, PieceTiming, Plan

MAKE = sys.modules["sparsewright.make"]
pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

KIND = "portable" if kernel_info().native else "reference"
KERNELS = [f"csr.{KIND}", f"csb.conv2d.{KIND}"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


@pytest.fixture
def wins(monkeypatch):
    """Let one way be the fastest, whatever the clock says; the ways that were timed, in order."""

    def say(planned, size):
        timed = []

        def fake(runs, rounds=pieces.ROUNDS, seconds=0.0):
            timed.append(list(runs))
            for run in runs.values():
                run()
            return sorted(
                [PieceTiming(*way[:2], 2.0, 1.0, 3.0, way[2]) for way in runs],
                key=lambda t: (t.planned, t.size) != (planned, size),
            )

        monkeypatch.setattr(MAKE, "time_runs", fake)
        return timed

    return say


class Net(nn.Module):
    """Two inputs, a convolution, a sum, and a nest of outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, 12)

    def forward(self, image, row):
        h = torch.relu(self.norm(self.conv(image)))
        y = self.fc(h.flatten(1)) + row
        return y.softmax(-1), {"all": [h, y * 2]}


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 12)

    def forward(self, x):
        return self.fc(x - x.mean(0))


def network(kind=Net):
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    return model


def inputs(batch):
    return torch.randn(batch, 1, 4, 4), torch.randn(batch, 12)


def deployed(batch=8, **more):
    return sw.deploy(network(), inputs(batch), kernels=KERNELS, seconds=0, **more)


def pairs(a, b):
    return zip(*(torch.utils._pytree.tree_leaves(v) for v in (a, b)), strict=True)


def same(a, b):
    return all(torch.equal(x, y) for x, y in pairs(a, b))


def close(a, b):
    """A kernel may sum in another order at another batch: sums of at most 128 in float32."""
    return all(torch.allclose(x, y, rtol=1e-5, atol=1e-5) for x, y in pairs(a, b))


@pytest.mark.parametrize(("planned", "size"), [(1, 1), (1, 4), (8, 2), (8, 8)])
def test_pieces_give_the_whole_batch(wins, planned, size, tmp_path):
    wins(planned, size)
    fast = deployed()
    whole = size == 8
    assert (fast.plan.pieces.size, fast.plan.pieces.planned) == (None if whole else size, planned)
    assert fast.program.size == (None if whole else size)
    sw.save(fast, tmp_path / "file")
    again = sw.load(tmp_path / "file")
    assert again.plan == fast.plan
    assert again.program.size == fast.program.size
    for batch in (1, 2, 3, 4, 5, 7, 8, 9, 17):
        given = inputs(batch)
        expected = fast.run_modules(*given)
        for model in (fast, again, copy.deepcopy(fast)):
            assert model.program.run(*given) is not MISS
            assert same(model(*given), fast(*given))
            assert close(model(*given), expected)


def test_each_piece_is_run_by_itself(wins):
    wins(1, 2)
    fast = deployed(4)
    seen = []
    run = fast.program.cut(None).run
    cut = in_pieces(lambda *x: (seen.append(len(x[0])), run(*x))[1], [True, True], 2)
    cut(*inputs(5))
    assert seen == [2, 2, 1]


def test_other_inputs_are_left_to_the_modules(wins):
    wins(1, 1)
    fast = deployed(4)
    image, row = inputs(3)
    assert fast.program.run(image, row[:1]) is MISS  # the modules broadcast
    assert fast(image, row[:1])[0].shape == (3, 12)
    assert fast.program.run(image) is MISS
    assert fast.program.run(image, row, row) is MISS
    assert fast.program.run(image, 3) is MISS
    assert fast.program.run(image, row.double()) is MISS
    assert fast.program.run(image.requires_grad_(), row) is MISS
    none = fast(*inputs(0))
    assert none[0].shape == (0, 12)
    flipped = inputs(3)[0].to(memory_format=torch.channels_last)
    assert close(fast(flipped, row), fast.run_modules(flipped, row))
    heard = []
    handle = fast.model.fc.register_forward_hook(lambda *_: heard.append(1))
    fast(*inputs(3))
    handle.remove()
    assert heard == [1]


def test_batches_beyond_the_trace_are_not_run_in_pieces():
    run = in_pieces(lambda x: MISS if len(x) > 4 else x + 1, [True], 2, most=4)
    assert torch.equal(run(torch.zeros(4)), torch.ones(4))
    assert run(torch.zeros(5)) is MISS


def test_mixing_models_run_whole():
    model = network(Mixing)
    x = torch.randn(4, 12)
    fast = sw.deploy(model, x, kernels=KERNELS, seconds=0)
    assert fast.program.size is None
    assert fast.plan.pieces.why_whole == "aten.mean.dim may mix the samples of a batch"
    assert "The batch runs whole: aten.mean.dim may mix" in str(fast.plan)
    torch.testing.assert_close(fast(x), model(x))
    with pytest.raises(KernelError, match=r"in pieces: aten\.mean\.dim may mix"):
        fast.program.cut(2)


def test_one_sample_has_no_pieces():
    fast = deployed(1)
    assert fast.plan.pieces is None
    assert "The batch runs" not in str(fast.plan)
    assert str(fast.plan).startswith("batch 1, threads: 2\n")


def test_a_model_without_sparse_layers_says_so():
    fast = sw.deploy(network(), inputs(4), kernels=["dense.eager", "dense.conv2d.eager"], seconds=0)
    assert fast.plan.pieces.why_whole == "no layer is served sparse"


def test_wrong_pieces_are_an_error(wins, monkeypatch):
    """The proof is believed, and its consequence is checked all the same."""
    wins(1, 1)
    monkeypatch.setattr(sys.modules["sparsewright.rebuild"], "why_mixed", lambda *_: None)
    with pytest.raises(KernelError, match=r"in pieces of 1 samples must give the outputs"):
        sw.deploy(network(Mixing), torch.randn(4, 12), kernels=KERNELS, seconds=0)


def test_pieces_are_pinned_printed_and_read_again(wins, tmp_path):
    wins(1, 2)
    fast = deployed()
    assert "The batch runs in pieces of 2, by kernels for 1: 2 ms; whole: 2 ms." in str(fast.plan)
    head = "batch 8, threads: 2; times of layers are those for 1 sample\n"
    assert str(fast.plan).startswith(head)
    fast.plan.save(tmp_path / "plan")
    plan = Plan.load(tmp_path / "plan")
    assert plan == fast.plan
    timed = wins(8, 8)
    again = sw.deploy(network(), inputs(8), seconds=0, plan=plan)
    assert timed == []
    assert again.program.size == 2
    assert again.plan.pieces == plan.pieces
    first = sw.deploy(network(Mixing), torch.randn(4, 12), kernels=KERNELS, seconds=0)
    mixed = Plan(1, 4, first.plan.layers, (), Pieces(2, 1))
    with pytest.raises(KernelError, match=r"in pieces, but aten\.mean\.dim may mix"):
        sw.deploy(network(Mixing), torch.randn(4, 12), seconds=0, plan=mixed)


def test_pieces_are_cached(wins, folder):
    timed = wins(1, 2)
    first = deployed()
    assert len(timed) == 2
    again = deployed()
    assert len(timed) == 2
    assert again.plan.pieces == first.plan.pieces
    assert again.program.size == 2
    deployed(4)
    assert len(timed) == 4  # another batch
    deployed(cache=False)
    assert len(timed) == 6
    for file in folder.iterdir():
        if '"pieces"' in file.read_text():
            file.write_text(file.read_text().replace('"pieces": [', '"pieces": [[1, 0, 2, 2, 2],'))
    with pytest.warns(sw.SparsityWarning, match="numbers of samples are in"):
        deployed()
    assert len(timed) == 8


def test_kernels_of_pieces_are_timed_on_pieces(wins, monkeypatch):
    shapes, real = [], sys.modules["sparsewright.serve"].choose

    def choose(weight, bias, x, **named):
        shapes.append(x.shape[0])
        return real(weight, bias, x, **named)

    monkeypatch.setattr(sys.modules["sparsewright.serve"], "choose", choose)
    wins(1, 1)
    fast = deployed()
    assert shapes == [8, 8, 1, 1]
    assert fast.plan.batch == 8


def test_several_threads_run_pieces_at_once(wins):
    wins(1, 2)
    fast = deployed()
    given = [inputs(n) for n in (3, 5, 8, 9)]
    expected = [fast(*x) for x in given]
    right = []

    def work(i):
        right.append(all(same(fast(*given[i]), expected[i]) for _ in range(30)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4


def test_sizes_double():
    assert list(sizes(2)) == [1]
    assert list(sizes(9)) == [1, 2, 4, 8]
    assert list(sizes(1)) == []


def test_what_is_timed_is_run_in_turn():
    calls = []
    runs = {(1, 1, False): lambda: calls.append("a"), (4, 4, True): lambda: calls.append("b")}
    found = time_runs(runs, rounds=2)
    assert set(calls) == {"a", "b"}
    assert {t.way for t in found} == set(runs)
    assert all(0 < t.low_ms <= t.median_ms <= t.high_ms for t in found)
    assert found[0].median_ms <= found[1].median_ms


def test_a_disturbed_machine_gets_more_rounds(monkeypatch):
    """What was slow while the machine was busy elsewhere is timed until it is not any more."""
    monkeypatch.setattr(pieces, "_sample", lambda run, repeats: run())
    disturbed = [1.0, 2.9, 9.0, 2.9, 9.0]  # the first one sets how often a run is repeated
    fast = iter([*disturbed, *[1.0] * 100])
    runs = {(1, 1, False): lambda: 2.0, (1, 1, True): lambda: next(fast)}
    hasty = time_runs(runs, rounds=3)
    assert not hasty[0].side_by_side
    fast = iter([*disturbed, *[1.0] * 100])
    assert time_runs(runs, rounds=3, seconds=60.0)[0].side_by_side
    assert len(list(fast)) == len(disturbed) + 100 - 1 - pieces.MOST_ROUNDS
