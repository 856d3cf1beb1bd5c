"""The words of `sparsewright bench`: its subcommands and flags, each calling its own part."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..layouts import FP32, VALUES
from .bench_flags import PAGE, common_flags, plain_flags, zero_flags
from .bench_train_cli import add_training


def add_bench(commands: Any, command: Callable[..., Any]) -> None:
    """Put `bench layer`, `model`, ... and `page` under `commands`, each made by `command`."""
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
    common_flags(add)
    add = command(
        parts,
        "model",
        run_model,
        "time whole sparse models beside every dense and sparse peer",
        "  sparsewright bench model\n  sparsewright bench model --only resnet50 --batch 16",
    )
    _models(add, None)
    _values(add)
    common_flags(add)
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
    common_flags(add, threads=(), default="1 2 3 4, then doubled, all")
    add = command(
        parts,
        "deploy",
        run_deploy,
        "time deploy itself: the first of a model, and those that find its timings kept",
        "  sparsewright bench deploy --threads all\n"
        "  sparsewright bench deploy --model resnet50 --batch 1 16 --rounds 3",
    )
    _models(add, None)
    zero_flags(add)
    plain_flags(add)
    add_training(parts, command, _written, _settings)
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


def run_deploy(args: argparse.Namespace) -> None:
    from . import bench_deploy as bench

    settings = _settings(args, rounds=bench.ROUNDS, plan_seconds=bench.SECONDS)
    batches = args.batch or (1,)
    _written(
        args,
        bench.run_deploy(args.model, args.pattern, args.sparsity, batches, settings, args.out),
    )


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
