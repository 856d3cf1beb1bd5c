"""Tables of named parts, filled by importing every file of one folder.

A part is added by adding a file: the table of a kind imports all modules of its folder the
first time that somebody asks, and each module registers what it holds.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .errors import UnknownNameError

T = TypeVar("T")
_LOADS = threading.RLock()


class Table(Generic[T]):
    """Name -> part, for one kind of part ("score", "pattern", ...).

    package: dotted name of the folder whose modules register the parts; None for a table that
    is filled by hand.

    >>> colours = Table("colour")
    >>> @colours.register("red")
    ... def red():
    ...     return (255, 0, 0)
    >>> colours["red"]()
    (255, 0, 0)
    >>> colours.names()
    ['red']
    """

    def __init__(self, kind: str, package: str | None = None):
        self.kind = kind
        self.package = package
        self._parts: dict[str, T] = {}
        self._loaded = package is None
        self._loading = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: put a part into the table under `name`; ValueError if the name is taken."""

        def put(part: T) -> T:
            if name in self._parts:
                raise ValueError(f"a {self.kind} called {name!r} is registered already")
            self._parts[name] = part
            return part

        return put

    def load(self) -> None:
        """Import every module of the table's folder, once."""
        if self._loaded:
            return
        with _LOADS:  # of all tables at once: one may ask another while it loads
            if self._loaded or self._loading:  # a module may look at the table while it loads
                return
            self._loading = True
            assert self.package is not None
            try:
                package = importlib.import_module(self.package)
                for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
                    importlib.import_module(f"{self.package}.{module}")
                self._loaded = True  # a table with a part missing must not pass for the whole one
            finally:
                self._loading = False

    def __getitem__(self, name: str) -> T:
        self.load()
        try:
            return self._parts[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._parts) from None

    def __contains__(self, name: object) -> bool:
        self.load()
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """All names, sorted."""
        self.load()
        return sorted(self._parts)

    def items(self) -> list[tuple[str, T]]:
        """All (name, part), sorted by name."""
        return [(name, self._parts[name]) for name in self.names()]
