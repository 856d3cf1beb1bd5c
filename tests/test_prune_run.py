"""`sparsewright prune` with scores that look at training data, in rounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsewright.cli import main
from sparsewright.errors import ConfigError
from sparsewright.lab.config import PruneConfig, as_flags
from sparsewright.lab.prune_run import calibration_batches
from sparsewright.lab.trained import read_trained


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dense"
    words = ["--data", "digits", "--widths", "64-24-10", "--epochs", 1, "--threads", 1]
    assert run("train", *words, "--no-tensorboard", "--out", out) == 0
    return out


def test_measured_scores_take_the_runs_training_images(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "synflow"
    words = ["--score", "synflow", "--allocate", "global", "--rounds", 5, "--batches", 2]
    assert run("prune", dense, "--sparsity", 0.75, *words, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    total = 64 * 24 + 24 * 10
    assert summary["sparsity"] == 0.75
    assert sum(row["present"] for row in summary["rows"]) == total // 4
    command = json.loads((out / "environment.json").read_text())["command"]
    assert "--score synflow --allocate global --rounds 5 --batches 2" in command


@pytest.mark.parametrize("words", [["--allocate", "owl"], ["--score", "gradient"], []])
def test_data_goes_to_what_looks_at_it(words: list[str], dense: Path, tmp_path: Path) -> None:
    assert run("prune", dense, "--sparsity", 0.5, *words, "--out", tmp_path / "out") == 0


def test_batches_are_of_the_training_images_and_always_the_same(dense: Path) -> None:
    source = read_trained(dense)
    batches = calibration_batches(source, 2)
    assert [len(labels) for _, labels in batches] == [128, 128]
    again = calibration_batches(source, 1)
    assert bool((again[0][0] == batches[0][0]).all())
    most = sum(len(labels) for _, labels in calibration_batches(source, 1000))
    assert most == len(source.data.train[1])


def test_numbers_are_checked() -> None:
    with pytest.raises(ConfigError, match="rounds must be 1 or more; got 0"):
        PruneConfig(rounds=0)
    with pytest.raises(ConfigError, match="batches must be 1 or more; got 0"):
        PruneConfig(batches=0)
    assert as_flags(PruneConfig(score="snip", rounds=2)) == ["--score", "snip", "--rounds", "2"]
