"""The flags that several benches share, and how their words are read."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PYTHON = "SPARSEWRIGHT_DEEPSPARSE"
PAGE = Path("docs/performance.md")


def common_flags(add: Any, threads: Sequence[int] = (1, 0), default: str = "1 all") -> None:
    """Of the benches that run models: the zeros, the peers, the cells, the run."""
    zero_flags(add)
    add.add_argument("--peers", nargs="*", metavar="NAME", help="these peers only")
    cell_flags(add)
    add.add_argument("--compile", action="store_true", help="also time torch.compile")
    add.add_argument(
        "--deepsparse-python",
        default=os.environ.get(PYTHON),
        metavar="PATH",
        help=f"a Python that has DeepSparse (default: {PYTHON}); its figures are only printed",
    )
    add.add_argument("--part", action="store_true", help=argparse.SUPPRESS)  # of `bench scaling`
    run_flags(add, threads, default)


def zero_flags(add: Any) -> None:
    """Where the zeros are, and how many."""
    add.add_argument(
        "--pattern",
        nargs="+",
        default=["unstructured"],
        help="such as unstructured 3:32 2:4 fan_in block:16x1",
    )
    add.add_argument("--sparsity", nargs="+", type=sparsity, default=[0.9], metavar="S")


def plain_flags(add: Any) -> None:
    """Those of every bench, for one without peers; of all others, what they say if unasked."""
    unasked = {"peers": None, "only": (), "seconds": 0.0, "compile": True}
    known = {action.dest for action in add._actions}
    add.set_defaults(**{name: value for name, value in unasked.items() if name not in known})
    add.set_defaults(part=False, deepsparse_python=None)
    run_flags(add)


def cell_flags(add: Any) -> None:
    """Which cells, and for how long each."""
    add.add_argument("--only", nargs="+", default=(), metavar="TEXT", help="cells whose names hold")
    add.add_argument("--seconds", type=float, default=0.0, help="of timing for each cell, at least")


def run_flags(add: Any, threads: Sequence[int] = (1, 0), default: str = "1 all") -> None:
    """Of every bench: batches, rounds, threads, and where results go."""
    add.add_argument("--batch", nargs="+", type=positive, metavar="N", help="batch sizes")
    add.add_argument("--rounds", type=positive, help="of timing for each cell, at least")
    add.add_argument(
        "--threads",
        nargs="+",
        type=thread_count,
        default=threads,
        metavar="N",
        help=f"numbers of threads, or all (default: {default})",
    )
    add.add_argument("--out", type=Path, help="folder for the JSON file; none: it is not written")
    add.add_argument(
        "--docs",
        type=Path,
        nargs="?",
        const=PAGE,
        metavar="PAGE",
        help=f"also write the page, from all files in --out (default: {PAGE})",
    )


def thread_count(text: str) -> int:
    """A number of threads; 0 stands for all."""
    return 0 if text == "all" else positive(text)


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more; got {text!r}")
    return int(text)


def sparsity(text: str) -> float:
    """A number in [0, 1)."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a sparsity must be in [0, 1); got {text!r}")
    return value
