"""What a topology update is made of: compiled and in plain torch it is the same to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from test_storages import mlp, step

import sparsewright as sw
from sparsewright import library
from sparsewright.exchange import exchange_of
from sparsewright.keeping import keep_best
from sparsewright.kernels import best, moving
from sparsewright.kernels.packed import is_there
from sparsewright.topology import Topology

pytestmark = pytest.mark.skipif(
    library.LIBRARY.path is None, reason=f"no compiled kernels: {library.LIBRARY.why_not}"
)
SHAPES = [(0, 0), (0, 5), (5, 0), (1, 1), (3, 7), (64, 33), (2, 70000), (70, 4099)]
DENSITIES = [0.0, 0.02, 0.5, 1.0]
TYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8]
FACES = [0.0, -0.0, 1.0, 1.0, -1.0, 2.5, 1e-42, torch.inf, -torch.inf]


@pytest.fixture
def plain(monkeypatch):
    """Calls a function as if nothing were compiled."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(moving, "is_there", lambda: False)
            patch.setattr(best, "why_not_compiled", lambda op: "for this test")
            return function(*arguments)

    return call


def topology_of(shape, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(shape[0] * shape[1], generator=generator) < density
    return Topology.from_places(present.nonzero().squeeze(1), shape)


def change_of(topology, leave, come, seed=1):
    """Some that leave, and some of all others that come."""
    generator = torch.Generator().manual_seed(seed)
    gone = torch.rand(topology.nnz, generator=generator) < leave
    free = torch.ones(topology.shape[0] * topology.shape[1], dtype=torch.bool)
    free[topology.places()[~gone]] = False
    free &= torch.rand(len(free), generator=generator) < come
    return gone, free.nonzero().squeeze(1)


def scores_of(count, seed=0):
    """Many equals, zeros of both signs and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, generator=generator)
    faces = torch.tensor(FACES)[torch.randint(len(FACES), (count,), generator=generator)]
    return torch.where(torch.rand(count, generator=generator) < 0.6, faces, drawn)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", DENSITIES)
def test_places_are_found(shape, density, plain):
    topology = topology_of(shape, density)
    count = shape[0] * shape[1]
    asked = [torch.arange(count), torch.arange(count).flip(0), torch.arange(count)[::7].clone()]
    for places in [*asked, torch.tensor([count - 1] * 3 if count else [], dtype=torch.int64)]:
        found = moving.find(topology, places)
        assert torch.equal(found, plain(moving.find, topology, places))
        there = found >= 0
        assert torch.equal(topology.places()[found[there]], places[there])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.4, 0.3), (1.0, 1.0)])
def test_weights_leave_and_come(shape, density, rates, plain):
    topology = topology_of(shape, density)
    gone, born = change_of(topology, *rates)
    moved, at = moving.exchange(topology, gone, born)
    same, where = plain(moving.exchange, topology, gone, born)
    assert torch.equal(moved.starts, same.starts)
    assert torch.equal(moved.columns, same.columns)
    assert moved.columns.dtype == same.columns.dtype
    assert torch.equal(at.long(), where)
    for number, dtype in enumerate(TYPES):
        entries = torch.randint(-100, 100, (topology.nnz,)).to(dtype)
        fresh = torch.randint(-100, 100, (len(born) if number % 2 else 1,)).to(dtype)
        wanted = plain(moving.shift, entries.clone(), gone, at, fresh)
        assert torch.equal(moving.shift(entries.clone(), gone, at, fresh), wanted)


def test_entries_move_in_their_own_memory():
    topology = topology_of((64, 33), 0.5)
    gone, born = change_of(topology, 0.4, 1.0)
    born = born[: int(gone.sum())]
    entries = torch.randn(topology.nnz)
    _, at = moving.exchange(topology, gone, born)
    moved = moving.shift(entries, gone, at, torch.zeros(1))
    assert moved.data_ptr() == entries.data_ptr()


@pytest.mark.parametrize(
    ("gone", "born", "message"),
    [
        ([False, False], [1], "comes where one stays"),
        ([True, True], [3, 2], "must ascend"),
        ([True, False], [2, 2], "must ascend"),
        ([True, False], [4], "inside the weight"),
        ([True, False], [-1], "must ascend"),
        ([True], [2], "gone must be of columns' size"),
    ],
)
def test_what_cannot_come_is_refused(gone, born, message):
    topology = Topology.from_places(torch.tensor([1, 3]), (2, 2))
    with pytest.raises(RuntimeError, match=message):
        moving.exchange(topology, torch.tensor(gone), torch.tensor(born))


@pytest.mark.parametrize("at", [[0, 0], [1, 0], [-1, 0], [0, 3]])
def test_entries_are_written_inside_their_memory_alone(at):
    at = torch.tensor(at, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="at must ascend inside the weight"):
        moving.shift(torch.ones(3), torch.tensor([True, True, False]), at, torch.zeros(1))


@pytest.mark.parametrize("places", [[-1], [4]])
def test_places_outside_are_refused(places):
    topology = Topology.from_places(torch.tensor([1, 3]), (2, 2))
    with pytest.raises(RuntimeError, match=r"places must lie in \[0, 4\)"):
        moving.find(topology, torch.tensor(places))


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_shown(shape, plain):
    topology = topology_of(shape, 0.3)
    values = torch.randn(topology.nnz)
    for begin, end in ((0, shape[0]), (shape[0] // 2, shape[0]), (0, 0)):
        for a, b in zip(
            moving.shown(topology, values, begin, end),
            plain(moving.shown, topology, values, begin, end),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("count", [0, 1, 2, 9, 1001, 30000])
def test_the_best_are_those_of_the_rule(count):
    scores = scores_of(count)
    for keep in {0, min(1, count), count // 3, count // 2, max(0, count - 1), count}:
        assert torch.equal(best.best_of(scores, keep), keep_best(scores.view(1, -1), keep).view(-1))


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_no_number_is_best_where_one_is_none(keep):
    with pytest.raises(ValueError, match="NaN"):
        best.best_of(torch.tensor([1.0, torch.nan, 2.0]), keep)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("alike", [False, True])
def test_the_best_absent_weights_are_found_in_tiles(
    shape, density, last, alike, plain, monkeypatch
):
    """With as little room as there may be, so that the worst go again and again."""
    monkeypatch.setattr(best, "LEAST_ROOM", 1)
    topology = topology_of(shape, density)
    leaves, _ = change_of(topology, 0.4, 0.0)
    absent = shape[0] * shape[1] - topology.nnz + int(leaves.sum())
    scores = torch.zeros(shape) if alike else scores_of(shape[0] * shape[1]).view(shape)
    for count in {0, min(1, absent), absent // 3, absent}:
        found = []
        for make in (best.offers, lambda *a: plain(best.offers, *a)):
            of = make(scores, count, topology, leaves, last, topology.places)
            for rows in scores.split(3):
                assert of.take(rows.reshape(-1))
            found.append((type(of), of.best()))
        assert [kind for kind, _ in found] == [best.CompiledOffers, best.PlainOffers]
        assert torch.equal(found[0][1], found[1][1]), count
        assert len(found[0][1]) == count


def test_a_score_that_is_no_number_is_not_taken(plain):
    topology = topology_of((4, 8), 0.5)
    leaves = torch.zeros(topology.nnz, dtype=torch.bool)
    scores = torch.zeros(32)
    scores[17] = torch.nan
    for make in (best.offers, lambda *a: plain(best.offers, *a)):
        assert not make(scores, 3, topology, leaves, False, topology.places).take(scores)


METHODS = {
    "rigl": lambda: sw.RigL(every=3),
    "rigl, anew": lambda: sw.RigL(every=3, regrown="reset", grown="normal"),
    "rigl, not what was dropped": lambda: sw.RigL(every=3, exclude_dropped=True),
    "set": lambda: sw.SET(every=3, grown="normal"),
    "set, fewer at last": lambda: sw.SET(every=3, last="remove"),
    "gradual": lambda: sw.Gradual(every=3),
    "gse": lambda: sw.GSE(every=3),
}


CASES = [(method, "unstructured") for method in METHODS]
CASES += [(name, pattern) for name in ("rigl", "set") for pattern in ("fan_in", "2:4", "block:4x1")]


@pytest.mark.parametrize(("method", "pattern"), CASES)
def test_training_is_the_same_to_the_bit(method, pattern, plain):
    def train():
        model = sw.pack(copy.deepcopy(mlp()))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        sparsity = None if pattern == "2:4" else 0.75
        options = {"sparsity": sparsity, "pattern": pattern, "allocate": "uniform_all", "seed": 1}
        sparse = sw.attach(model, optimizer, method=METHODS[method](), steps=8, **options)
        for number in range(8):
            step(model, optimizer, number)
        held = [s for p in model.parameters() for s in (p, p.grad, *optimizer.state[p].values())]
        return sparse.changes, [layer.present_units for layer in sparse.layers], held

    own, other = train(), plain(train)
    assert own[0] == other[0]
    assert any(change.dropped for change in own[0])
    for a, b in zip(own[1] + own[2], other[1] + other[2], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_an_update_copies_no_weight_and_keeps_nothing_derived():
    model = sw.pack(mlp())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    sw.attach(model, optimizer, method=sw.RigL(every=2), sparsity=0.75, steps=16)
    step(model, optimizer, 0)
    step(model, optimizer, 1)
    weight = model[0].weight
    slots = [weight, *(s for s in optimizer.state[weight].values() if s.shape == weight.shape)]
    places, memory = model[0].topology.places(), [s.data_ptr() for s in slots]
    assert model[0].topology.nbytes > model[0].columns.numel() * 2 + model[0].starts.numel() * 8
    step(model, optimizer, 2)  # an update: the optimizer's step is withheld
    assert not torch.equal(model[0].topology.places(), places)
    slots = [weight, *(s for s in optimizer.state[weight].values() if s.shape == weight.shape)]
    assert [s.data_ptr() for s in slots] == memory
    assert model[0].topology.nbytes == model[0].columns.numel() * 2 + model[0].starts.numel() * 8


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("leaves", "comes", "message"),
    [
        (torch.zeros(3, dtype=torch.bool), [], "an entry for every present unit; got torch.bool"),
        (torch.zeros(8), [], r"must be bool of shape \(8,\).* got torch.float32"),
        (torch.zeros(8, dtype=torch.bool), [0], "1 units stay that are to come"),
        (torch.ones(8, dtype=torch.bool), [3, 1], "ascending flat units"),
        (torch.ones(8, dtype=torch.bool), [99], r"units must lie in \[0, 8\)"),
    ],
)
def test_an_exchange_is_checked(leaves, comes, message, packed):
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    model = sw.pack(model) if packed else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = sw.attach(model, optimizer, method="static", sparsity=0.0)
    with pytest.raises(ValueError, match=message):
        exchange_of(sparse.layers[0], sw.Exchange(leaves, torch.tensor(comes, dtype=torch.int64)))


def test_the_compiled_library_is_as_new_as_this_test():
    assert is_there()
