"""What papers led one to expect, and whether it came out: each judged by the results alone.

Sources: Evci et al. 2020 (RigL: its order above SET and static networks, ERK above uniform, small
dense networks, |gradient| as a score for pruning); Zhu, Gupta 2018 (gradual pruning); Lasby et al.
2024 (SRigL); Frankle, Carbin 2019 (lottery tickets). Their tasks were other ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .groups import Group, Outcome

ALL = (0.8, 0.9, 0.95, 0.98)
SPARSE = (0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Pair:
    """That one recipe is at least as good as another, but for `margin` in the suite's unit."""

    better: str
    worse: str
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A sentence, and the pairs that must hold at every sparsity for it to come out.

    strictly: equal is not enough.
    """

    text: str
    pairs: tuple[Pair, ...]
    sparsities: tuple[float, ...] = ALL
    strictly: bool = False


@dataclass(frozen=True)
class Finding:
    """One pair at one sparsity: by how much the first is better, in the suite's unit.

    error: the standard error of that difference, nan where a recipe has a single run.
    """

    pair: Pair
    sparsity: float
    by: float
    error: float
    holds: bool

    @property
    def is_near(self) -> bool:
        """Whether chance may have decided: the difference to the margin is below two errors."""
        return abs(self.by + self.pair.margin) < 2 * self.error


@dataclass(frozen=True)
class Verdict:
    """A claim and what was found; came_out is None where not one pair was measured."""

    claim: Claim
    findings: tuple[Finding, ...]
    missing: tuple[tuple[Pair, float], ...]

    @property
    def came_out(self) -> bool | None:
        return all(finding.holds for finding in self.findings) if self.findings else None

    @property
    def text(self) -> str:
        """The verdict in words."""
        if self.came_out is None:
            return "was not measured"
        found = "came out" if self.came_out else "did not come out"
        count = len(self.findings) + len(self.missing)
        part = f" in the {len(self.findings)} of {count} comparisons that were made"
        return found + (part if self.missing else "")


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "At 0.9 and above RigL is at least as good as SET, and SET as a static random mask.",
        (Pair("rigl", "set"), Pair("set", "static")),
        SPARSE,
    ),
    Claim(
        "ERK is at least as good as the same sparsity in every layer.",
        tuple(Pair(name, f"{name}-uniform") for name in ("static", "set", "rigl")),
    ),
    Claim(
        "At 0.8 gradual magnitude pruning and RigL come within 0.5 of the dense network.",
        (Pair("gradual", "dense", 0.5), Pair("rigl", "dense", 0.5)),
        (0.8,),
    ),
    Claim(
        "RigL beats a small dense network of as many parameters.",
        (Pair("rigl", "small-dense"),),
        strictly=True,
    ),
    Claim(
        "SRigL, with neurons of one fan-in, comes within 0.3 of RigL.",
        (Pair("srigl-fan_in", "rigl", 0.3),),
    ),
    Claim(
        "At 0.8 a lottery ticket trains at least as well as its twin with other first values.",
        (Pair("lottery", "lottery-redrawn"),),
        (0.8,),
    ),
    Claim(
        "Pruned at the start by the gradient alone, without |w|, a network is worse than pruned at "
        "random.",
        (Pair("start-random", "start-gradient"),),
        strictly=True,
    ),
)


def verdicts(outcome: Outcome, claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """Every claim judged by the means of what was measured."""
    return [_verdict(claim, outcome) for claim in claims]


def _verdict(claim: Claim, outcome: Outcome) -> Verdict:
    findings, missing = [], []
    for sparsity in claim.sparsities:
        for pair in claim.pairs:
            first = outcome.group(pair.better, sparsity)
            second = outcome.group(pair.worse, sparsity)
            if first is None or second is None:
                missing.append((pair, sparsity))
                continue
            by = outcome.better(first.mean, second.mean)
            error = outcome.suite.factor * _error(first, second)
            holds = by > -pair.margin if claim.strictly else by >= -pair.margin
            findings.append(Finding(pair, sparsity, by, error, holds))
    return Verdict(claim, tuple(findings), tuple(missing))


def _error(first: Group, second: Group) -> float:
    """Standard error of the difference of two means."""
    parts = [g.spread**2 / len(g.measures) for g in (first, second) if g.spread is not None]
    return math.sqrt(sum(parts)) if len(parts) == 2 else math.nan
