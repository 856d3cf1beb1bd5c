"""The command line: every command as a user types it, its errors, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsewright import __version__
from sparsewright.cli import _given, main, parser, storage_line
from sparsewright.errors import DataError
from sparsewright.lab import data as data_module
from sparsewright.lab.config import TrainConfig, as_flags, from_mapping
from sparsewright.lab.data import DATA, find
from sparsewright.lab.tables import TABLES

SMALL = ["--widths", "64-64-32-10", "--batch", "256", "--threads", "1", "--no-tensorboard"]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def train_small(out: Path, *words: object) -> Path:
    assert run("train", *SMALL, "--epochs", 2, *words, "--out", out) == 0
    return out


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


# --- help ---------------------------------------------------------------------------------------


def test_help_names_every_command_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    commands = ("demo", "train", "prune", "deploy", "report", "methods", "doctor", "data")
    for command in commands:
        assert re.search(rf"^    {command} ", shown, re.MULTILINE)
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            run(command, "--help")
        assert stop.value.code == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("train", "--help")
    shown = capsys.readouterr().out
    for name in ("--weight-decay", "--on-misfit", "--no-augment", "--resume", "examples:"):
        assert name in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"sparsewright {__version__}\n"


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2


# --- train --------------------------------------------------------------------------------------


def test_the_documented_command_parses() -> None:
    words = (
        "train --data fashion-mnist --model mlp --method rigl --sparsity 0.9 --pattern 3:32 "
        "--epochs 10 --seed 0 --out runs/a"
    )
    args = parser().parse_args(words.split())
    config = from_mapping(_given(args, TrainConfig), "flags")
    expected = TrainConfig(
        data="fashion-mnist", model="mlp", method="rigl", sparsity=0.9, pattern="3:32", epochs=10
    )
    assert config == expected
    assert args.out == Path("runs/a")


def test_the_documented_command_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words on a small set of Fashion-MNIST's form."""
    import torch

    images = data_module.Images(
        "fashion-mnist",
        (torch.randn(64, 1, 28, 28), torch.arange(64) % 10),
        (torch.randn(20, 1, 28, 28), torch.arange(20) % 10),
        10,
        True,
    )
    monkeypatch.setattr("sparsewright.lab.train.load", lambda name: images)
    words = "train --data fashion-mnist --model mlp --method rigl --sparsity 0.9 --pattern 3:32"
    assert run(*words.split(), "--epochs", 2, "--seed", 0, "--out", tmp_path / "a") == 0
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    patterns = {row["name"]: row["pattern"] for row in summary["rows"]}
    assert patterns == {"fc1": "unstructured", "fc2": "3:32", "head": "3:32"}
    total = sum(row["total"] for row in summary["rows"])
    present = sum(row["present"] for row in summary["rows"])
    assert total - present == int(0.9 * total)


def test_train_prints_the_outcome_and_what_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--method", "set", "--every", 5, "--sparsity", 0.5, "--skip", "head")
    folder = train_small(tmp_path / "a", *words)
    shown = capsys.readouterr()
    assert re.search(r"test accuracy \d+\.\d\d%, sparsity 0\.5000", shown.out)
    assert f"sparsewright deploy {folder}" in shown.out
    assert shown.err == ""  # no bar where there is no terminal
    assert config_of(folder)["skip"] == ["head"]


def test_train_takes_a_storage_and_says_what_stayed_masked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_small(
        tmp_path / "a", "--method", "rigl", "--sparsity", 0.5, "--storage", "packed"
    )
    assert config_of(folder)["storage"] == "packed"
    assert "still masked" not in capsys.readouterr().out
    rows = [{"name": name, "present": n, "total": 9} for name, n in (("a", 3), ("b", 4), ("c", 9))]
    line = storage_line({"rows": rows, "packed": ["a"]})
    assert line == "packed: a; still masked: b\n"


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(
        'method = "rigl"\nsparsity = 0.5\nseed = 3\nskip = ["fc1"]\n'
        "[method_options]\nevery = 4\nexclude_dropped = true\n"
        "[overrides.head]\nsparsity = 0.25\n"
    )
    folder = train_small(tmp_path / "a", "--config", file, "--seed", 7)
    config = config_of(folder)
    assert (config["seed"], config["sparsity"], config["skip"]) == (7, 0.5, ["fc1"])
    assert config["method_options"] == {"every": 4, "exclude_dropped": True}
    rows = json.loads((folder / "summary.json").read_text())["rows"]
    assert {row["name"]: row["sparsity"] for row in rows} == {"fc2": 0.5, "head": 0.25}
    command = json.loads((folder / "environment.json").read_text())["command"]
    assert command.startswith(f"sparsewright train --config {folder / 'config.json'}")


def test_a_run_can_be_repeated_by_its_own_command(tmp_path: Path) -> None:
    folder = train_small(tmp_path / "a", "--method", "rigl", "--sparsity", 0.5)
    words = shlex.split(json.loads((folder / "environment.json").read_text())["command"])
    assert words[0] == "sparsewright"
    assert run(*words[1:-1], tmp_path / "b") == 0
    assert config_of(folder) == config_of(tmp_path / "b")
    assert run("train", "--config", folder / "config.json", "--out", tmp_path / "c") == 0
    states = [(tmp_path / name / "summary.json").read_text() for name in "abc"]
    accuracies = [json.loads(state)["test_accuracy"] for state in states]
    assert len(set(accuracies)) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "epochs must be 1 or more; got 0"),
        (["--method", "rigel"], "no method is called 'rigel'; did you mean 'rigl'? There are: "),
        (["--data", "imagenet"], "no data set is called 'imagenet'"),
        (["--sparsity", "0.9"], "sparsity has no meaning for a dense run"),
        (["--method", "set", "--pattern", "5:4"], "5:4"),
        (["--method", "set", "--pattern", "blocks"], "no pattern is called 'blocks'"),
        (["--widths", "784-10"], "begin with the 64 inputs"),
        (["--resume"], "a run is a folder with config.json in it"),
        (["--resume", "--force"], "give one of them"),
    ],
)
def test_refusals_are_one_line_and_exit_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *words, "--out", tmp_path / "a") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("sparsewright: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_unknown_setting_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.toml"
    file.write_text("epoch = 3\n")
    assert run("train", "--config", file, "--out", tmp_path / "a") == 2
    assert "a.toml: no setting is called 'epoch'; did you mean 'epochs'?" in capsys.readouterr().err


def test_a_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train_small(tmp_path / "a")
    assert run("train", *SMALL, "--out", folder) == 2
    assert "--resume goes on with it, --force replaces it" in capsys.readouterr().err
    assert run("train", "--resume", "--lr", 0.3, "--out", folder) == 2
    assert "lr is 0.05 there, got 0.3" in capsys.readouterr().err
    assert run("train", "--resume", "--out", folder) == 0
    train_small(folder, "--force")


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEWRIGHT_DEBUG", "1")
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path))
    monkeypatch.delenv("SPARSEWRIGHT_DATA", raising=False)
    with pytest.raises(DataError):
        run("train", "--data", "mnist", "--out", tmp_path / "a")


def test_warnings_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "static", "--sparsity", 0.99, "--allocate", "uniform_all"]
    train_small(tmp_path / "a", *words)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("warning: ") for line in lines)
    assert len(lines) == len(set(lines))


configs = st.builds(
    TrainConfig,
    name=st.sampled_from(["", "a b", "it's"]),
    method=st.just("rigl"),
    sparsity=st.none() | st.floats(0, 1, exclude_max=True),
    every=st.none() | st.integers(1, 1000),
    skip=st.lists(st.sampled_from(["fc1", "h*", "block.0"])).map(tuple),
    lr=st.floats(1e-9, 10),
    epochs=st.integers(1, 10**6),
    augment=st.booleans(),
    tensorboard=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)


@given(configs)
def test_flags_say_every_config(config: TrainConfig) -> None:
    flags = as_flags(config)
    assert flags is not None
    line = shlex.join(["train", *flags, "--out", "x"])
    args = parser().parse_args(shlex.split(line))
    assert from_mapping(_given(args, TrainConfig), "flags") == config


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "a"
    words = [sys.executable, "-m", "sparsewright.cli", "train", *SMALL, "--epochs", "100000"]
    process = subprocess.Popen(
        [*words, "--out", str(out)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert shown == ""
    found = re.search(r"epoch (\d+) of 100000 is kept", errors)
    assert found
    assert f"sparsewright train --resume --out {out}" in errors
    assert "Traceback" not in errors
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert len(lines) - int(found[1]) in (0, 1)  # a line may wait for its checkpoint


# --- the other commands -------------------------------------------------------------------------


def test_prune_deploy_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = train_small(tmp_path / "dense")
    pruned = tmp_path / "pruned"
    assert run("prune", dense, "--pattern", "8:32", "--on-misfit", "error", "--out", pruned) == 0
    command = json.loads((pruned / "environment.json").read_text())["command"]
    assert command == (
        f"sparsewright prune {dense} --pattern 8:32 --on-misfit error --out {pruned}"
    )
    words = ["--batch", 5, "--threads", 1, "--seconds", 0.05]
    capsys.readouterr()
    assert run("deploy", pruned, *words) == 0
    shown = capsys.readouterr().out
    assert "outputs equal" in shown
    assert "eager" in shown
    deployed = json.loads((pruned / "deploy.json").read_text())
    assert list(deployed["batches"]) == ["5"]
    assert deployed["threads"] == 1
    assert (pruned / "model.safetensors").is_file()
    pytest.importorskip("plotly", reason="the report needs plotly")
    page = tmp_path / "page.html"
    assert run("report", dense, pruned, "--out", page) == 0
    assert str(page) in capsys.readouterr().out
    assert "8:32" in page.read_text(encoding="utf-8")
    assert run("deploy", pruned, *words, "--values", "int8") == 0
    assert "values in int8: outputs differ by up to" in capsys.readouterr().out.replace("\n", " ")
    deployed = json.loads((pruned / "deploy.json").read_text())
    assert (deployed["values"], deployed["outputs_equal"]) == ("int8", None)
    assert run("report", dense, pruned, "--out", page) == 0  # and claims no equality


def test_commands_on_something_that_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["deploy", tmp_path],
        ["prune", tmp_path, "--out", tmp_path / "b"],
        ["report", tmp_path],
    ):
        assert run(*words) == 2
        assert "config.json" in capsys.readouterr().err
    assert run("deploy", train_small(tmp_path / "a"), "--batch", 0) == 2
    assert "batch sizes must be 1 or more" in capsys.readouterr().err


def test_methods_lists_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    shown = capsys.readouterr().out
    for table in TABLES:
        for name, part in table.items():
            for word in getattr(part, "examples", None) or (name,):
                assert re.search(rf"(^|, ){re.escape(word)}(,| +\S)", shown, re.MULTILINE), word


def test_doctor_tells_of_kernels_and_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path))
    monkeypatch.delenv("SPARSEWRIGHT_DATA", raising=False)
    assert run("doctor") == 0
    shown = capsys.readouterr().out
    for word in ("torch", "avx2", "avx512", "csr.reference", "nm.portable", "onnxruntime"):
        assert re.search(rf"^{re.escape(word)} ", shown, re.MULTILINE), word
    assert re.search(r"^mnist +not here: sparsewright data mnist", shown, re.MULTILINE)
    assert re.search(r"^digits +inside scikit-learn", shown, re.MULTILINE)


def test_data_lists_and_says_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARSEWRIGHT_DATA", str(tmp_path))
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mnist").mkdir()
    for ways in DATA["mnist"].files:
        (tmp_path / "mnist" / ways[0]).touch()
    assert find("mnist")[0] == tmp_path / "mnist"
    assert run("data", "mnist") == 0
    assert capsys.readouterr().out == f"mnist: {tmp_path / 'mnist'}\n"
    assert run("data") == 0
    shown = capsys.readouterr().out
    assert "not here: sparsewright data cifar-10" in shown
    assert run("data", "digits") == 0
    assert "nothing to download" in capsys.readouterr().out


def test_reader_that_goes_away_leaves_no_traceback() -> None:
    line = f"{shlex.quote(sys.executable)} -m sparsewright.cli methods | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.returncode in (0, 1)  # 0 if `head` took all of it before it left
    assert done.stderr == ""
