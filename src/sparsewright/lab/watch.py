"""What a run shows while it trains: a bar on the terminal, curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .config import TrainConfig
from .run_folder import CURVES, RunFolder


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on a terminal's standard error; nothing elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


@contextmanager
def curves(
    folder: RunFolder, config: TrainConfig, done: int
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that adds a line of metrics to the TensorBoard curves, where they are wanted."""
    if not config.tensorboard:
        yield lambda line: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield lambda line: None  # metrics.jsonl has the same; `sparsewright doctor` says so
        return
    writer = SummaryWriter(str(folder / CURVES), purge_step=done + 1)
    try:
        yield lambda line: _add_curves(writer, line)
    finally:
        writer.close()


def _add_curves(writer: Any, line: dict[str, Any]) -> None:
    for name, value in line.items():
        if name not in ("epoch", "step"):
            writer.add_scalar(name.replace("_", "/", 1), value, line["epoch"])
    writer.flush()
