"""Candidates are timed in turn, round after round, so that whatever slows the machine slows all.

A median and its spread say more than a mean: one interruption moves a mean, and noise on a
shared machine is one-sided (Hoefler and Belli, "Scientific benchmarking of parallel computing
systems", 2015).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

Call = Callable[[], object]

SAMPLE = 5e-3  # seconds that one sample lasts at least: longer than a slice of the scheduler
# Candidates bring thread pools of their own (torch's, OpenBLAS's, ONNX Runtime's), whose idle
# threads keep spinning for some 25 ms: on few cores they make the next candidate wait for whole
# slices of the scheduler. So every sample begins with a pause.
PAUSE = 50e-3
TRIAL = 3  # rounds that every candidate gets: one of them may meet an interruption
WARM = 3  # untimed calls of every candidate before the first round


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over all rounds, with the 10th and the 90th percentile."""

    median: float
    low: float
    high: float
    rounds: int


def interleave(
    calls: Mapping[str, Call],
    *,
    seconds: float = 0.5,
    min_rounds: int = 7,
    hopeless: float = math.inf,
) -> dict[str, Timing]:
    """Time every call in turn, in rounds, and return name -> Timing.

    A sample is as many repetitions as last SAMPLE seconds, after a pause in which the threads of
    other candidates fall asleep, and half as many untimed ones that wake this candidate's and
    bring its data back into the cache. Every round starts with another candidate. seconds: how
    long all of it may take, at least; `min_rounds` are run in any case. hopeless: after TRIAL
    rounds, a call whose best sample is this many times the best of all is timed no more; its
    Timing says how many rounds it has. A call with a method `seconds(repeats) -> float` is timed
    by that. Raises ValueError if `seconds` is negative or `min_rounds` is below 1.

    >>> times = interleave({"sum": lambda: sum(range(100))}, seconds=0, min_rounds=3)
    >>> 0 < times["sum"].low <= times["sum"].median <= times["sum"].high
    True
    """
    if seconds < 0 or min_rounds < 1:
        raise ValueError(f"needs seconds >= 0 and min_rounds >= 1; got {seconds} and {min_rounds}")
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_collection():
        repeats = {name: _repeats(calls[name]) for name in names}
        end = time.perf_counter() + seconds
        done = 0
        while names and (done < min_rounds or time.perf_counter() < end):
            first = done % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(_sample(calls[name], repeats[name]))
            done += 1
            if done == TRIAL:
                limit = hopeless * min(min(times) for times in samples.values())
                names = [name for name in names if min(samples[name]) <= limit]
    return {name: summarise(times) for name, times in samples.items()}


def summarise(samples: list[float]) -> Timing:
    """The Timing of a list of seconds; percentiles lie between their two neighbours in order.

    >>> summarise([3.0, 1.0, 2.0])
    Timing(median=2.0, low=1.2, high=2.8, rounds=3)
    """
    ordered = sorted(samples)
    median, low, high = (_percentile(ordered, place) for place in (0.5, 0.1, 0.9))
    return Timing(median, low, high, rounds=len(ordered))


def _percentile(ordered: list[float], fraction: float) -> float:
    place = fraction * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _repeats(call: Call) -> int:
    """Repetitions of the call that last SAMPLE seconds, after a warm-up."""
    for _ in range(WARM):
        call()
    repeats = 1
    while (taken := _run(call, repeats)) < SAMPLE:
        repeats = max(2 * repeats, math.ceil(repeats * SAMPLE / max(taken, 1e-9)))
    return repeats


def _sample(call: Call, repeats: int) -> float:
    time.sleep(PAUSE)
    _run(call, 1 + repeats // 2)
    return _run(call, repeats) / repeats


def _run(call: Call, repeats: int) -> float:
    """Seconds of so many calls; a call with a clock of its own (another process's) says them."""
    own = getattr(call, "seconds", None)
    if own is not None:
        return float(own(repeats))
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's collector out of the samples."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
