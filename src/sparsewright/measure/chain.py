"""A model that is a plain chain of Linear and ReLU, as the list of those modules.

Libraries that know a matrix product and no model can run such a chain, and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Step = nn.Linear | nn.ReLU


def chain(model: nn.Module, example: Tensor) -> list[Step] | str:
    """The Linear and ReLU modules of `model` in the order they run, or why it is no such chain.

    The chain is read from one run on `example` (batch, ...): each module's input must be the
    output of the one before. Flatten, Dropout and Identity are passed over.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()).eval()
    >>> chain(model, torch.ones(1, 2, 2))
    [Linear(in_features=4, out_features=2, bias=True), ReLU()]
    """
    calls = _calls(model, example)
    steps: list[Step] = []
    last = example.flatten(1) if example.dim() > 1 else example
    if last.dim() != 2:
        return f"a chain takes a batch; got an example of shape {tuple(example.shape)}"
    for name, module, given, made in calls:
        if given is not last and not (not steps and torch.equal(given.flatten(1), last)):
            return f"not a chain: {name!r} does not follow from the module before it"
        if isinstance(module, Step):
            steps.append(module)
        elif not isinstance(module, (nn.Flatten, nn.Dropout, nn.Identity)):
            return f"only chains of Linear and ReLU: {name!r} is a {type(module).__name__}"
        last = made
    if not steps or (calls[-1][0] != "the model" and not _same(model, example, last)):
        return "not a chain: the output is not that of the last module"
    return steps


def _same(model: nn.Module, example: Tensor, last: Tensor) -> bool:
    output = model(example)
    return isinstance(output, Tensor) and torch.equal(output, last)


def _calls(model: nn.Module, example: Tensor) -> list[tuple[str, nn.Module, Tensor, Tensor]]:
    """(name, leaf module, input, output) of every call in one run, in order."""
    seen: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    hooks = []
    for name, module in model.named_modules():
        if any(True for _ in module.children()):
            continue

        def record(
            module: nn.Module, inputs: Any, output: Any, name: str = name or "the model"
        ) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                seen.append((name, module, inputs[0], output))

        hooks.append(module.register_forward_hook(record))
    try:
        model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
