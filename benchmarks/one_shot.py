"""One-shot pruning of a trained network, without training on: a table and a JSON file.

    python benchmarks/one_shot.py [--seeds 0 1 2] [--epochs 10] [--threads 1]
        [--sparsity 0.5 0.7 0.8 2:4] [--images 1024] [--runs runs/one-shot] [--out FOLDER]

A 784-300-100-10 MLP is trained on Fashion-MNIST by the recipe of `sparsewright train`, then pruned
in all of its layers alike by every way, each time from the trained weights, and evaluated on the
test images. The ways that look at data see the same training images. Runs that are finished in
--runs already are not trained again. The data: `sparsewright data fashion-mnist`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sparsewright as sw
from sparsewright.errors import StateError
from sparsewright.lab.config import TrainConfig
from sparsewright.lab.run_folder import RunFolder
from sparsewright.lab.train import evaluate, train
from sparsewright.lab.trained import Trained, read_trained
from sparsewright.measure.environment import environment, threads
from sparsewright.solvers import Solver
from sparsewright.solvers.obc import OBC
from sparsewright.solvers.sparsegpt import SparseGPT
from sparsewright.solvers.wanda import WandaInOrder
from sparsewright.solving import solve

TRAINED = TrainConfig(data="fashion-mnist", model="mlp", widths="784-300-100-10")
# Pixels that are the same in all images leave X X^T without an inverse: OBC is damped as SparseGPT.
SOLVERS: Mapping[str, Solver | None] = {
    "magnitude": None,
    "wanda": WandaInOrder(),
    "wanda, layer": WandaInOrder("layer"),
    "sparsegpt": SparseGPT(),
    "obc": OBC(damp=0.01),
}


def trained(seed: int, args: argparse.Namespace) -> Trained:
    """The dense run of a seed, trained unless it is done."""
    config = replace(TRAINED, name="dense", seed=seed, epochs=args.epochs, threads=args.threads)
    folder = RunFolder(args.runs / f"dense-{seed}")
    if not (folder / "summary.json").is_file():
        train(config, folder.path, force=True)
    elif folder.config() != config:
        raise StateError(
            f"{folder.path}: holds a run with other settings; move it or choose --runs"
        )
    return read_trained(folder.path)


def batches(images: Tensor, count: int, size: int = 128) -> list[Tensor]:
    """Some images in a fixed random order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    return list(images[order].split(size))


def prune(model: nn.Module, way: str, asked: str, data: Sequence[Tensor]) -> float:
    """Prune to a sparsity ("0.8") or a pattern that fixes one ("2:4"); returns the sparsity."""
    free = ":" not in asked
    options: dict[str, Any] = {
        "sparsity": float(asked) if free else None,
        "pattern": "unstructured" if free else asked,
        "allocate": "uniform_all",
    }
    solver = SOLVERS[way]
    if solver is None:
        return sw.prune(model, **options).sparsity
    return solve(model, **options, solver=solver, data=data).sparsity


def measure(run: Trained, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way at every sparsity, and the dense model."""
    data = batches(run.data.train[0], args.images)
    _, dense = evaluate(run.model, run.data.test)
    results: list[dict[str, Any]] = [
        {"way": "dense", "asked": "0", "seed": seed, "sparsity": 0.0, "accuracy": dense}
    ]
    for asked in args.sparsity:
        for way in SOLVERS:
            model, start = copy.deepcopy(run.model), time.perf_counter()
            sparsity = prune(model, way, asked, data)
            seconds = time.perf_counter() - start
            _, accuracy = evaluate(model, run.data.test)
            found = {"way": way, "asked": asked, "seed": seed, "sparsity": sparsity}
            results.append({**found, "accuracy": accuracy, "seconds": seconds})
    return results


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Rows are ways, columns sparsities; the median of the seeds."""
    seeds = len({r["seed"] for r in results})
    asked = list(dict.fromkeys(r["asked"] for r in results if r["way"] != "dense"))
    dense = statistics.median(r["accuracy"] for r in results if r["way"] == "dense")
    title = f"test accuracy without retraining, median of {seeds} seeds; dense {dense:.2%}"
    out = Table("way", title=title)
    for sparsity in asked:
        out.add_column(sparsity, justify="right")
    out.add_column("seconds", justify="right")
    for way in SOLVERS:
        cells = []
        for sparsity in asked:
            found = [r for r in results if (r["way"], r["asked"]) == (way, sparsity)]
            cells.append(f"{statistics.median(r['accuracy'] for r in found):.2%}")
        times = [r["seconds"] for r in results if r["way"] == way]
        out.add_row(way, *cells, f"{statistics.median(times):.1f}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sparsity", nargs="+", default=["0.5", "0.7", "0.8", "2:4"])
    parser.add_argument("--images", type=int, default=1024, help="training images to look at")
    parser.add_argument("--runs", type=Path, default=Path("runs/one-shot"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    console = Console(width=None if os.isatty(1) else 120)
    results: list[dict[str, Any]] = []
    for seed in args.seeds:
        console.print(f"seed {seed} ...")
        run = trained(seed, args)
        with threads(args.threads):
            results += measure(run, seed, args)
    console.print(table(results))
    about = {**environment(), "threads": args.threads, "load": os.getloadavg()[0]}
    console.print("  ".join(f"{key} {value}" for key, value in about.items()))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "one-shot.json"
    draft = path.with_suffix(".tmp")
    asked = {"images": args.images, "epochs": args.epochs, "widths": TRAINED.widths}
    draft.write_text(json.dumps({"machine": about, "asked": asked, "results": results}, indent=1))
    os.replace(draft, path)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
