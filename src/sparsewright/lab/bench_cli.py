"""The words of `sparsewright bench`: its subcommands and flags, each calling its own part."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..layouts import FP32, VALUES

PYTHON = "SPARSEWRIGHT_DEEPSPARSE"
PAGE = Path("docs/performance.md")


def add_bench(commands: Any, command: Callable[..., Any]) -> None:
    """Put `bench layer`, `model`, `scaling` and `page` under `commands`, made by `command`."""
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
    _shapes(add, "+", "five shapes")
    _values(add)
    _common(add)
    add = command(
        parts,
        "model",
        run_model,
        "time whole sparse models beside every dense and sparse peer",
        "  sparsewright bench model\n  sparsewright bench model --only resnet50 --batch 16",
    )
    _models(add, None)
    _values(add)
    _common(add)
    add = command(
        parts,
        "scaling",
        run_scaling,
        "time layers and models on one thread, two, ... all, beside the same peers",
        "  sparsewright bench scaling\n"
        "  sparsewright bench scaling --shape 4096x4096 --model --batch 1 16 --threads 1 2 all",
    )
    _shapes(add, "*", "three shapes; none after the flag: no layer")
    _models(add, "mlp resnet50; none after the flag: no model")
    _common(add, threads=(), default="1 2 3 4, then doubled, all")
    add = command(
        parts,
        "page",
        run_page,
        "write the page of figures from the files of earlier runs",
        "  sparsewright bench page --from benchmarks/results/*.json",
    )
    add.add_argument("--from", dest="files", nargs="+", type=Path, required=True, metavar="FILE")
    add.add_argument("--to", type=Path, default=PAGE, help=f"the page (default: {PAGE})")


def _shapes(add: Any, nargs: str, default: str) -> None:
    add.add_argument(
        "--shape",
        nargs=nargs,
        metavar="SHAPE",
        help=f"OUTxIN for a Linear, OUTxINxFILTER@IMAGE for a convolution (default: {default})",
    )


def _models(add: Any, default: str | None) -> None:
    add.add_argument(
        "--model",
        nargs="*" if default else "+",
        metavar="NAME",
        help=f"models of the bench (default: {default or 'all'})",
    )


def _values(add: Any) -> None:
    add.add_argument(
        "--values",
        nargs="+",
        choices=VALUES.names(),
        default=[FP32],
        help="how ours store packed weights, which all but fp32 (default) round; peers keep fp32",
    )


def _common(add: Any, threads: Sequence[int] = (1, 0), default: str = "1 all") -> None:
    add.add_argument(
        "--pattern",
        nargs="+",
        default=["unstructured"],
        help="such as unstructured 3:32 2:4 fan_in block:16x1",
    )
    add.add_argument("--sparsity", nargs="+", type=_sparsity, default=[0.9], metavar="S")
    add.add_argument("--batch", nargs="+", type=_positive, metavar="N", help="batch sizes")
    add.add_argument(
        "--threads",
        nargs="+",
        type=_threads,
        default=threads,
        metavar="N",
        help=f"numbers of threads, or all (default: {default})",
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
    add.add_argument("--part", action="store_true", help=argparse.SUPPRESS)  # of `bench scaling`
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

    shapes = args.shape or SHAPES
    cells = layer_cells(shapes, args.pattern, args.sparsity, args.batch, args.values)
    _written(args, run_bench("layer", cells, candidates, _settings(args), args.out))


def run_model(args: argparse.Namespace) -> None:
    from .bench_cell import MODEL_TOLERANCE
    from .bench_model import candidates, model_cells
    from .bench_run import run_bench

    cells = model_cells(args.pattern, args.sparsity, args.batch, args.model, args.values)
    settings = _settings(args, tolerance=MODEL_TOLERANCE)
    _written(args, run_bench("model", cells, candidates, settings, args.out))


def run_scaling(args: argparse.Namespace) -> None:
    from . import bench_scaling as scaling

    settings = _settings(args)
    shapes = scaling.SHAPES if args.shape is None else args.shape
    models = scaling.MODELS if args.model is None else args.model
    parts = scaling.scaling_parts(
        shapes, models, args.pattern, args.sparsity, args.batch, args.only
    )
    counts = scaling.thread_counts(args.threads)
    words = _passed_on(args)
    _written(args, scaling.run_scaling(parts, counts, words, settings.command, args.out))


def _passed_on(args: argparse.Namespace) -> list[str]:
    """What `bench scaling` hands to the processes that measure, threads and cells aside."""
    words = ["--seconds", str(args.seconds)]
    words += ["--only", *args.only] if args.only else []
    words += ["--peers", *args.peers] if args.peers is not None else []
    words += ["--rounds", str(args.rounds)] if args.rounds is not None else []
    words += ["--compile"] if args.compile else []
    words += ["--deepsparse-python", args.deepsparse_python] if args.deepsparse_python else []
    return words


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
    if path is None or args.part:
        return
    print(f"written: {path}")
    if args.docs is not None:
        from .bench_page import write_page

        print(f"written: {write_page(sorted(args.out.glob('*.json')), args.docs)}")
