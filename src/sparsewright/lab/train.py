"""One training loop, read top to bottom: dense, or sparse by one `attach`.

The order of the images depends on seed and epoch alone, and a checkpoint holds everything else
that the next epoch reads, so a run stopped and resumed ends bit for bit like one that was not.
(Same machine, same number of threads: sums in another order differ in their last bits.)
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import StateError
from ..measure.environment import environment, threads
from ..selection import LeftDense
from ..sparsifier import Sparsifier
from ..summary import Summary, summarise
from ..weights import find_weights, is_packed
from .config import TrainConfig
from .cost import step_cost
from .data import Pair, batches, load
from .mask_diary import MaskDiary
from .models import build
from .recipe import OPTIMIZERS, STORAGES, decay_groups, learning_rate, make_sparse
from .run_folder import RunFolder, now, train_command
from .watch import curves, progress_bar


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message says what is kept and how to go on."""


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    force: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train as `config` says and write a run folder; returns its path.

    resume: go on after the last finished epoch of the run in `out`, whose config must be this.
    force: replace the run in `out`. on_epoch: called with each line of metrics.jsonl once the
    epoch's checkpoint is written. Raises StateError if `out` holds a run and neither is given,
    and Interrupted (a KeyboardInterrupt) on Ctrl-C, which leaves the last finished epoch.
    """
    folder = RunFolder(Path(out))
    if resume:
        check_resumable(folder, config)
    else:
        folder.refuse_overwriting(force)
    with threads(config.threads):
        try:
            _train(config, folder, resume, force, on_epoch)
        except KeyboardInterrupt:
            raise Interrupted(how_to_go_on(folder)) from None
    return folder.path


def _train(
    config: TrainConfig,
    folder: RunFolder,
    resume: bool,
    force: bool,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> None:
    # What is trained, on what, by what.
    seed_all(config.seed)
    device = torch.device(config.device)
    data = load(config.data)
    train_set, test_set = to_device(data.train, device), to_device(data.test, device)
    model = build(config.model, data.shape, data.classes, config.widths).to(device)
    model = STORAGES[config.storage](model, config)  # before the optimizer, which holds parameters
    optimizer = OPTIMIZERS[config.optimizer](decay_groups(model, config.weight_decay), config)
    steps_per_epoch = math.ceil(len(data.train[1]) / config.batch)
    steps = steps_per_epoch * config.epochs
    sparse = make_sparse(model, optimizer, config, steps)
    diary = MaskDiary(sparse) if sparse else None

    # Where it starts: at a new folder, or after the last epoch that a checkpoint was written for.
    done, seconds = 0, 0.0
    if resume:
        done, seconds = restore(folder, model, optimizer, sparse, diary)
    else:
        folder.begin(config.to_dict(), describe_environment(config, folder.path), force)

    with curves(folder, config, done) as curve, progress_bar() as progress:
        task = progress.add_task("", total=steps, completed=done * steps_per_epoch)
        for epoch in range(done + 1, config.epochs + 1):
            started = time.perf_counter()
            step = (epoch - 1) * steps_per_epoch
            tally = Tally()
            model.train()
            for x, y in batches(
                train_set,
                config.batch,
                config.seed,
                epoch,
                augment=config.augment,
                mirror=data.mirror,
            ):
                lr = learning_rate(config, step, steps_per_epoch, steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad()
                logits = model(x)
                loss = F.cross_entropy(logits, y)
                check_finite(loss, epoch, step, lr)
                loss.backward()
                optimizer.step()  # masks change, and absent weights return to 0, inside
                if diary:
                    diary.look()
                tally.add(loss.detach(), logits.detach(), y)
                step += 1
                progress.advance(task)

            test_loss, test_accuracy = evaluate(model, test_set)
            took = time.perf_counter() - started
            seconds += took
            line = {
                "epoch": epoch,
                "step": step,
                "train_loss": tally.loss,
                "train_accuracy": tally.accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "sparsity": sparse.report().sparsity if sparse else 0.0,
                "lr": lr,
                "seconds": took,
            }
            # The checkpoint comes last: what has none is dropped by a resumed run.
            curve(line)
            folder.append("metrics.jsonl", line)
            if diary:
                folder.append("masks.jsonl", diary.page(epoch))
            folder.save_checkpoint(
                {
                    "epoch": epoch,
                    "seconds": seconds,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "sparse": sparse.state_dict() if sparse else None,
                    "masks": diary.state_dict() if diary else None,
                    "random": random_state(),
                }
            )
            progress.update(task, description=f"epoch {epoch}: {test_accuracy:.2%}")
            if on_epoch:
                on_epoch(line)

    summary = sparse.report() if sparse else dense_summary(model)
    accuracy = folder.lines("metrics.jsonl")[-1]["test_accuracy"]
    folder.write("summary.json", ending(model, summary, accuracy, seconds))
    more = batches(train_set, config.batch, config.seed, config.epochs + 1)
    folder.write(
        "cost.json", step_cost(model, optimizer, sparse, more)
    )  # and trains on: all is kept
    if sparse:
        sparse.detach()


# --- the parts, in the order of their use -------------------------------------------------------


def check_resumable(folder: RunFolder, config: TrainConfig) -> None:
    """Raise StateError unless `folder` holds a run of this very config."""
    have, want = folder.config().to_dict(), config.to_dict()
    for name, value in want.items():
        if have[name] != value:
            raise StateError(
                f"{folder.path}: a resumed run keeps its settings; {name} is {have[name]!r} there, "
                f"got {value!r}"
            )


def how_to_go_on(folder: RunFolder) -> str:
    """What to tell somebody who stopped a run."""
    if not (folder / "checkpoint.pt").is_file():
        return f"stopped before the first epoch ended; {folder.path} holds no checkpoint"
    done, total = folder.load_checkpoint()["epoch"], folder.config().epochs
    return (
        f"stopped; epoch {done} of {total} is kept. Go on with:\n"
        f"  sparsewright train --resume --out {folder.path}"
    )


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's own random sources."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for code that still draws from it
    torch.manual_seed(seed)


def to_device(pair: Pair, device: torch.device) -> Pair:
    return pair[0].to(device), pair[1].to(device)


def check_finite(loss: Tensor, epoch: int, step: int, lr: float) -> None:
    if not torch.isfinite(loss):
        raise StateError(
            f"the loss became {loss.item()} in epoch {epoch}, at step {step}, with a learning rate "
            f"of {lr:.3g}; a lower lr or a longer warmup may help"
        )


class Tally:
    """Loss and accuracy over the images of an epoch, as they were when each was trained on."""

    def __init__(self) -> None:
        self.count, self._loss, self._right = 0, 0.0, 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.count += len(labels)
        self._loss += loss.item() * len(labels)
        self._right += int((logits.argmax(dim=1) == labels).sum())

    @property
    def loss(self) -> float:
        return self._loss / self.count

    @property
    def accuracy(self) -> float:
        return self._right / self.count


@torch.inference_mode()
def evaluate(model: nn.Module, pair: Pair, batch: int = 1000) -> tuple[float, float]:
    """(mean cross-entropy, accuracy in [0, 1]) of a model on labelled images."""
    model.eval()
    tally = Tally()
    for x, y in zip(pair[0].split(batch), pair[1].split(batch), strict=True):
        logits = model(x)
        tally.add(F.cross_entropy(logits, y), logits, y)
    return tally.loss, tally.accuracy


def random_state() -> dict[str, Any]:
    """The state of torch's random source; the loop's own choices depend on seed and epoch."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def restore(
    folder: RunFolder,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sparse: Sparsifier | None,
    diary: MaskDiary | None,
) -> tuple[int, float]:
    """Load the checkpoint into what is to be trained; (epochs done, seconds taken by them)."""
    state = folder.load_checkpoint()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if sparse and diary:
        sparse.load_state_dict(state["sparse"])
        diary.load_state_dict(state["masks"])
    torch.set_rng_state(state["random"]["torch"])
    if state["random"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    for name in ("metrics.jsonl", "masks.jsonl"):
        folder.keep_lines(name, state["epoch"])
    return state["epoch"], state["seconds"]


def describe_environment(config: TrainConfig, out: Path) -> dict[str, Any]:
    return {**environment(), "command": train_command(config, out), "started": now()}


def dense_summary(model: nn.Module) -> Summary:
    """The Summary of a run in which no weight was made sparse."""
    reason = "the run is dense"
    dense = [LeftDense(w.name, math.prod(w.shape), reason) for w in find_weights(model)]
    return summarise([], dense, None)


def ending(
    model: nn.Module, summary: Summary, test_accuracy: float, seconds: float
) -> dict[str, Any]:
    """What summary.json says."""
    packed = [weight.name for weight in find_weights(model) if is_packed(weight.module)]
    counts = {**summary.to_dict(), "packed": packed}
    return {**counts, "test_accuracy": test_accuracy, "seconds": seconds}
