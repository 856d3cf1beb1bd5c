"""Masked training steps of every method beside dense ones: how many times longer they take.

    python benchmarks/method_steps.py [--methods rigl movement] [--models mlp cnn] [--steps 400]
        [--sparsity 0.9] [--batch 128] [--threads 1] [--out FOLDER]

A step is zero_grad, forward, cross-entropy, backward and SGD with momentum, on noise, and runs by
the method's own options from a run's first step to its last, with 25 updates. Ten dense steps and
ten of the method take turns, so that a busy moment of the machine hits both. The median step says
what most of them take; the mean counts the few at which masks move.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from sparsewright import attach
from sparsewright.lab.compare.recipes.trained import scaled_options
from sparsewright.lab.config import TrainConfig
from sparsewright.lab.models import build
from sparsewright.lab.recipe import OPTIMIZERS, decay_groups, make_method
from sparsewright.measure.environment import environment, threads
from sparsewright.methods import METHODS
from sparsewright.steering import keeps_absent

MODELS = {"mlp": "784-300-100-10", "cnn": "16-32-64"}
"""Model of the lab -> its widths: those of the comparisons on Fashion-MNIST."""
SHAPE, CLASSES = (1, 28, 28), 10
TURN = 10  # steps before the other's turn
DENSE = "dense"


class Run:
    """A model in training, dense or by a method.

    >>> Run("mlp", "static", steps=10, batch=2).timed(1)[0] > 0
    True
    """

    def __init__(self, model: str, method: str, *, steps: int, batch: int, sparsity: float = 0.9):
        torch.manual_seed(0)
        config = TrainConfig(model=model, lr=0.01)
        self.model = build(model, SHAPE, CLASSES, MODELS[model]).train()
        self.optimizer = OPTIMIZERS["sgd"](decay_groups(self.model, config.weight_decay), config)
        self.x, self.y = torch.randn(batch, *SHAPE), torch.randint(CLASSES, (batch,))
        if method != DENSE:
            chosen = make_method(method, scaled_options(method, steps))
            init = None if keeps_absent(chosen) else "fan_in"
            wishes: dict[str, Any] = {"sparsity": sparsity, "steps": steps, "init": init}
            self.sparse = attach(self.model, self.optimizer, method=chosen, **wishes)

    def timed(self, steps: int) -> list[float]:
        """Seconds of each of the next steps."""
        found = []
        for _ in range(steps):
            start = time.perf_counter()
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.x), self.y).backward()
            self.optimizer.step()
            found.append(time.perf_counter() - start)
        return found


def measure(model: str, method: str, *, steps: int, batch: int, sparsity: float) -> dict[str, Any]:
    """The figures of a whole run of a method beside as many dense steps."""
    names = (DENSE, method)
    runs = {n: Run(model, n, steps=steps, batch=batch, sparsity=sparsity) for n in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(0, steps, TURN):
        for name in names if turn // TURN % 2 else reversed(names):
            taken[name] += runs[name].timed(min(TURN, steps - turn))
    return {"model": model, "method": method, **figures(taken[DENSE], taken[method])}


def figures(dense: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """Milliseconds of a step, and how many times the dense one's that is.

    >>> figures([1e-3, 1e-3, 1e-3], [2e-3, 2e-3, 8e-3])
    {'dense_ms': 1.0, 'median_ms': 2.0, 'median': 2.0, 'mean': 4.0}
    """
    middle, of_dense = statistics.median(own), statistics.median(dense)
    mean = statistics.mean(own) / statistics.mean(dense)
    found = {"dense_ms": 1e3 * of_dense, "median_ms": 1e3 * middle, "median": middle / of_dense}
    return {**found, "mean": mean}


def table(results: Sequence[dict[str, Any]]) -> Table:
    """One row for each model and method, the longest steps first."""
    out = Table(title="a masked training step beside a dense one")
    columns = ("dense ms", "median ms", "x dense", "mean x dense")
    for name in ("model", "method", *columns):
        out.add_column(name, justify="right" if name in columns else "left")
    for row in sorted(results, key=lambda r: (r["model"], -r["mean"])):
        times = (f"{row[key]:.2f}" for key in ("dense_ms", "median_ms", "median", "mean"))
        out.add_row(row["model"], row["method"], *times)
    return out


def write(path: Path, text: str) -> None:
    """Write a file beside, then put it in place."""
    draft = path.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS.names(), metavar="NAME")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--steps", type=int, default=400, help="of each run")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    console = Console(width=None if os.isatty(1) else 120)
    asked = {"steps": args.steps, "batch": args.batch, "sparsity": args.sparsity}
    pairs = [(model, method) for model in args.models for method in args.methods]
    with threads(args.threads):
        results = [measure(model, method, **asked) for model, method in pairs]
    console.print(table(results))
    about = {**environment(), **asked, "threads": args.threads, "load": os.getloadavg()[0]}
    console.print("  ".join(f"{key} {value}" for key, value in about.items()))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "method-steps.json"
    write(path, json.dumps({"machine": about, "results": results}, indent=1))
    console.print(f"written: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
