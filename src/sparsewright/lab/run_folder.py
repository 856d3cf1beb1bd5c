"""A run is a folder: config, environment, metrics, masks, checkpoint, all readable by other tools.

Every file is written beside and renamed, except for the two .jsonl files, which only grow; a line
that a crash cut short is dropped when the run is resumed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, StateError
from .config import TrainConfig, as_flags, field_types, from_mapping, read_settings

FILES = (
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "masks.jsonl",
    "summary.json",
    "cost.json",
    "checkpoint.pt",
    "model.safetensors",
    "deploy.json",
)
CURVES = "tensorboard"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, by name."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def exists(self) -> bool:
        return (self / "config.json").is_file()

    def begin(self, config: dict[str, Any], environment: dict[str, Any], force: bool) -> None:
        """Make the folder for a new run. An existing run is replaced only if `force`."""
        self.refuse_overwriting(force)
        self.path.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (self / name).unlink(missing_ok=True)
        shutil.rmtree(self / CURVES, ignore_errors=True)
        self.write("environment.json", environment)
        self.write("config.json", config)  # last: with it the folder is a run

    def refuse_overwriting(self, force: bool) -> None:
        """Raise unless a run may be written here: to an empty or new folder, or by force."""
        if self.exists():
            if not force:
                raise StateError(
                    f"{self.path}: there is a run here already; --resume goes on with it, "
                    "--force replaces it"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise StateError(f"{self.path}: a run needs a folder of its own; this one holds files")
        elif self.path.exists() and not self.path.is_dir():
            raise StateError(f"{self.path}: a run is a folder; this is a file")

    def config(self) -> TrainConfig:
        """The run's config; what later tools noted beside the settings is left out."""
        return from_mapping(
            {k: v for k, v in self.raw_config().items() if k in field_types()},
            str(self / "config.json"),
        )

    def raw_config(self) -> dict[str, Any]:
        if not self.exists():
            held = ", ".join(sorted(p.name for p in self.path.glob("*"))) or "nothing"
            raise ConfigError(
                f"{self.path}: a run is a folder with config.json in it; this holds: {held}"
            )
        return read_settings(self / "config.json")

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        part = self / f"{name}.part"
        part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(part, self / name)

    def read(self, name: str) -> dict[str, Any]:
        return read_settings(self / name)

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add one line to a .jsonl file."""
        with (self / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a .jsonl file; none if there is no such file."""
        path = self / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def keep_lines(self, name: str, last_epoch: int) -> None:
        """Drop the lines after an epoch (an interrupted run wrote them, or a part of one)."""
        kept = [line for line in self.lines(name) if line["epoch"] <= last_epoch]
        if not (self / name).is_file():
            return
        part = self / f"{name}.part"
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(part, self / name)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        part = self / "checkpoint.pt.part"
        torch.save(state, part)
        os.replace(part, self / "checkpoint.pt")

    def load_checkpoint(self) -> dict[str, Any]:
        """The last finished epoch's checkpoint, on the CPU; nothing in it is executed."""
        path = self / "checkpoint.pt"
        if not path.is_file():
            raise StateError(
                f"{self.path}: no epoch of this run has ended, so it has no checkpoint"
            )
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # torch.load raises half a dozen kinds for a broken file
            raise StateError(f"{path}: cannot be read as a checkpoint: {error}") from error


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def train_command(config: TrainConfig, out: Path) -> str:
    """The command line that repeats a run.

    >>> train_command(TrainConfig(epochs=3), Path("runs/a"))
    'sparsewright train --epochs 3 --out runs/a'
    """
    flags = as_flags(config)
    if flags is None:
        flags = ["--config", str(out / "config.json")]
        out = out.with_name(out.name + "-again")
    return shlex.join(["sparsewright", "train", *flags, "--out", str(out)])
