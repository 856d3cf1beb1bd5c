"""The bench of training: every way trains the same network or says why not, files read back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsewright.cli import main
from sparsewright.errors import ConfigError, StateError, UnknownNameError
from sparsewright.lab import bench_memory, bench_run, bench_scale, bench_step, bench_train
from sparsewright.lab import bench_neurons as neurons
from sparsewright.lab.bench_page import page_text, write_page
from sparsewright.lab.bench_plot import loglog_svg
from sparsewright.lab.bench_run import Settings, read
from sparsewright.lab.bench_step import UPDATE, measure_step, step_work
from sparsewright.lab.bench_train import MLP, TrainCell, run_train, target_lines, train_cells
from sparsewright.lab.bench_train_page import figures
from sparsewright.lab.memory_child import Asked, measure
from sparsewright.lab.train_ways import TRAIN_WAYS, Task, Trainer, Way, adamw, mixed, trainer
from sparsewright.measure import timing
from sparsewright.measure.roofline import Roofline
from sparsewright.measure.timing import Timing

ROOF = Roofline(1, 1e9, ((2**10, 1e9), (2**20, 1e9)), "by hand")
COMPILED = "dense torch.compile"
QUICK = [name for name in TRAIN_WAYS.names() if name != COMPILED]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(timing, "SAMPLE", 1e-5)
    monkeypatch.setattr(bench_run, "measure_roofline", lambda: ROOF)


def task(model: str = "mlp:3072-24-10", batch: int = 5) -> Task:
    return TrainCell(model, 0.9, batch).task()


@pytest.mark.parametrize("model", ["mlp:3072-24-10", "cnn:16-32"])
def test_every_way_trains_the_same_network_or_says_why_not(model: str) -> None:
    cell = measure_step(task(model), QUICK, ROOF, rounds=1)
    rows = {row["name"]: row for row in cell["rows"]}
    assert set(rows) == set(QUICK)
    for name, row in rows.items():
        assert "failed" not in row, (name, row)
        if "refused" in row:
            assert any(why in row["refused"] for why in ("only for", "no layer", "not installed"))
            continue
        assert 0 <= row["error"] < 1e-4  # no ReLU of so small a network is within rounding of 0
        assert row["low_ms"] <= row["median_ms"] <= row["high_ms"]
    assert {"dense eager", "sparsewright masked", "sparsewright packed RigL"} <= {
        name for name, row in rows.items() if "median_ms" in row
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns about its own code while it compiles
def test_a_compiled_step_is_right() -> None:
    (row,) = measure_step(task(), [COMPILED], ROOF, rounds=1)["rows"]
    assert "median_ms" in row or "torch.compile could not build it" in row["refused"]


def wrong(change: str) -> Way:
    """A way whose loss, or whose gradient, is not the task's."""

    def build(task: Task) -> Trainer:
        model = task.copy()
        made = trainer(task, model, adamw(model))
        layer = model.get_submodule("fc1")
        assert isinstance(layer, nn.Linear)
        if change == "loss":
            with torch.no_grad():
                layer.weight.mul_(3.0)
        else:
            layer.weight.register_hook(lambda gradient: 1.1 * gradient)
        return made

    return Way("for tests", "peer", build)


@pytest.mark.parametrize(("change", "message"), [("loss", "loss"), ("gradient", "gradient of fc1")])
def test_a_way_that_trains_another_network_is_not_timed(
    change: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    TRAIN_WAYS.load()
    monkeypatch.setitem(TRAIN_WAYS._parts, "wrong", wrong(change))
    (row,) = measure_step(task(), ["wrong"], ROOF, rounds=1)["rows"]
    assert f"wrong {message}" in row["failed"]
    assert "median_ms" not in row


def test_a_way_that_breaks_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(task: Task) -> Trainer:
        raise RuntimeError("no such instruction\nmore")

    TRAIN_WAYS.load()
    monkeypatch.setitem(TRAIN_WAYS._parts, "broken", Way("for tests", "peer", build))
    (row,) = measure_step(task(), ["broken"], ROOF, rounds=1)["rows"]
    assert row["failed"] == "RuntimeError: no such instruction"


def test_no_way_changes_the_task() -> None:
    asked = task()
    before = {name: value.clone() for name, value in asked.model.state_dict().items()}
    measure_step(asked, QUICK, ROOF, rounds=1)
    after = asked.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_all_layers_of_a_task_are_as_sparse() -> None:
    asked = task("mlp:3072-40-10")
    for mask in asked.masks.values():
        assert int(mask.sum()) == mask.numel() - math.floor(0.9 * mask.numel())


def test_rows_of_moving_places_are_the_mean_of_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(calls: dict[str, Any], **options: Any) -> dict[str, Timing]:
        of = {name: 11.0 if name.endswith(UPDATE) else 1.0 for name in calls}
        return {name: Timing(t, t / 2, 2 * t, 3) for name, t in of.items()}

    monkeypatch.setattr(bench_step, "interleave", times)
    (row,) = measure_step(task(), ["sparsewright packed SET"], ROOF)["rows"]
    assert row["median_ms"] == pytest.approx(1100)  # 99 steps of 1 s and one of 11 s
    assert (row["plain_ms"], row["update_ms"]) == pytest.approx((1000, 11000))
    assert "at one of 100 steps" in row["note"]


def test_work_of_a_step_by_hand() -> None:
    asked = task("mlp:3072-20-10", batch=4)
    first, second = (int(asked.masks[name].sum()) for name in ("fc1", "head"))
    flop, size = step_work(asked)
    assert flop == 2 * 4 * (2 * first + 3 * second)  # no gradient of the images is wanted
    assert size == 4 * 7 * (first + second + 30)


def test_layers_are_packed_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(calls: dict[str, Any], **options: Any) -> dict[str, Timing]:
        faster.reverse()
        return {
            name: Timing(t, t, t, 3) for name, t in zip(("packed", "dense"), faster, strict=True)
        }

    faster = [2.0, 1.0]  # packed is so in the first kind, dense in the second
    monkeypatch.setattr(mixed, "interleave", times)
    made = TRAIN_WAYS["sparsewright mixed"].build(task("mlp:3072-24-24-24-10"))
    assert isinstance(made, Trainer)
    assert "packed 2 of 4 layers; dense: fc2, fc3 (packed takes 2.0x" in made.note
    faster = [1.0, 2.0]
    refused = TRAIN_WAYS["sparsewright mixed"].build(task("mlp:3072-10"))
    assert refused == "no layer is faster packed: head (packed takes 2.0x the time of dense)"


def test_cells_and_refusals() -> None:
    assert [(c.name, c.sparsity) for c in train_cells()] == [
        *((MLP, s) for s in (0.9, 0.95, 0.99)),
        ("resnet20", 0.9),
    ]
    with pytest.raises(UnknownNameError, match="no model is called 'mlq'"):
        list(train_cells(["mlq"]))
    with pytest.raises(ConfigError, match="must begin with the 3072 inputs"):
        list(train_cells(["mlp:20-10"]))
    with pytest.raises(UnknownNameError, match="no way of training is called 'eagerly'"):
        run_train(train_cells(), Settings(peers=["eagerly"]), None)


def test_targets_are_met_or_missed() -> None:
    def cell(dense: float, **more: Any) -> dict[str, Any]:
        rows = [
            {"name": "dense eager", "side": "dense", "median_ms": dense},
            {"name": "sparsewright packed static", "side": "ours", "median_ms": 1.0},
        ]
        usual = {"workload": MLP, "sparsity": 0.9, "pattern": "unstructured", "batch": 128}
        return {**usual, "threads": 1, "rows": rows, **more}

    met, missed = target_lines([cell(3.0), cell(2.9), cell(9.0, workload="resnet20")])
    assert met.startswith("target met")
    assert met.endswith("3.00x the best dense way's speed (dense eager), wanted 3x")
    assert missed.startswith("target missed")


def test_memory_is_that_of_the_process() -> None:
    widths = (2048, 2048, 10)
    weights = 2048 * 2058 + 2058
    dense = measure(Asked("dense", widths, 0.0, 2, torch.get_num_threads()))
    # Weight, gradient and two moments, 16 bytes for each; pages and buffers are some more.
    assert 16 * weights <= dense.held + 2**20 <= 1.3 * 16 * weights
    assert dense.training >= dense.held
    packed = measure(Asked("packed RigL", widths, 0.9, 2, torch.get_num_threads()))
    assert packed.nnz == math.ceil(0.1 * 2048**2) + math.ceil(0.1 * 20480)
    assert packed.held < dense.held / 2


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(StateError, match="no way of memory is called 'dens'"):
        bench_memory._measured(Asked("dens", (8, 8), 0.0, 1, 1))


def test_memory_rows_and_targets() -> None:
    rows = [
        {"way": "dense", "sparsity": 0.0, "building": 1e6, "training": 10e6, "held": 5e6},
        {"way": "packed RigL", "sparsity": 0.9, "building": 2e6, "training": 3e6, "held": 1e6},
        {"way": "packed static", "sparsity": 0.9, "building": 2e6, "training": 2e6, "held": 1e6},
    ]
    cell = {"widths": list(bench_memory.WIDTHS), "batch": 8, "threads": 1, "rows": rows}
    packed = bench_memory.memory_rows([cell])[1]
    assert packed[1:] == [
        "packed RigL",
        "90 %",
        "8",
        "2.0",
        "3.0",
        "1.0",
        "2.000",
        "0.300",
        "0.200",
    ]
    missed, met = bench_memory.target_lines([cell])
    assert missed.startswith("target missed: packed RigL")
    assert met.startswith("target met: packed static")
    assert bench_memory.target_lines([{**cell, "widths": [8, 8]}]) == []


def test_a_network_of_many_neurons_learns() -> None:
    said: list[str] = []
    asked = neurons.Network(inputs=256, hidden=(3000, 2000), each=8, batch=16, steps=60, every=20)
    found = neurons.train(asked, said.append)
    assert neurons.falls(found)
    assert found["neurons"] == 5002
    assert found["present"] == 3000 * 8 + 2000 * 8
    assert found["moved"] > 0
    assert found["update_s"]["rounds"] == 2  # before steps 20 and 40
    assert found["peak_bytes"] > 16 * found["present"] / 2
    assert any("weights moved" in line for line in said)
    assert "5,002 neurons (256 -> 3,000 -> 2,000 -> 2)" in neurons.lines(found)[0]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"each": 0.5}, "a neuron must have 1 or more weights"),
        ({"inputs": 8, "each": 9}, "fewer than the 8 neurons"),
        ({"steps": 3}, "needs 10 steps and a batch of 2, or more; got 3 and 32"),
    ],
)
def test_networks_that_make_no_sense(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        neurons.Network(**numbers)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"over_nnz": (10, 100), "width": 8}, "holds 1 to 32 weights"),
        ({"over_width": (10**4,)}, "two points or more; got 10000 alone"),
    ],
)
def test_curves_that_make_no_sense(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench_scale.Curves(**numbers)


def small_network() -> neurons.Network:
    return neurons.Network(inputs=64, hidden=(200, 200), each=4, batch=4, steps=10, every=5)


def test_scale_is_written_and_read_into_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = bench_scale.Curves(64, (20, 200, 2000), 100, (32, 64), batch=4)
    settings = Settings(threads=(1,), rounds=1, command="the command")
    path = bench_scale.run_scale(curves, small_network(), settings, tmp_path)
    assert path is not None
    shown = capsys.readouterr().out
    assert shown.count("time grows as") == 2
    assert "402 neurons" in shown
    data = read(path)
    by_weights, by_width = data["cells"]
    assert [p["nnz"] for p in by_weights["rows"]] == [20, 200, 2000]
    assert by_weights["dense"]["width"] == 64
    assert [p["width"] for p in by_width["rows"]] == [32, 64]
    page = write_page([path], tmp_path / "page.md")
    ((name, svg),) = figures([data]).items()
    assert f"](figures/{name})" in page.read_text()
    assert (tmp_path / "figures" / name).read_text() == svg
    assert svg.count("<circle") == 3


def test_slopes() -> None:
    points = [{"nnz": n, "median_ms": 3.0 * n} for n in (1, 10, 100)]
    assert bench_scale.slope(points, "nnz") == pytest.approx(1.0)


def test_a_plot_says_what_it_shows() -> None:
    svg = loglog_svg("A <b>", "x", "y", {"one": [(1, 2, 1, 3), (100, 20, 10, 30)]}, {"level": 5})
    assert "A &lt;b&gt;" in svg
    assert svg.count("<circle") == 2
    assert "stroke-dasharray" in svg


def test_training_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench train --model mlp:3072-16-10 --batch 4 --threads 1 --rounds 1"
    ways = ["--ways", "dense eager", "sparsewright packed static", "torch CSR"]
    assert main([*words.split(), *ways, "--out", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("train-*.json")
    data = read(written)
    (cell,) = data["cells"]
    assert data["kind"] == "train"
    assert (cell["workload"], cell["sparsity"], cell["batch"]) == ("mlp:3072-16-10", 0.9, 4)
    assert {row["name"] for row in cell["rows"]} == set(ways[1:])
    assert "examples/s" in capsys.readouterr().out
    text = page_text([data], [])
    assert "## Training on " in text
    assert "- mlp:3072-16-10 at 90 %, 1 thread: " in text


def test_memory_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Asked] = []

    def found(one: Asked) -> dict[str, int]:
        asked.append(one)
        return {"building": 10**6, "training": 10**6, "held": 10**6, "nnz": 1}

    monkeypatch.setattr(bench_memory, "_measured", found)
    words = "bench memory --widths 64 32 10 --sparsity 0.9 --threads 1 --out"
    assert main([*words.split(), str(tmp_path)]) == 0
    assert [one.way for one in asked] == [
        *("dense", "masked RigL", "masked static", "packed RigL", "packed static")
    ]
    (written,) = tmp_path.glob("memory-*.json")
    text = page_text([json.loads(written.read_text())], [])
    assert "## Memory of training on " in text
    assert "| mlp 64-32-10 | packed RigL | 90 % | 8 | 1.0 | 1.0 | 1.0 | 1.000 |" in text


def test_scale_from_the_command_line(tmp_path: Path) -> None:
    words = "bench scale --nnz --width --neurons 300 --each 4 --steps 10 --every 5 --batch 2"
    assert main([*words.split(), "--threads", "1", "--out", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("scale-*.json")
    data = read(written)
    assert data["cells"] == []
    assert data["networks"][0]["neurons"] == 302


def test_ways_say_what_they_are() -> None:
    assert {TRAIN_WAYS[name].side for name in TRAIN_WAYS} == {"dense", "peer", "ours"}
    assert bench_train.TARGETS.keys() == {0.9, 0.95, 0.99}
