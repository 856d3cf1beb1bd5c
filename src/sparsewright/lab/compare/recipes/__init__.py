"""Recipes: ways to come to a sparse network. One file for each kind; found by folder.

A file registers a function that lists its recipes, mostly one for each part of a table, so that a
new method, score or allocation is compared without a line added here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from ....errors import UnknownNameError
from ....registry import Table
from ..trial import Trial

Part = tuple[str, str]
"""(kind, name) of a method, a score, a solver or an allocation."""


@dataclass(frozen=True)
class Recipe:
    """One way to a network.

    name: unique. about: one sentence. run: trains a network within a trial and returns it. sparse:
    whether the sparsity asked for plays a part; without it the recipe runs once for every seed.
    part: (kind, name) of what it tries, if it tries one part of a table.
    """

    name: str
    about: str
    run: Callable[[Trial], nn.Module]
    sparse: bool = True
    part: Part | None = None


KINDS: Table[Callable[[], Iterable[Recipe]]] = Table("kind of recipe", __name__)


def recipes() -> dict[str, tuple[str, Recipe]]:
    """Name -> (kind, recipe) of all that there are, by kind and name; ValueError for a name twice.

    >>> kind, rigl = recipes()["rigl"]
    >>> kind
    'trained'
    """
    found: dict[str, tuple[str, Recipe]] = {}
    for kind, listing in KINDS.items():
        for recipe in listing():
            if recipe.name in found:
                raise ValueError(f"two recipes are called {recipe.name!r}")
            found[recipe.name] = kind, recipe
    return found


def recipe_of(name: str) -> tuple[str, Recipe]:
    """(kind, recipe) of a name; UnknownNameError."""
    known = recipes()
    if name not in known:
        raise UnknownNameError("recipe", name, known)
    return known[name]
