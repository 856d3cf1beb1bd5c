"""Run folders for the report's tests: a small MLP really trained on digits, written by the schema.

Masks move by magnitude and chance (SET); times are really measured, on two dense ways and on
torch's own sparse product. Nothing here is a result: it is only shaped like one.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F


def make_run(
    folder: Path,
    *,
    sparsity: float | None = 0.9,
    epochs: int = 3,
    deploy: bool = True,
    seed: int = 0,
) -> Path:
    """A run folder after `epochs` epochs on digits; dense where sparsity is None."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    y = torch.tensor(data.target)
    model = nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)
    )
    weights = {name: model.get_submodule(name).weight for name in ("0", "2")} if sparsity else {}
    masks = {name: torch.rand_like(w) >= (sparsity or 0.0) for name, w in weights.items()}
    first = {name: mask.clone() for name, mask in masks.items()}
    ever = {name: mask.clone() for name, mask in masks.items()}
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    metrics, moves = [], []
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        moved = {
            name: _move(weights[name], mask) if epoch > 1 else 0 for name, mask in masks.items()
        }
        for name, mask in masks.items():
            ever[name] |= mask
        for batch in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            _zero(weights, masks)
        line = {"epoch": epoch, "step": epoch * 22, **_measure(model, x, y), "lr": 3e-3}
        absent = sum(int((~m).sum()) for m in masks.values())
        metrics.append(
            line
            | {
                "sparsity": absent / max(1, sum(m.numel() for m in masks.values())),
                "seconds": time.perf_counter() - started,
            }
        )
        layers = {n: _layer(masks[n], first[n], ever[n], moved[n]) for n in masks}
        counts = masks["0"].sum(0).tolist() if masks else []
        moves.append({"epoch": epoch, "step": epoch * 22, "layers": layers, "input_counts": counts})
    config = {"name": folder.name, "data": "digits", "model": "mlp", "widths": "64-96-96-10"}
    config |= {"method": "set" if sparsity else "dense", "sparsity": sparsity, "seed": seed}
    config |= {"pattern": "unstructured", "allocate": "uniform", "epochs": epochs, "batch": 64}
    write(folder / "config.json", config | {"lr": 3e-3, "optimizer": "adam"})
    write(folder / "environment.json", _environment(folder, sparsity, seed))
    write_lines(folder / "metrics.jsonl", metrics)
    if masks:
        write_lines(folder / "masks.jsonl", moves)
    write(folder / "summary.json", _summary(model, masks, sparsity, metrics))
    if deploy:
        write(folder / "deploy.json", _deploy(model, masks))
    return folder


def write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1))


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit(path: Path, **changes: object) -> None:
    """Replace values of a JSON file."""
    write(path, json.loads(path.read_text()) | changes)


@torch.no_grad()
def _move(weight: Tensor, mask: Tensor, share: float = 0.2) -> int:
    """Drop the weakest present weights, grow as many by chance (SET); returns how many."""
    count = int(share * mask.sum())
    dropped = weight.abs().masked_fill(~mask, math.inf).flatten().topk(count, largest=False).indices
    grown = torch.rand(mask.shape).masked_fill(mask, -1).flatten().topk(count).indices
    mask.view(-1)[dropped] = False
    mask.view(-1)[grown] = True
    return count


@torch.no_grad()
def _zero(weights: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        weights[name] *= mask


@torch.no_grad()
def _measure(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    measured = {}
    for split, part in (("train", slice(0, 1400)), ("test", slice(1400, None))):
        out = model(x[part])
        measured[f"{split}_loss"] = float(F.cross_entropy(out, y[part]))
        measured[f"{split}_accuracy"] = float((out.argmax(1) == y[part]).float().mean())
    return measured


def _layer(mask: Tensor, first: Tensor, ever: Tensor, moved: int) -> dict[str, float]:
    return {
        "present": int(mask.sum()),
        "total": mask.numel(),
        "sparsity": 1 - float(mask.float().mean()),
        "dead_outputs": int((mask.sum(1) == 0).sum()),
        "dropped": moved,
        "grown": moved,
        "overlap_first": float((mask & first).sum() / (mask | first).sum()),
        "ever": float(ever.float().mean()),
    }


def _environment(folder: Path, sparsity: float | None, seed: int) -> dict[str, object]:
    how = f"--method set --sparsity {sparsity}" if sparsity else "--method dense"
    return {
        "python": "3.11.2",
        "torch": torch.__version__,
        "sparsewright": "0.1.0",
        "platform": "Linux-6.1.0-18-amd64-x86_64-with-glibc2.36",
        "cpu": "A made-up processor for tests @ 2.00GHz",
        "cores": 4,
        "threads": 2,
        "isa": "AVX2",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "command": f"sparsewright train --data digits --model mlp --widths 64-96-96-10 {how} "
        f"--epochs 3 --seed {seed} --out runs/{folder.name}",
        "started": "2026-01-02T03:04:05+00:00",
    }


def _summary(model, masks, sparsity, metrics) -> dict[str, object]:
    rows, left = [], []
    for name in ("0", "2", "4"):
        weight = model.get_submodule(name).weight
        if name in masks:
            mask = masks[name]
            rows.append(
                {"name": name, "shape": list(weight.shape), "pattern": "unstructured"}
                | {"total": mask.numel(), "present": int(mask.sum())}
                | {"dead_outputs": int((mask.sum(1) == 0).sum())}
            )
        else:
            left.append({"name": name, "total": weight.numel(), "reason": "skipped by name"})
    return {
        "asked_sparsity": sparsity,
        "rows": rows,
        "left_dense": left,
        "test_accuracy": metrics[-1]["test_accuracy"],
        "seconds": sum(line["seconds"] for line in metrics),
    }


@torch.no_grad()
def _deploy(model: nn.Module, masks: dict[str, Tensor]) -> dict[str, object]:
    present = sum(int(m.sum()) for m in masks.values())
    dense = 4 * sum(p.numel() for p in model.parameters())
    saved = sum(m.numel() for m in masks.values()) - present
    batches = {str(size): _batch(model, masks, size) for size in (1, 64)}
    return {
        "threads": torch.get_num_threads(),
        "batches": batches,
        "bytes": {
            "dense_fp32": dense,
            "artifact": dense - 4 * saved + 2 * present,
            "checkpoint": 3 * dense,
        },
        "outputs_equal": True,
        "tolerance": 1e-5,
    }


def _batch(model: nn.Module, masks: dict[str, Tensor], size: int) -> dict[str, object]:
    example = torch.rand(size, 64)
    arrays = [(m.weight.numpy(), m.bias.numpy()) for m in model if isinstance(m, nn.Linear)]
    ways = [
        {"way": "eager", **_time(lambda: model(example))},
        {"way": "OpenBLAS (numpy)", **_time(lambda: [example.numpy()[:, :64] @ arrays[0][0].T])},
        {"way": "torch.compile", "refused": "no C++ compiler was found: needs 'g++' on PATH"},
    ]
    best = min((w for w in ways if "median_ms" in w), key=lambda w: w["median_ms"])
    ours = {"way": "sparsewright", **_time(lambda: model[0](example))}
    layers = [_plan(name, mask, size) for name, mask in masks.items()]
    return {
        "plan": {"threads": 2, "batch": size, "layers": layers},
        "model": [*ways, ours],
        "best_dense": best["way"],
        "speedup": best["median_ms"] / ours["median_ms"],
        "max_error": 2.4e-7,
    }


def _plan(name: str, mask: Tensor, size: int) -> dict[str, object]:
    weight, example = torch.rand(mask.shape) * mask, torch.rand(size, mask.shape[1])
    packed = weight.to_sparse()
    dense, csr = _time(lambda: F.linear(example, weight)), _time(lambda: packed @ example.T)
    return {
        "layer": name,
        "shape": list(mask.shape),
        "present": int(mask.sum()),
        "sparsity": 1 - float(mask.float().mean()),
        "pattern": "unstructured",
        "kernel": "csr.avx2",
        "layout": "csr",
        "bytes": 6 * int(mask.sum()),
        "dense_bytes": 4 * mask.numel(),
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
