"""One process of data-parallel runs: `replica.py RANK STORE PROCESSES`; prints case -> what came.

A case is "STORAGE METHOD HOW": told the process group and wrapped afterwards, wrapped first, or
untold which processes belong together.
"""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any

import torch
from packed_ranks import leave
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import sparsewright as sw

BATCH, STEPS = 24, 12
METHODS = {
    "rigl": sw.RigL(every=3, end=10),
    "set": sw.SET(every=3, end=10, drop="magnitude"),
    "gse": sw.GSE(every=3, end=10),
    "gradual": sw.Gradual(every=3, end=10),
    "seeded": sw.Static(),  # every process by a seed of its own
    "ablating": sw.SRigL(every=3, end=10, fraction=0.5, saliency=0.95),
    "sparing": sw.SRigL(every=3, end=10, fraction=0.5, ablate=False),
}
PATTERNS = {"ablating": "fan_in", "sparing": "fan_in"}
CASES = [f"{s} {m} told" for s in ("masked", "packed") for m in ("rigl", "set", "gse", "sparing")]
CASES.append("masked ablating told")
BEYOND_ONE = ["masked rigl wrapped", "packed rigl untold", "packed rigl wrapped"]
BEYOND_ONE += ["packed gradual told", "packed seeded told", "packed ablating told"]
"""What means something with several processes only."""


def run(rank: int, processes: int, storage: str, method: str, how: str) -> dict[str, Any]:
    """How a model ends that each process trains on its share of every batch, or why it cannot."""
    torch.manual_seed(rank if method == "seeded" else 0)
    model: nn.Module = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 8))
    if method == "seeded":
        model = nn.Sequential(sw.nn.PackedLinear(16, 8, sparsity=0.5))
    elif storage == "packed":
        sw.pack(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    trained = DistributedDataParallel(model) if how == "wrapped" else model
    share = BATCH // processes
    try:
        sparse = sw.attach(
            trained,
            optimizer,
            method=METHODS[method],
            sparsity=0.75,
            pattern=PATTERNS.get(method, "unstructured"),
            steps=STEPS,
            init="fan_in",
            process_group=distributed.group.WORLD if how == "told" else None,
        )
        if how != "wrapped":
            trained = DistributedDataParallel(model)
        for step in range(STEPS):
            x = torch.randn(BATCH, 16, generator=torch.Generator().manual_seed(step))
            own = x[rank * share : (rank + 1) * share]
            optimizer.zero_grad()
            (trained(own) - own[:, :8]).square().mean().backward()
            optimizer.step()
    except sw.StateError as error:
        return {"error": str(error)}
    return {
        "places": [layer.present_units.tolist() for layer in sparse.layers],
        "sum": [float(layer.weight.detach().abs().sum()) for layer in sparse.layers],
        "moved": sum(change.grown for change in sparse.changes),
        "ablated": sum(row.dead_outputs for row in sparse.report().rows),
    }


def main(rank: int, store: str, processes: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=processes,
        timeout=datetime.timedelta(seconds=60),
    )
    cases = CASES + (BEYOND_ONE if processes > 1 else [])
    print(json.dumps({case: run(rank, processes, *case.split()) for case in cases}))
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
