"""Layers as code or by loops, whichever is faster in the whole model; calls that programs share."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright import as_code, make, shared_calls
from sparsewright.as_code import Together, loops_for_code
from sparsewright.kernels import KERNELS
from sparsewright.plan import Candidate, LayerPlan

CODE = "csb.code16"
KNOWN = ["csb.portable", "csr.portable", "sell.portable"]


def row(layer: str, *kernels: tuple[str, float]) -> LayerPlan:
    timed = tuple(Candidate(name, ms, ms, ms, 0.0) for name, ms in kernels)
    refused = Candidate("window.avx512", refused="no")
    kernel = kernels[0][0]
    layout = KERNELS[kernel].layout
    return LayerPlan(
        layer,
        "linear",
        (8, 8),
        9,
        0.9,
        "unstructured",
        kernel,
        layout,
        1,
        256,
        9.0,
        (*timed, refused),
    )


def test_the_fastest_loops_take_the_place_of_code() -> None:
    """Those of the layer's own candidates, with the speed-up that they had."""
    a = row("a", (CODE, 1.0), ("csb.code8", 1.5), ("csr.portable", 2.0), ("dense.eager", 5.0))
    b = row("b", (CODE, 1.0), ("dense.eager", 3.0), ("csb.portable", 4.0))
    c = row("c", ("csb.portable", 1.0), (CODE, 2.0))
    loops = loops_for_code([a, b, c])
    assert loops is not None
    assert [(r.kernel, r.layout, r.speedup) for r in loops[:2]] == [
        ("csr.portable", "csr", 2.5),
        ("dense.eager", "dense", 1.0),
    ]
    assert loops[2] is c
    assert [r.candidates for r in loops] == [a.candidates, b.candidates, c.candidates]


def test_one_layer_as_code_was_timed_as_it_runs() -> None:
    a, b = row("a", (CODE, 1.0), ("csr.portable", 2.0)), row("b", ("csr.portable", 1.0))
    only = row("c", (CODE, 1.0))  # nothing else was timed
    assert loops_for_code([a, b]) is None
    assert loops_for_code([a, only]) is None
    assert loops_for_code([b, b]) is None
    assert loops_for_code([]) is None


def test_no_dense_candidate_no_speedup() -> None:
    loops = loops_for_code([row(n, (CODE, 1.0), ("csr.portable", 2.0)) for n in "ab"])
    assert loops is not None
    assert [r.speedup for r in loops] == [None, None]


@pytest.fixture
def taken(monkeypatch):
    """A model, and a patch after which the kernels that serve its layers count as code."""
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    x = torch.randn(1, 48)  # of more, pieces might win by kernels of their own
    first = sw.deploy(model, x, kernels=KNOWN, seconds=0)
    served = {r.kernel for r in first.plan.layers}
    monkeypatch.setattr(as_code, "_runs_code", lambda kernel: kernel in served)
    return model, x, served


def deployed(taken, monkeypatch, times: list[list[float]] | None):
    """times: that are found, of the layers as code and by loops; None: nothing may be timed."""
    model, x, _ = taken

    def in_turn(runs, seconds=0.0):
        assert times is not None
        assert len(runs) == len(times)
        for run in runs.values():
            assert torch.allclose(run(), model(x), atol=1e-5)
        return dict(enumerate(times))

    monkeypatch.setattr(make, "in_turn", in_turn)
    return sw.deploy(model, x, kernels=KNOWN, seconds=0)


def test_the_whole_model_decides(taken, monkeypatch) -> None:
    """What a layer alone was faster with is replaced where all of it is slower together; what was
    found is kept."""
    model, x, served = taken
    for times in ([[9.0, 3e-3, 3e-3], [2e-3, 2e-3, 9.0]], None):
        fast = deployed(taken, monkeypatch, times)
        assert not served & {r.kernel for r in fast.plan.layers}
        (note,) = fast.plan.notes
        assert "the whole model takes 3 ms so, 2 ms by the kernels above" in note
        assert note in str(fast.plan)
        assert torch.allclose(fast(x), model(x), atol=1e-5)
    again = sw.deploy(model, x, plan=fast.plan)
    assert [r.kernel for r in again.plan.layers] == [r.kernel for r in fast.plan.layers]


def test_code_stays_where_it_is_faster(taken, monkeypatch) -> None:
    for times in ([[2e-3], [2.1e-3]], None):
        fast = deployed(taken, monkeypatch, times)
        assert {r.kernel for r in fast.plan.layers} == taken[2]
        assert fast.plan.notes == ()


def test_what_was_found_is_of_these_kernels_alone(taken, monkeypatch) -> None:
    """And of a model whose norms were folded, or were not."""
    model, x, _ = taken
    times = [[3e-3], [2e-3]]
    deployed(taken, monkeypatch, times)
    known = make.loops_for_code
    monkeypatch.setattr(make, "loops_for_code", lambda rows: (*known(rows)[:1], *rows[1:]))
    with pytest.raises(AssertionError):
        deployed(taken, monkeypatch, None)
    kinds = []
    read = make.plan_cache.read_together
    monkeypatch.setattr(
        make.plan_cache,
        "read_together",
        lambda key, s: kinds.append(key["modules"]) or read(key, s),
    )
    model.insert(1, nn.BatchNorm1d(64).eval())
    monkeypatch.setattr(make, "loops_for_code", known)
    monkeypatch.setattr(make, "in_turn", lambda runs, seconds: dict(enumerate(times)))
    for fold in (True, False):
        sw.deploy(model, x, kernels=KNOWN, seconds=0, fold=fold)
    assert kinds[0] != kinds[-1]


def test_where_all_that_is_left_is_dense(monkeypatch) -> None:
    """There is no program of such a model: its modules are held against the other's program."""
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval()
    sw.prune(model, sparsity=0.99, allocate="uniform_all")
    x = torch.randn(1, 256)
    dense = {"kernel": "dense.eager", "layout": "dense"}
    all_dense = lambda rows: tuple(replace(r, **dense) for r in rows)  # noqa: E731
    monkeypatch.setattr(make, "loops_for_code", all_dense)
    kernels = ["csr.portable", "dense.eager"]
    for dense_seconds, served in ((1e-3, "dense.eager"), (3e-3, "csr.portable")):
        times = [[2e-3], [dense_seconds]]
        monkeypatch.setattr(make, "in_turn", lambda runs, seconds, t=times: dict(enumerate(t)))
        fast = sw.deploy(model, x, kernels=kernels, seconds=0, cache=False)
        assert {r.kernel for r in fast.plan.layers} == {served}
        assert torch.allclose(fast(x), model(x), atol=1e-5)


def test_the_note() -> None:
    assert Together(1.0, 1.0).note is None
    assert Together(1.02, 1.0).note is None  # noise
    assert Together(2.0, 1.0).note is not None


def test_programs_bind_a_product_once(monkeypatch) -> None:
    """Also those of pieces, and of images side by side; what they bound goes with them."""
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(800, 8)).eval()
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    x = torch.randn(16, 4, 12, 12)
    made: list[weakref.ref] = []

    def counted(bind):
        def count(*given):
            call = bind(*given)
            made.append(weakref.ref(call))
            return call

        return count

    for name in ("bind", "bind_beside"):
        monkeypatch.setattr(shared_calls, name, counted(getattr(shared_calls, name)))
    kernels = ["csb.conv2d.portable", "csr.portable"]
    fast = sw.deploy(model, x, kernels=kernels, seconds=0, cache=False)
    first = fast.program.cut(16, side_by_side=True)
    count = len(made)
    assert count > 0
    again = fast.program.cut(16, side_by_side=True), fast.program.cut(2)
    assert len(made) == count
    for program in (first, *again):
        assert torch.allclose(program.run(x), model(x), rtol=1e-4, atol=1e-5)
    gc.collect()  # of what deploy left
    gc.disable()  # memory is free as soon as nobody has the programs
    try:
        del first, again, program
        assert {type(call()).__name__ for call in made} == {"NoneType", "Bound"}
        fast.drop_program()
        assert [call for call in made if call() is not None] == []
    finally:
        gc.enable()
