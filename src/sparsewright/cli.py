"""The command line: parse, call, print. What it says, the Python API says in the same words.

Only what parsing needs is imported here; each command imports its own part.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import __version__
from .errors import ConfigError, SparsewrightError, SparsityWarning
from .lab.bench_cli import add_bench
from .lab.compare.words import add_compare, answer
from .lab.config import (
    PruneConfig,
    Settings,
    TrainConfig,
    accepts,
    field_types,
    flag,
    from_mapping,
    help_of,
    read_settings,
)
from .layouts import FP32, VALUES

EXAMPLES = """examples:
  sparsewright demo
  sparsewright train --method rigl --sparsity 0.9 --out runs/a
  sparsewright train --data fashion-mnist --model mlp --method rigl --sparsity 0.9 \\
      --pattern 3:32 --epochs 10 --seed 0 --out runs/b
  sparsewright deploy runs/a
  sparsewright report runs/a runs/b --out report.html
"""
INTERRUPTED = 130  # as a shell reports Ctrl-C
REFUSED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("once", SparsityWarning)
        warnings.showwarning = _show_warning
        try:
            return args.command(args) or 0
        except SparsewrightError as error:
            if os.environ.get("SPARSEWRIGHT_DEBUG"):
                raise
            print(f"sparsewright: {error}", file=sys.stderr)
            return REFUSED
        except KeyboardInterrupt as stop:
            print(f"\nsparsewright: {str(stop) or 'stopped'}", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


# --- parsing ------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="sparsewright",
        description="Train sparse, execute sparse, store sparse, measure honestly.",
        epilog=EXAMPLES + "\nSPARSEWRIGHT_DEBUG=1 shows where an error comes from.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sparsewright {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    experiments = (_demo, _train, _prune, _deploy, _bench, _compare, _report)
    for add in (*experiments, _data, _methods, _doctor):
        add(commands)
    return top


def _command(commands: Any, name: str, run: Any, help: str, examples: str = "") -> Any:
    added = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=examples and "examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(command=run)
    return added


def _demo(commands: Any) -> None:
    add = _command(
        commands,
        "demo",
        run_demo,
        "train dense and sparse on real data, deploy, measure, and write the report",
        "  sparsewright demo\n  sparsewright demo --short --out /tmp/demo",
    )
    add.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for its runs")
    add.add_argument("--short", action="store_true", help="few epochs, short timing: only a check")


def _train(commands: Any) -> None:
    add = _command(
        commands,
        "train",
        run_train,
        "train a model, dense or sparse, into a run folder",
        "  sparsewright train --epochs 5 --out runs/dense\n"
        "  sparsewright train --method rigl --sparsity 0.9 --out runs/rigl\n"
        "  sparsewright train --config experiment.toml --seed 1 --out runs/one\n"
        "  sparsewright train --resume --out runs/one",
    )
    add.add_argument("--out", type=Path, required=True, help="the run folder to write")
    add.add_argument(
        "--config", type=Path, help="settings in a TOML file, or another run's config.json"
    )
    add.add_argument("--resume", action="store_true", help="go on with the run in --out")
    add.add_argument("--force", action="store_true", help="replace the run in --out")
    group = add.add_argument_group("settings (also the keys of --config; flags win over the file)")
    for name, hint in field_types().items():
        _setting(group, TrainConfig, name, accepts(hint))


def _setting(group: Any, config: type[Settings], name: str, kinds: tuple[Any, ...]) -> None:
    """One flag; left out, it leaves no trace, so that a file's setting stands."""
    common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_of(config, name)}
    kind = kinds[0]
    if kind is bool:
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, **common)
    elif kind in (int, float, str):
        group.add_argument(flag(name), type=kind, metavar=kind.__name__.upper(), **common)
    elif name == "skip":
        group.add_argument(flag(name), action="append", metavar="LAYER", **common)
    # what is left are tables, which only a file can say


def _prune(commands: Any) -> None:
    add = _command(
        commands,
        "prune",
        run_prune,
        "prune a trained run in one shot into a run folder of its own",
        "  sparsewright prune runs/dense --sparsity 0.8 --out runs/pruned\n"
        "  sparsewright prune runs/dense --pattern 2:4 --out runs/2to4",
    )
    add.add_argument("run", type=Path, metavar="RUN", help="the run folder to prune")
    add.add_argument("--out", type=Path, required=True, help="the run folder to write")
    add.add_argument("--force", action="store_true", help="replace the run in --out")
    for name, hint in field_types(PruneConfig).items():
        _setting(add, PruneConfig, name, accepts(hint))


def _deploy(commands: Any) -> None:
    add = _command(
        commands,
        "deploy",
        run_deploy,
        "pack a run's model with this machine's fastest kernels, check, measure, save it",
        "  sparsewright deploy runs/a\n"
        "  sparsewright deploy runs/a --batch 1 --batch 64 --threads 2\n"
        "  sparsewright deploy runs/a --values bf16",
    )
    add.add_argument("run", type=Path, metavar="RUN", help="the run folder to deploy")
    add.add_argument(
        "--batch", type=int, nargs="+", action="extend", help="batch sizes (default: 1 and 64)"
    )
    add.add_argument(
        "--threads",
        type=int,
        default=0,
        help="threads; 0: OMP_NUM_THREADS, else all cores (default)",
    )
    add.add_argument(
        "--seconds", type=float, default=2.0, help="timing per batch size (default: 2)"
    )
    add.add_argument("--compile", action="store_true", help="also time torch.compile")
    add.add_argument(
        "--values",
        choices=VALUES.names(),
        default=FP32,
        help="how packed weights are stored; all but fp32 (default) round them",
    )


def _bench(commands: Any) -> None:
    add_bench(commands, _command)


def _compare(commands: Any) -> None:
    add_compare(commands, _command, run_compare)


def _report(commands: Any) -> None:
    add = _command(
        commands,
        "report",
        run_report,
        "write one self-contained HTML page about runs",
        "  sparsewright report runs/dense runs/a --out report.html",
    )
    add.add_argument("runs", type=Path, metavar="RUN", nargs="+", help="run folders")
    add.add_argument("--out", type=Path, default=Path("report.html"), help="the page to write")


def _data(commands: Any) -> None:
    add = _command(
        commands,
        "data",
        run_data,
        "download a data set from its official address, or list what is here",
        "  sparsewright data\n  sparsewright data fashion-mnist",
    )
    add.add_argument("name", nargs="?", metavar="NAME", help="data set; none: list them all")


def _methods(commands: Any) -> None:
    add = _command(
        commands,
        "methods",
        run_methods,
        "list every method, pattern, score, kernel, ..., or tell all about some",
        "  sparsewright methods\n  sparsewright methods rigl srigl",
    )
    add.add_argument("names", nargs="*", metavar="NAME", help="parts to explain, of any kind")
    add.add_argument("--pages", type=Path, metavar="FOLDER", help="write all their pages there")
    add.add_argument(
        "--from",
        dest="folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="folders of a comparison's runs, whose figures go on the --pages",
    )


def _doctor(commands: Any) -> None:
    _command(
        commands, "doctor", run_doctor, "print versions, devices, and which kernels are active"
    )


# --- commands -----------------------------------------------------------------------------------


def run_demo(args: argparse.Namespace) -> int:
    from .lab.demo import demo

    demo(args.out, short=args.short)
    return 0


def run_train(args: argparse.Namespace) -> None:
    from .lab.run_folder import RunFolder
    from .lab.train import train

    given = _given(args, TrainConfig)
    if args.resume and args.force:
        raise ConfigError("--resume goes on with a run and --force replaces it: give one of them")
    settings = read_settings(args.config) if args.config else {}
    if args.resume:
        settings = {**RunFolder(args.out).config().to_dict(), **settings}
    config = from_mapping({**settings, **given}, str(args.config or "the command line"))
    run = train(config, args.out, resume=args.resume, force=args.force)
    print(summary_line(run))


def run_prune(args: argparse.Namespace) -> None:
    from .lab.prune_run import prune_run

    asked = PruneConfig(**_given(args, PruneConfig))
    print(summary_line(prune_run(args.run, args.out, asked, force=args.force)))


def _given(args: argparse.Namespace, config: type[Settings]) -> dict[str, Any]:
    """The settings that were given as flags."""
    names = [f.name for f in fields(config) if hasattr(args, f.name)]
    values = {name: getattr(args, name) for name in names}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def summary_line(run: Path) -> str:
    """How a run ended, and what to do with it."""
    from .lab.run_folder import RunFolder

    summary = RunFolder(run).read("summary.json")
    return (
        f"{run}: test accuracy {summary['test_accuracy']:.2%}, sparsity {summary['sparsity']:.4f} "
        f"({summary['sparsity_of_all']:.4f} with what was left dense), {summary['seconds']:.1f} s\n"
        f"{patterns_line(summary)}{storage_line(summary)}"
        f"next: sparsewright deploy {run}; sparsewright report {run}"
    )


def patterns_line(summary: dict[str, Any]) -> str:
    """Which layers hold which pattern, where they are not all alike, and what was left dense."""
    held: dict[str, list[str]] = {}
    for row in summary["rows"]:
        held.setdefault(row["pattern"], []).append(row["name"])
    for left in summary["left_dense"]:
        held.setdefault(f"dense ({left['reason']})", []).append(left["name"])
    if len(held) < 2:
        return ""
    return "; ".join(f"{pattern}: {', '.join(names)}" for pattern, names in held.items()) + "\n"


def storage_line(summary: dict[str, Any]) -> str:
    """Which sparse layers of a packed run could not be packed."""
    sparse = [row["name"] for row in summary["rows"] if row["present"] < row["total"]]
    masked = [name for name in sparse if name not in summary["packed"]]
    if not summary["packed"] or not masked:
        return ""
    return f"packed: {', '.join(summary['packed'])}; still masked: {', '.join(masked)}\n"


def run_deploy(args: argparse.Namespace) -> None:
    from .lab.deploy_run import deploy_run
    from .lab.tables import deployment_table, kernels_line, show

    found = deploy_run(
        args.run,
        batches=args.batch or (1, 64),
        threads=args.threads,
        seconds=args.seconds,
        compiled=args.compile,
        values=args.values,
    )
    show(deployment_table(args.run, found))
    for batch, measured in found["batches"].items():
        print(kernels_line(batch, measured))


def run_compare(args: argparse.Namespace) -> None:
    from .report import write_comparison

    answer(args, write_comparison)


def run_report(args: argparse.Namespace) -> None:
    from .report import write_report

    print(write_report(args.runs, args.out))


def run_data(args: argparse.Namespace) -> None:
    from .lab.download import download
    from .lab.tables import data_table, show

    if args.name is None:
        show(data_table())
        return
    folder = download(args.name)
    print(f"{args.name}: {folder or 'ships inside scikit-learn, nothing to download'}")


def run_methods(args: argparse.Namespace) -> None:
    from .lab.part_pages import page_named, write_pages
    from .lab.tables import TABLES, parts_tables, show

    if args.folders and args.pages is None:
        raise ConfigError("methods needs --pages with --from")
    if args.pages is not None:
        from .lab.compare.ours import figures

        ours = figures(args.folders) if args.folders else None
        print(f"{write_pages(args.pages, ours)} pages in {args.pages}")
    for name in args.names:
        print(page_named(name, TABLES))
    if args.pages is None and not args.names:
        for table in parts_tables():
            show(table)


def run_doctor(args: argparse.Namespace) -> None:
    from .lab.doctor import doctor_tables
    from .lab.tables import show

    for table in doctor_tables():
        show(table)


if __name__ == "__main__":
    sys.exit(main())
