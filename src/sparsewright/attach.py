"""`attach`: a model is made sparse and held so, in one line above the user's own loop."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from .abilities import Meets
from .arguments import check_model, check_sparsity, optimizers_of, seeded, whole
from .core import Allocate, Layer, Method, Pattern
from .errors import SparsityWarning
from .initialise import Init, check_init
from .masks import Masks
from .methods import as_method
from .naming import Overrides, Skip
from .nn import check_replicas
from .replicas import Group, check_group
from .scores import as_score
from .selection import select_layers
from .sparsifier import Sparsifier

LOOKED_AT = 10**6
"""Steps of a run that are gone through at most to see whether an update is due."""


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
    allocate: objects or names; "erk" keeps more in small layers and leaves none dense, while
    `prune` takes "uniform", which leaves the first one dense. steps: optimizer steps of the run,
    for methods that must know. skip: names, globs or module types left dense. overrides: {glob:
    {"sparsity": ..., "pattern": ...}}; a layer with a sparsity of its own is outside the budget.
    on_misfit: "error", "skip", or the pattern for weights that do not fit. init: "fan_in" redraws
    present weights with the variance of each neuron's actual fan-in (Evci et al. 2022), or a
    function layer -> values. seed: of all random choices; the same seed gives the same masks on
    every replica. process_group: of torch.distributed, over which packed weights average the
    gradients that they grow by; None takes that of a DistributedDataParallel model, False averages
    none.
    masks: {layer: bool in the weight's shape} fixes the first mask and the budget of those layers,
    whatever the method; they count in no sparsity asked for, and without one all others stay dense.

    Packed weights that are sparse already keep their places where no sparsity is asked of them;
    one that is asked must be at least theirs.

    optimizer: one, or several that step once each per iteration (Muon for matrices beside AdamW).
    Raises MisfitError, BudgetError, UnknownNameError, ConfigError or StateError; warns
    SparsityWarning where signal cannot pass, where a method that updates `every` so many steps has
    no update within the run, and where a frozen layer loses weights.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    >>> optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    >>> sparse = attach(model, optimizer, method="rigl", sparsity=0.9, steps=1000)
    >>> sum(int((p != 0).sum()) for p in model.parameters() if p.dim() == 2)
    948
    """
    check_model(model)
    optimizers = optimizers_of(optimizer)
    generator = seeded(seed)
    if sparsity is not None:
        check_sparsity(sparsity)
    if steps is not None:
        whole("steps (optimizer steps of the run)", steps, least=1)
    check_init(init)
    check_group(process_group)
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
    _warn_of_idle(bound, steps)
    _warn_of_frozen(layers, masks or {})
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


def _warn_of_idle(method: Method, steps: int | None) -> None:
    """SparsityWarning for a method that should update within the run, and never does."""
    every = getattr(method, "every", None)
    if every is None or steps is None or steps > LOOKED_AT:
        return
    if not any(method.due(step) for step in range(steps)):
        warnings.warn(
            f"method {type(method).__name__}: no update is due within the {steps} steps of the run "
            f"(every={every}), so no mask will move; give it a smaller `every`",
            SparsityWarning,
            stacklevel=3,
        )


def _warn_of_frozen(layers: Sequence[Layer], masks: Masks) -> None:
    """SparsityWarning for weights that go where no training makes up for it."""
    frozen = [
        layer.name
        for layer in layers
        if not layer.weight.requires_grad
        and layer.name not in masks
        and layer.keep * layer.groups < layer.storage.count()
    ]
    if frozen:
        named = ", ".join(map(repr, frozen))
        warnings.warn(
            f"frozen layers lose weights, and nothing will train what they keep: {named}; leave "
            f"them dense with skip=[{named}]",
            SparsityWarning,
            stacklevel=3,
        )
