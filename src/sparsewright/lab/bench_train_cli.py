"""The words of `sparsewright bench train`, `memory` and `scale`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from .bench_flags import cell_flags, plain_flags, sparsity

Command = Callable[..., Any]


def add_training(parts: Any, command: Command, written: Command, settings: Command) -> None:
    """Put the three under `parts`, made by `command`. written: (args, path) says where the file is,
    and writes the page; settings: (args) -> Settings."""

    def run_train(args: argparse.Namespace) -> None:
        from .bench_train import run_train, train_cells

        cells = train_cells(args.model, args.sparsity, args.batch)
        written(args, run_train(cells, settings(args), args.out))

    def run_memory(args: argparse.Namespace) -> None:
        from . import bench_memory as memory

        written(
            args,
            memory.run_memory(
                args.widths or memory.WIDTHS,
                args.sparsity or memory.SPARSITIES,
                args.batch or (memory.BATCH,),
                settings(args),
                args.out,
            ),
        )

    def run_scale(args: argparse.Namespace) -> None:
        from .bench_neurons import Network, hidden_of
        from .bench_scale import Curves, run_scale

        curves = {"over_nnz": _tuple(args.nnz), "over_width": _tuple(args.width)}
        network = {
            "hidden": hidden_of(args.neurons) if args.neurons else None,
            "each": args.each,
            "batch": args.batch[0] if args.batch else None,
            "steps": args.steps,
            "every": args.every,
        }
        made = None if args.neurons == 0 else Network(**_given(network))
        written(args, run_scale(Curves(**_given(curves)), made, settings(args), args.out))

    add = command(
        parts,
        "train",
        run_train,
        "time whole training steps beside every dense and sparse way",
        "  sparsewright bench train\n"
        "  sparsewright bench train --model mlp:3072-4096-4096-10 --sparsity 0.9 0.99 --threads 1",
    )
    add.add_argument(
        "--model",
        nargs="+",
        metavar="NAME",
        help="models of the lab, as mlp:3072-4096-10 with widths (default: an MLP and resnet20)",
    )
    add.add_argument("--ways", dest="peers", nargs="+", metavar="NAME", help="these ways only")
    add.add_argument("--sparsity", nargs="+", type=sparsity, metavar="S")
    cell_flags(add)
    plain_flags(add)
    add = command(
        parts,
        "memory",
        run_memory,
        "measure the memory of training: dense, masked and packed",
        "  sparsewright bench memory --threads 1",
    )
    add.add_argument("--widths", nargs="+", type=_whole, metavar="N", help="of the MLP's layers")
    add.add_argument("--sparsity", nargs="+", type=sparsity, metavar="S")
    plain_flags(add)
    add = command(
        parts,
        "scale",
        run_scale,
        "time steps over the number of weights, and train ten million neurons",
        "  sparsewright bench scale --neurons 0\n"
        "  sparsewright bench scale --nnz --width --neurons 1000000 --steps 30",
    )
    add.add_argument(
        "--nnz", nargs="*", type=_whole, metavar="N", help="weights of the first curve; none: no"
    )
    add.add_argument(
        "--width", nargs="*", type=_whole, metavar="N", help="widths of the second; none: no curve"
    )
    add.add_argument("--neurons", type=_whole, help="of the network; 0: none")
    add.add_argument("--each", type=float, metavar="N", help="weights of a neuron, on average")
    add.add_argument("--steps", type=_whole, help="of the network's training")
    add.add_argument("--every", type=_whole, metavar="N", help="so many steps weights move (SET)")
    plain_flags(add)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}")
    return int(text)


def _tuple(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were asked for; the others keep their defaults."""
    return {name: value for name, value in options.items() if value is not None}
