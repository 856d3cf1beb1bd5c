"""sparsewright: train sparse, execute sparse, store sparse, measure honestly.

>>> import torch, sparsewright as sw
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
>>> sw.prune(model, sparsity=0.5, pattern="2:4", allocate="uniform_all").sparsity
0.5
"""

from . import nn, schedules
from .allocate import ER, ERK, LAMP, Global, Uniform
from .allocations.owl import OWL
from .allocations.sensitivity import Sensitivity
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
)
from .deploy import deploy
from .deployed import Deployed
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
from .exploration import Exploration
from .keeping import keep_best
from .masks import load_masks, masks_of, save_masks
from .methods.acdc import ACDC
from .methods.admm import ADMM
from .methods.autosparse import AutoSparse
from .methods.chts import CHTs, CHTss
from .methods.deep_r import DeepR
from .methods.dsd import DSD
from .methods.dsr import DSR
from .methods.gradual import Gradual
from .methods.granet import GraNet
from .methods.group_lasso import GroupLasso
from .methods.gse import GSE
from .methods.iht import IHT
from .methods.l0 import L0
from .methods.l1 import L1
from .methods.mest import MEST
from .methods.movement import Movement
from .methods.rigl import RigL
from .methods.rigl_itop import RigLITOP
from .methods.set import SET
from .methods.set_itop import SETITOP
from .methods.slimming import Slimming
from .methods.snfs import SNFS
from .methods.soft_deep_r import SoftDeepR
from .methods.soft_l1 import SoftL1
from .methods.soft_movement import SoftMovement
from .methods.soft_threshold import STR
from .methods.sr_ste import SRSTE
from .methods.srigl import SRigL
from .methods.static import Static
from .methods.top_kast import TopKAST
from .methods.variational_dropout import VariationalDropout
from .pack import pack, unpack
from .patterns.block import Block
from .patterns.channel import Channel
from .patterns.fan_in import FanIn
from .patterns.levels import Levels
from .patterns.nm import NM
from .patterns.unstructured import Unstructured
from .plan import LayerPlan, Plan
from .prune import prune
from .scores.fpgm import FPGM
from .scores.grasp import GraSP
from .scores.obd import OBD
from .scores.pca import PCAStart
from .scores.receptive_field import ReceptiveField
from .scores.scale_free import ScaleFree
from .scores.small_world import SmallWorld
from .scores.snip import SNIP
from .scores.synflow import SynFlow
from .scores.taylor import Taylor
from .scores.taylor_activation import TaylorActivation
from .scores.wanda import Wanda
from .solvers.obc import OBC
from .solvers.obs import OBS
from .solvers.sparsegpt import SparseGPT
from .solvers.wanda import WandaInOrder
from .solving import solve
from .sparsifier import Change, Sparsifier
from .summary import Summary
from .tickets import Ticket, Tickets
from .weights import find_weights

__version__ = "0.1.0"

__all__ = [
    "ACDC",
    "ADMM",
    "DSD",
    "DSR",
    "ER",
    "ERK",
    "FPGM",
    "GSE",
    "IHT",
    "L0",
    "L1",
    "LAMP",
    "MEST",
    "NM",
    "OBC",
    "OBD",
    "OBS",
    "OWL",
    "SET",
    "SETITOP",
    "SNFS",
    "SNIP",
    "SRSTE",
    "STR",
    "Allocate",
    "ArtifactError",
    "AutoSparse",
    "Block",
    "BudgetError",
    "CHTs",
    "CHTss",
    "Change",
    "Channel",
    "ConfigError",
    "DataError",
    "DeepR",
    "Deployed",
    "Exchange",
    "Exploration",
    "FanIn",
    "Global",
    "GraNet",
    "GraSP",
    "Gradual",
    "GroupLasso",
    "KernelError",
    "Layer",
    "LayerPlan",
    "LayoutError",
    "Levels",
    "Method",
    "MisfitError",
    "Movement",
    "PCAStart",
    "Packed",
    "Pattern",
    "Plan",
    "ReceptiveField",
    "RigL",
    "RigLITOP",
    "SRigL",
    "ScaleFree",
    "Schedule",
    "Score",
    "Sensitivity",
    "Slimming",
    "SmallWorld",
    "SoftDeepR",
    "SoftL1",
    "SoftMovement",
    "SparseGPT",
    "SparsewrightError",
    "Sparsifier",
    "SparsityWarning",
    "StateError",
    "Static",
    "Summary",
    "SynFlow",
    "Taylor",
    "TaylorActivation",
    "Ticket",
    "Tickets",
    "TopKAST",
    "Uniform",
    "UnknownNameError",
    "Unstructured",
    "Update",
    "VariationalDropout",
    "Wanda",
    "WandaInOrder",
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
    "solve",
    "unpack",
]
