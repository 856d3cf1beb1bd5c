"""One layer of a model is given the fastest kernel: what it computes is recorded, a kernel chosen,
its module built and checked on the layer's own input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import plan_cache
from .errors import KernelError
from .kernels import KERNELS, Choice, Timing, choose, recall
from .layouts import FP32, VALUES
from .measure.dense import relative_error
from .nn import KINDS, LayoutLayer, Task, task_of
from .plan import Candidate, LayerPlan, pattern_of
from .present import count_true, present_in
from .weights import Weight

LAYER_TOLERANCE = 1e-4
"""Of a layer's largest output, on the input that the model gives it, between the module that
serves it and the dense one: float32 sums in another order."""


@dataclass(frozen=True)
class Wishes:
    """How `deploy` was asked to choose.

    kernels: among which. seconds: timing each layer. cache: whether measurements on disk will do,
    and are kept. values: how packed weights store theirs.
    """

    kernels: Sequence[str] | None = None
    seconds: float = 0.3
    cache: bool = True
    values: str = FP32


@dataclass(frozen=True)
class Seen:
    """What the layers of a model did on an example, and where they stand.

    calls: id of a module -> (input, output) of its first call. names: of the modules. users: id of
    a parameter -> the modules whose weight it is. attended: ids of the modules inside attention.
    outputs: of the model.
    """

    calls: Mapping[int, tuple[Tensor, Tensor]]
    names: Mapping[nn.Module, str]
    users: Mapping[int, Sequence[nn.Module]]
    attended: Set[int]
    outputs: Any


def record(
    model: nn.Module, inputs: tuple[Tensor, ...], also: tuple[type[nn.Module], ...] = ()
) -> Seen:
    """What every layer that kernels can serve, or of the types `also`, is given and gives, on its
    first call."""
    calls: dict[int, tuple[Tensor, Tensor]] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor):
            calls.setdefault(id(module), (args[0].detach().clone(), output.detach().clone()))

    watched = [m for m in model.modules() if type(m) in KINDS or type(m) in also]
    hooks = [m.register_forward_hook(hook) for m in watched]
    try:
        outputs = model(*inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return seen_in(model, calls, outputs)


def seen_in(model: nn.Module, calls: Mapping[int, tuple[Tensor, Tensor]], outputs: Any) -> Seen:
    """These calls and outputs, and where the layers of the model stand."""
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        if type(module) in KINDS:
            users.setdefault(id(module.weight), []).append(module)
    names = {module: name for name, module in model.named_modules()}
    attention = [m for m in names if isinstance(m, nn.MultiheadAttention)]
    attended = {id(child) for parent in attention for child in parent.modules()}
    return Seen(calls, names, users, attended, outputs)


def serve(
    weight: Weight, row: LayerPlan, seen: Seen, wishes: Wishes
) -> tuple[LayerPlan, dict[nn.Module, nn.Module]]:
    """The row of one weight in the plan, and what replaces each module that uses it.

    row: of the weight as it is (dense_row). KernelError, with the layer's name, where a kernel is
    wrong.
    """
    task = _task(weight, seen)
    if isinstance(task, str):
        return refused(row, task), {}
    kernels, operation = wishes.kernels, task.operation
    if kernels is not None:
        kernels = [name for name in kernels if KERNELS[name].operation == operation.name]
        if not kernels:
            why = f"none of the kernels asked for computes {operation.name}"
            return replace(refused(row, why), operation=str(operation)), {}
    try:
        choice = _choose(task, row, kernels, wishes)
    except KernelError as error:
        raise KernelError(f"layer {weight.name!r}: {error}") from error
    modules = _checked_modules(weight, task, choice, seen)
    return _row(row, task, choice, seen.calls[id(weight.module)][1]), modules


def _choose(task: Task, row: LayerPlan, kernels: list[str] | None, wishes: Wishes) -> Choice:
    """By what was measured before, if it was; else by measuring."""
    key = plan_cache.circumstances(task, row, kernels, wishes.values) if wishes.cache else {}
    known = plan_cache.read(key, wishes.seconds) if wishes.cache else None
    if known is not None:
        choice = recall(task.weight, task.x, *known, operation=task.operation, values=wishes.values)
        if isinstance(choice, Choice):
            return choice
    choice = choose(
        task.weight,
        task.bias,
        task.x,
        operation=task.operation,
        kernels=kernels,
        seconds=wishes.seconds,
        values=wishes.values,
    )
    if wishes.cache:
        plan_cache.write(key, wishes.seconds, choice)
    return choice


def repeat(
    weight: Weight, row: LayerPlan, seen: Seen, pinned: LayerPlan | None
) -> tuple[LayerPlan, dict[nn.Module, nn.Module]] | str:
    """What `serve` gives, by the kernel of a plan; or why that cannot serve the weight."""
    if pinned is None:
        return "the plan does not name it"
    if pinned.shape != row.shape:
        return f"the plan is for a weight of {pinned.shape}; this one has {row.shape}"
    task = _task(weight, seen)
    was_served = pinned.kernel in KERNELS and any(
        c.kernel == pinned.kernel and c.refused is None for c in pinned.candidates
    )
    if not pinned.is_sparse and not was_served:
        return replace(row, operation=pinned.operation, candidates=pinned.candidates), {}
    if isinstance(task, str):
        return task
    timing = Timing(pinned.kernel, math.nan, math.nan, math.nan, 0, math.nan)  # none was taken
    if pinned.values not in VALUES:
        return f"the plan stores values in {pinned.values!r}; there are: {', '.join(VALUES)}"
    given = task.operation, pinned.values
    choice = recall(task.weight, task.x, (timing,), (), operation=given[0], values=given[1])
    if isinstance(choice, str):
        return choice
    modules = _checked_modules(weight, task, choice, seen)
    made = _row(row, task, choice, seen.calls[id(weight.module)][1])
    return replace(made, speedup=pinned.speedup, candidates=pinned.candidates), modules


def _task(weight: Weight, seen: Seen) -> Task | str:
    """What the weight's layer computes, or why it stays dense without a look at any kernel."""
    module = weight.module
    if isinstance(module, nn.MultiheadAttention) or id(module) in seen.attended:
        return "MultiheadAttention reads its weights itself: they stay dense"
    plain = next((kind for kind in KINDS if isinstance(module, kind)), type(module))
    if type(module) is not plain:
        return f"{type(module).__name__} is no plain {plain.__name__}: it may compute another thing"
    if plain in KINDS and id(module) not in seen.calls:
        return "the example does not call it"
    return task_of(module, seen.calls[id(module)][0] if plain in KINDS else weight.parameter)


def _checked_modules(
    weight: Weight, task: Task, choice: Choice, seen: Seen
) -> dict[nn.Module, nn.Module]:
    """What replaces every layer that has this weight and the operation: tied ones share it."""
    kind = type(weight.module)
    users = seen.users[id(weight.parameter)]
    alike = [m for m in users if type(m) is kind and _computes(m, task)]
    modules = {user: KINDS[kind].build(choice, user) for user in alike}
    for user, made in modules.items():
        if isinstance(made, LayoutLayer):
            made.name = seen.names[user]
    x, expected = seen.calls[id(weight.module)]
    slack = _rounding(task, choice).reshape(expected.shape) if choice.values != FP32 else 0.0
    _check(weight.name, choice.kernel, modules[weight.module](x), expected, slack)
    return modules


def _rounding(task: Task, choice: Choice) -> Tensor:
    """The most that each output may change by where every weight of the layer is rounded as its
    type of values rounds: the sum of its changes times |x|."""
    most = VALUES[choice.values].error(task.operation.matrix(task.weight.detach()))
    return task.operation.dense(task.x.abs(), most.view_as(task.weight), None)


def _computes(module: nn.Module, task: Task) -> bool:
    other = task_of(module, task.x)
    return not isinstance(other, str) and other.operation == task.operation


def _check(
    name: str, kernel: str, got: Tensor, expected: Tensor, slack: Tensor | float = 0.0
) -> None:
    """slack: how far each output may be off before that counts."""
    if isinstance(slack, Tensor) and got.shape == expected.shape:
        off = got - expected
        got = torch.where(got == expected, got, expected + off.sign() * (off.abs() - slack).relu())
    error = relative_error(got, expected)
    if not error <= LAYER_TOLERANCE:
        beyond = ", beyond what rounding its values may do" if isinstance(slack, Tensor) else ""
        raise KernelError(
            f"layer {name!r}: kernel {kernel} must equal the dense layer within "
            f"{LAYER_TOLERANCE} of its largest output{beyond}; it is off by {error:.3g}"
        )


def _row(row: LayerPlan, task: Task, choice: Choice, output: Tensor) -> LayerPlan:
    """The row of a weight that stays as it is becomes that of the choice."""
    scale = max(float(output.abs().max()), 1e-30) if output.numel() else 1.0
    timed = [
        Candidate(t.kernel, 1e3 * t.median, 1e3 * t.low, 1e3 * t.high, t.error / scale)
        for t in choice.timings
    ]
    refused = [Candidate(kernel, refused=reason) for kernel, reason in choice.refusals]
    return replace(
        row,
        operation=str(task.operation),
        kernel=choice.kernel,
        layout=choice.layout,
        values=choice.values,
        bytes=row.bytes if choice.packed is None else choice.packed.nbytes,
        speedup=choice.speedup,
        candidates=(*timed, *refused),
    )


def refused(row: LayerPlan, reason: str) -> LayerPlan:
    """The row of a weight that stays as it is, for a reason."""
    return replace(row, candidates=(Candidate("any sparse kernel", refused=reason),))


def dense_row(weight: Weight) -> LayerPlan:
    """The row of a weight as it is."""
    parameter = weight.parameter.detach()
    present = count_true(present_in(parameter))
    size = parameter.numel() * parameter.element_size()
    return LayerPlan(
        layer=weight.name,
        operation=type(weight.module).__name__.lower(),
        shape=tuple(parameter.shape),
        present=present,
        sparsity=1 - present / max(1, parameter.numel()),
        pattern=pattern_of(parameter),
        kernel="dense.eager",
        layout="dense",
        bytes=size,
        dense_bytes=size,
        speedup=None,
        candidates=(),
    )
