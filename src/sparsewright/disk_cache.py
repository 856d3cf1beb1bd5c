"""What `deploy` finds out once and keeps: one JSON file for each set of circumstances, named by
their digest, in a folder of its kind under $SPARSEWRIGHT_CACHE, else in sparsewright/KIND under
$XDG_CACHE_HOME or ~/.cache."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .errors import SparsityWarning
from .files import write_text

PLANS, TRACES = "plans", "traces"
DONE = {PLANS: "measured", TRACES: "traced"}
T = TypeVar("T")


def folder(kind: str = PLANS) -> Path:
    """Where the files of one kind are.

    >>> folder().name
    'plans'
    """
    own = os.environ.get("SPARSEWRIGHT_CACHE")
    if own:
        return Path(own) / kind
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "sparsewright" / kind


def _file(kind: str, key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder(kind) / f"{digest[:32]}.json"


def read(kind: str, key: dict[str, Any], parse: Callable[[Any], T | None]) -> T | None:
    """What `parse` makes of what was kept in these circumstances; None if nothing was.

    A file that holds something else, so that `parse` raises ValueError, KeyError or TypeError, is
    not used: a SparsityWarning names it, and the next one replaces it.
    """
    path = _file(kind, key)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        _ignored(kind, path, error)
        return None
    try:
        entry = json.loads(text)
        if entry["key"] != key:
            raise ValueError(f"it was {DONE[kind]} in other circumstances")
        return parse(entry)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _ignored(kind, path, error)
        return None


def _ignored(kind: str, path: Path, error: Exception) -> None:
    warnings.warn(
        f"the cached {kind.removesuffix('s')} {path} is not used, and {DONE[kind]} anew: "
        f"{type(error).__name__}: {error}",
        SparsityWarning,
        stacklevel=2,
    )


def write(kind: str, key: dict[str, Any], entry: dict[str, Any], indent: int | None = 1) -> None:
    """Keep an entry; where the folder cannot be written a SparsityWarning says so."""
    path = _file(kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"key": key, **entry}, indent=indent) + "\n")
    except OSError as error:
        warnings.warn(
            f"{DONE[kind]} {kind} are not kept: {path.parent} cannot be written ({error}); "
            "SPARSEWRIGHT_CACHE names another folder, sw.deploy(..., cache=False) asks for none",
            SparsityWarning,
            stacklevel=2,
        )
