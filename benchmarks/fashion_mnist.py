"""RigL at 90 % beside its dense twin on Fashion-MNIST, then deployed: a table and a JSON file.

    python benchmarks/fashion_mnist.py [--seeds 0 1 2] [--epochs 10] [--train-threads 0]
        [--threads 1] [--seconds 3] [--runs runs/fashion-mnist] [--out FOLDER]

The network is 784-1024-1024-10. All runs share one recipe (the defaults of `sparsewright train`:
SGD with momentum, half a cosine, batches of 128) and one number of epochs. Sparse ones differ by
their method and by first values with the variance of each neuron's present inputs. Runs that are
finished in --runs already are not trained again. The data: `sparsewright data fashion-mnist`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparsewright.errors import StateError
from sparsewright.lab.config import TrainConfig
from sparsewright.lab.deploy_run import SPARSE, deploy_run
from sparsewright.lab.run_folder import RunFolder
from sparsewright.lab.train import train
from sparsewright.measure.environment import environment

BATCHES = (1, 64)
DENSE = TrainConfig(data="fashion-mnist", model="mlp", widths="784-1024-1024-10")
RIGL = replace(DENSE, method="rigl", sparsity=0.9)
CONFIGS: Mapping[str, TrainConfig] = {
    "dense": DENSE,
    "RigL 90 %": RIGL,
    # 784 inputs do not divide by 32 but by 28: the first layer keeps 3 of every 28.
    "RigL 3:32": replace(RIGL, pattern="3:32", sparsity=None, on_misfit="3:28"),
}


def measure(label: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train (unless it is done) and deploy one run; returns its figures."""
    config = replace(
        CONFIGS[label], name=label, seed=seed, epochs=args.epochs, threads=args.train_threads
    )
    folder = RunFolder(args.runs / f"{label.replace(' ', '').replace(':', '-')}-{seed}")
    if not finished(folder, config):
        train(config, folder.path, force=True)
    deployed = deploy_run(folder.path, batches=BATCHES, threads=args.threads, seconds=args.seconds)
    return {
        "run": label,
        "seed": seed,
        "summary": folder.read("summary.json"),
        "environment": folder.read("environment.json"),
        "deployed": deployed,
    }


def finished(folder: RunFolder, config: TrainConfig) -> bool:
    """Whether the run is there, with these settings, to its end."""
    if not (folder / "summary.json").is_file():
        return False
    if folder.config() != config:
        raise StateError(
            f"{folder.path}: holds a run with other settings; move it or choose --runs"
        )
    return True


def table(results: list[dict[str, Any]]) -> Table:
    out = Table(title="median of the seeds; times in ms beside the best dense way of the same run")
    for column in ("run", "seeds", "test accuracy", "to dense", "sparsity", "bytes"):
        out.add_column(column, justify="left" if column == "run" else "right")
    for batch in BATCHES:
        out.add_column(f"batch {batch}", justify="right")
        out.add_column("best dense", justify="right")
        out.add_column("x", justify="right")
    dense = median(of(results, "dense"), accuracy)
    for label in dict.fromkeys(r["run"] for r in results):
        runs = of(results, label)
        cells = [
            label,
            str(len(runs)),
            f"{median(runs, accuracy):.2%}",
            f"{100 * (median(runs, accuracy) - dense):+.2f}",
            f"{runs[0]['summary']['sparsity']:.4f}",
            f"{runs[0]['deployed']['bytes']['artifact']:,}",
        ]
        out.add_row(*cells, *(cell for batch in BATCHES for cell in times(runs, str(batch))))
    return out


def of(results: list[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    return [r for r in results if r["run"] == label]


def accuracy(result: dict[str, Any]) -> float:
    return float(result["summary"]["test_accuracy"])


def median(results: list[dict[str, Any]], value: Any) -> float:
    return statistics.median(value(r) for r in results)


def times(runs: list[dict[str, Any]], batch: str) -> tuple[str, str, str]:
    """(deployed ms, best dense ms and its way, how many times as fast)."""

    def at(run: dict[str, Any]) -> dict[str, Any]:
        return run["deployed"]["batches"][batch]

    def ms(run: dict[str, Any], way: str) -> float:
        return next(row["median_ms"] for row in at(run)["model"] if row["way"] == way)

    return (
        f"{median(runs, lambda r: ms(r, SPARSE)):.4f}",
        f"{median(runs, lambda r: ms(r, at(r)['best_dense'])):.4f} {at(runs[0])['best_dense']}",
        f"{median(runs, lambda r: at(r)['speedup']):.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--threads", type=int, default=1, help="of what is measured")
    parser.add_argument("--seconds", type=float, default=3.0, help="timing per batch size")
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    console = Console(width=None if os.isatty(1) else 160)
    results = []
    for seed in args.seeds:
        for label in CONFIGS:
            console.print(f"{label}, seed {seed} ...")
            results.append(measure(label, seed, args))
    console.print(table(results))
    about = {**environment(), "threads": args.threads, "load": os.getloadavg()[0]}
    console.print("  ".join(f"{key} {value}" for key, value in about.items()))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "fashion-mnist.json"
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({"machine": about, "results": results}, indent=1), encoding="utf-8")
    os.replace(draft, path)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
