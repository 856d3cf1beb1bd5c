"""One-shot pruning of a trained run into a run folder of its own, evaluated but not trained on."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..abilities import Measured, MeasuredAllocation
from ..allocate import as_allocation
from ..measure.environment import environment, threads
from ..prune import prune
from ..scores import as_score
from .config import PruneConfig, TrainConfig, as_flags
from .run_folder import RunFolder, now
from .train import ending, evaluate, random_state, seed_all
from .trained import Trained, read_trained

ONE_SHOT = "one-shot"
"""The method that the config of a pruned run names; it is not one that trains."""
BATCH = 128  # training images in a batch of what is measured


def prune_run(run: str | Path, out: str | Path, asked: PruneConfig, *, force: bool = False) -> Path:
    """Prune the checkpoint of `run` in one shot into the run folder `out`; returns its path."""
    source = read_trained(run)
    folder = RunFolder(Path(out))
    folder.refuse_overwriting(force)
    seed_all(asked.seed)
    with threads(source.config.threads):
        started = time.perf_counter()
        words = {key: value for key, value in asdict(asked).items() if key != "batches"}
        data = calibration_batches(source, asked.batches) if measures(asked) else None
        summary = prune(source.model, **words, data=data)
        train_loss, train_accuracy = evaluate(source.model, source.data.train)
        test_loss, test_accuracy = evaluate(source.model, source.data.test)
        seconds = time.perf_counter() - started
        folder.begin(pruned_config(source, asked), describe(source, asked, folder.path), force)
    folder.append(
        "metrics.jsonl",
        {
            "epoch": source.epoch,
            "step": 0,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "sparsity": summary.sparsity,
            "lr": 0.0,
            "seconds": seconds,
        },
    )
    folder.save_checkpoint(
        {
            "epoch": source.epoch,
            "seconds": seconds,
            "model": source.model.state_dict(),
            "random": random_state(),
        }
    )
    folder.write("summary.json", ending(source.model, summary, test_accuracy, seconds))
    return folder.path


def measures(asked: PruneConfig) -> bool:
    """Whether the score or the allocation looks at data."""
    score, allocate = as_score(asked.score), as_allocation(asked.allocate)
    measured = isinstance(score, Measured) or isinstance(allocate, MeasuredAllocation)
    return measured or score.needs_gradient


def calibration_batches(source: Trained, count: int) -> list[tuple[Tensor, Tensor]]:
    """So many batches of training images and labels, in a fixed random order."""
    images, labels = source.data.train
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return [(images[part], labels[part]) for part in order[: count * BATCH].split(BATCH)]


def pruned_config(source: Trained, asked: PruneConfig) -> dict[str, Any]:
    """The source's settings under the new sparsity, and what was done to it."""
    config: TrainConfig = replace(
        source.config,
        name="",
        method=ONE_SHOT,
        sparsity=asked.sparsity,
        pattern=asked.pattern,
        allocate=asked.allocate,
        on_misfit=asked.on_misfit,
        skip=asked.skip,
        overrides={},
        every=None,
        fraction=None,
        method_options={},
        storage="masked",
    )
    return {**config.to_dict(), "score": asked.score, "pruned_from": str(source.folder.path)}


def describe(source: Trained, asked: PruneConfig, out: Path) -> dict[str, Any]:
    words = [str(source.folder.path), *(as_flags(asked) or ()), "--out", str(out)]
    command = shlex.join(["sparsewright", "prune", *words])
    return {**environment(), "command": command, "started": now()}
