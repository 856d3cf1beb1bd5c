"""Measured plans are kept, used again, pinned and repeated; a broken file is only a warning."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright import plan_cache
from sparsewright.errors import ArtifactError, KernelError, SparsityWarning
from sparsewright.kernels import kernel_info
from sparsewright.layouts import LAYOUTS
from sparsewright.plan import Plan

SERVE = sys.modules["sparsewright.serve"]
pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

KIND = "portable" if kernel_info().native else "reference"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


@pytest.fixture
def timed(monkeypatch):
    """Shapes of the weights that were timed, in order."""
    shapes, real = [], SERVE.choose

    def choose(weight, *more, **named):
        shapes.append(tuple(weight.shape))
        return real(weight, *more, **named)

    monkeypatch.setattr(SERVE, "choose", choose)
    return shapes


DENSE = ["dense.eager", "dense.onednn", "dense.conv2d.eager", "dense.conv2d.channels_last"]


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Identity(), nn.Flatten(), nn.Linear(8 * 36, 16)
    )
    sw.prune(model, sparsity=0.9, allocate="uniform_all")
    return model.eval(), torch.randn(2, 2, 8, 8)


def test_what_was_timed_is_not_timed_again(timed, folder):
    model, x = network()
    first = sw.deploy(model, x, kernels=DENSE, seconds=0.01)
    assert len(timed) == 2
    assert len(list(folder.iterdir())) == 2
    again = sw.deploy(model, x, kernels=DENSE, seconds=0.01)
    assert len(timed) == 2
    assert again.plan == first.plan
    assert torch.equal(again(x), first(x))
    sw.deploy(model, x, kernels=DENSE, seconds=0.005)  # less would have done
    assert len(timed) == 2
    sw.deploy(model, x, kernels=DENSE, seconds=0.02)  # more was asked for
    assert len(timed) == 4
    sw.deploy(model, x, kernels=DENSE, seconds=0.02, cache=False)
    assert len(timed) == 6
    assert len(list(folder.iterdir())) == 2


@pytest.mark.skipif(not kernel_info().native, reason="the reference has no operator to trace")
def test_a_second_deploy_looks_at_each_layer_once(monkeypatch):
    """Its zeros' pattern is read once, and what was packed is validated once."""
    model, x = network()
    x, kernels = x[:1], [f"csb.conv2d.{KIND}", f"csb.{KIND}"]
    sw.deploy(model, x, kernels=kernels, seconds=0)
    calls = []

    def counted(name, real):
        return lambda *args: calls.append(name) or real(*args)

    layout = type(LAYOUTS["csb"])
    for name in ("pack", "unpack", "validate"):
        monkeypatch.setattr(layout, name, counted(name, getattr(layout, name)))
    monkeypatch.setattr(SERVE, "pattern_of", counted("pattern", SERVE.pattern_of))
    fast = sw.deploy(model, x, kernels=kernels, seconds=0)
    assert fast.program is not None
    assert {name: calls.count(name) for name in calls} == {"pack": 2, "validate": 2, "pattern": 2}


def test_other_circumstances_are_timed(timed, monkeypatch):
    model, x = network()
    sw.deploy(model, x, kernels=DENSE, seconds=0)
    count = 2
    for change in (
        lambda: sw.deploy(model, x[:1], kernels=DENSE, seconds=0),
        lambda: sw.deploy(model, x, seconds=0, kernels=["dense.eager", "dense.conv2d.eager"]),
        lambda: (
            monkeypatch.setattr(plan_cache, "cpu_name", lambda: "another")
            or sw.deploy(model, x, kernels=DENSE, seconds=0)
        ),
        lambda: (
            monkeypatch.setattr(plan_cache, "_library_digest", lambda: "new")
            or sw.deploy(model, x, kernels=DENSE, seconds=0)
        ),
        lambda: (
            monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
            or sw.deploy(model, x, kernels=DENSE, seconds=0)
        ),
    ):
        change()
        count += 2
        assert len(timed) == count
    denser = network()[0]
    denser[0].weight.data.fill_(1)
    sw.deploy(denser, x, kernels=DENSE, seconds=0)
    assert len(timed) == count + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[" * 100_000,
        lambda text: json.dumps({**json.loads(text), "key": {}}),
        lambda text: json.dumps({**json.loads(text), "timings": []}),
        lambda text: json.dumps({**json.loads(text), "timings": [["csr.avx2", "fast"]]}),
        lambda text: text.replace('"seconds": 0', '"seconds": NaN'),
        lambda text: json.dumps({**json.loads(text), "refusals": [3]}),
        lambda text: "\udcff",
    ],
)
def test_a_broken_file_is_named_and_replaced(damage, timed, folder):
    model, x = nn.Linear(64, 8), torch.randn(1, 64)
    sw.deploy(model, x, seconds=0)
    (file,) = folder.iterdir()
    file.write_text(damage(file.read_text()), errors="surrogateescape")
    with pytest.warns(SparsityWarning, match="is not used, and measured anew") as caught:
        sw.deploy(model, x, seconds=0)
    assert str(file) in str(caught[0].message)
    assert len(timed) == 2
    sw.deploy(model, x, seconds=0)
    assert len(timed) == 2
    assert list(folder.iterdir()) == [file]


def test_a_kernel_that_is_gone_is_timed_anew(timed, folder):
    model, x = nn.Linear(64, 8), torch.randn(1, 64)
    sw.deploy(model, x, seconds=0)
    (file,) = folder.iterdir()
    entry = json.loads(file.read_text())
    entry["timings"].insert(0, ["csr.of_yesterday", 0.0, 0.0, 0.0, 1, 0.0])
    file.write_text(json.dumps(entry))
    sw.deploy(model, x, seconds=0)
    assert len(timed) == 2


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path / "file"))
    with pytest.warns(SparsityWarning, match=r"cannot be written|is not used"):
        sw.deploy(nn.Linear(8, 8), torch.ones(1, 8), seconds=0)


def test_a_remembered_kernel_is_checked_all_the_same(folder, monkeypatch):
    model, x = nn.Linear(64, 8), torch.randn(1, 64)
    sw.deploy(model, x, kernels=["dense.eager"], seconds=0)
    build = sys.modules["sparsewright.nn.build"]
    real = build.build_linear
    monkeypatch.setattr(build, "build_linear", lambda c, w, b: real(c, 2 * w, b))
    with pytest.raises(KernelError, match="must equal the dense layer"):
        sw.deploy(model, x, kernels=["dense.eager"], seconds=0)


# ---- pinned plans ---------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [None, [f"csr.{KIND}"], ["dense.eager", "dense.conv2d.eager"]])
def test_a_plan_is_saved_printed_and_repeated(kernels, timed, tmp_path):
    model, x = network()
    first = sw.deploy(model, x, kernels=kernels, seconds=0)
    first.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan == first.plan
    assert str(plan) == str(first.plan)
    count = len(timed)
    again = sw.deploy(model, x, plan=plan)
    assert len(timed) == count
    assert again.plan == plan
    assert torch.equal(again(x), first(x))
    other = sw.deploy(model, x[:1], plan=plan)
    assert "Repeated from a plan for batch 2 and 2 threads." in str(other.plan)
    assert [r.kernel for r in other.plan.layers] == [r.kernel for r in plan.layers]


def test_a_plan_that_cannot_be_repeated_names_every_layer():
    model, x = network()
    plan = sw.deploy(model, x, seconds=0).plan
    conv, fc = plan.layers

    def repeat(*rows):
        return sw.deploy(model, x, plan=dataclasses.replace(plan, layers=rows))

    gone = dataclasses.replace(fc, kernel="csr.of_tomorrow", layout="csr")
    small = dataclasses.replace(conv, shape=(1, 2))
    with pytest.raises(KernelError, match="cannot be repeated") as caught:
        repeat(small, gone)
    assert "layer '0': the plan is for a weight of (1, 2)" in str(caught.value)
    assert "layer '4': no kernel is called 'csr.of_tomorrow'" in str(caught.value)
    with pytest.raises(KernelError, match="layer '4': the plan does not name it"):
        repeat(conv)
    with pytest.raises(KernelError, match="layer 'x': the model has none of that name"):
        repeat(conv, fc, dataclasses.replace(fc, layer="x"))
    crossed = dataclasses.replace(fc, kernel="csr.conv2d.reference", layout="csr")
    with pytest.raises(KernelError, match="serves conv2d, not linear"):
        repeat(conv, crossed)
    with pytest.raises(KernelError, match="give deploy either"):
        sw.deploy(model, x, plan=plan, kernels=["dense.eager"])


def test_a_file_without_a_plan_is_named(tmp_path):
    (tmp_path / "file").write_text('{"threads": 1}')
    with pytest.raises(ArtifactError, match="file holds no plan"):
        Plan.load(tmp_path / "file")
