"""What a run folder trained: its config, its model with the last epoch's weights, and its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..pack import pack, unpack
from ..weights import find_weights
from .config import TrainConfig
from .data import Images, load
from .models import build
from .run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A run read back; the model is in eval mode, on the CPU, its absent weights exact zeros.

    What was trained packed has plain dense modules again.
    """

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
    model = unpack(load_weights(model, state["model"]))
    return Trained(folder, config, model.eval(), data, state["epoch"])


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Pack what is packed in a checkpoint, known by its places, and load all of it."""
    weights = [weight.name for weight in find_weights(model)]
    masked = [name for name in weights if f"{name}.starts" not in state]
    if len(masked) < len(weights):
        model = pack(model, skip=masked)
    model.load_state_dict(state)
    return model
