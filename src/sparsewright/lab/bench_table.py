"""What the bench prints: every row of a cell as it comes, and one line per cell at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table as Printed

from ..layouts import FP32
from .bench_cell import DENSE, OURS, PEER, best, nearest

TRANSPOSED, INTO = " transposed", " into"
"""End the name of a way of ours: its activations lie feature by feature, it writes where it is
told."""


def machine_line(about: Mapping[str, Any]) -> str:
    """What the figures are measured on."""
    return (
        f"{about['cpu']}, {about['cores']} cores, kernels {about['kernels_isa']}, "
        f"torch {about['torch']}, sparsewright {about['sparsewright']} "
        f"({(about['commit'] or 'no commit')[:12]}), load average {about['load_start']:.2f}"
    )


def roof_line(roof: Mapping[str, Any]) -> str:
    """What the machine reaches with so many threads."""
    reads = ", ".join(f"{_size(size)} {rate / 1e9:.0f}" for size, rate in roof["reads"])
    threads = f"{roof['threads']} thread{'s' if roof['threads'] > 1 else ''}"
    return (
        f"Limits, {threads} ({roof['how']}): {roof['flops'] / 1e9:.0f} GFLOPS; "
        f"GB/s of reading a block of {reads}"
    )


def _size(size: int) -> str:
    """
    >>> _size(2**15), _size(2**23)
    ('32 KiB', '8 MiB')
    """
    return f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size / 2**10:g} KiB"


def cell_lines(cell: Mapping[str, Any]) -> list[str]:
    """A cell and all its rows: median, 10th and 90th percentile, error; or why there is none."""
    lines = [
        f"{title(cell)}: at least {1e3 * cell['floor_ms']:.1f} us "
        f"({cell['bytes']:,} bytes, {cell['flop'] / 1e6:,.1f} Mflop)"
    ]
    lines += [
        f"  {row['name']:25} {_row(row, cell['unit'])}"
        for row in cell["rows"]
        if "refused" not in row
    ]
    refused: dict[str, list[str]] = {}
    for row in cell["rows"]:
        if "refused" in row:
            refused.setdefault(row["refused"], []).append(row["name"])
    lines += [f"  refused: {', '.join(names)}: {reason}" for reason, names in refused.items()]
    return lines


def _row(row: Mapping[str, Any], unit: str) -> str:
    if "failed" in row:
        return f"FAILED: {row['failed']}"
    low, median, high = (1e3 * row[f"{k}_ms"] for k in ("low", "median", "high"))
    note = f"  ({row['note']})" if "note" in row else ""
    return (
        f"{median:10.1f} us [{low:.1f} - {high:.1f}], {row['per_second']:,.0f} {unit}/s, "
        f"{row['of_floor']:.0%} of the floor's speed, error {row['error']:.1e}{note}"
    )


def title(cell: Mapping[str, Any]) -> str:
    """
    >>> title({"workload": "linear 8x8", "batch": 1, "threads": 2, "sparsity": 0.9,
    ...     "pattern": "unstructured"})
    'linear 8x8, unstructured 90 %, batch 1, 2 threads'
    """
    threads = f"{cell['threads']} thread{'s' if cell['threads'] > 1 else ''}"
    return f"{cell['workload']}, {zeros(cell)}, batch {cell['batch']}, {threads}"


def zeros(cell: Mapping[str, Any]) -> str:
    """The pattern and the sparsity in percent, and how values are kept where it is not as fp32.

    Cells of files that are older than the choice keep theirs so.

    >>> zeros({"pattern": "3:32", "sparsity": 0.90625, "values": "bf16"})
    '3:32 90.62 % bf16'
    """
    values = cell.get("values", FP32)
    kept = "" if values == FP32 else f" {values}"
    return f"{cell['pattern']} {100 * cell['sparsity']:.4g} %{kept}"


def summary(cells: Sequence[Mapping[str, Any]]) -> Printed:
    """One line for every cell: the best of each side, and how far from the floor."""
    heading = "median microseconds; x: how many times faster sparsewright is than the best of each"
    columns = (
        *("workload", "zeros", "threads", "batch", "best dense", "nearest sparse peer"),
        *("sparsewright", "transposed", "into", "x dense", "x peer", "floor", "of floor"),
    )
    return printed_table(heading, columns, map(_summary_row, cells), words=8)


def printed_table(
    heading: str, columns: Iterable[str], rows: Iterable[Sequence[str]], words: int
) -> Printed:
    """A table for the terminal; the first so many columns hold words, the others figures."""
    printed = Printed(
        title=heading, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for place, column in enumerate(columns):
        printed.add_column(column, overflow="fold", justify="left" if place < words else "right")
    for row in rows:
        printed.add_row(*row)
    return printed


def took(seconds: float, cells: int) -> str:
    """How long a run took.

    >>> took(754.2, 20)
    'took 12 min 34 s: 20 cells'
    """
    return f"took {duration(seconds)}: {cells} cell{'s' if cells != 1 else ''}"


def duration(seconds: float) -> str:
    """
    >>> duration(59.7), duration(61)
    ('60 s', '1 min 1 s')
    """
    minutes, rest = divmod(round(seconds), 60) if seconds >= 60 else (0, round(seconds))
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _summary_row(cell: Mapping[str, Any]) -> list[str]:
    dense, ours = (best(cell["rows"], side) for side in (DENSE, OURS))
    peer, beside = nearest(cell["rows"], PEER)
    return [
        str(cell["workload"]),
        zeros(cell),
        str(cell["threads"]),
        str(cell["batch"]),
        *(_best(row) for row in (dense, peer, ours)),
        _best(best(cell["rows"], OURS, transposed=True)),
        _best(best(cell["rows"], OURS, transposed=None, into=True)),
        times(dense, ours),
        times(peer, beside),
        f"{1e3 * cell['floor_ms']:.1f}",
        f"{ours['of_floor']:.0%}" if ours else "-",
    ]


def _best(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "none"
    return f"{1e3 * row['median_ms']:.1f} {our_name(row)}"


def our_name(row: Mapping[str, Any]) -> str:
    """
    >>> our_name({"name": "sparsewright csr.avx2 transposed into"})
    'csr.avx2'
    """
    name = str(row["name"]).removeprefix("sparsewright ")
    return name.removesuffix(INTO).removesuffix(TRANSPOSED)


def times(other: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> str:
    """How many times faster ours is."""
    if other is None or ours is None:
        return "-"
    return f"{other['median_ms'] / ours['median_ms']:.2f}"
