"""Figures of a process of its own: a module that reads its task from standard input as one JSON
object and writes what it found to standard output as another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ..errors import StateError
from .bench_scaling import POOLS


def ask(
    module: str,
    task: Mapping[str, Any],
    threads: int,
    about: str,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `python -m sparsewright.lab.MODULE` finds, on so many threads; StateError, with its last
    words and what it was about, if it fails. environment: added to this process's."""
    command = [sys.executable, "-m", f"{__package__}.{module}"]
    done = subprocess.run(
        command,
        input=json.dumps(task),
        env={**os.environ, **dict.fromkeys(POOLS, str(threads)), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise StateError(f"{about}: {last}")
    return dict(json.loads(done.stdout))
