"""Run folders for the report's tests: a small MLP really trained on digits.

Of deploy.json the form is real and the times are, but they are of torch's own products, so that the
page is tested alone. Nothing here is a result: it is only shaped like one.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from sparsewright.lab.config import TrainConfig
from sparsewright.lab.models import build
from sparsewright.lab.train import train
from sparsewright.report.run import SPARSE_WAY


def make_run(
    folder: Path,
    *,
    sparsity: float | None = 0.9,
    epochs: int = 3,
    deploy: bool = True,
    seed: int = 0,
    storage: str = "masked",
) -> Path:
    """A run folder after `epochs` epochs of SET on digits; dense where sparsity is None."""
    config = TrainConfig(
        widths="64-96-96-10", epochs=epochs, seed=seed, threads=2, tensorboard=False
    )
    if sparsity is not None:
        config = replace(
            config, method="set", sparsity=sparsity, every=5, skip=("head",), storage=storage
        )
    train(config, folder)
    if deploy:
        write(folder / "deploy.json", _deploy(folder, config))
    return folder


def write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1))


def edit(path: Path, **changes: object) -> None:
    """Replace values of a JSON file."""
    write(path, json.loads(path.read_text()) | changes)


@torch.no_grad()
def _deploy(folder: Path, config: TrainConfig) -> dict[str, object]:
    """What deploy.json says, with times of torch's own products on weights of this run's shapes."""
    summary = json.loads((folder / "summary.json").read_text())
    model = build("mlp", (1, 8, 8), 10, config.widths)
    dense = 4 * sum(p.numel() for p in model.parameters())
    absent = sum(row["total"] - row["present"] for row in summary["rows"])
    return {
        "threads": torch.get_num_threads(),
        "batches": {str(size): _batch(model, summary["rows"], size) for size in (1, 64)},
        "bytes": {
            "dense_fp32": dense,
            "artifact": dense - 4 * absent,
            "checkpoint": (folder / "checkpoint.pt").stat().st_size,
        },
        "outputs_equal": True,
        "tolerance": 1e-5,
    }


def _batch(model: nn.Module, rows: list[dict], size: int) -> dict[str, object]:
    example = torch.rand(size, 1, 8, 8)
    linear = [m for m in model if isinstance(m, nn.Linear)]
    arrays = [(m.weight.numpy(), m.bias.numpy()) for m in linear]

    def by_numpy() -> None:
        x = example.numpy().reshape(size, 64)
        for weight, bias in arrays:
            x = (x @ weight.T + bias).clip(0)

    def by_sparse_products() -> None:
        x = example.reshape(size, 64).T
        for weight in sparse:
            x = weight @ x

    sparse = [m.weight.detach().to_sparse() for m in linear]
    ways = [
        {"way": "eager", **_time(lambda: model(example))},
        {"way": "OpenBLAS (numpy)", **_time(by_numpy)},
        {"way": "torch.compile", "refused": "no C++ compiler was found: needs 'g++' on PATH"},
    ]
    best = min((w for w in ways if "median_ms" in w), key=lambda w: w["median_ms"])
    ours = {"way": SPARSE_WAY, **_time(by_sparse_products)}
    return {
        "plan": {"threads": 2, "batch": size, "layers": [_plan(row, size) for row in rows]},
        "model": [ours, *ways],
        "best_dense": best["way"],
        "speedup": best["median_ms"] / ours["median_ms"],
        "max_error": 2.4e-7,
    }


def _plan(row: dict, size: int) -> dict[str, object]:
    weight = torch.rand(row["shape"])
    example = torch.rand(size, row["shape"][1])
    weight[weight > row["present"] / row["total"]] = 0
    packed = weight.to_sparse()
    dense, csr = _time(lambda: F.linear(example, weight)), _time(lambda: packed @ example.T)
    return {
        "layer": row["name"],
        "shape": row["shape"],
        "present": row["present"],
        "sparsity": row["sparsity"],
        "pattern": row["pattern"],
        "kernel": "csr.avx2",
        "layout": "csr",
        "bytes": 6 * row["present"],
        "dense_bytes": 4 * row["total"],
        "speedup": dense["median_ms"] / csr["median_ms"],
        "candidates": [
            {"kernel": "csr.avx2", **csr, "error": 1.2e-7},
            {"kernel": "dense.eager", **dense, "error": 0.0},
            {"kernel": "csr.avx512", "refused": "this processor has no AVX-512"},
            {
                "kernel": "nm.avx2",
                "refused": "layout nm needs the same number of weights in every 32",
            },
        ],
    }


def _time(call) -> dict[str, float]:
    took = []
    for _ in range(30):
        started = time.perf_counter()
        call()
        took.append(1000 * (time.perf_counter() - started))
    took.sort()
    return {"median_ms": took[15], "low_ms": took[3], "high_ms": took[26]}
