"""Switches of the process are off while anybody needs it, then as they were."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from sparsewright.errors import ArtifactError
from sparsewright.switches import COLLECTOR
from sparsewright.traced import export

COLLECTED: list[bool] = []
"""Whether garbage was collected in each call: torch.export undoes what a call does to a module."""


class Watching(nn.Module):
    """Raises the error, if it is given one."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def forward(self, x):
        COLLECTED.append(gc.isenabled())
        if self.error is not None:
            raise self.error
        return x + 1


@pytest.fixture(autouse=True)
def collecting():
    COLLECTED.clear()
    assert gc.isenabled()
    yield
    gc.enable()


def test_nothing_is_collected_while_a_model_is_traced():
    export(Watching(), (torch.ones(2, 3),))
    assert COLLECTED == [False]
    assert gc.isenabled()


def test_a_trace_that_fails_leaves_the_collector_on():
    with pytest.raises(ArtifactError, match="ValueError: no"):
        export(Watching(ValueError("no")), (torch.ones(2, 3),))
    assert COLLECTED
    assert not any(COLLECTED)
    assert gc.isenabled()


def test_what_was_off_stays_off():
    gc.disable()
    with COLLECTOR.off():
        assert not gc.isenabled()
    assert not gc.isenabled()
