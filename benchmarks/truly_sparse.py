"""Masked and packed training beside dense on Fashion-MNIST: accuracy, seconds, bytes, and a plot.

    python benchmarks/truly_sparse.py [--seeds 0 1 2] [--sparsity 0.9 0.95] [--epochs 10]
        [--widths 784-1024-1024-10] [--threads 0] [--only packed]
        [--runs runs/truly-sparse] [--out FOLDER]

One network is trained dense, and by RigL (Evci et al. 2020) and SET (Mocanu et al. 2018) in both
storages of its weights: masked, dense tensors with zeros, and packed, present weights alone. All
runs share one recipe, that of `sparsewright train` with AdamW, one number of epochs, and threads.
The seeds take turns, so that a busy moment of the machine hits all alike. Runs that are finished in
--runs already are not trained again. The data: `sparsewright data fashion-mnist`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from curves_svg import Curve, draw
from rich.console import Console
from rich.table import Table

from sparsewright.errors import StateError
from sparsewright.lab.config import TrainConfig
from sparsewright.lab.run_folder import RunFolder
from sparsewright.lab.train import train
from sparsewright.measure.environment import environment
from sparsewright.report import write_report

DENSE = TrainConfig(
    data="fashion-mnist",
    model="mlp",
    optimizer="adamw",
    lr=1e-3,
    weight_decay=1e-2,
    tensorboard=False,
)
METHODS = {"RigL": "rigl", "SET": "set"}
STORAGES = ("masked", "packed")
PARTS = ("values", "gradients", "optimizer", "places")


def configs(args: argparse.Namespace) -> dict[str, TrainConfig]:
    """Label -> what to train, but for the seed."""
    dense = replace(DENSE, widths=args.widths, epochs=args.epochs, threads=args.threads)
    found = {"dense": dense}
    for sparsity in args.sparsity:
        for label, method in METHODS.items():
            for storage in STORAGES:
                name = f"{label} {100 * sparsity:g} % {storage}"
                found[name] = replace(dense, method=method, sparsity=sparsity, storage=storage)
    return {name: replace(config, name=name) for name, config in found.items()}


def measure(config: TrainConfig, seed: int, runs: Path) -> dict[str, Any]:
    """Train a run, unless it is done; returns its figures."""
    config = replace(config, seed=seed)
    folder = RunFolder(runs / f"{config.name.replace(' ', '').replace('%', '')}-{seed}")
    if not finished(folder, config):
        train(config, folder.path, force=True)
    cost = folder.read("cost.json")
    epochs = folder.lines("metrics.jsonl")
    return {
        "run": config.name,
        "seed": seed,
        "folder": str(folder.path),
        "summary": folder.read("summary.json"),
        "seconds": [line["seconds"] for line in epochs],
        "accuracy": [line["test_accuracy"] for line in epochs],
        "step_ms": cost["step_ms"],
        "bytes": sum(layer["bytes"][part] for layer in cost["layers"] for part in PARTS),
        "environment": folder.read("environment.json"),
    }


def finished(folder: RunFolder, config: TrainConfig) -> bool:
    """Whether the run is there, with these settings, to its end."""
    if not (folder / "cost.json").is_file():
        return False
    if folder.config() != config:
        raise StateError(
            f"{folder.path}: holds a run with other settings; move it or choose --runs"
        )
    return True


def table(results: Sequence[dict[str, Any]]) -> Table:
    """Means of the seeds, with the standard deviation where there are several."""
    out = Table(title="means of the seeds +- standard deviation; x: times less than dense")
    columns = ("run", "seeds", "test accuracy (%)", "seconds", "x dense", "ms per step", "x dense")
    for column in (*columns, "bytes of state", "x dense"):
        out.add_column(column, justify="left" if column == "run" else "right")
    dense = [r for r in results if r["run"] == "dense"]
    for label in dict.fromkeys(r["run"] for r in results):
        runs = [r for r in results if r["run"] == label]
        cells = [label, str(len(runs)), spread([100 * r["accuracy"][-1] for r in runs], 2)]
        for value, digits in ((seconds, 1), (step, 2)):
            cells += [spread([value(r) for r in runs], digits), ratio(dense, runs, value)]
        size = mean(runs, lambda r: r["bytes"])
        out.add_row(*cells, f"{size:,.0f}", ratio(dense, runs, lambda r: r["bytes"]))
    return out


def seconds(result: dict[str, Any]) -> float:
    return float(sum(result["seconds"]))


def step(result: dict[str, Any]) -> float:
    return float(result["step_ms"])


def mean(runs: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float:
    return statistics.mean(value(run) for run in runs)


def ratio(
    dense: Sequence[dict[str, Any]],
    runs: Sequence[dict[str, Any]],
    value: Callable[[dict[str, Any]], float],
) -> str:
    """How many times faster or smaller than dense."""
    return f"{mean(dense, value) / mean(runs, value):.2f}"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean +- standard deviation.

    >>> spread([1.0, 3.0], 1), spread([1.0], 1)
    ('2.0 +- 1.4', '1.0')
    """
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def plot(results: Sequence[dict[str, Any]]) -> str:
    """Accuracy against seconds as an SVG, means of the seeds at the end of every epoch.

    A colour for every method and sparsity; masked is dashed, packed is drawn through.
    """
    curves, colours = [], {"dense": 0}
    for label in dict.fromkeys(r["run"] for r in results):
        asked = label.removesuffix(" masked").removesuffix(" packed")
        colour = colours.setdefault(asked, len(colours))
        points = by_time([r for r in results if r["run"] == label])
        curves.append(Curve(label, points, colour, label.endswith(" masked")))
    return draw(curves, "seconds of training", "test accuracy (%)")


def by_time(runs: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(seconds since the start, accuracy in %) by epoch, means of the runs."""
    xs = map(statistics.mean, zip(*(itertools.accumulate(r["seconds"]) for r in runs), strict=True))
    ys = map(statistics.mean, zip(*(r["accuracy"] for r in runs), strict=True))
    return [(x, 100 * y) for x, y in zip(xs, ys, strict=True)]


def write(path: Path, text: str) -> None:
    """Write a file beside, then put it in place."""
    draft = path.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--widths", default="784-1024-1024-10")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="runs with a word")
    parser.add_argument("--runs", type=Path, default=Path("runs/truly-sparse"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    console = Console(width=None if os.isatty(1) else 160)
    results = []
    for seed in args.seeds:
        for label, config in configs(args).items():
            if label != "dense" and args.only and not any(word in label for word in args.only):
                continue
            console.print(f"{label}, seed {seed} ...")
            results.append(measure(config, seed, args.runs))
    results.sort(key=lambda r: list(configs(args)).index(r["run"]))
    console.print(table(results))
    about = {**environment(), "threads": args.threads, "load": os.getloadavg()[0]}
    console.print("  ".join(f"{key} {value}" for key, value in about.items()))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "truly-sparse.json"
    write(path, json.dumps({"machine": about, "results": results}, indent=1))
    write(path.with_suffix(".svg"), plot(results))
    first = [Path(r["folder"]) for r in results if r["seed"] == args.seeds[0]]
    page = write_report(first, args.runs / "report.html")
    console.print(f"written: {path}, {path.with_suffix('.svg')}, {page}", soft_wrap=True)


if __name__ == "__main__":
    main()
