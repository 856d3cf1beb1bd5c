"""What the bench writes and prints: files that read back, a page that is what they give."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsewright.cli import main, parser
from sparsewright.errors import ConfigError
from sparsewright.lab import bench_run
from sparsewright.lab.bench_layer import candidates, layer_cells
from sparsewright.lab.bench_page import LOSSY, STALE, page_text, read_notes, stale, write_page
from sparsewright.lab.bench_run import Settings, cpu_flags, is_bench, read, run_bench, write
from sparsewright.measure import timing
from sparsewright.measure.environment import cores
from sparsewright.measure.peers import FEATURE_MAJOR, PEERS, SAME_MEMORY, Case, Peer, Ready
from sparsewright.measure.roofline import Roofline

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(timing, "SAMPLE", 1e-5)
    roof = ((2**10, 1e9), (2**20, 1e9))
    monkeypatch.setattr(
        bench_run,
        "measure_roofline",
        lambda: Roofline(torch.get_num_threads(), 1e9, roof, "by hand"),
    )


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """A peer whose figures may not be written."""
    PEERS.load()

    def build(case: Case) -> Ready:
        return Ready(lambda: case.model(case.example))

    peer = Peer("secret", "for tests", sparse=True, build=build, published=False)
    monkeypatch.setitem(PEERS._parts, "secret", peer)
    return "secret"


def settings(**more: Any) -> Settings:
    return Settings(**{"threads": (1,), "rounds": 1, "peers": ["eager", "torch CSR"], **more})


def test_a_run_is_printed_and_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], secret: str
) -> None:
    before = torch.get_num_threads()
    cells = layer_cells(["8x32", "4x3x3@5"], ["unstructured"], [0.5, 0.75], [1, 2])
    asked = settings(peers=["eager", "torch CSR", secret], command="sparsewright bench layer")
    path = run_bench("layer", cells, candidates, asked, tmp_path / "new" / "folder")
    assert torch.get_num_threads() == before
    assert path is not None
    assert is_bench(path)
    data = read(path)
    assert not list(path.parent.glob("*.tmp"))
    assert path.name == f"layer-{re.sub('[^a-z0-9]+', '-', _cpu(data))}.json"
    assert data["command"] == "sparsewright bench layer"
    assert len(data["cells"]) == 8
    assert {"load_start", "load_end", "cpu_flags", "versions", "isa", "commit"} <= set(
        data["environment"]
    )
    for cell in data["cells"]:
        assert cell["unit"] == "rows"
        assert "secret" not in [row["name"] for row in cell["rows"]]
    shown = capsys.readouterr().out
    assert "linear 8x32, unstructured 50 %, batch 2, 1 thread: at least" in shown
    assert re.search(r"^  secret +\d", shown, re.MULTILINE)  # printed, though never written
    assert "secret" not in path.read_text()
    assert "refused: torch CSR: only chains of Linear and ReLU" in shown
    assert "x dense" in shown
    assert re.search(r"^took \d+ s: 8 cells$", shown, re.MULTILINE)
    assert data["seconds"] > 0
    assert shown.startswith(data["environment"]["cpu"])
    assert "Limits, 1 thread (by hand): 1 GFLOPS; GB/s of reading a block of 1 KiB 1," in shown


def _cpu(data: dict[str, Any]) -> str:
    return f"{data['environment']['cpu']}-{data['environment']['kernels_isa']}".lower()


def test_only_leaves_the_cells_whose_names_hold_a_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = list(layer_cells(["8x32", "4x3x3@5"], sparsities=[0.5], batches=[1, 16]))
    asked = settings(only=["conv", "batch 16"], peers=[])
    assert run_bench("layer", cells, candidates, asked, None) is None
    shown = capsys.readouterr().out
    assert "linear 8x32, unstructured 50 %, batch 1," not in shown
    assert "linear 8x32, unstructured 50 %, batch 16," in shown
    assert "conv 3x3 3->4 at 5x5, unstructured 50 %, batch 1," in shown
    with pytest.raises(ConfigError, match="--only nothing leaves no cell"):
        run_bench("layer", cells, candidates, settings(only=["nothing"]), None)


def test_cells_that_cannot_hold_their_pattern_are_passed_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = layer_cells(["8x9", "8x32"], ["2:4"], batches=[1])
    run_bench("layer", cells, candidates, settings(peers=[]), None)
    shown = capsys.readouterr().out
    assert "passed over: linear 8x9, 2:4, batch 1: weight: pattern 2:4 needs" in shown
    assert "linear 8x32, 2:4 50 %, batch 1, 1 thread: at least" in shown


def test_a_run_that_is_stopped_keeps_what_it_has(tmp_path: Path) -> None:
    def stop(case: Case, seconds: float) -> list[Any]:
        if case.example.shape[0] == 2:
            raise KeyboardInterrupt
        return candidates(case, seconds)

    with pytest.raises(KeyboardInterrupt):
        run_bench("layer", layer_cells(["8x32"], batches=[1, 2]), stop, settings(), tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert [cell["batch"] for cell in read(path)["cells"]] == [1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seconds": -1.0}, "seconds >= 0 and rounds >= 1; got -1.0 and 5"),
        ({"rounds": 0}, "rounds >= 1"),
        (
            {"threads": (cores() + 1,)},
            f"threads must be in 1..{cores()}, the cores that this process may use, or all",
        ),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Settings(**wrong)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ConfigError, match=r"a\.json: cannot be read as JSON"):
        read(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json: cannot be read as JSON"):
        is_bench(path)
    path.write_text("[]")
    assert not is_bench(path)
    with pytest.raises(ConfigError, match="must be a file of `sparsewright bench`"):
        read(path)
    path.write_text(json.dumps({"format": "sparsewright bench", "version": 2}))
    with pytest.raises(ConfigError, match="must have version 1; got 2"):
        read(path)


def test_flags_of_a_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t\t: fpu avx2 fma ssse3 avx512_bf16\nflags\t\t: fpu\n")
    assert cpu_flags(info) == ["avx2", "avx512_bf16", "fma"]
    assert cpu_flags(tmp_path / "none") == []


def test_cells_say_how_they_keep_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ["fp32", "int8"]
    cells = layer_cells(["8x9", "8x32"], ["2:4"], batches=[1], values=kept)
    path = run_bench("layer", cells, candidates, settings(peers=["eager"]), tmp_path)
    assert path is not None
    found = read(path)["cells"]
    assert [cell["values"] for cell in found] == kept
    assert found[0]["bytes"] > found[1]["bytes"]
    shown = capsys.readouterr().out
    assert shown.count("passed over: linear 8x9") == 1
    assert "linear 8x32, 2:4 50 % int8, batch 1, 1 thread: at least" in shown
    assert "FAILED" not in shown


# --- the page -------------------------------------------------------------------------------------


def row(name: str, side: str, median: float, **more: Any) -> dict[str, Any]:
    times = {f"{k}_ms": median for k in ("median", "low", "high")}
    return {"name": name, "side": side, **times, "of_floor": 0.5 / median, **more}


def made_up() -> dict[str, Any]:
    common = {"pattern": "unstructured", "sparsity": 0.9, "threads": 1, "floor_ms": 0.5}
    ahead = [
        row("sparsewright csr.avx2", "ours", 1.0),
        row("fast", "peer", 1.5),
        row("eager", "dense", 3.0),
        {"name": "gone", "side": "peer", "refused": "not installed"},
        {"name": "bad", "side": "peer", "failed": "wrong output"},
    ]
    behind = [
        row("onednn", "dense", 2.0),
        row("hidden", "peer", 0.1, printed_only=True),
        row("sparsewright csr.avx2", "ours", 2.5),
    ]
    return {
        "format": "sparsewright bench",
        "version": 1,
        "kind": "layer",
        "command": "sparsewright bench layer --threads 1",
        "environment": {
            "cpu": "Some CPU",
            "cores": 4,
            "commit": None,
            "python": "3.11",
            "platform": "Linux",
            "sparsewright": "1",
            "torch": "2",
            "versions": {"openvino": "3", "mkl": None},
            "isa": "AVX2",
            "kernels_isa": "avx2",
            "load_start": 0.1,
            "load_end": 0.25,
        },
        "roofline": [{"threads": 1, "flops": 5e10, "reads": [[2**15, 2e11]], "how": "by hand"}],
        "cells": [
            {"workload": "linear 8x8", "batch": 1, "rows": ahead, **common},
            {"workload": "linear 8x8", "batch": 16, "rows": behind, **common},
            {"workload": "linear 9x9", "batch": 1, "rows": behind[:1], **common},
        ],
    }


def test_the_page_says_who_is_ahead_by_how_much_and_why() -> None:
    notes = [
        {"cell": "linear 8x8*batch 16, *", "reason": "the tile is too narrow"},
        {"cell": "linear 8x8*", "reason": "never taken: the first that fits is"},
    ]
    text = page_text([made_up()], notes)
    times = "3 eager | 1.5 fast | 1 csr.avx2 | none | none | 3.00"
    first = f"| linear 8x8 | unstructured 90 % | 1 | {times} |"
    assert first in text
    assert "| 2 onednn | none | 2.5 csr.avx2 | none | none | 0.80 | - | 0.5 | 20% |" in text
    assert "hidden" not in text
    assert "Behind the best peer in 2 of 3 cells:" in text
    assert "batch 16, 1 thread: 1.25x the time of onednn; the tile is too narrow" in text
    assert (
        "linear 9x9, unstructured 90 %, batch 1, 1 thread: nothing of ours served; not yet" in text
    )
    assert "50 GFLOPS; GB/s of reading a block of 32 KiB 200" in text
    assert "openvino 3" in text
    assert "mkl" not in text
    assert "- Command: `sparsewright bench layer --threads 1`\n" in text
    assert "--threads 1`, in 1 min 15 s\n" in page_text([{**made_up(), "seconds": 75.2}], [])
    assert f"{STALE}\n\n- `linear 8x8*`: never taken" in text
    won = copy.deepcopy(made_up())
    won["cells"] = won["cells"][:1]
    assert "No cell is behind its best peer." in page_text([won], [])


def test_like_is_held_against_like() -> None:
    """Who is given its activations feature by feature, against ours that is; rows against rows."""
    run = made_up()
    rows = run["cells"][0]["rows"]
    rows.append(row("MKL CSR", "peer", 0.5, note=f"{FEATURE_MAJOR}; one thread"))
    text = page_text([run], [])
    assert "| 3 eager | 0.5 MKL CSR | 1 csr.avx2 | none | none | 3.00 | 0.50 |" in text
    assert "batch 1, 1 thread: 2.00x the time of MKL CSR" in text
    rows.append(row("sparsewright csb.avx2 transposed", "ours", 0.25, note=FEATURE_MAJOR))
    text = page_text([run], [])
    assert "| 3 eager | 1.5 fast | 1 csr.avx2 | 0.25 csb.avx2 | none | 3.00 | 1.50 |" in text
    assert "batch 1, 1 thread:" not in text.partition("### Layers")[2].partition("9x9")[0]
    rows[0]["median_ms"] = 6.0  # and one that is ahead with columns may be behind with rows
    assert "batch 1, 1 thread: 4.00x the time of fast" in page_text([run], [])


def test_who_allocates_is_not_held_against_a_call_that_does_not() -> None:
    run = made_up()
    rows = run["cells"][0]["rows"]
    told = f"{FEATURE_MAJOR}; {SAME_MEMORY}"
    rows.append(row("sparsewright csr.avx2 into", "ours", 0.25, note=SAME_MEMORY))
    text = page_text([run], [])
    assert "| 3 eager | 1.5 fast | 1 csr.avx2 | none | 0.25 csr.avx2 | 3.00 | 1.50 |" in text
    rows.append(row("MKL CSR", "peer", 0.125, note=told))  # of a single row, columns are rows
    assert "batch 1, 1 thread: 2.00x the time of MKL CSR" in page_text([run], [])
    rows.append(row("sparsewright csr.avx2 transposed into", "ours", 0.1, note=told))
    text = page_text([run], [])
    assert "| 3 eager | 0.125 MKL CSR | 1 csr.avx2 | none | 0.1 csr.avx2 | 3.00 | 1.25 |" in text


def test_the_page_says_where_values_are_rounded() -> None:
    run = made_up()
    assert LOSSY not in page_text([run], [])
    run["cells"][0]["values"] = "int8"
    text = page_text([run], [])
    assert LOSSY in text
    assert "| linear 8x8 | unstructured 90 % int8 | 1 |" in text


def test_what_is_written_is_read_into_the_same_page(tmp_path: Path) -> None:
    path = write(made_up(), tmp_path)
    assert path.name == "layer-some-cpu-avx2.json"
    assert "hidden" not in path.read_text()
    other = tmp_path / "other.json"
    other.write_text('{"runs": []}')  # of another command: passed over
    page = write_page([path, other], tmp_path / "docs" / "page.md")
    assert page.read_text() == page_text([made_up()], [])
    assert [p.name for p in page.parent.iterdir()] == ["page.md"]


def test_a_reason_that_no_cell_has_any_more_is_named() -> None:
    notes = [
        {"cell": "linear 8x8*batch 1, *", "reason": "that cell is ahead by now"},
        {"cell": "linear 8x8*batch 16, *", "reason": "true"},
        {"cell": "linear *batch 16, *", "reason": "the one before comes first"},
        {"cell": "linear 9x9*", "reason": "true too"},
        {"cell": "linear 7x7*", "reason": "no such cell"},
    ]
    assert stale([made_up()], notes) == [notes[0], notes[2], notes[4]]
    assert STALE not in page_text([made_up()], [notes[1], notes[3]])
    assert stale([], notes) == notes


@pytest.mark.parametrize(
    "text", ['{"cell": "a"}', '[{"cell": "a"}]', '[{"cell": "a", "reason": 1}]', "[1]", "{"]
)
def test_notes_that_are_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page-notes.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"page-notes\.json: (must be a list|cannot be read)"):
        read_notes(path)


def test_the_page_in_the_docs_is_what_the_results_give(tmp_path: Path) -> None:
    notes = "performance-notes.json"
    (tmp_path / notes).write_text((ROOT / "docs" / notes).read_text())
    page = write_page(RESULTS.glob("*.json"), tmp_path / "performance.md")
    kept = (ROOT / "docs" / "performance.md").read_text()
    assert STALE not in page.read_text(), "a stale reason is a lie: remove it from the notes"
    assert kept == page.read_text(), "run: sparsewright bench page --from benchmarks/results/*.json"


# --- the command line -----------------------------------------------------------------------------


def test_bench_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench layer --shape 8x32 --pattern 2:4 --batch 1 --threads 1 --rounds 1 --peers eager"
    page = tmp_path / "docs" / "page.md"
    assert main([*words.split(), "--out", str(tmp_path), "--docs", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "linear 8x32, 2:4 50 %, batch 1, 1 thread" in shown
    (written,) = tmp_path.glob("*.json")
    assert str(written) in shown
    assert "| linear 8x32 | 2:4 50 % |" in page.read_text()
    assert main(["bench", "page", "--from", str(written), "--to", str(tmp_path / "b.md")]) == 0
    assert (tmp_path / "b.md").read_text() == page.read_text()


def test_bench_model_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "bench model --model mlp --batch 2 --threads 1 --rounds 1 --peers eager"
    assert main([*words.split(), "--values", "fp32", "bf16"]) == 0
    shown = capsys.readouterr().out
    assert "mlp, unstructured 90 %, batch 2, 1 thread" in shown
    assert "mlp, unstructured 90 % bf16, batch 2, 1 thread" in shown
    assert "FAILED" not in shown
    assert re.search(r"sparsewright deploy .* rows/s.*\(.+\)", shown)
    assert "resnet50" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("layer --sparsity 1.0", "a sparsity must be in [0, 1); got '1.0'"),
        ("layer --threads none", "must be a whole number, 1 or more; got 'none'"),
        ("layer --values int4", "invalid choice: 'int4'"),
        ("scaling --values int8", "unrecognized arguments: --values"),
        ("layer --batch 0", "must be a whole number, 1 or more; got '0'"),
        ("page", "--from"),
        ("", "WHAT"),
    ],
)
def test_words_that_do_not_parse(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["bench", *words.split()])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("layer --shape 8", "a shape must be OUTxIN"),
        (
            "layer --shape 8x9 --pattern 2:4 --peers",
            "no cell holds its pattern: weight: pattern 2:4",
        ),
        ("model --only mlp --pattern 3:32 --peers", "no cell holds its pattern: 0: pattern 3:32"),
        ("layer --pattern 2x4", "no pattern is called '2x4'"),
        ("layer --peers nobody", "no peer is called 'nobody'"),
        ("model --model nothing", "no model of the bench is called 'nothing'"),
        ("scaling --model --shape 8", "a shape must be OUTxIN"),
        ("scaling --only nothing", "--shape, --model, --only and --pattern leave no cell"),
        ("layer --docs", "--docs writes the page from the files in --out: give --out FOLDER"),
        ("model --only nothing", "--only nothing leaves no cell"),
        ("page --from nowhere.json", "nowhere.json: cannot be read"),
    ],
)
def test_words_that_make_no_sense(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_help_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["bench", "--help"], ["bench", "layer", "--help"]):
        with pytest.raises(SystemExit):
            parser().parse_args(words)
    shown = capsys.readouterr().out
    for word in ("layer", "model", "page", "--sparsity", "--deepsparse-python", "OUTxIN"):
        assert word in shown
