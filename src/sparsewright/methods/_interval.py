"""How many steps lie between updates where the published number was chosen for a long run."""

from __future__ import annotations

from ..errors import ConfigError

UPDATES = 25
"""A run no longer than this many published intervals sees this many updates all the same."""


def every_of(every: int | None, published: int, steps: int | None, updates: int = UPDATES) -> int:
    """Steps between updates: as given, or the published ones, or fewer in a short run.

    >>> every_of(None, 100, steps=9000), every_of(None, 100, steps=500), every_of(7, 100, 500)
    (100, 20, 7)
    """
    if every is not None:
        return every
    return published if steps is None else max(1, min(published, steps // updates))


def length_of(name: str, given: int | None, steps: int | None, option: str = "end") -> int:
    """The step at which a schedule is over: as given, or the end of the run; ConfigError."""
    if given is not None:
        return given
    if steps is None:
        raise ConfigError(
            f"method {name} must know when to stop: give attach(steps=...), the optimizer steps "
            f"of the whole run, or {name}({option}=...)"
        )
    return steps
