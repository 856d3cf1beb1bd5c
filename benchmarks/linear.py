"""Packed Linear layers beside the best dense way, on this machine: a table and a JSON file.

    python benchmarks/linear.py [--seconds S] [--shapes 1024x1024 ...] [--batches 1 64]
        [--threads 1 4] [--out FOLDER]

Every candidate is timed in turn, round after round, in one process, and checked against the dense
product; the table gives medians, the JSON the spread too.

The floor that a packed kernel works against is printed beside it. Batch 1 reads every weight
once: bytes over the bandwidth that this run measures by summing a block of as many bytes. Larger
batches compute: 2 * present * batch flop over the rate that this run measures on a dense matrix
product (which is itself below the CPU's peak, so a kernel that reads little may come close).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sparsewright
from sparsewright.kernels import Choice, choose, kernel_info
from sparsewright.kernels.choose import is_dense

SHAPES = ("512x512", "768x3072", "1024x1024", "4096x4096")
BATCHES = (1, 16, 64)
PATTERNS: dict[str, Callable[[int, int], Tensor]] = {}


def pattern(name: str) -> Callable[[Callable[[int, int], Tensor]], Callable[[int, int], Tensor]]:
    def put(make: Callable[[int, int], Tensor]) -> Callable[[int, int], Tensor]:
        PATTERNS[name] = make
        return make

    return put


@pattern("unstructured 90 %")
def unstructured(out: int, width: int) -> Tensor:
    """Exactly a tenth of the weights, anywhere."""
    keep = torch.zeros(out * width, dtype=torch.bool)
    keep[torch.randperm(out * width)[: out * width // 10]] = True
    return torch.randn(out, width) * keep.view(out, width)


@pattern("3:32")
def three_of_32(out: int, width: int) -> Tensor:
    keep = torch.rand(out * width // 32, 32).argsort(dim=1) < 3
    return torch.randn(out, width) * keep.view(out, width)


def fastest(run: Callable[[], object], seconds: float = 0.05) -> float:
    """Seconds of the fastest call: for rates of the machine, not for kernels."""
    best, end, rounds = float("inf"), time.perf_counter() + seconds, 0
    while time.perf_counter() < end or rounds < 20:
        rounds += 1
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def bandwidth(size: int) -> float:
    """Bytes per second of reading a block of this size, again and again."""
    block = torch.ones(max(1, size // 4))
    return block.numel() * 4 / fastest(block.sum)


def flops() -> float:
    """Multiply-adds count as two; of a square float32 matrix product."""
    a = torch.randn(768, 768)
    return 2 * 768**3 / fastest(lambda: a @ a, 0.2)


def floor(choice: Choice, batch: int, present: int, rate: float) -> float:
    """Seconds that the packed weight's bytes or its arithmetic need, whichever is more."""
    size = choice.packed.nbytes if choice.packed else 0
    return max(size / bandwidth(size) if size else 0.0, 2 * present * batch / rate)


def measure(args: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    rate, rows = flops(), []
    for shape in args.shapes:
        out, width = map(int, shape.split("x"))
        for name, make in PATTERNS.items():
            weight, bias = make(out, width), torch.randn(out)
            for batch in args.batches:
                choice = choose(weight, bias, torch.randn(batch, width), seconds=args.seconds)
                present = int((weight != 0).sum())
                rows.append(row(shape, name, choice, floor(choice, batch, present, rate)))
    return rows


def row(shape: str, name: str, choice: Choice, least: float) -> dict[str, Any]:
    return {
        "shape": shape,
        "pattern": name,
        "batch": choice.batch,
        "threads": choice.threads,
        "kernel": choice.kernel,
        "speedup": choice.speedup,
        "floor": least,
        "timings": [asdict(t) for t in choice.timings],
        "refusals": dict(choice.refusals),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    title = "microseconds: median [10th - 90th percentile]; speed-up over the best dense way"
    out = Table(title=title)
    for column in ("out x in", "pattern", "threads", "batch", "best dense", "best packed"):
        out.add_column(column)
    for column in ("speed-up", "floor"):
        out.add_column(column, justify="right")
    for r in rows:
        dense = next(t for t in r["timings"] if is_dense(t["kernel"]))
        packed = next((t for t in r["timings"] if not is_dense(t["kernel"])), None)
        ratio = f"{dense['median'] / packed['median']:.2f}x" if packed else "-"
        cells = (r["shape"], r["pattern"], str(r["threads"]), str(r["batch"]))
        least = f"{r['floor'] * 1e6:.1f}" if r["floor"] else "-"
        out.add_row(*cells, cell(dense), cell(packed), ratio, least)
    return out


def cell(timing: dict[str, Any] | None) -> str:
    if timing is None:
        return "none serves"
    low, median, high = (timing[k] * 1e6 for k in ("low", "median", "high"))
    return f"{timing['kernel']} {median:.1f} [{low:.1f} - {high:.1f}]"


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def machine() -> dict[str, Any]:
    info = kernel_info()
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "isa": info.isa,
        "native": info.native,
        "compiler": info.compiler,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparsewright": getattr(sparsewright, "__version__", "unknown"),
        "platform": platform.platform(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="timing per cell (default: 0.3)")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="OUTxIN")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.manual_seed(0)
    about = machine()
    rows = [r for threads in args.threads for r in measure(args, threads)]
    console = Console(width=None if os.isatty(1) else 140)
    console.print(table(rows))
    console.print("  ".join(f"{key} {value}" for key, value in about.items()))
    args.out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", str(about["cpu"]).lower()).strip("-")
    path = args.out / f"linear-{name}.json"
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({"machine": about, "rows": rows}, indent=1), encoding="utf-8")
    os.replace(draft, path)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
