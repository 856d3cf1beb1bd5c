"""When a method updates: every so many steps from a first to a last one."""

from __future__ import annotations

import math

from ..arguments import whole
from ..errors import ConfigError

LAST_QUARTER = 0.75
"""Part of a run after which masks stay as they are (Evci et al. 2020: "roughly 3/4")."""


def check_timing(name: str, every: int, start: int, end: int | None) -> None:
    """Raise ConfigError unless all are whole numbers, every >= 1, start >= 0 and end >= start."""
    for option, value in (("every", every), ("start", start), ("end", end)):
        if value is not None or option != "end":
            whole(f"method {name}: {option} (in optimizer steps)", value)
    if every < 1:
        raise ConfigError(
            f"method {name}: every (steps between updates) must be 1 or more; got {every}"
        )
    if start < 0:
        raise ConfigError(f"method {name}: start (first step) must be 0 or more; got {start}")
    if end is not None and end < start:
        raise ConfigError(f"method {name}: end must not come before start={start}; got {end}")


def end_of(name: str, start: int, end: int | None, steps: int | None) -> int:
    """The last step of the updates: as given, or three quarters of the run."""
    if end is not None:
        return end
    if steps is None:
        raise ConfigError(
            f"method {name} must know when to stop: give attach(steps=...), the optimizer steps "
            f"of the whole run, or {name}(end=...)"
        )
    return max(start, math.floor(LAST_QUARTER * steps))


def check_within(name: str, what: str, end: int, steps: int | None) -> None:
    """Raise ConfigError if the run is known to be over by step `end`; what: must happen before."""
    if steps is not None and end >= steps:
        raise ConfigError(
            f"method {name}: {what} within the run, before step {steps}; got end={end}"
        )


def is_due(step: int, every: int, start: int, end: int | None) -> bool:
    """start, start + every, ... while before end."""
    return step >= start and (end is None or step < end) and (step - start) % every == 0
