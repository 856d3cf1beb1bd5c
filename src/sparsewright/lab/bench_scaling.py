"""`sparsewright bench scaling`: the same layers and models at every number of threads.

A library's pool keeps the threads that it was started with, so each number is measured by
`bench layer` and `bench model` in processes of their own, which are told the number before any
pool starts.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StateError
from ..measure.environment import cores
from .bench_layer import layer_cells
from .bench_model import model_cells
from .bench_run import Cell, read, wanted, write
from .bench_speedup import COLUMNS, speedup_rows
from .bench_table import printed_table, took
from .tables import show

SHAPES = ("768x3072", "4096x4096", "128x128x3@28")
MODELS = ("mlp", "resnet50")
BATCHES = {"layer": (1, 64), "model": (1,)}
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What the pools of torch, MKL and numpy read when they start; the others are told by torch's."""


def thread_counts(asked: Iterable[int], most: int | None = None) -> list[int]:
    """The numbers of threads to measure, ascending; 0 stands for all cores.

    By default 1 to 4, then twice as many each, and all. ConfigError if 1 is not among them, for
    speed-ups are over one thread. most: the cores that there are.

    >>> thread_counts([], most=24)
    [1, 2, 3, 4, 8, 16, 24]
    """
    most = cores() if most is None else most
    counts = {count or most for count in asked}
    if not counts:
        doubled = (2**power for power in range(3, most.bit_length()))
        counts = {most, *(count for count in (1, 2, 3, 4, *doubled) if count <= most)}
    if 1 not in counts:
        given = " ".join(map(str, sorted(counts)))
        raise ConfigError(f"speed-ups are over one thread: --threads must hold 1; got {given}")
    return sorted(counts)


def scaling_parts(
    shapes: Sequence[str],
    models: Sequence[str],
    patterns: Sequence[str],
    sparsities: Sequence[float],
    batches: Sequence[int] | None,
    only: Sequence[str],
) -> dict[str, list[str]]:
    """What to ask `bench layer` and `bench model` for: "layer" or "model" -> words.

    A part that has no cell is left out; ConfigError if none is left.
    """
    sizes = {kind: batches or default for kind, default in BATCHES.items()}
    cells: dict[str, list[Cell]] = {
        "layer": [*layer_cells(shapes, patterns, sparsities, sizes["layer"])],
        "model": [*model_cells(patterns, sparsities, sizes["model"], models)],
    }
    chosen = {"layer": ["--shape", *shapes], "model": ["--model", *models]}
    zeros = ["--pattern", *patterns, "--sparsity", *map(str, sparsities)]
    parts = {
        kind: [*chosen[kind], *zeros, "--batch", *map(str, sizes[kind])]
        for kind, some in cells.items()
        if any(wanted(cell, only) and cell.misfit() is None for cell in some)
    }
    if not parts:
        raise ConfigError("--shape, --model, --only and --pattern leave no cell to measure")
    return parts


def run_scaling(
    parts: Mapping[str, Sequence[str]],
    counts: Sequence[int],
    words: Sequence[str],
    command: str,
    out: Path | None,
) -> Path | None:
    """Measure all parts at all numbers of threads, print the speed-ups, write one JSON file.

    words: further flags of both parts. command: what repeats the run. Returns the file's path; it
    is written anew after every process. StateError if one of them fails, which says why itself.
    """
    data: dict[str, Any] = {}
    path, start = None, time.perf_counter()
    for count in counts:
        for kind, cells in parts.items():
            asked = ["bench", kind, *cells, *words, "--threads", str(count)]
            found = _measured(asked, count)
            if not data:
                data = {**found, "kind": "scaling", "command": command, "roofline": [], "cells": []}
            data["environment"]["load_end"] = found["environment"]["load_end"]
            if count not in [roof["threads"] for roof in data["roofline"]]:
                data["roofline"] += found["roofline"]
            data["cells"] += found["cells"]
            data["seconds"] = time.perf_counter() - start
            path = None if out is None else write(data, out)
    heading = "median milliseconds; speed-up: how many times faster than on one thread"
    show(printed_table(heading, COLUMNS, speedup_rows(data["cells"]), words=2))
    print(took(data["seconds"], len(data["cells"])))
    return path


def _measured(words: Sequence[str], count: int) -> dict[str, Any]:
    """What a run of the bench in a process of its own wrote; it prints as it goes."""
    with tempfile.TemporaryDirectory() as folder:
        run_child([*words, "--part", "--out", folder], count)
        (path,) = Path(folder).glob("*.json")
        return read(path)


def run_child(words: Sequence[str], count: int) -> None:
    """`sparsewright` with these words and so many threads; StateError if it fails."""
    sys.stdout.flush()
    environment = {**os.environ, **dict.fromkeys(POOLS, str(count))}
    command = [sys.executable, "-m", "sparsewright", *words]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise StateError(
            f"`sparsewright {shlex.join(words)}` must end with status 0; got {done.returncode} "
            "(its own words stand above)"
        )
