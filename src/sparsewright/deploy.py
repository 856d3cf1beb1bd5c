"""Every Linear and convolution of a model is given the fastest kernel for its zeros, by timing.

It is timed on this machine. Dense stays wherever dense wins. The plan says which kernel serves
which layer, and why others do not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .arguments import check_model, number, told
from .deployed import Deployed, plain_attention
from .errors import ConfigError, KernelError, SparsewrightError
from .fold import NORMS, Folded, fold_norms, has_norms
from .kept_trace import FOLDED, PROGRAM
from .layouts import FP32, VALUES, values_name
from .make import TOLERANCE, Made, Maker, Traced, copied
from .measure.dense import relative_error
from .nn import LayoutLayer
from .pack import unpack
from .plan import Plan
from .serve import Seen, Wishes, record, seen_in
from .weights import find_weights


def deploy(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    kernels: Sequence[str] | None = None,
    seconds: float = 0.3,
    fold: bool = True,
    cache: bool = True,
    plan: Plan | None = None,
    values: str = FP32,
) -> Deployed:
    """A copy of `model` in eval mode whose Linear and Conv1d/2d layers run on the kernels that are
    fastest here.

    example: an input, or a sequence of its positional inputs, of the batch to plan for, CPU
    float32. kernels: names to choose among (all by default). seconds: to spend on timing each
    layer. fold: whether a BatchNorm becomes part of the layer before it. cache: whether layers that
    were timed on this machine before are not timed again (plan_cache.py), nor a model traced again
    whose code was (kept_trace.py). plan: one to repeat, of an equal model: its kernels serve, or
    KernelError says which cannot. values: how packed weights store theirs: "fp32", or with fewer
    bytes "bf16" or "int8" (layouts.pack), which rounds
    them; the plan's notes say what that does to the outputs. `model` is left as it was. The output
    on the example equals that of the original, with its weights rounded so, within TOLERANCE of its
    largest magnitude; KernelError names the layer where it does not. Models on a GPU or in another
    float type are refused with KernelError. Packed modules, which train, are unpacked in the copy.

    >>> import sparsewright as sw
    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> _ = sw.prune(model, sparsity=0.9)
    >>> fast = sw.deploy(model, torch.randn(1, 64), seconds=0)
    >>> [row.layer for row in fast.plan.layers]
    ['0', '2']
    """
    check_model(model)
    inputs = tuple(example) if isinstance(example, Sequence) else (example,)
    _refuse(model, inputs)
    seconds = number("seconds", seconds, "a number of 0 or more")
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"seconds must be a number of 0 or more; got {seconds}")
    if plan is not None and not isinstance(plan, Plan):
        raise KernelError(f"plan must be a Plan; got {type(plan).__name__}: Plan.load reads a file")
    if isinstance(kernels, str):
        raise KernelError(f"kernels must be a list of names; got {kernels!r}: write [{kernels!r}]")
    if kernels is not None and not isinstance(kernels, Iterable):
        raise KernelError(f"kernels must be a list of names; got {told(kernels)}")
    kernels = None if kernels is None else list(kernels)
    if kernels == []:
        raise KernelError("kernels must name at least one; got none: leave it out for all")
    if plan is not None and kernels is not None:
        raise KernelError("a plan names its kernels: give deploy either of the two")
    if plan is not None and values != FP32:
        raise KernelError("a plan names how its values are stored: give deploy either of the two")
    VALUES[values]  # its error before any work
    return _deployed(model, inputs, Wishes(kernels, seconds, cache, values), fold, plan)


def _deployed(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    wishes: Wishes,
    fold: bool,
    plan: Plan | None,
    anew: bool = False,
) -> Deployed:
    """`deploy`, its arguments checked. anew: whether the model with its norms folded is run once to
    see that it is right, even where that was seen before, by the same code with other weights."""
    fast = unpack(copy.deepcopy(model)).eval().requires_grad_(False)
    found = Traced(fast, inputs, wishes.cache)
    as_before = False
    try:
        with torch.no_grad(), plain_attention():
            seen = _seen(fast, inputs, NORMS if fold else ())
            expected = [x.clone() for x in _leaves(seen.outputs)]
            folded = Folded()
            if fold and has_norms(fast):
                as_before = not anew and found.was_right(PROGRAM, FOLDED)
                if as_before:
                    folded, seen = _folded_as_before(fast, found, seen)
                else:
                    fast, folded, seen = _folded(fast, inputs, expected, found, seen)
            maker = Maker(fast, inputs, found, wishes, seen)
            made, pieces = maker.repeat(plan) if plan else maker.fastest()
            expected, loss = _with_rounded(fast, made.served, inputs, expected)
        notes = (*folded.notes(), *_about_code(made), *loss, *_other_than(plan, maker.batch))
        own = Plan(torch.get_num_threads(), maker.batch, made.rows, notes, pieces)
        deployed = Deployed(made.model, own, example=inputs, program=made.program, graph=made.graph)
        _check_outputs(deployed, expected)
    except Exception:  # whatever a forward may raise when its norms are folded after all
        if not as_before:
            raise
        return _deployed(model, inputs, wishes, fold, plan, anew=True)
    return deployed


def _about_code(made: Made) -> Iterator[str]:
    """For the notes."""
    if made.note is not None:
        yield made.note
    count = made.program.convs_as_code if made.program else 0
    if count:
        yield (
            f"Side by side, {count} convolution{'s run their' if count > 1 else ' runs its'} "
            "weights as code."
        )


def _seen(
    model: nn.Module, inputs: tuple[Tensor, ...], also: tuple[type[nn.Module], ...] = ()
) -> Seen:
    """What the model does on the example; KernelError if it does not run on it."""
    try:
        return record(model, inputs, also)
    except SparsewrightError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in inputs)
        raise KernelError(
            f"the model does not run on the example ({shapes}), which must be its positional "
            f"inputs: {type(error).__name__}: {error}"
        ) from error


def _with_rounded(
    model: nn.Module,
    served: Mapping[nn.Module, nn.Module],
    inputs: tuple[Tensor, ...],
    expected: list[Tensor],
) -> tuple[list[Tensor], tuple[str, ...]]:
    """What the deployed model must give: outputs of `model` with the weights that its packed layers
    hold; and, for the notes, how far these are from the original's. The layers that are about to
    be replaced keep these weights."""
    names = set()
    for layer, made in served.items():
        if isinstance(made, LayoutLayer) and (name := values_name(made.packed)) != FP32:
            names.add(name)
            dense = made.to_dense().view_as(layer.weight)  # type: ignore[arg-type]
            layer.weight = nn.Parameter(dense, requires_grad=False)
    if not names:
        return expected, ()
    near = [x.clone() for x in _leaves(model(*inputs))]
    return near, (
        f"Values in {' and '.join(sorted(names))}: outputs on the example differ from the "
        f"original's by {_error(near, expected):.2g} of the largest.",
    )


def _other_than(plan: Plan | None, batch: int) -> tuple[str, ...]:
    """For the notes: what differs from where a repeated plan was made."""
    now = (torch.get_num_threads(), batch)
    if plan is None or (plan.threads, plan.batch) == now:
        return ()
    return (f"Repeated from a plan for batch {plan.batch} and {plan.threads} threads.",)


def _folded(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    expected: list[Tensor],
    found: Traced,
    seen: Seen,
) -> tuple[nn.Module, Folded, Seen]:
    """A copy of the model with its norms folded and what that does on the example; the model
    itself, and what it did (`seen`), where that went wrong."""
    if found.trace is None and found.why_not is not None:
        return model, Folded.of_error(found.why_not), seen
    made = copied(model)
    folded = fold_norms(made, inputs, found.trace)
    if not folded.layers:
        return model, folded, seen
    try:
        then = record(made, inputs)
    except Exception as raised:  # a forward that asks its norms for more than to be called
        why = f"the model then raises {type(raised).__name__}: {raised}"
        return model, Folded(why_not=why), seen
    error = _error(_leaves(then.outputs), expected)
    if not error <= TOLERANCE:
        why = f"outputs would then be off by {error:.3g} of the largest"
        return model, Folded(why_not=why), seen
    found.is_right(FOLDED)
    return made, folded, then


def _folded_as_before(model: nn.Module, found: Traced, seen: Seen) -> tuple[Folded, Seen]:
    """The norms are folded in place. What the layers then do on the example was `seen` of them and
    their norms: the model is not run for it."""
    modules = dict(model.named_modules())
    folded = fold_norms(model, (), found.trace)
    calls = dict(seen.calls)
    for layer, norm in folded.layers:
        x, _ = calls[id(modules[layer])]
        calls[id(modules[layer])] = x, calls[id(modules[norm])][1]
    return folded, seen_in(model, calls, seen.outputs)


def _error(got: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(got, expected, strict=True)
    return max((relative_error(a.float(), b.float()) for a, b in pairs), default=0.0)


def _refuse(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if isinstance(model, Deployed):
        raise KernelError("the model is deployed already: deploy the one that it was made of")
    if not inputs:
        raise KernelError("deploy needs an example input: the kernels are timed on it")
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise KernelError(f"example {i} must be a tensor; got {type(x).__name__}")
        if not x.numel():
            raise KernelError(f"example {i} must not be empty; got shape {tuple(x.shape)}")
    find_weights(model)  # its error for modules that are lazy
    named = [*model.named_parameters(), *model.named_buffers()]
    named += [(f"example {i}", x) for i, x in enumerate(inputs)]
    for name, tensor in named:
        if tensor.device.type != "cpu":
            raise KernelError(
                f"deploy serves models on the CPU; {name!r} is on {tensor.device}: "
                "call model.cpu(), and example.cpu()"
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise KernelError(
                f"deploy serves float32; {name!r} is {kind}: call model.float(), and "
                "example.float()"
            )


def _check_outputs(deployed: Deployed, expected: list[Tensor]) -> None:
    with torch.no_grad():
        got = _leaves(deployed(*deployed.example))
    error = _error(got, expected)
    if not error <= TOLERANCE:
        served = ", ".join(f"{r.layer!r} ({r.kernel})" for r in deployed.plan.layers if r.is_sparse)
        raise KernelError(
            f"the deployed model must equal the original within {TOLERANCE} of its largest output; "
            f"it is off by {error:.3g}. Each layer alone is right, so the model turns small "
            f"differences into large ones; sparse layers: {served or 'none'}"
        )


def _leaves(output: Any) -> list[Tensor]:
    return [x for x in tree_leaves(output) if isinstance(x, Tensor)]
