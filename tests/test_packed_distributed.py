"""Packed models train over several processes: every rank ends alike, and as one process would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import packed_ranks
import pytest
import torch

SCRIPT = Path(packed_ranks.__file__)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "ways"), [(2, ["ddp", "fsdp"]), (4, ["ddp"])])
def test_ranks_train_as_one_process_does(world: int, ways: list[str], tmp_path: Path) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch was built without gloo")
    meeting, out = tmp_path / "meeting", tmp_path / "out.pt"
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(world), meeting, out, *ways],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(errors)
    got = torch.load(out, weights_only=True)
    alone = packed_ranks.model()
    losses = torch.stack(packed_ranks.train(alone))
    for way in ways:
        for name, tensor in {"losses": losses, **alone.state_dict()}.items():
            # float64: only the order of sums differs
            assert torch.allclose(got[way][name], tensor, rtol=1e-9, atol=1e-12), (way, name)
