"""What a training run is asked to do: one frozen dataclass that is also the command line's flags,
the keys of a TOML file and the run's config.json.

Nothing heavy is imported here: `sparsewright --help` reads this file.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError

DENSE = "dense"
"""The method of a run that makes nothing sparse."""


def setting(default: Any, help: str) -> Any:
    """A field with its documentation, which becomes the flag's help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a training run, but for the machine.

    >>> TrainConfig(epochs=0)
    Traceback (most recent call last):
    ...
    sparsewright.errors.ConfigError: epochs must be 1 or more; got 0
    """

    name: str = setting("", "what the report calls the run; default: the name of its folder")
    data: str = setting("digits", "data set (see `sparsewright methods`)")
    model: str = setting("mlp", "model (see `sparsewright methods`)")
    widths: str = setting(
        "", "layer widths, as 784-300-100-10 for an mlp or 32-64-128 (channels) for a cnn"
    )
    method: str = setting(DENSE, "sparse training method, or dense for none")
    sparsity: float | None = setting(
        None, "fraction of weights absent, in [0, 1); default: what the pattern fixes"
    )
    pattern: str = setting("unstructured", "which zeros are allowed: 2:4, 3:32, block:4x4, ...")
    allocate: str = setting("erk", "how the sparsity is shared out over the layers")
    on_misfit: str = setting(
        "unstructured",
        "for weights that do not fit the pattern: error, skip (dense), or another pattern",
    )
    storage: str = setting(
        "masked", "how sparse weights are kept while training: masked (dense, with zeros) or packed"
    )
    init: str = setting(
        "fan_in",
        "first values of sparse weights: fan_in (variance by each neuron's present inputs), or "
        "model (as the model has them)",
    )
    every: int | None = setting(None, "steps between mask updates; default: the method's")
    fraction: float | None = setting(
        None, "part of the present weights moved by an update; default: the method's"
    )
    method_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further options of the method, by name"}
    )
    skip: tuple[str, ...] = setting((), "layers to leave dense, by name or glob (repeatable)")
    overrides: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "pattern or sparsity of single layers, by name"}
    )
    epochs: int = setting(10, "passes over the training images")
    batch: int = setting(128, "images per optimizer step")
    optimizer: str = setting("sgd", "sgd (with momentum) or adamw")
    lr: float = setting(0.05, "highest learning rate; it falls to 0 by a half cosine")
    warmup: float = setting(0.5, "epochs over which the learning rate rises from 0")
    momentum: float = setting(0.9, "momentum of sgd")
    weight_decay: float = setting(5e-4, "weight decay of the weights (not of biases and norms)")
    augment: bool = setting(False, "train on shifted (and, where it makes sense, mirrored) images")
    seed: int = setting(0, "decides initial values, order of the images and random masks")
    threads: int = setting(
        0,
        "threads of a CPU; 0: OMP_NUM_THREADS, else all cores that the process may use",
    )
    device: str = setting("cpu", "where to train: cpu, cuda, cuda:1, ...")
    tensorboard: bool = setting(True, "also write TensorBoard curves, if it is installed")

    def __post_init__(self) -> None:
        _check_bounds(self)
        if self.method == DENSE:
            for name, without in SPARSE_ONLY.items():
                if getattr(self, name) != without:
                    raise ConfigError(
                        f"{name} has no meaning for a dense run; got {getattr(self, name)!r}. "
                        "Choose a method, such as rigl"
                    )

    def options(self) -> dict[str, Any]:
        """The options given for the method; those left out keep the method's own defaults."""
        given = {"every": self.every, "fraction": self.fraction}
        return {**self.method_options, **{k: v for k, v in given.items() if v is not None}}

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class PruneConfig:
    """What a one-shot pruning of a run is asked; the words are those of `sparsewright.prune`."""

    sparsity: float | None = setting(
        None, "fraction of weights absent, in [0, 1); default: what the pattern fixes"
    )
    pattern: str = setting("unstructured", "which zeros are allowed: 2:4, 3:32, block:4x4, ...")
    score: str = setting("magnitude", "how much a weight is worth keeping")
    allocate: str = setting(
        "uniform", "how the sparsity is shared out (uniform: first layer dense)"
    )
    on_misfit: str = setting(
        "unstructured",
        "for weights that do not fit the pattern: error, skip (dense), or another pattern",
    )
    skip: tuple[str, ...] = setting((), "layers to leave dense, by name or glob (repeatable)")
    rounds: int | None = setting(
        None, "prune in so many steps, measuring anew before each; default: the score's own"
    )
    batches: int = setting(
        8, "batches of 128 training images for what is measured on data (at most all)"
    )
    seed: int = setting(0, "decides random choices")

    def __post_init__(self) -> None:
        _check_bounds(self)


Settings = TrainConfig | PruneConfig

SPARSE_ONLY: Mapping[str, Any] = {
    "sparsity": None,
    "every": None,
    "fraction": None,
    "method_options": {},
    "storage": "masked",
}
"""What a dense run must leave as it is."""

BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, math.inf),
    ("batch", 1, math.inf),
    ("lr", 0.0, math.inf),
    ("warmup", 0.0, math.inf),
    ("momentum", 0.0, 1.0),
    ("weight_decay", 0.0, math.inf),
    ("sparsity", 0.0, 1.0),
    ("every", 1, math.inf),
    ("fraction", 0.0, 1.0),
    ("seed", 0, 2**63 - 1),
    ("threads", 0, 4096),
    ("rounds", 1, math.inf),
    ("batches", 1, math.inf),
)


def _check_bounds(config: Settings) -> None:
    for name, low, high in BOUNDS:
        if hasattr(config, name):
            _in_range(name, getattr(config, name), low, high)


def _in_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is None or (math.isfinite(value) and low <= value <= high):
        return
    rule = f"{low:g} or more" if high == math.inf else f"in [{low:g}, {high:g}]"
    raise ConfigError(f"{name} must be {rule}; got {value:g}")


@cache
def field_types(kind: type[Settings] = TrainConfig) -> dict[str, Any]:
    """Name -> type of every field."""
    return get_type_hints(kind)


def accepts(hint: Any) -> tuple[Any, ...]:
    """The plain types that a field takes; NoneType among them if it may be left out.

    >>> accepts(float | None)
    (<class 'float'>, <class 'NoneType'>)
    """
    return get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)


def from_mapping(values: Mapping[str, Any], place: str) -> TrainConfig:
    """A config from TOML, JSON or flags; ConfigError for an unknown key or a wrong type.

    >>> from_mapping({"epoch": 3}, "a.toml")
    Traceback (most recent call last):
    ...
    sparsewright.errors.ConfigError: a.toml: no setting is called 'epoch'; did you mean 'epochs'? \
There are: name, data, ...
    """
    hints = field_types()
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ConfigError(
                f"{place}: no setting is called {key!r}{hint} There are: {', '.join(hints)}"
            )
    return TrainConfig(**{k: _convert(v, hints[k], f"{place}: {k}") for k, v in values.items()})


def _convert(value: Any, hint: Any, place: str) -> Any:
    kinds = tuple(get_origin(kind) or kind for kind in accepts(hint))
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if tuple in kinds and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds):
        return value
    wanted = " or ".join("nothing" if k is type(None) else k.__name__ for k in kinds)
    raise ConfigError(f"{place} must be {wanted}; got {value!r}")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, or in the config.json of another run."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: not {kind}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: needs an object of settings; got {type(found).__name__}")
    return found


def flag(name: str) -> str:
    """The command-line flag of a field.

    >>> flag("weight_decay")
    '--weight-decay'
    """
    return "--" + name.replace("_", "-")


def as_flags(config: Settings) -> list[str] | None:
    """The shortest command line with the same meaning, or None if tables make it inexpressible.

    >>> as_flags(TrainConfig(method="rigl", sparsity=0.9, tensorboard=False))
    ['--method', 'rigl', '--sparsity', '0.9', '--no-tensorboard']
    """
    words: list[str] = []
    plain = type(config)()
    for spec in fields(config):
        value = getattr(config, spec.name)
        if value == getattr(plain, spec.name):
            continue
        if isinstance(value, dict):
            return None
        if isinstance(value, bool):
            words.append(flag(spec.name) if value else "--no-" + flag(spec.name)[2:])
            continue
        for single in value if isinstance(value, tuple) else (value,):
            words += [flag(spec.name), str(single)]
    return words


def help_of(kind: type[Settings], name: str) -> str:
    """A field's documentation and default, for `--help`."""
    spec = next(f for f in fields(kind) if f.name == name)
    quiet = isinstance(spec.default, bool) or spec.default in (None, "", ())
    shown = "" if quiet else f" (default: {spec.default})"
    return (spec.metadata["help"] + shown).replace("%", "%%")
