"""sparsewright: train sparse, execute sparse, store sparse, measure honestly.

>>> import torch, sparsewright as sw
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
>>> sw.prune(model, sparsity=0.5, pattern="2:4", allocate="uniform_all").sparsity
0.5
"""

from . import nn, schedules
from .allocate import ER, ERK, LAMP, Global, Uniform
from .artifact import load, save
from .attach import attach
from .core import (
    Allocate,
    Exchange,
    Layer,
    Method,
    Packed,
    Pattern,
    Schedule,
    Score,
    Update,
    keep_best,
)
from .deploy import Deployed, deploy
from .errors import (
    ArtifactError,
    BudgetError,
    ConfigError,
    DataError,
    KernelError,
    LayoutError,
    MisfitError,
    SparsewrightError,
    SparsityWarning,
    StateError,
    UnknownNameError,
)
from .masks import load_masks, masks_of, save_masks
from .methods.gradual import Gradual
from .methods.gse import GSE
from .methods.rigl import RigL
from .methods.set import SET
from .methods.static import Static
from .pack import pack, unpack
from .patterns.block import Block
from .patterns.channel import Channel
from .patterns.fan_in import FanIn
from .patterns.nm import NM
from .patterns.unstructured import Unstructured
from .plan import LayerPlan, Plan
from .prune import prune
from .sparsifier import Change, Sparsifier
from .summary import Summary
from .tickets import Tickets
from .weights import find_weights

__version__ = "0.1.0"

__all__ = [
    "ER",
    "ERK",
    "GSE",
    "LAMP",
    "NM",
    "SET",
    "Allocate",
    "ArtifactError",
    "Block",
    "BudgetError",
    "Change",
    "Channel",
    "ConfigError",
    "DataError",
    "Deployed",
    "Exchange",
    "FanIn",
    "Global",
    "Gradual",
    "KernelError",
    "Layer",
    "LayerPlan",
    "LayoutError",
    "Method",
    "MisfitError",
    "Packed",
    "Pattern",
    "Plan",
    "RigL",
    "Schedule",
    "Score",
    "SparsewrightError",
    "Sparsifier",
    "SparsityWarning",
    "StateError",
    "Static",
    "Summary",
    "Tickets",
    "Uniform",
    "UnknownNameError",
    "Unstructured",
    "Update",
    "attach",
    "deploy",
    "find_weights",
    "keep_best",
    "load",
    "load_masks",
    "masks_of",
    "nn",
    "pack",
    "prune",
    "save",
    "save_masks",
    "schedules",
    "unpack",
]
