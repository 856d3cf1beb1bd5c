"""A batch is run a few samples at a time through the whole model: what one layer gives is then
still in the cache when the next one reads it. Which number of samples is fastest is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .image_units import serves
from .plan import PieceTiming

Run = Callable[..., Any]
T = TypeVar("T")
MISS: Any = object()
"""What a program returns for inputs that it does not serve."""
Way = tuple[int, int, bool]
"""Samples that the layers' kernels were chosen for, samples at a time, and whether images lie side
by side."""
ROUNDS = 5
MOST_ROUNDS = 25
SAMPLE = 2e-3  # seconds that a sample lasts at least
CLOSE = 1.5
"""A size this many times slower than the whole batch is not worth kernels of its own."""


def in_pieces(run: Run, batched: Sequence[bool], size: int, most: int | None = None) -> Run:
    """The function that runs batches of more than `size` samples so many at a time.

    run: of a model that treats each sample by itself. batched: of each input, whether its first
    size is the batch. most: the largest batch that is served. Inputs of any other form go to
    `run` as they are; where it gives MISS, so does this.

    >>> double = in_pieces(lambda x: 2 * x, [True], size=2)
    >>> double(torch.ones(5))
    tensor([2., 2., 2., 2., 2.])
    """
    places = [i for i, is_batched in enumerate(batched) if is_batched]

    def run_pieces(*inputs: Any) -> Any:
        if len(inputs) != len(batched) or any(type(x) is not Tensor for x in inputs):
            return run(*inputs)
        firsts = {inputs[i].shape[:1] for i in places}
        batch = sum(firsts.pop()) if len(firsts) == 1 else 0
        if batch <= size or (most is not None and batch > most):
            return run(*inputs)
        if any(x.requires_grad for x in inputs):  # pieces of it would not, where none is wanted
            return run(*inputs)
        outputs = []
        for start in range(0, batch, size):
            part = list(inputs)
            for i in places:
                part[i] = inputs[i][start : start + size]
            output = run(*part)
            if output is MISS:
                return MISS
            outputs.append(output)
        return tree_map(lambda *parts: torch.cat(parts), *outputs)

    return run_pieces


def by_filling(beside: Run, run: Run, place: int, images: int) -> Run:
    """The function that gives batches which fill so many images side by side to `beside`, others to
    `run`.

    place: of an input whose first size is the batch.

    >>> by_filling(lambda x: "side by side", lambda x: "one by one", 0, 16)(torch.ones(16, 2))
    'side by side'
    """

    def run_either(*inputs: Any) -> Any:
        x = inputs[place] if place < len(inputs) else None
        full = type(x) is Tensor and x.dim() > 0 and serves(images, x.shape[0])
        return (beside if full else run)(*inputs)

    return run_either


def sizes(batch: int) -> Iterator[int]:
    """1, 2, 4, ... below the batch.

    >>> list(sizes(16))
    [1, 2, 4, 8]
    """
    size = 1
    while size < batch:
        yield size
        size *= 2


def time_runs(
    runs: Mapping[Way, Callable[[], Any]], rounds: int = ROUNDS, seconds: float = 0.0
) -> list[PieceTiming]:
    """Each way timed as `in_turn` does; fastest first."""
    found = [_summary(way, times) for way, times in in_turn(runs, rounds, seconds).items()]
    return sorted(found, key=lambda timing: timing.median_ms)


def in_turn(
    runs: Mapping[T, Callable[[], Any]], rounds: int = ROUNDS, seconds: float = 0.0
) -> dict[T, list[float]]:
    """Seconds of each, one after the other, round by round.

    After two rounds, those that are CLOSE times slower than the fastest are left out. There are
    more rounds, up to MOST_ROUNDS, until so many seconds are over: a machine that does something
    else for a moment shall not decide.
    """
    repeats = {way: max(1, round(SAMPLE / _sample(run, 1))) for way, run in runs.items()}
    samples: dict[T, list[float]] = {way: [] for way in runs}
    active = list(runs)
    end = time.perf_counter() + seconds
    for number in range(MOST_ROUNDS):
        if number >= rounds and time.perf_counter() > end:
            break
        first = number % len(active)
        for way in active[first:] + active[:first]:
            samples[way].append(_sample(runs[way], repeats[way]))
        best = min(min(times) for times in samples.values())
        if number > 0:
            active = [way for way in active if min(samples[way]) <= CLOSE * best]
    return samples


def _sample(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return max(1e-9, (time.perf_counter() - start) / repeats)


def _summary(way: Way, seconds: list[float]) -> PieceTiming:
    ordered = sorted(1e3 * s for s in seconds)
    planned, size, beside = way
    median = ordered[len(ordered) // 2]
    return PieceTiming(planned, size, median, ordered[0], ordered[-1], beside)
