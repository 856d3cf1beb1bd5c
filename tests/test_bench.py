"""The bench: every peer runs or says why, a wrong one is caught, floors are right by hand."""

from __future__ import annotations

import builtins
import math
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright import library
from sparsewright.errors import ConfigError, UnknownNameError
from sparsewright.lab import bench_cell, bench_layer
from sparsewright.lab.bench_cell import Candidate, measure_cell, peers, work
from sparsewright.lab.bench_layer import LayerCell, Shape, layer_cells
from sparsewright.lab.bench_models import MODELS
from sparsewright.measure import timing
from sparsewright.measure.dense import relative_error
from sparsewright.measure.peers import PEERS, Case, Ready, deepsparse, mkl_csr
from sparsewright.measure.roofline import Roofline, measure_roofline

ROOF = Roofline(1, 1e9, ((2**10, 1e9), (2**20, 1e9)), "by hand")
REASONS = (
    "not installed",
    "not asked for",
    "only for",
    "only chains",
    "no Python",
    "OpenBLAS",
    "no Linear",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(timing, "SAMPLE", 1e-5)


def sparse_linear(out: int = 24, width: int = 32, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(width, out, bias=bias)
    sw.prune(layer, 0.8, score="random", allocate="uniform_all")
    return layer


def small_mlp() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), sparse_linear(bias=True), nn.ReLU(), sparse_linear(8, 24))
    return model.eval()


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*layers).eval()


CASES = {
    "linear, batch 1": lambda: Case(sparse_linear(), torch.randn(1, 32)),
    "linear, batch 5": lambda: Case(sparse_linear(), torch.randn(5, 32)),
    "linear with bias": lambda: Case(sparse_linear(bias=True), torch.randn(16, 32)),
    "mlp": lambda: Case(small_mlp(), torch.randn(16, 2, 16)),
    "cnn": lambda: Case(small_cnn(), torch.randn(2, 3, 6, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_peer_is_right_or_says_why_not(case: str) -> None:
    cell = measure_cell(CASES[case](), peers(), ROOF, rounds=1)
    rows = {row["name"]: row for row in cell["rows"]}
    assert set(rows) == set(PEERS.names())
    for name, row in rows.items():
        assert "failed" not in row, (name, row)
        if "refused" in row:
            assert any(reason in row["refused"] for reason in REASONS), (name, row)
        else:
            assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"], (name, row)
            assert row["error"] <= cell["tolerance"]
            assert row["of_floor"] == pytest.approx(cell["floor_ms"] / row["median_ms"])
    timed = {name for name, row in rows.items() if "median_ms" in row}
    assert timed >= {"eager"} | ({"eager channels_last"} if case == "cnn" else {"torch CSR"})


def test_every_sparse_kernel_of_ours_is_a_row() -> None:
    case = CASES["linear, batch 5"]()
    cell = measure_cell(case, bench_layer.candidates(case, 0), ROOF, rounds=1)
    assert {row["side"] for row in cell["rows"]} == {bench_cell.OURS}
    names = {row["name"].removeprefix("sparsewright ") for row in cell["rows"]}
    assert {"csr.portable", "nm.portable", "csr.reference"} <= names
    assert not any(name.startswith("dense.") for name in names)
    assert not any("failed" in row for row in cell["rows"])


def test_layers_without_kernels_of_their_own_are_deployed() -> None:
    case = CASES["cnn"]()
    (only,) = bench_layer.candidates(case, 0)
    ready = only.build(case)
    assert isinstance(ready, Ready)
    assert relative_error(ready.output(), case.expected.float()) < 1e-5
    assert ready.note


def candidate(run: object, name: str = "other") -> Candidate:
    return Candidate(name, bench_cell.PEER, lambda case: Ready(run))  # type: ignore[arg-type]


def test_wrong_and_broken_candidates_are_rows_and_are_not_timed() -> None:
    case = CASES["linear, batch 5"]()
    right = case.model(case.example)

    def explode() -> None:
        raise RuntimeError("first line\nsecond line")

    wrong = {
        "nudged": candidate(lambda: right + 1e-3 * right.abs().max(), "nudged"),
        "nan": candidate(lambda: torch.full_like(right, math.nan), "nan"),
        "another shape": candidate(lambda: right[:, :-1], "another shape"),
        "broken": candidate(explode, "broken"),
    }
    cell = measure_cell(case, [*wrong.values(), *peers(["eager"])], ROOF, rounds=1)
    rows = {row["name"]: row for row in cell["rows"]}
    assert "median_ms" in rows["eager"]
    for name in wrong:
        assert "median_ms" not in rows[name]
        assert "error" not in rows[name]  # a file takes no infinities
    assert "wrong output: off by 0.001 of the largest, where 0.0001" in rows["nudged"]["failed"]
    assert "off by inf" in rows["nan"]["failed"]
    assert rows["broken"]["failed"] == "RuntimeError: first line"
    assert cell["rows"][0]["name"] == "eager"  # what was timed comes first


def test_what_a_candidate_holds_is_closed_even_if_timing_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, closed = CASES["linear, batch 5"](), []
    ready = Ready(lambda: case.model(case.example), close=lambda: closed.append(1))
    monkeypatch.setattr(bench_cell, "interleave", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_cell(case, [Candidate("one", bench_cell.PEER, lambda case: ready)], ROOF)
    assert closed == [1]


def test_unknown_peers_are_named() -> None:
    with pytest.raises(UnknownNameError, match="no peer is called 'eagre'; did you mean 'eager'"):
        peers(["eagre"])


@pytest.mark.parametrize(
    ("peer", "package"),
    [("OpenVINO", "openvino"), ("scipy CSR", "scipy"), ("ONNX Runtime", "onnxruntime")],
)
def test_missing_packages_are_reasons(
    peer: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    reason = PEERS[peer].build(CASES["linear, batch 5"]())
    assert reason == f"{package} is not installed (the extra 'bench' has it)"


def test_missing_packages_that_no_extra_has_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> object:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mkl_csr.metadata, "files", nowhere)
    mkl_csr._library.cache_clear()
    try:
        assert "pip install mkl" in str(PEERS["MKL CSR"].build(CASES["mlp"]()))
    finally:
        mkl_csr._library.cache_clear()
    monkeypatch.setitem(sys.modules, "sparseprop", None)
    assert "sparseprop is not installed" in str(PEERS["SparseProp"].build(CASES["mlp"]()))


# --- DeepSparse, played by a module of that name in another process -------------------------------

ENGINE = """
import time
import numpy as np, onnx
from onnx import numpy_helper

class Scheduler:
    single_stream = 1

class Engine:
    def __init__(self, model, batch_size, num_cores, scheduler):
        print("the engine's own words")  # must not get between the answers
        if num_cores > 64:
            raise ValueError("too many cores")
        graph = onnx.load(model).graph
        (weight,) = graph.initializer
        self.weight = numpy_helper.to_array(weight)
        self.pause = 0 if self.weight.ndim == 4 else 1e-3  # 1x1 convolutions are faster

    def run(self, inputs, val_inp):
        time.sleep(self.pause)
        weight = self.weight.reshape(self.weight.shape[:2])
        return [inputs[0].reshape(len(inputs[0]), -1) @ weight.T]
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A Python that has `deepsparse`; -I keeps it from finding ours by its environment."""
    pytest.importorskip("onnx", reason="models cross over as ONNX")
    (tmp_path / "deepsparse.py").write_text(ENGINE)
    (tmp_path / "deepsparse-9.9.dist-info").mkdir()
    about = "Metadata-Version: 2.1\nName: deepsparse\nVersion: 9.9\n"
    (tmp_path / "deepsparse-9.9.dist-info" / "METADATA").write_text(about)
    start = (
        f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); "
        "runpy.run_path(sys.argv[-1], run_name='__main__')"
    )
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_a_peer_in_another_process_takes_its_turn(python: str) -> None:
    case = Case(sparse_linear(), torch.randn(4, 32), deepsparse=python)
    engine = deepsparse._engine(python)
    try:
        cell = measure_cell(case, peers(["DeepSparse", "eager"]), ROOF, rounds=2)
        row = next(row for row in cell["rows"] if row["name"] == "DeepSparse")
        assert row["printed_only"] is True
        assert row["median_ms"] > 0
        assert row["note"] == "version 9.9, as 1x1 convolutions; never written"
        case.threads = 100
        assert PEERS["DeepSparse"].build(case) == "DeepSparse: ValueError: too many cores"
        engine.process.kill()
        assert "process ended" in str(PEERS["DeepSparse"].build(case))
    finally:
        engine.close()
    assert engine.process.returncode is not None
    assert not os.path.exists(engine.folder.name)


def test_a_python_that_does_not_exist_is_a_reason() -> None:
    case = Case(sparse_linear(), torch.randn(4, 32), deepsparse="/nowhere/python")
    assert "could not be started" in str(PEERS["DeepSparse"].build(case))


# --- floors ---------------------------------------------------------------------------------------


def test_roofline_is_positive_finite_and_ordered() -> None:
    sizes = (2**20, 2**15)
    roof = measure_roofline(sizes=sizes, seconds=0.002)
    assert roof.threads == torch.get_num_threads()
    assert [size for size, _ in roof.reads] == sorted(sizes)
    for rate in (roof.flops, *(rate for _, rate in roof.reads)):
        assert 1e6 < rate < 1e15
    assert roof.how == ("compiled loops" if library.LIBRARY.path else roof.how)


def test_roofline_without_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY", library.Library(None, "for a test", ""))
    roof = measure_roofline(sizes=(2**15,), seconds=0.001)
    assert roof.flops > 1e6
    assert roof.how.startswith("torch.matmul")


@pytest.mark.skipif(library.LIBRARY.path is None, reason="needs the compiled loops")
def test_the_loops_do_the_work_that_they_say() -> None:
    ops = torch.ops.sparsewright
    assert ops.roofline_fma(2) == 2 * ops.roofline_fma(1) > 0
    block = torch.ones(256 * torch.get_num_threads() * 3)
    assert ops.roofline_read(block, 5) == 5 * block.numel() * 4
    with pytest.raises(RuntimeError, match="contiguous float32"):
        ops.roofline_read(block.double(), 1)


def test_bandwidth_between_and_beyond_what_was_measured() -> None:
    roof = Roofline(1, 1e9, ((100, 8e9), (10_000, 2e9)), "by hand")
    assert roof.bandwidth(1) == 8e9
    assert roof.bandwidth(1_000) == pytest.approx(4e9)
    assert roof.bandwidth(10**9) == 2e9
    assert roof.floor(1_000, 0) == pytest.approx(1_000 / 4e9)
    assert roof.floor(1, 5e9) == 5.0


def test_work_by_hand() -> None:
    layer = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        layer.weight[:, ::2] = 0  # half of the weights: one bit for each of the 32 places
    assert work(layer, torch.ones(3, 8)) == (16 * 4 + 32 // 8 + 4 * (24 + 12), 2 * 16 * 3)
    conv = nn.Conv2d(2, 3, 3, padding=1)
    assert work(conv, torch.ones(1, 2, 5, 5))[1] == 2 * 54 * 25
    grouped = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    assert work(grouped, torch.ones(2, 4, 5, 5))[1] == 2 * 36 * 50
    tied = nn.Sequential(layer, nn.Linear(4, 8, bias=False), layer)
    assert work(tied, torch.ones(1, 8))[1] == 2 * (16 + 32 + 16)


# --- cells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["12", "12x", "3x4x3", "0x4", "4x4@8", "axb", "3x4x3@0"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="OUTxIN or OUTxINxFILTER@IMAGE; got"):
        Shape.parse(text)


def test_cells_are_what_was_asked_for() -> None:
    cells = list(layer_cells(["8x32", "4x8x3@5"], ["unstructured", "2:4"], [0.5, 0.75], [2]))
    assert [(c.pattern, c.sparsity) for c in cells[:3]] == [
        ("unstructured", 0.5),
        ("unstructured", 0.75),
        ("2:4", 0.5),
    ]
    assert len(cells) == 6
    layer, x = cells[-2].make()
    assert int((layer.weight == 0).sum()) == 4 * 8 * 9 * 3 // 4
    assert tuple(x.shape) == (2, 8, 5, 5)
    again, _ = LayerCell(Shape(8, 32), "unstructured", 0.5, 2).make()
    first, _ = cells[0].make()
    assert torch.equal(again.weight, first.weight)
    defaults = [c.batch for c in layer_cells(["8x32", "4x8x3@5"])]
    assert defaults == [1, 16, 64, 256, 1, 16]


SMALL = {"resnet50": (3, 64, 64), "mobilenet": (3, 64, 64), "vit_b block": (20, 768)}


@pytest.mark.parametrize("name", MODELS.names())
def test_models_are_sparse_and_every_layer_matters(name: str) -> None:
    """A layer that computes zeros must be seen by the check of outputs, or no check protects us."""
    from dataclasses import replace

    spec = replace(MODELS[name], example=SMALL.get(name, MODELS[name].example))
    model, x = spec.make(1, 0.9, "unstructured")
    kinds = (nn.Linear, nn.Conv2d)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    dense = [n for n, m in layers.items() if spec.dense(m)]
    sparse = [n for n in layers if n not in dense]
    assert all(bool((layers[n].weight != 0).all()) for n in dense)
    zeros = sum(int((layers[n].weight == 0).sum()) for n in sparse)
    total = sum(layers[n].weight.numel() for n in sparse)
    assert zeros / total == pytest.approx(0.9, abs=1e-4)
    assert len(dense) == {"resnet50": 1, "mobilenet": 14}.get(name, 0)
    expected = model(x)
    assert bool(torch.isfinite(expected).all())
    for place in (sparse[0], sparse[len(sparse) // 2], sparse[-1]):
        weight = layers[place].weight
        kept = weight.clone()
        weight.zero_()
        assert relative_error(model(x), expected) > 10 * bench_cell.MODEL_TOLERANCE, place
        weight.copy_(kept)


def test_a_token_after_a_past_attends_to_all_of_it() -> None:
    """GptBlock's sums in two parts equal attention over the joined keys and values."""
    from sparsewright.lab.bench_models import GptBlock

    torch.manual_seed(0)
    block = GptBlock(batch=2, width=16, heads=4, past=5).double()
    x = torch.randn(2, 1, 16).double()
    q, k, v = block.qkv(block.norms[0](x)).reshape(2, 3, 4, 1, 4).unbind(1)
    keys, values = torch.cat([block.keys, k], 2), torch.cat([block.values, v], 2)
    mixed = nn.functional.scaled_dot_product_attention(q, keys, values)
    middle = x + block.project(mixed.reshape(2, 1, 16))
    expected = middle + block.feed(block.norms[1](middle))
    assert torch.allclose(block(x), expected, atol=1e-12)  # float64, sums in another order
