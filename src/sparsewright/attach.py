"""`attach`: a model is made sparse and held so, in one line above the user's own loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from .abilities import Meets
from .core import Allocate, Method, Pattern
from .initialise import Init
from .masks import Masks
from .methods import as_method
from .nn import check_replicas
from .replicas import Group
from .scores import as_score
from .selection import Overrides, Skip, select_layers
from .sparsifier import Sparsifier


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    method: str | Method,
    sparsity: float | None = None,
    pattern: str | Pattern = "unstructured",
    allocate: str | Allocate = "erk",
    steps: int | None = None,
    skip: Skip = (),
    overrides: Overrides | None = None,
    on_misfit: str | Pattern = "error",
    init: Init = None,
    seed: int = 0,
    process_group: Group = None,
    masks: Masks | None = None,
) -> Sparsifier:
    """Make a model sparse and keep it so while any loop trains it with `optimizer`.

    method: when masks change ("static", "gradual", "set", "rigl" or an object). sparsity: of the
    whole model, in [0, 1), met exactly; None takes the one that the pattern fixes (N:M). pattern,
    allocate: objects or names. steps: optimizer steps of the run, for methods that must know.
    skip: names, globs or module types left dense. overrides: {glob: {"sparsity": ..., "pattern":
    ...}}; a layer with a sparsity of its own is outside the budget. on_misfit: "error", "skip", or
    the pattern for weights that do not fit. init: "fan_in" redraws present weights with the
    variance of each neuron's actual fan-in (Evci et al. 2022), or a function layer -> values.
    seed: of all random choices; the same seed gives the same masks on every replica.
    process_group: of torch.distributed, over which packed weights average the gradients that they
    grow by; None takes that of a DistributedDataParallel model, False averages none.
    masks: {layer: bool in the weight's shape} fixes the first mask and the budget of those layers,
    whatever the method; they count in no sparsity asked for, and without one all others stay dense.

    Packed weights that are sparse already keep their places where no sparsity is asked of them;
    one that is asked must be at least theirs.

    optimizer: one, or several that step once each per iteration (Muon for matrices beside AdamW).
    Raises MisfitError, BudgetError, UnknownNameError, ConfigError or StateError; warns
    SparsityWarning where signal cannot pass.

    >>> model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    >>> optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    >>> sparse = attach(model, optimizer, method="rigl", sparsity=0.9, steps=1000)
    >>> sum(int((p != 0).sum()) for p in model.parameters() if p.dim() == 2)
    948
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    generator = torch.Generator().manual_seed(seed)
    bound = as_method(method).bind(steps)
    layers, left_dense = select_layers(
        model,
        sparsity=sparsity,
        pattern=pattern,
        allocate=allocate,
        score=as_score("magnitude"),
        generator=generator,
        skip=skip,
        overrides=overrides,
        on_misfit=on_misfit,
        masks=masks,
    )
    if isinstance(bound, Meets):
        bound = bound.meet(model, layers)
    sparse = Sparsifier(model, optimizers, bound, layers, left_dense, sparsity, process_group)
    try:
        sparse._begin(init)
        if sparse.replicas.group is not None:
            check_replicas(model, sparse.replicas.group)
    except BaseException:  # whatever went wrong, no hook stays behind
        sparse.detach()
        raise
    return sparse
