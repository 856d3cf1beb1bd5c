"""What came out of a comparison: the runs of one recipe at one sparsity, over their seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .suites import SUITES, Suite

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Figures are means over the runs that ended well; `training` and `inference` are FLOPs as a part
    of the dense network's. spread: standard deviation of the measure, None of a single run.
    """

    recipe: str
    kind: str
    sparsity: float
    measures: tuple[float, ...]
    seeds: tuple[int, ...]
    training: float
    inference: float
    seconds: float
    cpu_seconds: float
    parameters: float
    epochs_trained: float
    errors: tuple[str, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.measures) if self.measures else math.nan

    @property
    def spread(self) -> float | None:
        return statistics.stdev(self.measures) if len(self.measures) > 1 else None

    @property
    def is_whole(self) -> bool:
        """Whether any run ended well."""
        return bool(self.measures)


@dataclass(frozen=True)
class Outcome:
    """All groups of a suite, of runs of as many epochs."""

    name: str
    suite: Suite
    epochs: int
    groups: tuple[Group, ...]
    lines: tuple[Line, ...]

    def at(self, sparsity: float) -> list[Group]:
        """The groups of a sparsity that have a result, best first."""
        found = [g for g in self.groups if g.sparsity == sparsity and g.is_whole]
        return sorted(found, key=lambda g: g.mean, reverse=self.suite.higher)

    def group(self, recipe: str, sparsity: float) -> Group | None:
        """Of a recipe at a sparsity, if it has a result; one without a sparsity has its own."""
        for group in self.groups:
            if group.recipe == recipe and group.sparsity in (sparsity, 0.0) and group.is_whole:
                return group
        return None

    @property
    def dense(self) -> Group | None:
        return self.group("dense", 0.0)

    @property
    def sparsities(self) -> list[float]:
        return sorted({g.sparsity for g in self.groups if g.sparsity > 0})

    def better(self, a: float, b: float) -> float:
        """By how much measure a is better than b, in the suite's unit for people."""
        return self.suite.factor * (a - b if self.suite.higher else b - a)


def outcome_of(lines: Sequence[Line], suite: str, epochs: int | None = None) -> Outcome:
    """The groups of a suite's lines; epochs: those of which there are most, unless given.

    FLOPs are relative to the dense recipe's; without its line they are nan.
    """
    own = [line for line in lines if line["suite"] == suite]
    if epochs is None:
        counts = [line["epochs"] for line in own]
        epochs = max(set(counts), key=counts.count) if counts else 0
    own = [line for line in own if line["epochs"] == epochs]
    dense = [line for line in own if line["recipe"] == "dense" and "error" not in line]
    keys = dict.fromkeys((line["recipe"], line["kind"], line["sparsity"]) for line in own)
    groups = [_group(key, own, dense) for key in keys]
    return Outcome(suite, SUITES[suite], epochs, tuple(groups), tuple(own))


def _group(key: tuple[str, str, float], lines: Sequence[Line], dense: Sequence[Line]) -> Group:
    own = [line for line in lines if (line["recipe"], line["kind"], line["sparsity"]) == key]
    good = sorted((line for line in own if "error" not in line), key=lambda line: line["seed"])

    def mean(name: str) -> float:
        return _mean(line[name] for line in good)

    return Group(
        *key,
        measures=tuple(line["measure"] for line in good),
        seeds=tuple(line["seed"] for line in good),
        training=mean("training_flops") / _mean(line["training_flops"] for line in dense),
        inference=mean("inference_flops") / _mean(line["inference_flops"] for line in dense),
        seconds=mean("seconds"),
        cpu_seconds=mean("cpu_seconds"),
        parameters=mean("parameters"),
        epochs_trained=mean("epochs_trained"),
        errors=tuple(line["error"] for line in own if "error" in line),
    )


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return statistics.fmean(known) if known else math.nan


def pareto(points: Sequence[tuple[float, float]], higher: bool = True) -> list[int]:
    """Which (cost, measure) no other one beats in both, by ascending cost.

    Of equal ones the first stays. A point with a nan is on no front.

    >>> pareto([(1.0, 0.5), (2.0, 0.9), (3.0, 0.8)])
    [0, 1]
    """
    sign = 1.0 if higher else -1.0
    known = [i for i, point in enumerate(points) if not any(map(math.isnan, point))]
    front: list[int] = []
    best = -math.inf
    for i in sorted(known, key=lambda i: (points[i][0], -sign * points[i][1])):
        if sign * points[i][1] > best:
            front.append(i)
            best = sign * points[i][1]
    return front
