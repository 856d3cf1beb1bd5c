"""The page of a comparison for the docs, written from the lines of its runs and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import write_text
from .claims import Finding, Verdict, verdicts
from .groups import Outcome, outcome_of, pareto
from .runs import lines_of
from .suites import tuned_grids
from .table import LEFT, columns, failures, rows, times

INTRODUCTION = """# Every method compared

Written by `sparsewright compare --page`: make other runs, do not change this page. [The
lab](lab.md#compare) says how to make them.

All recipes of a suite share its epochs, batches, learning rates, first values of variance 2 over
present fan-in, and the final epoch's network is tested; no recipe was tuned for itself. What
differs is said in each recipe's name: plain names are methods from the first step on; `start-` is
pruned before training by that score, `tuned-` after half of the epochs, and `solved-` there by that
solver; `lottery` trains all epochs in every round, and pays for it. Floors are the dense network,
`small-dense` of no more parameters than the sparse one, and `static`, a random mask. FLOPs are
parts of the dense network's, counted by the rules of Evci et al. 2020 from the masks as they were
at every step. Masked training computes densely whatever the mask: seconds are those of this
implementation, FLOPs those of the idea. `start-` scores rank all layers together, and starts by a
network's shape take ERK's shares, as everything else does; recipes that come to the same on a task
have equal rows. Chance may have decided where a difference is less than two standard errors from
what is claimed. Where other work ran beside, wall seconds count its turns
too, and CPU seconds less of it.
"""


def write_page(folders: Sequence[Path], page: Path) -> Path:
    """Write the page from folders of runs; ConfigError if there is no run in them."""
    lines = lines_of(folders)
    suites = dict.fromkeys(line["suite"] for line in lines)
    parts = [INTRODUCTION, *(suite_text(outcome_of(lines, suite)) for suite in suites)]
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, "\n".join(parts))
    return page


def suite_text(outcome: Outcome) -> str:
    """A suite's claims, its tables by sparsity, and what failed."""
    parts = [f"## {outcome.name}", "", about(outcome), "", "### Claims", ""]
    parts += [claim_text(outcome, verdict) for verdict in verdicts(outcome)]
    for sparsity in outcome.sparsities:
        parts += ["", f"### {outcome.name} at sparsity {sparsity:g}", ""]
        parts += [
            *table(columns(outcome), rows(outcome, sparsity)),
            "",
            front_text(outcome, sparsity),
        ]
    broken = failures(outcome)
    if broken:
        parts += ["", "### Runs that failed", "", *(f"- {line}" for line in broken)]
    return "\n".join([*parts, ""])


def about(outcome: Outcome) -> str:
    """The suite, its settings, and what its runs were made on."""
    config, good = outcome.suite.config, [x for x in outcome.lines if "error" not in x]
    made: dict[str, dict[str, None]] = {}
    for machine in (line["machine"] for line in good):
        commits = made.setdefault(machine_text(machine), {})
        commits[commit_text(machine["commit"])] = None
    machines = [f"{machine}, commit {', '.join(commits)}" for machine, commits in made.items()]
    rate = good[0]["settings"]["lr"] if good else config.lr
    total = sum(line["cpu_seconds"] for line in good)
    return (
        f"{outcome.suite.about[0].upper()}{outcome.suite.about[1:]}: {outcome.epochs} epochs, "
        f"batches of {config.batch}, {config.optimizer}, {rate_text(outcome.name, rate)}. "
        f"{len(good)} runs, {total / 3600:.1f} CPU hours of training in all. "
        f"Made on {'; '.join(machines)}."
    )


def rate_text(suite: str, rate: float) -> str:
    """The learning rate, and whether a grid chose it for the dense network.

    >>> rate_text("digits-mlp", 0.1)
    'learning rate 0.1 (not tuned)'
    """
    grid = tuned_grids().get(suite)
    if grid is None or grid["lr"] != rate:
        return f"learning rate {rate:g} (not tuned)"
    epochs, rates = grid["epochs"], ", ".join(sorted(grid["grid"], key=float))
    return (
        f"learning rate {rate:g} (the dense network's best of {rates}, in {epochs} epochs, on "
        "held-out examples)"
    )


def machine_text(machine: Mapping[str, Any]) -> str:
    """A machine, and what ran on it, in a few words."""
    threads = machine["threads"]
    each = f"{threads} thread{'s' if threads > 1 else ''} a run"
    return f"{machine['cpu']}, {each}, torch {machine['torch']}"


def commit_text(commit: str | None) -> str:
    """The first digits of a commit, and whether the files were those of it.

    >>> commit_text("a76254be9305de6579defe6e515accbc85ee3eb4+"), commit_text(None)
    ('a76254be93 (changed)', 'unknown')
    """
    if commit is None:
        return "unknown"
    return f"{commit[:10]}{' (changed)' if commit.endswith('+') else ''}"


def claim_text(outcome: Outcome, verdict: Verdict) -> str:
    """A claim, whether it came out, and the differences that say so."""
    parts = [f"- {verdict.claim.text} It **{verdict.text}**."]
    parts += [f"  - {finding_text(outcome, finding)}" for finding in verdict.findings]
    return "\n".join(parts)


def finding_text(outcome: Outcome, finding: Finding) -> str:
    """
    >>> from .claims import Pair
    >>> from .groups import Outcome
    >>> from .suites import SUITES
    >>> outcome = Outcome("digits-mlp", SUITES["digits-mlp"], 1, (), ())
    >>> finding_text(outcome, Finding(Pair("rigl", "set"), 0.9, 0.5, 0.1, True))
    'at 0.9: rigl is better than set by 0.50 points (standard error 0.10)'
    """
    pair, how = finding.pair, "better" if finding.by >= 0 else "worse"
    known = finding.error == finding.error
    error = f" (standard error {finding.error:.2f})" if known else " (one run each)"
    chance = "; chance may have decided" if known and finding.is_near else ""
    failed = "" if finding.holds else ": does not hold"
    unit = "points" if outcome.suite.unit == "%" else outcome.suite.unit
    return (
        f"at {finding.sparsity:g}: {pair.better} is {how} than {pair.worse} by "
        f"{abs(finding.by):.2f} {unit}{error}{chance}{failed}"
    )


def front_text(outcome: Outcome, sparsity: float) -> str:
    """The recipes that no other one beats at as few training FLOPs, the cheapest first."""
    groups = [*outcome.at(sparsity), *([outcome.dense] if outcome.dense else [])]
    found = pareto([(group.training, group.mean) for group in groups], outcome.suite.higher)
    names = ", ".join(f"{groups[i].recipe} ({times(groups[i].training)})" for i in found)
    return f"Better than all that train in fewer FLOPs: {names or 'none, without the dense run'}."


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    ruler = ["---"] * LEFT + ["--:"] * (len(headings) - LEFT)
    return [f"| {' | '.join(cells)} |" for cells in (headings, ruler, *lines)]
