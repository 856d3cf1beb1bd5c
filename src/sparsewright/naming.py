"""Which weights a user means by names, globs and types of modules: those to skip, and those that
are to have a sparsity or a pattern of their own."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from .arguments import check_mapping, check_sparsity, told
from .core import Shape
from .errors import ConfigError, SparsewrightError, UnknownNameError
from .patterns import as_pattern
from .weights import Weight

Skip = str | type[nn.Module] | Sequence[str | type[nn.Module]]
Override = Mapping[str, Any]
Overrides = Mapping[str, Override] | Callable[[str, Shape], Override | None]
"""By glob of names, or a function of a weight's name and shape; None or {} overrides nothing."""
OVERRIDABLE = ("pattern", "sparsity")
SKIPS = "names of modules, globs or types of modules, one or a list"
OVERRIDES = "{glob: {'sparsity': ..., 'pattern': ...}}, or a function (name, shape) -> such"


def _matches(weight: Weight, glob: str) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in (weight.name, *weight.aliases))


def skipped(weights: Sequence[Weight], skip: Skip) -> set[str]:
    """The names of the weights that `skip` names; UnknownNameError if it names one that is not."""
    wanted = [skip] if isinstance(skip, str | type | nn.Module) else skip
    if not isinstance(wanted, Iterable):
        raise ConfigError(f"skip must be {SKIPS}; got {told(skip)}")
    out: set[str] = set()
    for one in wanted:
        if isinstance(one, str):
            hits = {w.name for w in weights if _matches(w, one)}
        elif not (isinstance(one, type) and issubclass(one, nn.Module)):
            raise ConfigError(f"skip must be {SKIPS}; got {told(one)}")
        else:
            hits = {w.name for w in weights if _is_a(w.module, one)}
        if not hits and isinstance(one, str):
            raise UnknownNameError("weight to skip", one, [w.name for w in weights])
        out |= hits
    return out


def _is_a(module: nn.Module, kind: type) -> bool:
    """Whether a module is of a kind, or packed in place of one."""
    return isinstance(module, kind) or issubclass(getattr(module, "kind", type(None)), kind)


def override_of(
    weight: Weight, overrides: Overrides | None, weights: list[Weight]
) -> Mapping[str, Any]:
    if callable(overrides):
        ruled = overrides(weight.name, weight.shape)
        if ruled is None:
            return {}
        _check_override(weight.name, ruled)
        return ruled
    merged: dict[str, Any] = {}
    for glob, values in (overrides or {}).items():
        if not any(_matches(w, glob) for w in weights):
            raise UnknownNameError("weight to override", glob, [w.name for w in weights])
        _check_override(glob, values)
        if _matches(weight, glob):
            merged.update(values)
    return merged


def check_overrides(overrides: Any) -> None:
    if overrides is not None and not callable(overrides):
        check_mapping("overrides", overrides, OVERRIDES)


def check_on_misfit(on_misfit: Any) -> None:
    if isinstance(on_misfit, str) and on_misfit in ("error", "skip"):
        return
    try:
        as_pattern(on_misfit)
    except SparsewrightError as error:
        raise ConfigError(
            f"on_misfit must be 'error', 'skip' or the pattern for what does not fit: {error}"
        ) from None


def _check_override(weight: str, values: Any) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"overrides must be {OVERRIDES}; for {weight!r} got {told(values)}")
    if values.get("sparsity") is not None:
        check_sparsity(values["sparsity"], f"overrides: {weight!r}: ")
    if unknown := set(values) - set(OVERRIDABLE):
        raise UnknownNameError("per-layer override", sorted(unknown)[0], OVERRIDABLE)
