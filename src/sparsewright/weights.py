"""Which weights of a model can be made sparse, and where they live."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from .arguments import check_model
from .errors import StateError
from .topology import Topology

MATRIX_LIKE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, _NormBase)
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def is_packed(module: nn.Module) -> bool:
    """Whether a module holds a weight as its present values and their topology alone."""
    return isinstance(getattr(module, "topology", None), Topology)


@dataclass(frozen=True)
class Weight:
    """A parameter that can be made sparse, and where it lives."""

    name: str
    parameter: nn.Parameter
    module: nn.Module
    aliases: tuple[str, ...] = ()

    @property
    def is_lookup(self) -> bool:
        """Whether its rows are inputs, not output neurons: an embedding's."""
        return isinstance(self.module, nn.Embedding) or getattr(self.module, "is_lookup", False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        if is_packed(self.module):
            return tuple(self.module.shape)  # type: ignore[arg-type]
        return tuple(self.parameter.shape)


def find_weights(model: nn.Module) -> list[Weight]:
    """All weights that can be made sparse, in the model's order; tied weights appear once.

    Those are the weights of Linear, Conv1d/2d/3d and Embedding, the projections inside
    MultiheadAttention, and packed weights. Biases and norm parameters never are. Raises ConfigError
    for what is no module, StateError for weights that have no shape yet (lazy modules).

    >>> [w.name for w in find_weights(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))]
    ['0', '2']
    """
    check_model(model)
    found: dict[int, Weight] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names: tuple[str, ...] = ()
        if isinstance(module, MATRIX_LIKE) or is_packed(module):
            names = ("weight",)
        elif isinstance(module, nn.MultiheadAttention):
            names = ATTENTION
        for name in names:
            parameter = module._parameters.get(name)
            if parameter is None:
                continue
            full = f"{path}.{name}" if path else name
            short = full.removesuffix(".weight")
            if is_lazy(parameter):
                raise StateError(
                    f"weight {short!r} of a {type(module).__name__} has no shape yet: run the "
                    "model on one input first"
                )
            first = found.get(id(parameter))
            if first is None:
                found[id(parameter)] = Weight(short, parameter, module)
            elif is_packed(module) and module is not first.module:
                raise StateError(
                    f"packed layers {first.name!r} and {short!r} share a weight, and have places "
                    "each of its own: let both be one module"
                )
            elif short != first.name and short not in first.aliases:
                found[id(parameter)] = Weight(
                    first.name, parameter, first.module, (*first.aliases, short)
                )
    return list(found.values())


def check_values(weights: Sequence[Weight]) -> None:
    """StateError for weights on the device meta, which have no values to choose among."""
    for weight in weights:
        if weight.parameter.is_meta:
            raise StateError(
                f"weight {weight.name!r} is on the device meta and has no values: give the model "
                "some first (to_empty, load_state_dict)"
            )


COMPUTES = "its layer computes its weight from it"
_COMPUTED = re.compile(r"(.*\.)?(parametrizations\..+|weight_(orig|g|v))")


def why_other(name: str) -> str:
    """Why one of `other_weights` stays dense."""
    return COMPUTES if _COMPUTED.fullmatch(name) else "of a kind of module that is not known"


def other_weights(model: nn.Module, known: Sequence[Weight]) -> dict[str, nn.Parameter]:
    """Name -> parameter called a weight, of 2 dimensions or more, of a kind of module that is not
    known: it stays dense, and whoever counts should say so. Norms' are no such weights.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 2), nn.LayerNorm([2, 2]))
    >>> list(other_weights(model, find_weights(model)))
    ['1.weight_ih_l0', '1.weight_hh_l0']
    """
    seen = {id(weight.parameter) for weight in known}
    found: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():
        if isinstance(module, NORMS) or is_packed(module):
            continue
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen or parameter.dim() < 2:
                continue
            if "weight" in name or isinstance(module, ParametrizationList):
                seen.add(id(parameter))
                found[f"{path}.{name}" if path else name] = parameter
    return found
