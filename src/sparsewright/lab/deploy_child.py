"""A process that makes a model of the bench, deploys it twice, and says how long that took.

`python -m sparsewright.lab.deploy_child` reads its task as one JSON object of Asked's fields from
standard input and writes Found's as one JSON object to standard output. What was timed on this
machine before is in the cache that the environment names.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass

import torch

from ..deploy import deploy
from ..deployed import Deployed
from .bench_models import MODELS


@dataclass(frozen=True)
class Asked:
    """model: of MODELS. sparsity: of each layer that is sparse. threads: torch's. seconds: of
    timing for each layer that is not in the cache."""

    model: str
    pattern: str
    sparsity: float
    batch: int
    threads: int
    seconds: float


@dataclass(frozen=True)
class Found:
    """deploy_s, cpu_s: of the process's first deploy, by the clock and of its threads, with all
    that is imported on its way. again_s: of one more. layers: in the plan; sparse: of them."""

    deploy_s: float
    cpu_s: float
    again_s: float
    layers: int
    sparse: int


def measure(asked: Asked) -> Found:
    """Deploy twice; the model is made before the clock starts."""
    torch.set_num_threads(asked.threads)
    model, example = MODELS[asked.model].make(asked.batch, asked.sparsity, asked.pattern)

    def timed() -> tuple[Deployed, float, float]:
        clock, cpu = time.perf_counter(), time.process_time()
        fast = deploy(model, example, seconds=asked.seconds)
        return fast, time.perf_counter() - clock, time.process_time() - cpu

    fast, deploy_s, cpu_s = timed()
    rows = fast.plan.layers
    return Found(deploy_s, cpu_s, timed()[1], len(rows), sum(row.is_sparse for row in rows))


def main() -> None:
    json.dump(asdict(measure(Asked(**json.load(sys.stdin)))), sys.stdout)


if __name__ == "__main__":
    main()
