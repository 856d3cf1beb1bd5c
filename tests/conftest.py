"""What all tests share: two threads, fixed seeds, and how hard hypothesis searches."""

from __future__ import annotations

import itertools
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

THREADS = 2
count_threads = torch.get_num_threads  # as it is before any test patches it
torch.set_num_threads(THREADS)

# Plans that tests measure, in no time at all, are not for this machine's other runs; nor are those
# of one test for the next.
CACHE = tempfile.TemporaryDirectory(prefix="sparsewright-tests-")
os.environ["SPARSEWRIGHT_CACHE"] = CACHE.name
NUMBERS = itertools.count()

# No deadline: a slow machine is not a failure. In CI the same examples come every time.
settings.register_profile(
    "local", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what a fixture made for their file go to one process, where several run."""
    for item in items:
        shared = getattr(item, "_fixtureinfo", None)
        made = shared.name2fixturedefs.values() if shared else []
        if any(one.scope == "module" for several in made for one in several):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts from the same random state and an empty cache, in whatever order; and
    leaves torch's threads to the next one as they were."""
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", f"{CACHE.name}/{next(NUMBERS)}")
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test draw from the global state
    torch.manual_seed(0)
    yield
    threads = count_threads()
    torch.set_num_threads(THREADS)  # one test is to blame, not all that follow
    assert threads == THREADS, f"a test left torch with {threads} threads instead of {THREADS}"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that torch.export was asked for."""
    made, real = [], torch.export.export

    def count(model: torch.nn.Module, *more: Any, **named: Any) -> Any:
        made.append(type(model).__name__)
        return real(model, *more, **named)

    monkeypatch.setattr(torch.export, "export", count)
    return made


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the clone."""
    return ROOT
