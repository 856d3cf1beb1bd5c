"""Thread scaling: every number in a process of its own, one file, speed-ups that are right."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sparsewright.cli import main
from sparsewright.errors import ConfigError, StateError, UnknownNameError
from sparsewright.lab import bench_scaling
from sparsewright.lab.bench_page import page_text
from sparsewright.lab.bench_run import read
from sparsewright.lab.bench_scaling import run_scaling, scaling_parts, thread_counts
from sparsewright.lab.bench_speedup import COLUMNS, speedup_rows
from sparsewright.measure.environment import cores


def row(name: str, side: str, median: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "side": side, "median_ms": median, "of_floor": 0.5, **more}


def cell(threads: int, *rows: dict[str, Any], workload: str = "linear 8x8") -> dict[str, Any]:
    zeros = {"pattern": "unstructured", "sparsity": 0.9}
    return {"workload": workload, "batch": 1, "threads": threads, "rows": [*rows], **zeros}


def cells(threads: int) -> list[dict[str, Any]]:
    """Dense gains 1.5x by each further thread, ours 2x; another dense way is best on one."""
    dense = [row("eager", "dense", 9 / 1.5**threads), row("blas", "dense", 6.0)]
    return [cell(threads, *dense, row("sparsewright csr.avx2", "ours", 4 / 2**threads))]


class Children:
    """Stands for the processes: notes what each was asked, and writes what it would have found."""

    def __init__(self, fail_at: int = 0):
        self.asked: list[tuple[list[str], int]] = []
        self.fail_at = fail_at

    def __call__(self, words: Sequence[str], count: int) -> None:
        self.asked.append(([*words], count))
        if count == self.fail_at:
            raise KeyboardInterrupt
        about = {
            **dict.fromkeys(("python", "platform", "sparsewright", "torch", "isa"), "x"),
            "cpu": "Some CPU",
            "kernels_isa": "avx2",
            "cores": 4,
            "commit": None,
            "versions": {},
            "load_start": float(count),
            "load_end": count + 0.5,
        }
        roof = {"threads": count, "flops": 1e9, "reads": [[2**15, 1e9]], "how": "by hand"}
        data = {"format": "sparsewright bench", "version": 1, "kind": words[1], "command": "own"}
        data |= {"environment": about, "roofline": [roof], "cells": cells(count), "seconds": 1.0}
        if words[1] == "model":
            data["cells"] = [cell(count, row("eager", "dense", 1.0), workload="mlp")]
        (Path(words[-1]) / "any.json").write_text(json.dumps(data))


def test_rows_say_how_much_each_side_gains() -> None:
    assert len(COLUMNS) == 12
    one, three = speedup_rows([*cells(3), *cells(1)])  # fewest threads first
    name = ["linear 8x8", "unstructured 90 %", "1"]
    assert one == [*name, "1", "6 eager", "1.00", "none", "-", "2 csr.avx2", "1.00", "3.00", "50%"]
    assert three[3:6] == ["3", "2.667 eager", "2.25"]
    assert three[8:11] == ["0.5 csr.avx2", "4.00", "5.33"]


def test_a_speed_up_is_over_one_thread_or_is_none() -> None:
    two, four = speedup_rows([*cells(2), *cells(4)])
    assert two[5] == two[9] == four[5] == four[9] == "-"
    assert four[10] != "-"
    hidden = cell(1, row("secret", "peer", 1.0, printed_only=True))
    assert speedup_rows([hidden])[0][6] == "1 secret"
    assert speedup_rows([hidden], published=True)[0][6] == "none"


def test_all_numbers_of_threads_come_into_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children()
    monkeypatch.setattr(bench_scaling, "run_child", children)
    parts = {"layer": ["--shape", "8x8"], "model": ["--model", "mlp"]}
    path = run_scaling(parts, [1, 3], ["--rounds", "2"], "the command", tmp_path)
    assert [(words[1], count) for words, count in children.asked] == [
        ("layer", 1),
        ("model", 1),
        ("layer", 3),
        ("model", 3),
    ]
    words = "bench layer --shape 8x8 --rounds 2 --threads 3 --part --out"
    assert children.asked[2][0][:-1] == words.split()
    assert path == tmp_path / "scaling-some-cpu-avx2.json"
    data = read(path)
    assert (data["kind"], data["command"]) == ("scaling", "the command")
    assert [roof["threads"] for roof in data["roofline"]] == [1, 3]
    assert [c["threads"] for c in data["cells"]] == [1, 1, 3, 3]
    about = data["environment"]
    assert (about["load_start"], about["load_end"]) == (1.0, 3.5)
    shown = capsys.readouterr().out
    assert "2.667 eager" in shown
    assert ": 4 cells" in shown
    page = page_text([data], [])
    assert "## Threads on Some CPU (avx2)" in page
    assert "| 1 | 3 | 2.667 eager | 2.25 | none | - | 0.5 csr.avx2 | 4.00 | 5.33 | 50% |" in page
    assert "mlp, unstructured 90 %, batch 1, 3 threads: nothing of ours served" in page
    assert "- Command: `the command`, in " in page


def test_a_run_that_is_stopped_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_scaling, "run_child", Children(fail_at=2))
    with pytest.raises(KeyboardInterrupt):
        run_scaling({"layer": []}, [1, 2], [], "", tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert [c["threads"] for c in read(path)["cells"]] == [1]


def test_a_process_is_told_its_threads_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], dict[str, str]]] = []

    def record(command: list[str], env: dict[str, str], check: bool) -> Any:
        seen.append((command, env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench_scaling.subprocess, "run", record)
    bench_scaling.run_child(["doctor"], 3)
    ((command, environment),) = seen
    assert command[1:] == ["-m", "sparsewright", "doctor"]
    assert {environment[name] for name in bench_scaling.POOLS} == {"3"}


def test_a_process_that_fails_ends_the_run() -> None:
    with pytest.raises(StateError, match="`sparsewright bench nothing` must end with"):
        bench_scaling.run_child(["bench", "nothing"], 1)


def test_numbers_of_threads() -> None:
    assert thread_counts([], most=1) == [1]
    assert thread_counts([], most=6) == [1, 2, 3, 4, 6]
    assert thread_counts([], most=16) == [1, 2, 3, 4, 8, 16]
    assert thread_counts([0, 2, 1], most=5) == [1, 2, 5]
    assert thread_counts([])[-1] == cores()
    with pytest.raises(ConfigError, match="over one thread: --threads must hold 1; got 2 5"):
        thread_counts([0, 2], most=5)


def test_parts_hold_cells_that_can_be_measured() -> None:
    def ask(**more: Any) -> dict[str, list[str]]:
        usual = {"patterns": ["unstructured"], "sparsities": [0.9], "batches": None, "only": ()}
        return scaling_parts(**{"shapes": ["8x32"], "models": ["mlp"], **usual, **more})

    zeros = "--pattern unstructured --sparsity 0.9 --batch"
    assert ask() == {
        "layer": f"--shape 8x32 {zeros} 1 64".split(),
        "model": f"--model mlp {zeros} 1".split(),
    }
    assert list(ask(models=[])) == list(ask(only=["linear"])) == ["layer"]
    assert list(ask(shapes=[])) == list(ask(only=["mlp"])) == ["model"]
    assert list(ask(patterns=["3:32"])) == ["layer"]  # the MLP's 784 inputs hold no 3:32
    with pytest.raises(ConfigError, match="leave no cell"):
        ask(only=["nothing"])
    with pytest.raises(UnknownNameError, match="no model of the bench is called 'mlq'"):
        ask(models=["mlq"])


def test_scaling_from_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEWRIGHT_DEEPSPARSE", "")
    words = "bench scaling --shape 8x32 --model --pattern 2:4 --batch 1 --threads 1 --rounds 1"
    page = tmp_path / "page.md"
    asked = [*words.split(), "--peers", "eager", "--out", str(tmp_path), "--docs", str(page)]
    assert main(asked) == 0
    (written,) = tmp_path.glob("*.json")
    shown = capfd.readouterr().out
    assert shown.count("written: ") == 2  # the file and the page; not those of the processes
    (found,) = read(written)["cells"]
    assert (found["workload"], found["pattern"], found["threads"]) == ("linear 8x32", "2:4", 1)
    assert "| linear 8x32 | 2:4 50 % | 1 | 1 | " in page.read_text()
