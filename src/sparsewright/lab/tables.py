"""What the command line prints: every part straight from its table, the data sets, a deployment."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Printed

from ..allocate import ALLOCATIONS
from ..errors import DataError
from ..kernels.table import KERNELS
from ..layouts import LAYOUTS
from ..measure.peers import PEERS
from ..methods import METHODS
from ..patterns import PATTERNS
from ..registry import Table
from ..schedules import SCHEDULES
from ..scores import SCORES
from ..solvers import SOLVERS
from .bench_models import MODELS as BENCH_MODELS
from .data import DATA, find
from .models import MODELS
from .part_pages import facts_of
from .recipe import OPTIMIZERS, STORAGES
from .train_ways import TRAIN_WAYS

TABLES: tuple[Table[Any], ...] = (
    METHODS,
    PATTERNS,
    SCORES,
    SOLVERS,
    ALLOCATIONS,
    SCHEDULES,
    LAYOUTS,
    KERNELS,
    MODELS,
    DATA,
    OPTIMIZERS,
    STORAGES,
    PEERS,
    BENCH_MODELS,
    TRAIN_WAYS,
)


def show(table: Printed | str) -> None:
    """Print a table; where the output is no terminal, as wide as its lines are."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table, soft_wrap=False)


def heading(kind: str) -> str:
    """The plural of a table's kind, as a title.

    >>> heading("data set"), heading("optimizer of the lab")
    ('data sets', 'optimizers of the lab')
    """
    first, *rest = kind.split(" of ")
    return " of ".join([f"{first}s", *rest])


def parts_tables() -> list[Printed]:
    """One table for every kind of part: its names, each with what it is."""
    return [_parts_table(table) for table in TABLES]


def _parts_table(table: Table[Any]) -> Printed:
    printed = _plain(heading(table.kind))
    printed.add_column("name", no_wrap=True, min_width=16)
    printed.add_column("what it is", overflow="fold")
    sources = {name: facts.source for name, part in table.items() if (facts := facts_of(part))}
    if sources:
        printed.add_column("source", overflow="fold")
    for name, part in table.items():
        examples = getattr(part, "examples", None)
        row = [", ".join(examples) if examples else name, describe(part)]
        printed.add_row(*row, *([sources.get(name, "")] if sources else []))
    return printed


def describe(part: Any) -> str:
    """The first paragraph of a part's own documentation: its `about`, or its docstring.

    >>> def one(): "The first. The rest."
    >>> describe(one)
    'The first. The rest.'
    """
    text = getattr(part, "about", None) or inspect.getdoc(part) or ""
    return " ".join(str(text).split("\n\n", 1)[0].split())


def data_table() -> Printed:
    """Every data set, and the folder in which it was found."""
    printed = _plain("data sets")
    for column in ("name", "what it is", "where"):
        printed.add_column(column, overflow="fold")
    for name, source in DATA.items():
        printed.add_row(name, source.about, where(name))
    return printed


def where(name: str) -> str:
    """The folder of a data set, or how to get it."""
    try:
        return str(find(name)[0] or "inside scikit-learn")
    except DataError:
        return f"not here: sparsewright data {name}"


def _agreement(found: Mapping[str, Any]) -> str:
    if found["outputs_equal"] is None:
        return f"values in {found['values']}: outputs differ by up to {found['max_error']:.1g}"
    equal = "equal" if found["outputs_equal"] else "DIFFER"
    return f"outputs {equal} within {found['tolerance']:g}"


def deployment_table(run: Path, found: Mapping[str, Any]) -> Printed:
    """Whole-model times of a deployed run beside every dense way, for each batch size."""
    sizes = found["bytes"]
    title = (
        f"{run}, threads: {found['threads']}; artifact (planned for batch "
        f"{next(iter(found['batches']))}): {sizes['artifact']:,} bytes "
        f"({sizes['dense_fp32']:,} dense), {_agreement(found)}"
    )
    printed = _plain(title)
    for column in ("batch", "way", "median ms", "10th to 90th percentile", "x best dense"):
        printed.add_column(column, justify="left" if column == "way" else "right", overflow="fold")
    for batch, measured in found["batches"].items():
        best = {row["way"]: row.get("median_ms") for row in measured["model"]}
        for row in measured["model"]:
            printed.add_row(batch, *_timed_row(row, best[measured["best_dense"]]))
    return printed


def kernels_line(batch: str, measured: Mapping[str, Any]) -> str:
    """Which kernel the plan for a batch gave each layer, with its gain over the best dense one."""
    rows = [
        f"{row['layer']} {row['kernel']}" + (f" {row['speedup']:.2f}x" if row["speedup"] else "")
        for row in measured["plan"]["layers"]
    ]
    return f"batch {batch}: {', '.join(rows)}"


def _timed_row(row: Mapping[str, Any], best_ms: float) -> tuple[str, str, str, str]:
    if "refused" in row:
        return row["way"], "", f"refused: {row['refused']}", ""
    median = row["median_ms"]
    spread = f"{row['low_ms']:.4f} to {row['high_ms']:.4f}"
    return row["way"], f"{median:.4f}", spread, f"{best_ms / median:.2f}"


def _plain(title: str) -> Printed:
    return Printed(
        title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
