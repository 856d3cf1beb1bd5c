"""Schedules: step -> number, as ramps between two values that hold still outside of their span.

A schedule does not know what it counts: steps, epochs, or fractions of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .core import Schedule
from .errors import ConfigError
from .registry import Table

SCHEDULES: Table[Callable[..., Schedule]] = Table("schedule")


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant:
    """The same value at every step.

    >>> Constant(0.3)(1000)
    0.3
    """

    value: float

    def __post_init__(self) -> None:
        _check_finite(self)

    def __call__(self, step: float) -> float:
        return self.value


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear:
    """A straight line from `initial` at step `begin` to `final` at step `end`.

    >>> [Linear(0.0, 0.8, end=4)(step) for step in range(6)]
    [0.0, 0.2, 0.4, 0.6..., 0.8, 0.8]
    """

    initial: float
    final: float
    begin: float = 0
    end: float = 1

    def __post_init__(self) -> None:
        _check_ramp(self)

    def __call__(self, step: float) -> float:
        return _blend(self, _fraction(self, step))


@SCHEDULES.register("cubic")
@dataclass(frozen=True)
class Cubic:
    """Fast first, then ever slower: final + (initial - final) * (1 - x)^3 (Zhu and Gupta 2018).

    x is the fraction of the span from step `begin` to step `end`.

    >>> [round(Cubic(0.0, 0.9, end=100)(step), 4) for step in (0, 25, 50, 100)]
    [0.0, 0.5203, 0.7875, 0.9]
    """

    initial: float
    final: float
    begin: float = 0
    end: float = 1

    def __post_init__(self) -> None:
        _check_ramp(self)

    def __call__(self, step: float) -> float:
        return _blend(self, 1 - (1 - _fraction(self, step)) ** 3)


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine:
    """Half a cosine: final + (initial - final) * (1 + cos(pi * x)) / 2.

    With final 0 and begin 0 this is RigL's drop fraction (Evci et al. 2020), 0 from `end` on.

    >>> [round(Cosine(0.3, 0.0, end=100)(step), 4) for step in (0, 25, 50, 75, 100)]
    [0.3, 0.2561, 0.15, 0.0439, 0.0]
    """

    initial: float
    final: float = 0.0
    begin: float = 0
    end: float = 1

    def __post_init__(self) -> None:
        _check_ramp(self)

    def __call__(self, step: float) -> float:
        return _blend(self, (1 - math.cos(math.pi * _fraction(self, step))) / 2)


@SCHEDULES.register("exponential")
@dataclass(frozen=True)
class Exponential:
    """The same factor at every step: initial * (final / initial)^x; both above 0.

    >>> [round(Exponential(1.0, 0.01, end=4)(step), 4) for step in (0, 2, 4)]
    [1.0, 0.1, 0.01]
    """

    initial: float
    final: float
    begin: float = 0
    end: float = 1

    def __post_init__(self) -> None:
        _check_ramp(self)
        if not (self.initial > 0 and self.final > 0):
            raise ConfigError(
                f"schedule Exponential needs initial and final above 0; "
                f"got {self.initial} and {self.final}"
            )

    def __call__(self, step: float) -> float:
        x = _fraction(self, step)
        return self.initial ** (1 - x) * self.final**x


class Ramp(Protocol):
    """What the ramps share: two values, and the steps at which they are reached."""

    @property
    def initial(self) -> float: ...
    @property
    def final(self) -> float: ...
    @property
    def begin(self) -> float: ...
    @property
    def end(self) -> float: ...


def _fraction(ramp: Ramp, step: float) -> float:
    """How much of the span is over, in [0, 1]."""
    return min(max((step - ramp.begin) / (ramp.end - ramp.begin), 0.0), 1.0)


def _blend(ramp: Ramp, weight: float) -> float:
    """From initial (weight 0) to final (weight 1), both met exactly."""
    return ramp.initial * (1 - weight) + ramp.final * weight


def _check_finite(schedule: object) -> None:
    for name, value in vars(schedule).items():
        if not math.isfinite(value):
            raise ConfigError(
                f"schedule {type(schedule).__name__} needs a finite {name}; got {value}"
            )


def _check_ramp(schedule: Ramp) -> None:
    _check_finite(schedule)
    if not schedule.begin < schedule.end:
        raise ConfigError(
            f"schedule {type(schedule).__name__} must begin before it ends; "
            f"got begin={schedule.begin} and end={schedule.end}"
        )
