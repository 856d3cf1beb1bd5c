"""Code that stands for itself, by a version: that of Python's library, torch and numpy; and which
names all other code uses."""

from __future__ import annotations

import dis
import functools
import itertools
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")


def is_known(module: str) -> bool:
    """Whether a module is one of those.

    >>> is_known("torch.nn.functional"), is_known("sparsewright")
    (True, False)
    """
    top = module.partition(".")[0]
    if top in sys.builtin_module_names:
        return True
    if top not in ("torch", "numpy") and top not in sys.stdlib_module_names:
        return False
    path = getattr(sys.modules.get(top), "__file__", None)
    return path is not None and _is_known_file(path)


def is_known_code(code: types.CodeType) -> bool:
    """The same of the file that a function was written in: decorators lend it other names."""
    return _is_known_file(code.co_filename)


@functools.cache
def _is_known_file(name: str) -> bool:
    path = Path(name)
    library, *packages = _folders()
    if name.startswith("<frozen ") or any(path.is_relative_to(folder) for folder in packages):
        return True
    return path.is_relative_to(library) and "site-packages" not in path.parts


@functools.cache
def _folders() -> list[Path]:
    """Of Python's library, torch and numpy."""
    packages = [Path(str(p.__file__)).parent for p in (torch, np)]
    return [Path(sysconfig.get_paths()["stdlib"]), *packages]


def found_under(module: str, name: str) -> Any:
    """What is found under a qualified name."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


class Uses(NamedTuple):
    """names: all in a function, those of its inner ones as well. chains: of globals, each with the
    attributes that are taken out of it at once. imports: modules with their levels."""

    names: frozenset[str]
    chains: frozenset[tuple[str, ...]]
    imports: frozenset[tuple[str, int]]


@functools.cache
def uses_of(code: types.CodeType) -> Uses:
    """What a function's code takes from elsewhere.

    >>> sorted(uses_of((lambda x: torch.nn.functional.relu(x)).__code__).chains)
    [('torch', 'nn', 'functional', 'relu')]
    """
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    chains, imports = set(), set()
    for i, step in enumerate(steps):
        if step.opname in LOADS:
            taken = itertools.takewhile(lambda s: s.opname in ATTRIBUTES, steps[i + 1 :])
            chains.add((step.argval, *(s.argval for s in taken)))
        elif step.opname == "IMPORT_NAME":
            imports.add((step.argval, steps[i - 2].argval))
    inner = [uses_of(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    own = frozenset(code.co_names), chains, imports
    return Uses(*(frozenset().union(*part) for part in zip(own, *inner, strict=True)))


def public_names(space: Mapping[str, Any]) -> list[str]:
    """Names in torch that torch itself does not change: it loads modules, and keeps private state,
    as it goes; its compiler wraps how modules are made, and seeds; Python notes what it copied."""
    own = {"__doc__", "__annotations__", "__abstractmethods__", "__init__", "__setstate__"}
    own |= {"___needs_generation_tag_patch", "manual_seed", "__slotnames__"}
    is_state = space.get("__name__") == "torch"
    return [
        name
        for name, found in list(space.items())
        if not (isinstance(found, types.ModuleType) or name in own)
        and not (is_state and name.startswith("_"))
    ]


_SPACES: list[Any] = [torch, nn.functional, Tensor]
_SPACES += [found for found in vars(nn).values() if isinstance(found, type)]
TORCH = [
    (space, {name: vars(space)[name] for name in public_names(vars(space))}) for space in _SPACES
]
"""What torch's own names stand for."""
