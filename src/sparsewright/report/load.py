"""Reads a run folder into frozen dataclasses, naming file and line of whatever is wrong there.

Only config.json must exist: a run that was cut short, is dense, or is not deployed yet still reads,
and what is missing is a note on the run.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from ..errors import ConfigError
from .run import (
    Batch,
    Cost,
    Deployment,
    Ended,
    Epoch,
    LayerCost,
    LayerMask,
    LayerPlan,
    LeftDense,
    MaskEpoch,
    Row,
    Run,
    StateBytes,
    Timed,
)

T = TypeVar("T")


def load_run(path: Path) -> Run:
    """A run folder -> Run. ConfigError names the file and line that is missing or broken."""
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: a run is a folder with config.json in it; this is none")
    if not (path / "config.json").is_file():
        held = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        raise ConfigError(f"{path / 'config.json'}: a run needs this file; the folder has: {held}")
    config = _object(path / "config.json")
    notes: list[str] = []
    run = Run(
        path,
        str(config.get("name") or path.resolve().name),
        config,
        _optional(path / "environment.json") or {},
        tuple(_lines(path / "metrics.jsonl", _epoch, notes)),
        tuple(_lines(path / "masks.jsonl", _mask_epoch, notes)),
        _ended(path / "summary.json"),
        _deployment(path / "deploy.json"),
        _cost(path / "cost.json"),
        tuple(notes),
    )
    if not run.epochs:
        run = replace(run, notes=(*run.notes, "no epoch has ended yet: there are no curves"))
    return run


# -- the files -------------------------------------------------------------------------------------


def _epoch(data: Any, place: str) -> Epoch:
    return _build(Epoch, data, place)


def _mask_epoch(data: Any, place: str) -> MaskEpoch:
    layers = _get(data, "layers", dict, place)
    return _build(
        MaskEpoch,
        data,
        place,
        layers={str(n): _build(LayerMask, v, f"{place}, layer {n!r}") for n, v in layers.items()},
    )


def _ended(path: Path) -> Ended | None:
    data = _optional(path)
    if data is None:
        return None
    return Ended(
        tuple(_build(Row, r, f"{path}, row {i}") for i, r in _items(data, "rows", str(path))),
        tuple(_left_dense(v, str(path)) for _, v in _items(data, "left_dense", str(path))),
        _number(data, "test_accuracy", str(path)),
        _maybe(data, "asked_sparsity", str(path)),
        _maybe(data, "seconds", str(path)),
    )


def _left_dense(data: Any, place: str) -> LeftDense:
    if isinstance(data, list):
        if len(data) != 3:
            raise ConfigError(f"{place}: left_dense needs [name, total, reason]; got {data!r}")
        data = dict(zip(("name", "total", "reason"), data, strict=True))
    return _build(LeftDense, data, f"{place}, left_dense")


def _deployment(path: Path) -> Deployment | None:
    data = _optional(path)
    if data is None:
        return None
    place = str(path)
    batches = _get(data, "batches", dict, place)
    equal = data.get("outputs_equal")
    return Deployment(
        int(_number(data, "threads", place)),
        tuple(_batch(size, batch, place) for size, batch in batches.items()),
        _bytes(data, place),
        None if equal is None else bool(equal),
        _maybe(data, "tolerance", place),
    )


def _bytes(data: Any, place: str) -> dict[str, int]:
    sizes = _get(data, "bytes", dict, place) if data.get("bytes") is not None else {}
    return {name: int(_number(sizes, name, f"{place}, bytes")) for name in sizes}


def _batch(size: str, data: Any, place: str) -> Batch:
    place = f"{place}, batch {size}"
    if not size.isdigit():
        raise ConfigError(f"{place}: a batch size must be a whole number")
    best = data.get("best_dense") if isinstance(data, dict) else None
    plan = _get(data, "plan", dict, place)
    return Batch(
        int(size),
        tuple(_timed(way, "way", place) for _, way in _items(data, "model", place)),
        None if best is None else str(best),
        _maybe(data, "speedup", place),
        _maybe(data, "max_error", place),
        tuple(_layer_plan(layer, place) for _, layer in _items(plan, "layers", place)),
    )


def _layer_plan(data: Any, place: str) -> LayerPlan:
    place = f"{place}, layer {data.get('layer')!r}" if isinstance(data, dict) else place
    candidates = [_timed(c, "kernel", place) for _, c in _items(data, "candidates", place)]
    return _build(LayerPlan, data, place, candidates=tuple(candidates))


def _timed(data: Any, key: str, place: str) -> Timed:
    name = _get(data, key, str, place)
    if "refused" not in data:
        _number(data, "median_ms", f"{place}, {key} {name!r}")
    return _build(Timed, data, f"{place}, {key} {name!r}", name=name)


def _cost(path: Path) -> Cost | None:
    data = _optional(path)
    if data is None:
        return None
    place = str(path)
    layers = tuple(_layer_cost(layer, place) for _, layer in _items(data, "layers", place))
    return _build(Cost, data, place, layers=layers)


def _layer_cost(data: Any, place: str) -> LayerCost:
    place = f"{place}, layer {data.get('name')!r}" if isinstance(data, dict) else place
    sizes = {
        key: _build(StateBytes, _get(data, key, dict, place), f"{place}, {key}")
        for key in ("bytes", "dense")
    }
    return _build(LayerCost, data, place, **sizes)


# -- checked reading -------------------------------------------------------------------------------


def _object(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: needs an object {{...}}; got {type(data).__name__}")
    return data


def _optional(path: Path) -> dict[str, Any] | None:
    return _object(path) if path.is_file() else None


def _lines(path: Path, read: Any, notes: list[str]) -> Iterator[Any]:
    """Every line of a .jsonl file; a last line without its newline may be cut off: noted."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline follows: the run stopped while writing
                notes.append(f"{path.name}, line {number} is cut off (the run stopped): left out")
                return
            raise ConfigError(f"{path}, line {number}: not JSON: {error.msg}") from None
        yield read(data, f"{path}, line {number}")


def _get(data: Any, key: str, kind: type[T], place: str) -> T:
    if not isinstance(data, dict) or key not in data:
        held = ", ".join(map(str, data)) if isinstance(data, dict) else repr(data)
        raise ConfigError(f"{place}: needs {key!r}; it has: {held}")
    if not isinstance(data[key], kind):
        raise ConfigError(f"{place}: {key!r} must be {kind.__name__}; got {data[key]!r}")
    return data[key]


def _items(data: Any, key: str, place: str) -> Iterator[tuple[int, Any]]:
    return enumerate(_get(data, key, list, place))


def _number(data: Any, key: str, place: str) -> float:
    value = _maybe(data, key, place)
    if value is None:
        raise ConfigError(f"{place}: needs a number {key!r}; it has: {', '.join(map(str, data))}")
    return value


def _maybe(data: Any, key: str, place: str) -> float | None:
    value = data.get(key)
    if value is None:
        return None
    if not _fits(value, float):
        raise ConfigError(f"{place}: {key!r} must be a number; got {value!r}")
    return float(value)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a dataclass field's type."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_args(hint) and hint.__origin__ is tuple:
        return isinstance(value, list | tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _build(kind: type[T], data: Any, place: str, **given: Any) -> T:
    """A dataclass from a JSON object: its fields by name, of the right types; others are left."""
    if not isinstance(data, dict):
        raise ConfigError(f"{place}: needs an object {{...}}; got {data!r}")
    hints = get_type_hints(kind)
    values: dict[str, Any] = dict(given)
    for spec in fields(kind):  # type: ignore[arg-type]
        if spec.name in values:
            continue
        if spec.name not in data:
            if spec.default is MISSING and spec.default_factory is MISSING:
                raise ConfigError(f"{place}: needs {spec.name!r}; it has: {', '.join(data)}")
            continue
        value = data[spec.name]
        if not _fits(value, hints[spec.name]):
            raise ConfigError(f"{place}: {spec.name!r} has the wrong type; got {value!r}")
        values[spec.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
