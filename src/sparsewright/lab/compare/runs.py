"""The runs of a comparison: which there are, and the file that keeps one line of JSON for each.

A line is appended in one write once its run has ended, so a comparison that was killed goes on
where it stopped: what has a line is not run again.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError, StateError, UnknownNameError
from .recipes import recipes
from .suites import SUITES, Suite, check_sparsities

LINES = "runs.jsonl"
COSTS = ("training_flops", "inference_flops", "seconds", "cpu_seconds")
FIGURES = ("measure", "parameters", *COSTS)
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One run to be made: what its line is found by."""

    suite: str
    recipe: str
    sparsity: float
    seed: int
    epochs: int

    @classmethod
    def of(cls, line: Line) -> Job:
        return cls(**{name: line[name] for name in cls.__dataclass_fields__})

    def __str__(self) -> str:
        return f"{self.recipe}, sparsity {self.sparsity:g}, seed {self.seed}"


@dataclass(frozen=True)
class Asked:
    """What a comparison was asked for. Empty: all recipes, and the suite's own of the others."""

    suite: str
    methods: tuple[str, ...] = ()
    sparsities: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    epochs: int | None = None


def jobs_of(asked: Asked) -> list[Job]:
    """Every run of a comparison: all recipes of one seed before the next seed.

    methods: recipes by name or glob. A recipe without a sparsity runs once for every seed.
    UnknownNameError for a suite or a name that fits no recipe, ConfigError for a sparsity, a seed
    or epochs that no run can have.
    """
    suite = SUITES[asked.suite]
    sparsities = asked.sparsities or suite.sparsities
    check_sparsities(sparsities)
    epochs = suite.config.epochs if asked.epochs is None else asked.epochs
    seeds = list(dict.fromkeys(asked.seeds or suite.seeds))
    for seed in seeds:
        replace(suite.config, epochs=epochs, seed=seed)  # its error before any run
    known = {name: recipe for name, (_, recipe) in recipes().items()}
    return [
        Job(asked.suite, name, sparsity, seed, epochs)
        for seed in seeds
        for name in chosen(asked.methods, known)
        for sparsity in (dict.fromkeys(sparsities) if known[name].sparse else (0.0,))
    ]


def chosen(wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names that fit one of the globs, in order; all where none is given.

    >>> chosen(["s*"], ["dense", "set", "static"])
    ['set', 'static']
    """
    names = list(known)
    if not wanted:
        return names
    for glob in wanted:
        if not fnmatch.filter(names, glob):
            raise UnknownNameError("recipe", glob, names)
    return [name for name in names if any(fnmatch.fnmatchcase(name, glob) for glob in wanted)]


def settings_of(suite: Suite) -> dict[str, Any]:
    """What all runs of a suite share, as JSON has it; epochs and seed are each run's own."""
    own = {"name", "seed", "epochs", "threads", "tensorboard"}
    shared = {k: v for k, v in asdict(suite.config).items() if k not in own}
    return json.loads(json.dumps({**shared, "measure": suite.measure}))


class Results:
    """The lines in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LINES

    def lines(self) -> list[dict[str, Any]]:
        """Whole lines; of a job that was run again the last one. What a crash cut short is left
        out."""
        there = self.path.read_bytes() if self.path.is_file() else b""
        text = there.decode("utf-8", errors="replace")  # what is no text is no line
        last: dict[Job, dict[str, Any]] = {}
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            try:
                found = json.loads(line)
                last[Job.of(found)] = found
                _check_figures(found)
            except (ValueError, KeyError, TypeError) as error:
                raise StateError(
                    f"{self.path}, line {number}: must be the JSON of a run; {error!r}. "
                    "Take the line out to go on without it"
                ) from None
        return list(last.values())

    def append(self, line: Line) -> None:
        """Add a line in one write; it is whole or not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(line, allow_nan=False) + "\n"
        place = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _end_last_line(place)
            os.write(place, text.encode())
            os.fsync(place)
        finally:
            os.close(place)

    def left(self, jobs: Sequence[Job], suite: Suite, retry: bool) -> list[Job]:
        """The jobs without a line; those whose line is an error only if `retry`.

        StateError if a line there is of other settings, such as another learning rate.
        """
        known = {Job.of(line): line for line in self.lines()}
        settings = settings_of(suite)
        for job in jobs:
            had = known.get(job, {}).get("settings", settings)
            for name, value in settings.items():
                if had.get(name) != value:
                    raise StateError(
                        f"{self.path}: a comparison keeps its settings; {name} is "
                        f"{had.get(name)!r} there and {value!r} now. Choose another --out"
                    )
        done = {job for job, line in known.items() if not (retry and "error" in line)}
        return [job for job in jobs if job not in done]


def lines_of(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines in all of some folders; ConfigError if there is none."""
    lines = [line for folder in folders for line in Results(folder).lines()]
    if not lines:
        raise ConfigError(f"no runs in {', '.join(map(str, folders))}; make some: compare --suite")
    return lines


def refuse_failures(lines: Sequence[Line], jobs: Sequence[Job]) -> None:
    """StateError if not one of the jobs ended well: whoever runs them in a script is told."""
    asked = set(jobs)
    ours = [line for line in lines if Job.of(line) in asked]
    errors = [line["error"] for line in ours if "error" in line]
    if errors and len(errors) == len(ours):
        raise StateError(
            f"none of the {len(errors)} runs ended well; the first: {errors[0]}. With --retry they "
            "are made again"
        )


def _check_figures(line: Line) -> None:
    """ValueError if a run that ended well lacks what pages and tables show."""
    lacks = [name for name in FIGURES if not isinstance(line.get(name), int | float)]
    if lacks and "error" not in line:
        raise ValueError(f"it has no {', '.join(lacks)}")


def _end_last_line(place: int) -> None:
    """Cut off what a crash left after the last whole line."""
    size = os.lseek(place, 0, os.SEEK_END)
    keep = size
    while keep and os.pread(place, 1, keep - 1) != b"\n":
        keep -= 1
    if keep < size:
        os.ftruncate(place, keep)
