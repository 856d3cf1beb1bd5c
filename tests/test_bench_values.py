"""The bench with values in bf16 and int8: ours held against the rounded weight, bytes by hand."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.kernels import KERNELS
from sparsewright.lab import bench_cell, bench_layer
from sparsewright.lab.bench_cell import measure_cell, peers, work
from sparsewright.lab.bench_layer import layer_cells
from sparsewright.lab.bench_model import model_cells
from sparsewright.layouts import rounded
from sparsewright.measure import timing
from sparsewright.measure.dense import relative_error
from sparsewright.measure.peers import FEATURE_MAJOR, SAME_MEMORY, Case, Ready
from sparsewright.measure.roofline import Roofline

ROOF = Roofline(1, 1e9, ((2**10, 1e9), (2**20, 1e9)), "by hand")
LOSSY = ("bf16", "int8")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(timing, "SAMPLE", 1e-5)


def sparse_linear(out: int = 24, width: int = 32, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(width, out, bias=bias)
    sw.prune(layer, 0.8, score="random", allocate="uniform_all")
    return layer


@pytest.mark.parametrize("values", LOSSY)
def test_kernels_are_held_against_the_rounded_weight_and_peers_are_not(values: str) -> None:
    case = Case(sparse_linear(48, 64), torch.randn(5, 64), values=values)
    ours = bench_layer.candidates(case, 0)
    cell = measure_cell(case, [*ours, *peers(["eager"])], ROOF, rounds=1)
    timed = {row["name"]: row for row in cell["rows"] if "median_ms" in row}
    assert {"eager", "sparsewright csr.portable", "sparsewright nm.portable"} <= set(timed)
    near = case.example.double() @ rounded(case.model.weight, values).double().T  # type: ignore
    loss = relative_error(near, case.expected)
    assert loss > 10 * cell["tolerance"]  # so that the wrong one of the two would fail
    assert "note" not in timed.pop("eager")
    for row in timed.values():
        note = f"values in {values}, lossy: outputs off by {loss:.2g} of the largest"
        notes = row["note"].split("; ")
        assert notes.pop() == note
        turned = " transposed" in row["name"]
        assert notes == [FEATURE_MAJOR] * turned + [SAME_MEMORY] * row["name"].endswith(" into")
    assert not any("failed" in row for row in cell["rows"])


def test_kernels_without_a_type_of_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    KERNELS.load()
    monkeypatch.setitem(
        KERNELS._parts, "csr.portable", replace(KERNELS["csr.portable"], values=("fp32",))
    )
    case = Case(sparse_linear(), torch.randn(5, 32), values="int8")
    cell = measure_cell(case, bench_layer.candidates(case, 0), ROOF, rounds=1)
    (row,) = [row for row in cell["rows"] if row["name"] == "sparsewright csr.portable"]
    assert "values in fp32; these are in int8" in row["refused"]


def sparse_cnn() -> nn.Module:
    """A norm with scales of its own, so that it matters that weights are rounded after it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1)
    )
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    sw.prune(model, 0.9, score="random", allocate="uniform_all")
    return model.eval()


@pytest.mark.parametrize("values", LOSSY)
@pytest.mark.parametrize("kernels", [("csb.conv2d.portable",), ("dense.conv2d.eager",)])
def test_what_deploy_rounds_is_held_against_what_it_rounded(
    values: str, kernels: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = functools.partial(sw.deploy, kernels=kernels)
    monkeypatch.setattr(bench_layer, "deploy", only)
    case = Case(sparse_cnn(), torch.randn(2, 8, 6, 6), values=values)
    cell = measure_cell(
        case, bench_layer.candidates(case, 0), ROOF, tolerance=1e-5, rounds=1
    )  # float32 sums of 72 products at most, through two layers
    (row,) = cell["rows"]
    assert "failed" not in row, row
    assert ("lossy" in row["note"]) == (kernels[0] != "dense.conv2d.eager")
    if "lossy" in row["note"]:
        built = bench_layer.deploys(case, 0)[0].build(case)
        assert isinstance(built, Ready)
        assert relative_error(built.output().double(), case.expected) > 100 * cell["tolerance"]


def test_cells_come_once_for_every_type_of_values() -> None:
    cells = list(layer_cells(["8x32"], sparsities=[0.5], batches=[1, 2], values=["fp32", "int8"]))
    assert [(c.batch, c.values) for c in cells] == [
        (1, "fp32"),
        (1, "int8"),
        (2, "fp32"),
        (2, "int8"),
    ]
    assert torch.equal(cells[0].make()[0].weight, cells[1].make()[0].weight)  # type: ignore
    models = model_cells(batches=[1], names=["mlp"], values=["bf16", "fp32"])
    assert [c.values for c in models] == ["bf16", "fp32"]
    assert {c.values for c in (*layer_cells(), *model_cells())} == {"fp32"}


def test_bytes_of_values_by_hand() -> None:
    layer = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        layer.weight[:, ::2] = 0  # half of the weights: one bit for each of the 32 places
    rest = 32 // 8 + 4 * (24 + 12)
    x = torch.ones(3, 8)
    assert [work(layer, x, v)[0] - rest for v in ("fp32", "bf16", "int8")] == [64, 32, 16 + 4 * 4]
    with torch.no_grad():
        layer.weight[0] = 0  # a row without weights needs no scale
    assert bench_cell.value_bytes(layer.weight, "int8") == 12 + 3 * 4
    case = Case(layer, x, values="bf16")
    assert measure_cell(case, [], ROOF)["bytes"] == work(layer, x, "bf16")[0]
