"""Arguments as users give them, checked before any work: an error names the rule and what was
given, not what would have broken on it much later."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import BudgetError, ConfigError

T = TypeVar("T")
MAX_TEXT = 60  # characters of a text that an error repeats
SEEDS = range(-(2**63), 2**64)  # what torch takes


def told(value: object) -> str:
    """What was given, in a few words.

    >>> told("0.9"), told(None), told(nn.Linear), told(nn.ReLU())
    ("'0.9', a str", 'None', 'the class Linear', 'a value of type ReLU')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str):
        return f"{value[:MAX_TEXT]!r}, a str"
    if value is None or isinstance(value, Real):
        return repr(value)
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a {kind} {type(value).__name__} of shape {tuple(value.shape)}"
    return f"a value of type {type(value).__name__}"


def number(name: str, value: Any, rule: str = "a number") -> float:
    """The value if it is a real number and no bool; ConfigError else.

    >>> number("strength", 1)
    1
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name} must be {rule}; got {told(value)}")
    return value if isinstance(value, int | float) else float(value)


def whole(name: str, value: Any, least: int | None = None) -> int:
    """The value if it is an integer and no bool, of `least` or more; ConfigError else.

    >>> whole("steps", 3.5)
    Traceback (most recent call last):
    ...
    sparsewright.errors.ConfigError: steps must be a whole number; got 3.5
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be a whole number; got {told(value)}")
    if least is not None and value < least:
        raise ConfigError(f"{name} must be {least} or more; got {value}")
    return int(value)


def check_sparsity(sparsity: Any, place: str = "") -> None:
    """ConfigError unless it is a number, BudgetError unless it is in [0, 1).

    >>> check_sparsity(90)
    Traceback (most recent call last):
    ...
    sparsewright.errors.BudgetError: sparsity must be in [0, 1); got 90 (for 90 % write 0.9)
    """
    value = number(f"{place}sparsity", sparsity, "a number in [0, 1)")
    if not 0 <= value < 1:
        percent = f" (for {value:g} % write {value / 100:g})" if 1 < value < 100 else ""
        raise BudgetError(f"{place}sparsity must be in [0, 1); got {sparsity}{percent}")


def seeded(seed: Any) -> torch.Generator:
    """A CPU random source; ConfigError unless the seed is an integer of 64 bits."""
    if whole("seed", seed) not in SEEDS:
        raise ConfigError(f"seed must have 64 bits at most; got {seed}")
    return torch.Generator().manual_seed(int(seed))


def check_model(model: Any, name: str = "model") -> None:
    """ConfigError unless it is a module; the message guesses what was mixed up.

    >>> check_model(nn.Linear)
    Traceback (most recent call last):
    ...
    sparsewright.errors.ConfigError: model must be a torch.nn.Module; got the class Linear: make one
    """
    if isinstance(model, nn.Module):
        return
    hint = ""
    if isinstance(model, Optimizer):
        hint = ": the model comes first, the optimizer after it"
    elif isinstance(model, type):
        hint = ": make one"
    elif isinstance(model, Mapping):
        hint = ": load a state_dict into a model first"
    elif isinstance(model, list | tuple):
        hint = ": put the modules into one, such as nn.ModuleList"
    raise ConfigError(f"{name} must be a torch.nn.Module; got {told(model)}{hint}")


def optimizers_of(optimizer: Any) -> list[Optimizer]:
    """One optimizer, or several, as a list; ConfigError unless all are, and none is there twice."""
    given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    if not given:
        raise ConfigError("optimizer must be one, or a list of at least one; got an empty list")
    for one in given:
        if isinstance(one, Optimizer):
            continue
        hint = ""
        if isinstance(one, nn.Module):
            hint = ": the model comes first, the optimizer after it"
        elif isinstance(getattr(one, "optimizer", None), Optimizer):
            hint = ": give its .optimizer"
        raise ConfigError(
            f"optimizer must be a torch.optim.Optimizer, or a list of some; got {told(one)}{hint}"
        )
    if len({id(one) for one in given}) < len(given):
        raise ConfigError("optimizer: the same one is given twice, and each step would count twice")
    return given


def check_mapping(name: str, value: Any, rule: str, hint: str = "") -> None:
    """ConfigError unless it is a mapping with texts as keys."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be {rule}; got {told(value)}{hint}")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{name} must be {rule}; got a key that is {told(key)}")


def check_part(kind: str, part: T, needs: tuple[str, ...]) -> T:
    """The part if it has what its kind needs; ConfigError for a class, or for another kind's.

    >>> check_part("score", 3, ("needs_gradient",))
    Traceback (most recent call last):
    ...
    sparsewright.errors.ConfigError: score must be a name or an object that is one; got 3, which \
has no needs_gradient
    """
    rule = f"{kind} must be a name or an object that is one; got {told(part)}"
    if isinstance(part, type):
        raise ConfigError(f"{rule}: write {part.__name__}(...)")
    lacks = [need for need in needs if not hasattr(part, need)]
    if lacks:
        named = ["call" if need == "__call__" else need for need in lacks]
        raise ConfigError(rule + ("" if part is None else f", which has no {', '.join(named)}"))
    return part


def check_call(name: str, function: Any, given: tuple[str, ...]) -> None:
    """ConfigError unless a function can be called with so many arguments, which `given` names."""
    rule = f"{name} must be a function ({', '.join(given)}) -> scalar"
    if isinstance(function, nn.modules.loss._Loss):
        raise ConfigError(
            f"{rule}; got {type(function).__name__}, which takes outputs: write one that calls it"
        )
    if isinstance(function, type) or not callable(function):
        raise ConfigError(f"{rule}; got {told(function)}")
    if not _takes(function, len(given)):
        raise ConfigError(f"{rule}; got one that does not take {len(given)} arguments")


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some that are not written in Python
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
