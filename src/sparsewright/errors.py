"""Every error that sparsewright raises on purpose: one class per kind, one sentence per message.

A message states the rule, the value and the place, and lists what does exist.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparsewrightError(Exception):
    """Base of all errors raised on purpose by sparsewright."""


class UnknownNameError(SparsewrightError, KeyError):
    """A name that is in no table.

    >>> raise UnknownNameError("score", "magnitud", ["magnitude", "random"])
    Traceback (most recent call last):
    ...
    sparsewright.errors.UnknownNameError: no score is called 'magnitud'; did you mean 'magnitude'? \
There are: magnitude, random
    """

    def __init__(self, kind: str, name: str, names: Iterable[str]):
        known = sorted(names)
        close = _close(name, known)
        hint = f"; did you mean {close!r}?" if close else "."
        self.message = f"no {kind} is called {name!r}{hint} There are: {', '.join(known)}"
        super().__init__(self.message)

    def __str__(self) -> str:  # KeyError would print the repr
        return self.message


def _close(name: object, known: list[str]) -> str | None:
    """The known name that was probably meant: small letters, and a module's for its parameter's."""
    if not isinstance(name, str):
        return None
    small = name.casefold().removesuffix(".weight")
    alike = [one for one in known if one.casefold() == small]
    found = alike or difflib.get_close_matches(small, known, n=1)
    return found[0] if found else None


class MisfitError(SparsewrightError, ValueError):
    """A weight does not fit the pattern asked for it."""


class BudgetError(SparsewrightError, ValueError):
    """The sparsity asked for cannot be held; the message says what is nearest."""


class LayoutError(SparsewrightError, ValueError):
    """A packed weight breaks a rule of its layout (an index out of range, a wrong size, ...)."""


class KernelError(SparsewrightError, RuntimeError):
    """A kernel was called outside what it serves, or disagreed with the reference."""


class ArtifactError(SparsewrightError, ValueError):
    """A file is not a readable sparsewright artifact."""


class DataError(SparsewrightError, FileNotFoundError):
    """A data set is not where it should be, or is not what it should be."""

    def __str__(self) -> str:  # FileNotFoundError formats errno and a path
        return " ".join(str(a) for a in self.args)


class ConfigError(SparsewrightError, ValueError):
    """An experiment's configuration does not make sense."""


class StateError(SparsewrightError, RuntimeError):
    """A call that the present state does not allow, or a checkpoint of something else."""


class SparsityWarning(UserWarning):
    """Something that will probably hurt: dead neurons, no path from input to output, ..."""
