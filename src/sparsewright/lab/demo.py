"""`sparsewright demo`: the whole path on real data, in about a minute, every figure taken now.

Trains a dense MLP and the same MLP sparse from scratch by RigL (Evci et al. 2020), unstructured in
both storages, and 3:32, on the digits of scikit-learn; deploys them; measures them beside the best
dense way; and writes the report.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..report import write_report
from .config import TrainConfig
from .deploy_run import SPARSE, deploy_run
from .run_folder import RunFolder
from .train import train

BATCHES = (1, 64)

# Wide, so that there is something to save; all inputs divide by the 32 of 3:32. AdamW suits all
# all. An epoch is 12 steps of 128 images; RigL moves connections about once an epoch.
DENSE = TrainConfig(
    name="dense",
    widths="64-2048-2048-10",
    epochs=10,
    batch=128,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=1e-2,
    warmup=1.0,
    tensorboard=False,
)
RIGL = replace(DENSE, name="RigL 90 %", method="rigl", sparsity=0.9, every=15, fraction=0.3)
PACKED = replace(RIGL, name="RigL 90 % packed", storage="packed")  # the same run, but for storage
RIGL_3_32 = replace(RIGL, name="RigL 3:32", pattern="3:32", sparsity=None, on_misfit="error")

RUNS: Mapping[str, TrainConfig] = {
    "dense": DENSE,
    "rigl": RIGL,
    "rigl-packed": PACKED,
    "rigl-3-32": RIGL_3_32,
}
DEPLOYED = ("rigl", "rigl-3-32")
"""The packed run is not: what is deployed is the same, whichever storage it was trained in."""


@dataclass(frozen=True)
class Result:
    """One run of the demo: how it ended, what a step costs, and if so, how it was deployed."""

    run: Path
    name: str
    summary: Mapping[str, Any]
    cost: Mapping[str, Any]
    deployed: Mapping[str, Any] | None


def demo(out: str | Path, *, short: bool = False, threads: int = 1) -> list[Result]:
    """Run the demo into folders under `out`, print its table, and return the results.

    threads: of what is measured; one by default, which other programs disturb least. Training
    takes all cores. short: a smaller network, two epochs and little timing, to check that all of
    it works; its figures mean little. An older demo in `out` is replaced.
    """
    out, console = Path(out), Console()
    seconds = 0.1 if short else 2.0
    results = []
    for folder, config in RUNS.items():
        config = replace(config, epochs=2, widths="64-256-256-10") if short else config
        console.print(
            f"[bold]{config.name}[/]: training {config.epochs} epochs on {config.data} ..."
        )
        run = train(config, out / folder, force=True)
        deployed = None
        if folder in DEPLOYED:
            console.print(f"[bold]{config.name}[/]: deploying, checking, measuring ...")
            deployed = deploy_run(run, batches=BATCHES, threads=threads, seconds=seconds)
        summary, cost = (RunFolder(run).read(f"{name}.json") for name in ("summary", "cost"))
        results.append(Result(run, config.name, summary, cost, deployed))
    page = write_report([result.run for result in results], out / "report.html")
    console.print(table(results))
    console.print(storages_line(results), highlight=False, soft_wrap=True)
    console.print(f"\nreport: {page}\n", highlight=False, soft_wrap=True)
    console.print(next_steps(results[-1].run), highlight=False, soft_wrap=True)
    return results


def table(results: list[Result]) -> Table:
    """Runs side by side: accuracy, sparsity, bytes, and times beside the best dense way."""
    threads = results[-1].deployed["threads"] if results[-1].deployed else ""
    title = f"sparsewright demo: measured just now, threads: {threads}"
    printed = Table(title=title, title_justify="left")
    printed.add_column("")
    for result in results:
        printed.add_column(result.name, justify="right")
    for heading, cell in rows(results):
        printed.add_row(heading, *(cell(result) for result in results))
    return printed


def rows(results: list[Result]) -> list[tuple[str, Any]]:
    """(heading, function of a result that gives the cell) for every row of the table."""
    found: list[tuple[str, Any]] = [
        ("test accuracy", lambda r: f"{r.summary['test_accuracy']:.2%}"),
        ("sparsity", lambda r: f"{r.summary['sparsity']:.5f}"),
        ("training: bytes", lambda r: f"{state_bytes(r.cost):,}"),
        ("  ms per step", lambda r: f"{r.cost['step_ms']:.2f}"),
        ("  seconds", lambda r: f"{r.summary['seconds']:.1f}"),
        ("bytes, all weights stored", lambda r: _bytes(r, "dense_fp32")),
        ("bytes of the artifact", lambda r: _bytes(r, "artifact")),
        ("outputs as the masked model", lambda r: _equal(r)),
    ]
    for batch in map(str, BATCHES):
        found += [
            (f"batch {batch}: ms", lambda r, b=batch: _milliseconds(r, b, SPARSE)),
            ("  best dense: ms", lambda r, b=batch: _milliseconds(r, b, None)),
            ("  which", lambda r, b=batch: _at(r, b, "best_dense")),
            ("  times as fast", lambda r, b=batch: _at(r, b, "speedup")),
        ]
    return found


def state_bytes(cost: Mapping[str, Any]) -> int:
    """Bytes of values, gradients, optimizer state and places or masks, over all layers."""
    return sum(sum(layer["bytes"].values()) for layer in cost["layers"])


def storages_line(results: list[Result]) -> str:
    """Whether the masked and the packed run, which differ in storage alone, came out alike."""
    masked, packed = (
        next(r for r in results if r.name == config.name) for config in (RIGL, PACKED)
    )
    accuracy = [r.summary["test_accuracy"] for r in (masked, packed)]
    if accuracy[0] == accuracy[1]:
        return f"masked and packed training ended at the same accuracy: {accuracy[0]:.2%}"
    return (
        f"masked and packed training ended at different accuracies, {accuracy[0]:.2%} and "
        f"{accuracy[1]:.2%}: sums in another order differ in their last bits, and training adds up"
    )


def _bytes(result: Result, which: str) -> str:
    return f"{result.deployed['bytes'][which]:,}" if result.deployed else ""


def _equal(result: Result) -> str:
    if not result.deployed:
        return ""
    return "yes" if result.deployed["outputs_equal"] else "NO"


def _at(result: Result, batch: str, key: str) -> str:
    if not result.deployed:
        return ""
    value = result.deployed["batches"][batch][key]
    return value if isinstance(value, str) else f"{value:.2f}"


def _milliseconds(result: Result, batch: str, way: str | None) -> str:
    """The median of a way, by default of the best dense one."""
    if not result.deployed:
        return ""
    measured = result.deployed["batches"][batch]
    times = {row["way"]: row.get("median_ms") for row in measured["model"]}
    return f"{times[way or measured['best_dense']]:.4f}"


def next_steps(run: Path) -> str:
    command = "sparsewright" if shutil.which("sparsewright") else _beside_python()
    return (
        "next:\n"
        f"  {command} deploy {run} --threads 1\n"
        f"  {command} train --method rigl --sparsity 0.95 --epochs 20 --out runs/mine\n"
        f"  {command} --help"
    )


def _beside_python() -> str:
    """The command of an environment that was not activated."""
    command = Path(sys.executable).with_name("sparsewright")
    here = Path.cwd()
    return str(command.relative_to(here) if command.is_relative_to(here) else command)
