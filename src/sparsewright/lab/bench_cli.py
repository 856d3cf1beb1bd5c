"""The words of `sparsewright bench`: its subcommands and flags, each calling its own part."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError

PYTHON = "SPARSEWRIGHT_DEEPSPARSE"
PAGE = Path("docs/performance.md")


def add_bench(commands: Any, command: Callable[..., Any]) -> None:
    """Put `bench layer`, `bench model` and `bench page` under `commands`, made by `command`."""
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
    _common(add)
    add = command(
        parts,
        "model",
        run_model,
        "time whole sparse models beside every dense and sparse peer",
        "  sparsewright bench model\n  sparsewright bench model --only resnet50 --batch 16",
    )
    _common(add)
    add = command(
        parts,
        "page",
        run_page,
        "write the page of figures from the files of earlier runs",
        "  sparsewright bench page --from benchmarks/results/*.json",
    )
    add.add_argument("--from", dest="files", nargs="+", type=Path, required=True, metavar="FILE")
    add.add_argument("--to", type=Path, default=PAGE, help=f"the page (default: {PAGE})")


def _common(add: Any) -> None:
    add.add_argument(
        "--pattern", nargs="+", default=["unstructured"], help="such as unstructured 3:32 2:4"
    )
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
    add.add_argument(
        "--docs",
        type=Path,
        nargs="?",
        const=PAGE,
        metavar="PAGE",
        help=f"also write the page, from all files in --out (default: {PAGE})",
    )


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
    _written(args, run_bench("layer", cells, candidates, _settings(args), args.out))


def run_model(args: argparse.Namespace) -> None:
    from .bench_cell import MODEL_TOLERANCE
    from .bench_model import candidates, model_cells
    from .bench_run import run_bench

    cells = model_cells(args.pattern, args.sparsity, args.batch)
    settings = _settings(args, tolerance=MODEL_TOLERANCE)
    _written(args, run_bench("model", cells, candidates, settings, args.out))


def run_page(args: argparse.Namespace) -> None:
    from .bench_page import write_page

    print(f"written: {write_page(args.files, args.to)}")


def _settings(args: argparse.Namespace, **more: Any) -> Any:
    from .bench_run import Settings

    if args.docs is not None and args.out is None:
        raise ConfigError("--docs writes the page from the files in --out: give --out FOLDER")
    if args.rounds is not None:
        more["rounds"] = args.rounds
    return Settings(
        threads=args.threads,
        seconds=args.seconds,
        peers=args.peers,
        only=args.only,
        compiled=args.compile,
        deepsparse=args.deepsparse_python,
        command=command_line(args, sys.argv[1:]),
        **more,
    )


def command_line(args: argparse.Namespace, words: list[str]) -> str:
    """The command that repeats a run, without the place of a Python that only this machine has.

    >>> asked = argparse.Namespace(deepsparse_python="/there")
    >>> command_line(asked, ["bench", "layer", "--deepsparse-python", "/there"])
    'sparsewright bench layer'
    """
    private = ("--deepsparse-python", args.deepsparse_python)
    kept = [word for word in words if not word.startswith(private[0]) and word != private[1]]
    return shlex.join(["sparsewright", *kept])


def _written(args: argparse.Namespace, path: Path | None) -> None:
    if path is None:
        return
    print(f"written: {path}")
    if args.docs is not None:
        from .bench_page import write_page

        print(f"written: {write_page(sorted(args.out.glob('*.json')), args.docs)}")
