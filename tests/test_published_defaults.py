"""Defaults of pruning: those that are published are the published ones, and a part says which of
them are its own."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields

import pytest

from sparsewright.allocations.owl import OWL
from sparsewright.methods import _timing, l0, movement, soft_movement
from sparsewright.methods.acdc import ACDC
from sparsewright.methods.dsd import DSD
from sparsewright.methods.gradual import Gradual
from sparsewright.methods.l0 import L0
from sparsewright.methods.movement import Movement
from sparsewright.methods.soft_movement import SoftMovement
from sparsewright.methods.soft_threshold import STR
from sparsewright.scores.grasp import GraSP
from sparsewright.scores.obd import OBD
from sparsewright.scores.synflow import SynFlow
from sparsewright.scores.taylor import Taylor
from sparsewright.scores.wanda import Wanda
from sparsewright.solvers.obc import OBC
from sparsewright.solvers.obs import OBS
from sparsewright.solvers.sparsegpt import SparseGPT
from sparsewright.solvers.wanda import WandaInOrder
from sparsewright.tickets import Tickets

PUBLISHED = {
    ACDC: {"scope": "global", "reset_momentum": False},
    DSD: {"scope": "layer"},
    Gradual: {"initial_sparsity": 0.0, "score": "magnitude", "scope": "layer"},
    L0: {"droprate": 0.5},
    Movement: {"rate": 1e-2, "by": "sgd"},
    OBC: {"damp": 0.0},
    OWL: {"window": 0.08, "outlier": 5.0, "by": "block"},
    SoftMovement: {"rate": 1e-2, "by": "adam"},
    SparseGPT: {"damp": 0.01, "block": 128},
    STR: {"initial": -3200.0, "decay": 2.2517578e-5, "rate": 1.0},
    Taylor: {"form": "squared"},
    Tickets: {"fraction": 0.2, "output": 0.5, "rewind": "init", "scope": "layer"},
    Wanda: {"per": "row"},
    WandaInOrder: {"per": "row"},
}
OWN = {
    DSD: {"sparse": 1 / 3, "dense": 2 / 3, "last": 0.9, "middle": None},
    GraSP: {"temperature": 1.0},
    Gradual: {"every": 100, "end": None},
    L0: {"penalty": 1e-6, "rate": 1e-2, "by": "adam", "end": None},
    Movement: {"start": None, "end": None},
    OBD: {"hessian": "fisher", "samples": 8},
    SoftMovement: {"start": None, "end": None, "threshold": 0.1, "penalty": 10.0},
    STR: {"momentum": 0.875, "end": None},
    SynFlow: {"rounds": 100},
}
SILENT = {  # options that are off, or whose default stands elsewhere
    ACDC: {"phases", "turns"},  # the published recipe, which test_penalty_methods has
    DSD: {"turns"},
    Gradual: {"start"},
    L0: {"of"},
    OBS: {"damp"},  # none
    SynFlow: {"example"},
}


def defaults(kind):
    return {
        name: one.default
        for name, one in inspect.signature(kind).parameters.items()
        if one.default is not inspect.Parameter.empty
    }


@pytest.mark.parametrize("kind", PUBLISHED, ids=lambda kind: kind.__name__)
def test_published_defaults_are_the_defaults(kind):
    found = defaults(kind)
    assert {name: found[name] for name in PUBLISHED[kind]} == PUBLISHED[kind]


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_defaults_of_our_own_are_told(kind):
    found = defaults(kind)
    assert {name: found[name] for name in OWN[kind]} == OWN[kind]
    for name in OWN[kind]:
        assert f"`{name}`" in kind.facts.departs, f"{kind.__name__} must say whose {name} is"


def test_no_default_is_left_out():
    for kind in {*PUBLISHED, *OWN, *SILENT} - {Tickets}:
        names = {f.name for f in fields(kind) if f.init and f.default is not MISSING}
        told = {*PUBLISHED.get(kind, ()), *OWN.get(kind, ()), *SILENT.get(kind, ())}
        assert names == told, kind.__name__


def test_constants_of_the_public_codes():
    assert (l0.GAMMA, l0.ZETA, l0.BETA, l0.SPREAD, l0.LOWEST) == (-0.1, 1.1, 2 / 3, 0.01, 1e-6)
    assert soft_movement.LEAST == 0.005
    assert OBS().damp == 0.0
    assert (_timing.LAST_QUARTER, movement.WARM) == (0.75, 0.1)  # the latter our own
