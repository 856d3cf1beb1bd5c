"""Data-parallel runs over gloo: every replica moves the same weights, as one process would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from replica import CASES

SCRIPT = Path(__file__).with_name("replica.py")
Said = list[dict[str, Any]]
"""Of every process, by rank: case -> how it ended."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Said]:
    """The same cases with one, two and four processes, which run side by side."""
    return {n: started(tmp_path_factory.mktemp("store") / "file", n) for n in (1, 2, 4)}


def started(store: Path, processes: int) -> Said:
    command = [sys.executable, "-W", "error", str(SCRIPT)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [
        subprocess.Popen([*command, str(rank), str(store), str(processes)], **pipes)
        for rank in range(processes)
    ]
    done = [rank.communicate(timeout=180) for rank in ranks]
    for rank, (_, errors) in zip(ranks, done, strict=True):
        assert rank.returncode == 0, errors[-3000:]
    return [json.loads(text.splitlines()[-1]) for text, _ in done]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_replicas_move_the_weights_that_one_process_would(runs, case, processes):
    alone, together = runs[1][0][case], [replica[case] for replica in runs[processes]]
    assert all(replica == together[0] for replica in together), "equal to the bit"
    assert together[0]["places"] == alone["places"]
    assert together[0]["moved"] == alone["moved"] > 0
    # the mean over the batch is summed in another order, in a few steps
    assert together[0]["sum"] == pytest.approx(alone["sum"], rel=1e-4)


def test_neurons_are_ablated_alike(runs):
    """The last layer is spared; of the first some go, whose budget others share."""
    for processes in (1, 2, 4):
        assert all(
            0 < replica["masked ablating told"]["ablated"] < 48 for replica in runs[processes]
        )


def test_masked_weights_may_be_wrapped_first(runs):
    for replica in runs[2]:
        assert replica["masked rigl wrapped"] == replica["masked rigl told"]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("packed rigl untold", "must be averaged over the 2 processes of this run"),
        ("packed rigl wrapped", "attach first, with process_group, and wrap the model afterwards"),
        ("packed seeded told", "process 1 holds the weight at other places than process 0"),
        ("packed gradual told", "a method that keeps the number of weights"),
        ("packed ablating told", "layer '0': its packed weight would go from"),
    ],
)
def test_what_cannot_work_says_so(runs, case, reason):
    assert all(reason in replica[case]["error"] for replica in runs[2])
