"""The benchmark of truly sparse training: what it trains, and the table and the plot it makes."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from sparsewright.errors import StateError
from sparsewright.lab import train as train_module
from sparsewright.lab.data import load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import curves_svg
import truly_sparse

ARGS = argparse.Namespace(sparsity=[0.9, 0.95], widths="64-32-10", epochs=1, threads=1)


def result(run: str, seed: int, seconds: list[float], accuracy: list[float]) -> dict[str, Any]:
    cost = {"step_ms": seconds[0], "bytes": 100 if run == "dense" else 20}
    return {"run": run, "seed": seed, "seconds": seconds, "accuracy": accuracy, **cost}


RESULTS = [
    result("dense", 0, [2.0, 2.0], [0.5, 0.9]),
    result("dense", 1, [4.0, 4.0], [0.5, 0.8]),
    result("RigL 90 % masked", 0, [3.0, 3.0], [0.5, 0.8]),
    result("RigL 90 % packed", 0, [1.0, 0.5], [0.5, 0.8]),
]


def test_runs_differ_in_method_sparsity_and_storage_alone() -> None:
    configs = truly_sparse.configs(ARGS)
    assert len(configs) == 1 + 2 * 2 * 2
    told = {(c.method, c.sparsity, c.storage) for c in configs.values()}
    assert len(told) == len(configs)
    assert {(c.optimizer, c.lr, c.epochs, c.widths) for c in configs.values()} == {
        ("adamw", 1e-3, 1, "64-32-10")
    }
    assert configs["SET 95 % packed"].method == "set"


def test_a_finished_run_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "load", lambda name: load("digits"))
    config = truly_sparse.configs(ARGS)["RigL 90 % packed"]
    first = truly_sparse.measure(config, 3, tmp_path)
    monkeypatch.setattr(truly_sparse, "train", None)
    assert truly_sparse.measure(config, 3, tmp_path) == first
    assert first["accuracy"] == [first["summary"]["test_accuracy"]]
    assert first["bytes"] > 0
    assert first["summary"]["packed"] == ["fc1", "head"]
    other = truly_sparse.configs(argparse.Namespace(**vars(ARGS) | {"epochs": 2}))
    with pytest.raises(StateError, match="other settings"):
        truly_sparse.measure(other["RigL 90 % packed"], 3, tmp_path)


def test_the_table_is_of_means_beside_dense() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(truly_sparse.table(RESULTS))
    text = console.export_text().replace("│", " ")
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "dense 2 85.00 +- 7.07 6.0 +- 2.8 1.00 3.00 +- 1.41 1.00 100 1.00" in rows
    assert "RigL 90 % packed 1 80.00 1.5 4.00 1.00 3.00 20 5.00" in rows


def test_the_plot_is_an_svg_of_means() -> None:
    assert truly_sparse.by_time(RESULTS[:2]) == [(3.0, 50.0), (6.0, pytest.approx(85.0))]
    tree = ElementTree.fromstring(truly_sparse.plot(RESULTS))
    tag = "{http://www.w3.org/2000/svg}"
    lines = tree.findall(f"{tag}polyline")[::2]  # every other one stands in the list of names
    assert [line.get("class") for line in lines] == ["c0", "c1", "c1"]
    assert [bool(line.get("stroke-dasharray")) for line in lines] == [False, True, False]
    last = [line.get("points").split()[-1].split(",") for line in lines]
    assert last[0][0] == last[1][0]  # dense and masked end after six seconds
    assert float(last[2][0]) < float(last[0][0])
    assert float(last[0][1]) < float(last[2][1])  # higher up is more accurate
    names = [text.text for text in tree.findall(f"{tag}text")]
    assert names[-1] == "RigL 90 % packed"


def test_ticks_hold_all_and_are_round() -> None:
    for low, high in ((0.0, 9.3), (84.21, 90.07), (5.0, 5.0), (0.0, 0.013)):
        found = curves_svg.ticks(low, high)
        assert found[0] <= low + 1e-9
        assert found[-1] >= high - 1e-9
        assert 2 <= len(found) <= 13
