"""Deploy a run: pack its model with the kernels that are fastest here, check it, measure it beside
every dense way, and keep the artifact and the figures in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import artifact
from ..deploy import Deployed, deploy
from ..errors import ConfigError
from ..layouts import FP32
from ..measure.dense import TOLERANCE, dense_ways, relative_error
from ..measure.environment import threads as using_threads
from ..measure.timing import Timing, interleave
from .trained import Trained, read_trained

SPARSE = "sparsewright"
"""What the deployed model is called among the ways that are timed."""
CHECKED_IMAGES = 512  # test images on which the deployed model is compared with the masked one


def deploy_run(
    run: str | Path,
    *,
    batches: Sequence[int] = (1, 64),
    threads: int = 0,
    seconds: float = 2.0,
    compiled: bool = False,
    values: str = FP32,
) -> dict[str, Any]:
    """Deploy, check, measure and save a run; returns (and writes) what deploy.json says.

    batches: batch sizes to measure; the saved artifact is planned for the first. threads: 0 for
    OMP_NUM_THREADS of them, else all cores. seconds: of timing for each batch size, shared by all
    that is timed. compiled: also measure torch.compile as a dense way. values: how packed weights
    store theirs; where that rounds them, nothing says whether outputs are equal. Differences are
    parts of the largest output.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"batch sizes must be 1 or more; got {list(batches)}")
    trained = read_trained(run)
    with using_threads(threads):
        planned = {
            b: deploy(trained.model, example(trained, b), cache=False, values=values)
            for b in batches
        }
        measured = {
            str(batch): measure_batch(trained, fast, batch, seconds, compiled)
            for batch, fast in planned.items()
        }
        path = trained.folder / "model.safetensors"
        artifact.save(planned[batches[0]], path, provenance=provenance(trained))
        error = largest_error(artifact.load(path), trained, batches[0])
        used = torch.get_num_threads()
    errors = [error, *(batch["max_error"] for batch in measured.values())]
    found = {
        "threads": used,
        "batches": measured,
        "bytes": {
            "dense_fp32": dense_bytes(trained.model),
            "artifact": path.stat().st_size,
            "checkpoint": (trained.folder / "checkpoint.pt").stat().st_size,
        },
        "values": values,
        "max_error": max(errors),
        "outputs_equal": max(errors) <= TOLERANCE if values == FP32 else None,
        "tolerance": TOLERANCE,
    }
    trained.folder.write("deploy.json", found)
    return found


def example(trained: Trained, batch: int) -> Tensor:
    """The first test images, repeated if a batch needs more."""
    images = trained.data.test[0]
    return images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch].contiguous()


@torch.inference_mode()
def largest_error(fast: nn.Module, trained: Trained, batch: int) -> float:
    """The largest difference from the masked model over test images, in batches of this size."""
    images = trained.data.test[0][:CHECKED_IMAGES]
    got = torch.cat([fast(part) for part in images.split(batch)])
    return relative_error(got, trained.model(images))


def measure_batch(
    trained: Trained, fast: Deployed, batch: int, seconds: float, compiled: bool
) -> dict[str, Any]:
    """The plan for one batch size, and the whole model timed beside every dense way."""
    x = example(trained, batch)
    ways = dense_ways(trained.model, x, compiled=compiled)
    calls: dict[str, Callable[[], object]] = {SPARSE: runner(fast, x)}
    calls.update({way: call for way, call in ways.items() if not isinstance(call, str)})
    times = interleave(calls, seconds=seconds)
    best = min((way for way in times if way != SPARSE), key=lambda way: times[way].median)
    return {
        "plan": fast.plan.to_dict(),
        "model": [
            *(timed(way, time) for way, time in times.items()),
            *({"way": way, "refused": why} for way, why in ways.items() if isinstance(why, str)),
        ],
        "best_dense": best,
        "speedup": times[best].median / times[SPARSE].median,
        "max_error": largest_error(fast, trained, batch),
    }


def runner(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model(x)

    return run


def timed(way: str, time: Timing) -> dict[str, Any]:
    milliseconds = {f"{k}_ms": 1e3 * getattr(time, k) for k in ("median", "low", "high")}
    return {"way": way, **milliseconds}


def dense_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, every weight stored."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def provenance(trained: Trained) -> dict[str, Any]:
    """Where an artifact comes from: the settings that differ from their defaults, and the epoch."""
    made = trained.folder.read("environment.json")
    return {
        "config": trained.folder.raw_config(),
        "epoch": trained.epoch,
        "command": made.get("command"),
        "commit": made.get("commit"),
    }
