"""A run of the bench: cells one after another, printed as they come, kept in one JSON file.

Figures of peers that may not be published are printed and left out of the file.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..errors import ConfigError
from ..files import write_text
from ..kernels import kernel_info
from ..measure.environment import cores, environment
from ..measure.environment import threads as using_threads
from ..measure.peers import Case
from ..measure.roofline import Roofline, measure_roofline
from .bench_cell import LAYER_TOLERANCE, ROUNDS, Candidate, measure_cell, peers
from .bench_table import cell_lines, machine_line, roof_line, summary, took
from .tables import show

FORMAT, VERSION = "sparsewright bench", 1
PACKAGES = ("numpy", "onnxruntime", "openvino", "mkl", "scipy", "sparseprop")
FLAGS = re.compile(r"avx|fma|amx|f16c|bmi2|vnni|bf16|asimd|sve")


class Cell(Protocol):
    """One thing to measure, whatever the threads."""

    @property
    def name(self) -> str: ...
    @property
    def pattern(self) -> str: ...
    @property
    def sparsity(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def values(self) -> str:
        """How packed weights store theirs, by name: "fp32", "bf16", "int8"."""

    @property
    def unit(self) -> str:
        """What one example of a batch is, for rates: "rows", "images", "tokens"."""

    def misfit(self) -> str | None:
        """Why its weights cannot hold its pattern, or None."""

    def make(self) -> tuple[nn.Module, Tensor]:
        """The sparse model in eval mode, and its example."""


@dataclass(frozen=True)
class Settings:
    """How to measure. seconds: of timing for each cell, at least. threads: 0 means all cores."""

    threads: Sequence[int] = (1, 0)
    seconds: float = 0.0
    rounds: int = ROUNDS
    peers: Sequence[str] | None = None
    only: Sequence[str] = ()
    compiled: bool = False
    deepsparse: str | None = None
    tolerance: float = LAYER_TOLERANCE
    plan_seconds: float = 0.1  # that `deploy` may take for each layer
    command: str = ""  # what repeats the run

    def __post_init__(self) -> None:
        if self.seconds < 0 or self.rounds < 1:
            raise ConfigError(
                f"needs seconds >= 0 and rounds >= 1; got {self.seconds} and {self.rounds}"
            )
        for count in self.threads:
            if not 0 <= count <= cores():
                raise ConfigError(
                    f"threads must be in 1..{cores()}, the cores that this process may use, or "
                    f"all; got {count}"
                )


def run_bench(
    kind: str,
    cells: Iterable[Cell],
    ours: Callable[[Case, float], list[Candidate]],
    settings: Settings,
    out: Path | None,
) -> Path | None:
    """Measure all cells by every candidate, as `run_cells` does; returns the file's path."""
    others = peers(settings.peers)

    def measure(cell: Cell, roof: Roofline) -> dict[str, Any]:
        return _measure(cell, ours, others, roof, settings)

    return run_cells(kind, cells, measure, settings, out)[1]


def run_cells(
    kind: str,
    cells: Iterable[Any],
    measure: Callable[[Any, Roofline], dict[str, Any]],
    settings: Settings,
    out: Path | None,
) -> tuple[dict[str, Any], Path | None]:
    """Measure all cells, print them, and write a JSON file into `out`; returns data and path.

    cells: each with what `Cell` has, `make` aside. The file is written anew after every cell, so
    that a run that is stopped keeps what it has.
    """
    asked = chosen(cells, settings.only)
    data = begin(kind, settings.command)
    print(machine_line(data["environment"]))
    path, start = None, time.perf_counter()
    for count in dict.fromkeys(count or cores() for count in settings.threads):
        with using_threads(count):
            roof = measure_roofline()
            data["roofline"].append(roof.to_dict())
            print(roof_line(data["roofline"][-1]), flush=True)
            for cell in asked:
                names = ("pattern", "sparsity", "values", "unit")
                about = {"workload": cell.name, **{k: getattr(cell, k) for k in names}}
                found = {**about, **measure(cell, roof)}
                print("\n".join(cell_lines(found)), flush=True)
                data["cells"].append(found)
                path = keep(data, start, out)
    show(summary(data["cells"]))
    print(took(data["seconds"], len(data["cells"])))
    return data, path


def begin(kind: str, command: str) -> dict[str, Any]:
    """A file of the bench without any cell yet."""
    load = os.getloadavg()[0]
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "command": command,
        "environment": {**machine(), "load_start": load, "load_end": load},
        "roofline": [],
        "cells": [],
    }


def keep(data: dict[str, Any], start: float, out: Path | None) -> Path | None:
    """Note load and seconds so far, since `start`, and write the file if a folder is given."""
    data["environment"]["load_end"] = os.getloadavg()[0]
    data["seconds"] = time.perf_counter() - start
    return None if out is None else write(data, out)


def chosen(cells: Iterable[Any], only: Sequence[str] = ()) -> list[Any]:
    """The cells asked for that can be made; the others are named with their reasons."""
    asked = [cell for cell in cells if wanted(cell, only)]
    if not asked:
        raise ConfigError(f"--only {' '.join(only)} leaves no cell to measure")
    misfits = {cell: why for cell in asked if (why := cell.misfit()) is not None}
    over = (f"{cell.name}, {cell.pattern}, batch {cell.batch}: {w}" for cell, w in misfits.items())
    for line in dict.fromkeys(over):  # however many ways it would have kept its values
        print(f"passed over: {line}")
    fitting = [cell for cell in asked if cell not in misfits]
    if not fitting:
        raise ConfigError(f"no cell holds its pattern: {next(iter(misfits.values()))}")
    return fitting


def _measure(
    cell: Cell,
    ours: Callable[[Case, float], list[Candidate]],
    others: list[Candidate],
    roof: Roofline,
    settings: Settings,
) -> dict[str, Any]:
    model, example = cell.make()
    case = Case(
        model,
        example,
        compiled=settings.compiled,
        deepsparse=settings.deepsparse,
        values=cell.values,
    )
    return measure_cell(
        case,
        [*ours(case, settings.plan_seconds), *others],
        roof,
        tolerance=settings.tolerance,
        seconds=settings.seconds,
        rounds=settings.rounds,
    )


def wanted(cell: Any, only: Sequence[str]) -> bool:
    """Whether the cell's name and batch hold one of these texts, or there is none."""
    name = f"{cell.name} batch {cell.batch}"
    return not only or any(part in name for part in only)


def machine() -> dict[str, Any]:
    """What the figures were measured on, as JSON takes it."""
    return {
        **environment(),
        "cpu_flags": cpu_flags(),
        "kernels_isa": kernel_info().isa,
        "versions": {name: _version(name) for name in PACKAGES},
    }


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The processor's flags that numeric kernels care about, where Linux tells them."""
    if not cpuinfo.is_file():
        return []
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return sorted(flag for flag in (found[1].split() if found else []) if FLAGS.search(flag))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def publishable(data: dict[str, Any]) -> dict[str, Any]:
    """The same without the rows whose figures may only be printed."""
    kept = [
        {**cell, "rows": [row for row in cell["rows"] if not row.get("printed_only")]}
        for cell in data["cells"]
    ]
    return {**data, "cells": kept}


def write(data: dict[str, Any], folder: Path) -> Path:
    """Put what may be published into FOLDER/KIND-CPU-ISA.json, beside first and then renamed."""
    about = data["environment"]
    name = f"{data['kind']}-{about['cpu']}-{about['kernels_isa']}".lower()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", name).strip("-") + ".json")
    write_text(path, json.dumps(publishable(data), indent=1, allow_nan=False) + "\n")
    return path


def is_bench(path: Path) -> bool:
    """Whether a JSON file says that it is of the bench; ConfigError if it is no JSON."""
    data = _parsed(path)
    return isinstance(data, dict) and data.get("format") == FORMAT


def read(path: Path) -> dict[str, Any]:
    """A file of the bench; ConfigError, naming the file, if it is none."""
    data = _parsed(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(f"{path}: must be a file of `sparsewright bench`")
    if data.get("version") != VERSION:
        raise ConfigError(f"{path}: must have version {VERSION}; got {data.get('version')!r}")
    return data


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
