"""What a run folder trained: its config, its model with the last epoch's weights, and its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from .config import TrainConfig
from .data import Images, load
from .models import build
from .run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A run read back; the model is in eval mode, on the CPU, its absent weights exact zeros."""

    folder: RunFolder
    config: TrainConfig
    model: nn.Module
    data: Images
    epoch: int


def read_trained(run: str | Path) -> Trained:
    """Read a run folder back; StateError if no epoch of it has ended."""
    folder = RunFolder(Path(run))
    config = folder.config()
    state = folder.load_checkpoint()
    data = load(config.data)
    model = build(config.model, data.shape, data.classes, config.widths)
    model.load_state_dict(state["model"])
    return Trained(folder, config, model.eval(), data, state["epoch"])
