"""The page of figures, written from the files of earlier runs and from nothing else.

Why a cell is behind is what no command can measure: people write it down in a small JSON file
beside the page, and the page joins it to the cells that it names.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import write_text
from ..layouts import FP32
from . import bench_deploy, bench_speedup
from .bench_cell import DENSE, OURS, PEER, best, nearest
from .bench_run import is_bench, read
from .bench_table import duration, our_name, roof_line, times, title, zeros
from .bench_train_page import (
    FIGURES,
    STEP,
    figures,
    memory_lines,
    scale_lines,
    step_lines,
    targets,
)

NOTES_SUFFIX = "-notes.json"
UNEXPLAINED = "not yet explained"
Data = Mapping[str, Any]
Note = Mapping[str, str]

INTRODUCTION = """# Performance

Written by `sparsewright bench page --from benchmarks/results/*.json`: change the results or
[the reasons](performance-notes.json), not this page. [Benchmarks](benchmarks.md) says how to
measure your own machine and how to read the columns.
"""
STALE = "## Reasons that no cell has any more: remove them"
NONE_YET = "\nNo results are kept in this checkout yet.\n"
COLUMNS = (
    *("workload", "zeros", "batch", "best dense ms", "nearest sparse peer ms", "sparsewright ms"),
    *("transposed ms", "into ms", "x dense", "x peer", "floor ms", "of floor"),
)
SCALING = """Each number of threads was measured in processes of its own. A speed-up is the time of
a side's fastest way on one thread over that of its fastest way on so many."""
DEPLOYS = """Seconds that `deploy` takes in a new process, all that it imports included: the first
finds nothing timed and times every layer, those after it find what the first kept (median, fastest,
slowest, and seconds of all threads together); last, one more deploy in the same process."""
LOSSY = """Where the zeros name bf16 or int8, sparsewright's packed weights are rounded to that,
which loses something, and the floor is of that many bytes; dense ways and peers keep fp32."""
LEFT = 2  # columns of words; the others are figures


def write_page(files: Iterable[Path], page: Path) -> Path:
    """Write the page from bench files, and its plots beside it; other JSON files are passed over.

    ConfigError if a file cannot be read, or the notes beside the page are not in their form.
    """
    runs = [read(path) for path in sorted(set(files)) if is_bench(path)]
    folder = page.parent / FIGURES
    drawn = figures(runs)
    (folder if drawn else page.parent).mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        write_text(folder / name, svg)
    write_text(page, page_text(runs, read_notes(page.with_name(page.stem + NOTES_SUFFIX))))
    return page


def read_notes(path: Path) -> list[Note]:
    """The reasons: a list of {"cell": pattern of a cell's title, "reason": text}; none if no file.

    In a pattern * stands for any text. The first note whose pattern fits a cell that is behind is
    its reason; one that is the reason of no cell is stale, and the page says so.
    """
    if not path.exists():
        return []
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    for note in notes if isinstance(notes, list) else [notes]:
        fits = isinstance(note, dict) and set(note) == {"cell", "reason"}
        if not fits or not all(isinstance(text, str) for text in note.values()):
            raise ConfigError(f'{path}: must be a list of {{"cell", "reason"}} texts; got {note!r}')
    return notes


def page_text(runs: Sequence[Data], notes: Sequence[Note]) -> str:
    """The whole page as Markdown."""
    parts = [_run_text(run, notes) for run in runs] or [NONE_YET]
    old = stale(runs, notes)
    if old:
        parts += [f"\n{STALE}\n\n", *(f"- `{note['cell']}`: {note['reason']}\n" for note in old)]
    return INTRODUCTION + "".join(parts)


def stale(runs: Sequence[Data], notes: Sequence[Note]) -> list[Note]:
    """The reasons that no cell has: what they explain is no more, or an earlier one comes first."""
    cells = [cell for run in runs for cell in run["cells"] if "workload" in cell]
    titles = [title(cell) for cell in cells if behind(cell) is not None]
    used = {place for cell in titles if (place := _place(cell, notes)) is not None}
    return [note for place, note in enumerate(notes) if place not in used]


def _run_text(run: Data, notes: Sequence[Note]) -> str:
    about = run["environment"]
    heading, tables = KINDS.get(run["kind"], (run["kind"], _tables))
    lines = [f"\n## {heading} on {about['cpu']} ({about['kernels_isa']})", "", *_machine_lines(run)]
    return "\n".join([*lines, *tables(run, heading, notes)]) + "\n"


def _tables(run: Data, heading: str, notes: Sequence[Note]) -> list[str]:
    """A table for every number of threads."""
    lines: list[str] = []
    for threads in dict.fromkeys(cell["threads"] for cell in run["cells"]):
        cells = [cell for cell in run["cells"] if cell["threads"] == threads]
        lines += ["", f"### {heading}, {threads} thread{'s' if threads > 1 else ''}", ""]
        lines += _table(COLUMNS, map(_cell_row, cells))
        lossy = any(cell.get("values", FP32) != FP32 for cell in cells)
        lines += ["", *([LOSSY, ""] if lossy else []), *_behind_lines(cells, notes)]
    return lines


def _scaling_table(run: Data, heading: str, notes: Sequence[Note]) -> list[str]:
    """One table, the numbers of threads below each other."""
    table = _table(bench_speedup.COLUMNS, bench_speedup.speedup_rows(run["cells"], published=True))
    return ["", SCALING, "", *table, "", *_behind_lines(run["cells"], notes)]


def _training(run: Data, heading: str, notes: Sequence[Note]) -> list[str]:
    return ["", STEP, *_tables(run, heading, notes), *step_lines(run)]


def _memory(run: Data, heading: str, notes: Sequence[Note]) -> list[str]:
    return memory_lines(run, _table)


def _deploys(run: Data, heading: str, notes: Sequence[Note]) -> list[str]:
    rows = bench_deploy.deploy_rows(run["cells"])
    table = _table(bench_deploy.COLUMNS, rows, bench_deploy.LEFT)
    return ["", DEPLOYS, "", *table, *targets(bench_deploy.target_lines(run["cells"]))]


def _scale(run: Data, heading: str, notes: Sequence[Note]) -> list[str]:
    return scale_lines(run, _table)


KINDS = {"layer": ("Layers", _tables), "model": ("Models", _tables)}
KINDS |= {"deploy": ("Deploying", _deploys)}
KINDS |= {"scaling": ("Threads", _scaling_table), "train": ("Training", _training)}
KINDS |= {"memory": ("Memory of training", _memory), "scale": ("Training at scale", _scale)}
"""Kind of a run -> its heading, and what writes its tables."""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = LEFT) -> list[str]:
    ruler = ["---"] * left + ["--:"] * (len(columns) - left)
    return [_row(columns), _row(ruler), *map(_row, rows)]


def _machine_lines(run: Data) -> list[str]:
    about = run["environment"]
    took = f", in {duration(run['seconds'])}" if "seconds" in run else ""
    versions = {k: v for k, v in about["versions"].items() if v}
    versions = {"sparsewright": about["sparsewright"], "torch": about["torch"], **versions}
    return [
        f"- Command: `{run['command']}`{took}",
        f"- Commit: {about['commit'] or 'none'}; Python {about['python']}; {about['platform']}",
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"- Cores: {about['cores']}; instruction set of torch: {about['isa']}; "
        f"load average {about['load_start']:.2f} at the start, {about['load_end']:.2f} at the end",
        *(f"- {roof_line(roof)}" for roof in run["roofline"]),
    ]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell_row(cell: Data) -> list[str]:
    rows = cell["rows"]
    dense, ours = (best(rows, side, published=True) for side in (DENSE, OURS))
    peer, beside = nearest(rows, PEER, published=True)
    return [
        cell["workload"],
        zeros(cell),
        str(cell["batch"]),
        *(_best(row) for row in (dense, peer, ours)),
        _best(best(rows, OURS, published=True, transposed=True)),
        _best(best(rows, OURS, published=True, transposed=None, into=True)),
        times(dense, ours),
        times(peer, beside),
        f"{cell['floor_ms']:.4g}",
        f"{ours['of_floor']:.0%}" if ours else "-",
    ]


def _best(row: Data | None) -> str:
    if row is None:
        return "none"
    return f"{row['median_ms']:.4g} {our_name(row)}"


def behind(cell: Data) -> str | None:
    """By how much another way was faster than ours, like against like; None where none was."""
    other, ours = nearest(cell["rows"], DENSE, PEER, published=True)
    if other is None or (ours is not None and ours["median_ms"] <= other["median_ms"]):
        return None
    if ours is None:
        return "nothing of ours served"
    return f"{ours['median_ms'] / other['median_ms']:.2f}x the time of {other['name']}"


def _behind_lines(cells: Sequence[Data], notes: Sequence[Note]) -> list[str]:
    """The cells where another way was faster: by how much, and why."""
    lines = [
        f"- {title(cell)}: {by}; {reason(title(cell), notes)}"
        for cell in cells
        if (by := behind(cell)) is not None
    ]
    if not lines:
        return ["No cell is behind its best peer."]
    return [f"Behind the best peer in {len(lines)} of {len(cells)} cells:", "", *lines]


def reason(cell: str, notes: Sequence[Note]) -> str:
    """Of the first note whose pattern fits a cell's title.

    >>> reason("linear 8x8, batch 1", [{"cell": "linear *", "reason": "too small"}])
    'too small'
    """
    place = _place(cell, notes)
    return UNEXPLAINED if place is None else notes[place]["reason"]


def _place(cell: str, notes: Sequence[Note]) -> int | None:
    fitting = (p for p, note in enumerate(notes) if fnmatch.fnmatchcase(cell, note["cell"]))
    return next(fitting, None)
