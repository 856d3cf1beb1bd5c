"""The words of `sparsewright bench`: its subcommands and flags, each calling its own part."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

PYTHON = "SPARSEWRIGHT_DEEPSPARSE"


def add_bench(commands: Any, command: Callable[..., Any]) -> None:
    """Put `bench layer` under `commands`, made by `command`."""
    bench = commands.add_parser("bench", help="measure against every other way on this CPU")
    parts = bench.add_subparsers(metavar="WHAT", required=True)
    add = command(
        parts,
        "layer",
        run_layer,
        "time sparse layers beside every dense and sparse peer",
        "  sparsewright bench layer\n"
        "  sparsewright bench layer --shape 768x3072 --sparsity 0.8 0.9 --batch 1 64 --threads 1",
    )
    add.add_argument(
        "--shape",
        nargs="+",
        metavar="SHAPE",
        help="OUTxIN for a Linear, OUTxINxFILTER@IMAGE for a convolution",
    )
    add.add_argument(
        "--pattern", nargs="+", default=["unstructured"], help="such as unstructured 3:32 2:4"
    )
    _common(add)


def _common(add: Any) -> None:
    add.add_argument("--sparsity", nargs="+", type=_sparsity, default=[0.9], metavar="S")
    add.add_argument("--batch", nargs="+", type=_positive, metavar="N", help="batch sizes")
    add.add_argument(
        "--threads",
        nargs="+",
        type=_threads,
        default=[1, 0],
        metavar="N",
        help="numbers of threads, or all (default: 1 all)",
    )
    add.add_argument("--only", nargs="+", default=(), metavar="TEXT", help="cells whose names hold")
    add.add_argument("--peers", nargs="*", metavar="NAME", help="these peers only")
    add.add_argument("--seconds", type=float, default=0.0, help="of timing for each cell, at least")
    add.add_argument("--rounds", type=_positive, help="of timing for each cell, at least")
    add.add_argument("--compile", action="store_true", help="also time torch.compile")
    add.add_argument(
        "--deepsparse-python",
        default=os.environ.get(PYTHON),
        metavar="PATH",
        help=f"a Python that has DeepSparse (default: {PYTHON}); its figures are only printed",
    )
    add.add_argument("--out", type=Path, help="folder for the JSON file; none: it is not written")


def _threads(text: str) -> int:
    return 0 if text == "all" else _positive(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more; got {text!r}")
    return int(text)


def _sparsity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a sparsity must be in [0, 1); got {text!r}")
    return value


def run_layer(args: argparse.Namespace) -> None:
    from .bench_layer import SHAPES, candidates, layer_cells
    from .bench_run import run_bench

    cells = layer_cells(args.shape or SHAPES, args.pattern, args.sparsity, args.batch)
    _written(run_bench("layer", cells, candidates, _settings(args), args.out))


def _settings(args: argparse.Namespace, **more: Any) -> Any:
    from .bench_run import Settings

    if args.rounds is not None:
        more["rounds"] = args.rounds
    return Settings(
        threads=args.threads,
        seconds=args.seconds,
        peers=args.peers,
        only=args.only,
        compiled=args.compile,
        deepsparse=args.deepsparse_python,
        **more,
    )


def _written(path: Path | None) -> None:
    if path is not None:
        print(f"written: {path}")
