"""The words of `sparsewright compare`: its flags, and what they call."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError

OUT = Path("runs/compare")
HTML = ".html"
MARKDOWN = ".md"


def add_compare(commands: Any, command: Callable[..., Any], run: Callable[..., None]) -> None:
    """Put `compare`, which calls `run`, under `commands`; it is made by `command`."""
    add = command(
        commands,
        "compare",
        run,
        "train by every method at equal budgets, resumably, and show what came out",
        "  sparsewright compare --suite digits-mlp --out runs/digits\n"
        "  sparsewright compare --suite fashion-mlp --jobs 4\n"
        "  sparsewright compare --suite fashion-mlp --methods rigl 'tuned-*' --sparsity 0.9\n"
        "  sparsewright compare --suite fashion-mlp --tune\n"
        "  sparsewright compare --from runs/compare/* --page docs/comparison.md",
    )
    add.add_argument("--suite", help="what to compare on (see `sparsewright methods`)")
    add.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="NAME",
        help="recipes, by name or glob, also joined by commas (default: all)",
    )
    add.add_argument("--sparsity", type=float, nargs="+", default=[], help="default: the suite's")
    add.add_argument("--seeds", type=int, nargs="+", default=[], help="default: the suite's")
    add.add_argument("--epochs", type=int, help="of every run (default: the suite's)")
    add.add_argument(
        "--jobs", type=int, default=0, help="processes side by side; 0: one a core (default)"
    )
    add.add_argument(
        "--out",
        type=Path,
        help=f"folder of runs.jsonl (default: {OUT}/SUITE); what has a line is not run again",
    )
    add.add_argument("--retry", action="store_true", help="run again what ended in an error")
    add.add_argument("--list", action="store_true", help="print the recipes, and run none")
    add.add_argument(
        "--tune", action="store_true", help="measure the suite's learning rate and write it down"
    )
    add.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="write a page, FILE.md or FILE.html, from runs that are there; make none",
    )
    add.add_argument(
        "--from",
        dest="folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="folders of runs for --page (default: --out)",
    )


def answer(args: argparse.Namespace, html: Callable[[Sequence[Path], Path], Path]) -> None:
    """Do what the flags say; html: what writes a page of that kind from folders of runs."""
    from ..tables import show
    from .command import compare
    from .groups import outcome_of
    from .page import write_page
    from .recipes import recipes
    from .runs import Asked, jobs_of, refuse_failures
    from .table import results_tables
    from .tune import grid_text, tune

    if args.list:
        for name, (kind, recipe) in recipes().items():
            print(f"{name} ({kind}): {recipe.about}")
        return
    if args.page is not None:
        if args.page.suffix not in (HTML, MARKDOWN):
            raise ConfigError(f"--page must be FILE{MARKDOWN} or FILE{HTML}; got {args.page}")
        writes = html if args.page.suffix == HTML else write_page
        print(f"written: {writes(args.folders or [args.out or OUT], args.page)}")
        return
    if args.suite is None:
        raise ConfigError("compare needs --suite, --list, or --page with --from")
    if args.tune:
        print(grid_text(tune(args.suite, epochs=args.epochs)))
        return
    names = tuple(name for word in args.methods for name in word.split(",") if name)
    if args.methods and not names:
        raise ConfigError(f"--methods must name recipes; got {' '.join(args.methods)!r}")
    asked = Asked(
        args.suite,
        names,
        tuple(args.sparsity),
        tuple(args.seeds),
        args.epochs,
    )
    out = args.out or OUT / args.suite
    results = compare(asked, out, processes=args.jobs, retry=args.retry)
    for table in results_tables(outcome_of(results.lines(), args.suite, args.epochs)):
        show(table)
    print(f"written: {html([out], out / f'comparison{HTML}')}")
    refuse_failures(results.lines(), jobs_of(asked))
