"""What `sparsewright compare` does: make the runs that are missing, then show what came out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .pool import Clock, make_runs
from .runs import Asked, Job, Results, jobs_of
from .suites import SUITES, Suite


def compare(asked: Asked, out: Path, *, processes: int = 0, retry: bool = False) -> Results:
    """Make every run that `out` has no line of; the folder's results.

    processes: side by side; 0: one on each core. retry: also those that ended in an error.
    """
    results, suite = Results(out), SUITES[asked.suite]
    jobs = jobs_of(asked)
    left = results.left(jobs, suite, retry)
    say(f"{asked.suite}: {len(jobs)} runs, {len(jobs) - len(left)} are there; {results.path}")
    if not left:
        return results
    clock = Clock(len(left))
    try:
        for number, (job, line) in enumerate(make_runs(left, processes), start=1):
            results.append(line)
            say(f"[{number}/{len(left)}] {job}: {outcome(suite, line)}; {time_left(clock, number)}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on where it stopped") from None
    return results


def say(text: str) -> None:
    """Progress goes to standard error; standard output is for what came out."""
    print(text, file=sys.stderr, flush=True)


def outcome(suite: Suite, line: dict[str, Any]) -> str:
    """How a run ended, in a few words."""
    if "error" in line:
        return f"ERROR {line['error']}"
    return f"{suite.factor * line['measure']:.2f} {suite.unit} in {line['seconds']:.1f} s"


def time_left(clock: Clock, done: int) -> str:
    """For people.

    >>> time_left(Clock(total=1), 1)
    '0 min left'
    """
    minutes = clock.left(done) / 60
    return f"{minutes:.0f} min left" if minutes < 90 else f"{minutes / 60:.1f} h left"


def jobs_text(jobs: Sequence[Job]) -> str:
    """The jobs, one on a line."""
    return "\n".join(map(str, jobs))
