"""The benchmark of every method's steps: what it runs and what it prints."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import method_steps


def test_a_method_is_timed_beside_dense_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "x --methods rigl sr_ste --models mlp --steps 15 --batch 2 --out"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(tmp_path)])
    method_steps.main()
    found = json.loads((tmp_path / "method-steps.json").read_text())
    assert [row["method"] for row in found["results"]] == ["rigl", "sr_ste"]
    assert all(row["median_ms"] > 0 and row["dense_ms"] > 0 for row in found["results"])
    assert found["machine"]["steps"] == 15


def test_a_run_is_trained_by_the_method_from_first_to_last() -> None:
    run = method_steps.Run("mlp", "rigl", steps=25, batch=2, sparsity=0.9)
    assert len(run.timed(10)) == 10
    run.timed(15)
    assert run.sparse.step == 25
    assert {change.step for change in run.sparse.changes} >= {0, 1, 2}


def test_the_table_is_of_ratios_the_longest_first() -> None:
    rows = [
        {"model": "mlp", "method": name, **method_steps.figures([1e-3], [own])}
        for name, own in (("quick", 2e-3), ("slow", 4e-3))
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(method_steps.table(rows))
    text = console.export_text().replace("│", " ")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    at = [
        lines.index(f"mlp {n} 1.00 {t} {t} {t}") for n, t in (("slow", "4.00"), ("quick", "2.00"))
    ]
    assert at == sorted(at)
