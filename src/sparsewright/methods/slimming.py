"""Network slimming: L1 on the scales of the norms, then channels of small scale are cut.

Liu, Li, Shen, Huang, Yan, Zhang, ICCV 2017: strength * sign(gamma) joins the gradient of each
BatchNorm scale while dense, and one threshold on |gamma| over the whole model makes the cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..core import Layer, Score, View
from ..errors import ConfigError, UnknownNameError
from ..facts import Facts
from ..norms import ALL, norms_after, scale_of
from ..scores._wide import wide
from . import METHODS
from ._dense_first import DenseFirst, add_to_gradient, check_strength
from ._drop_grow import check_option
from ._share import Scope, share_by_rank

Without = Literal["length", "error"]
WITHOUT: tuple[str, ...] = get_args(Without)


@dataclass(frozen=True)
class ByScale:
    """A channel's scale, shared out over its weights by their |w|, so that a row adds up to it."""

    scales: Mapping[str, Tensor]
    needs_gradient: ClassVar[bool] = False

    def __call__(self, layer: View) -> Tensor:
        size = wide(layer.weight).abs()
        rows = size.flatten(1)
        scale = self.scales.get(layer.name)
        scale = rows.square().sum(dim=1).sqrt() if scale is None else wide(scale).abs()
        whole = rows.sum(dim=1, keepdim=True)
        even = torch.full_like(rows, 1.0 / max(1, rows.shape[1]))
        share = torch.where(whole > 0, rows / whole.masked_fill(whole == 0, 1.0), even)
        return (share * scale.to(share)[:, None]).view(size.shape)


@METHODS.register("slimming")
@dataclass(frozen=True)
class Slimming(DenseFirst):
    """Pull the scales of norms to 0 while dense, then cut the channels whose scales are smallest.

    Made for pattern "channel"; in other patterns a weight counts for its part |w| of its
    channel's scale. A layer's norm is the next module in the same parent; an activation, a pooling
    or a dropout may lie between. strength: of the pull, strength * sign(gamma). norms: {layer:
    norm} by name, where it is another. without: a layer that no norm follows is judged, and
    pulled, by the "length" of its rows, as if it had weight normalization, and keeps the budget
    that `allocate` gave it; or it is an "error". scope: "global" puts one threshold over all layers
    with a norm, "layer" one in each. least: part of its channels that a layer keeps whatever the
    threshold; the paper's is 0, which can close a layer down to one channel. end: as for SoftL1.
    scales: found by `attach`. The optimizer that steps a layer must step its norm, or come before
    the one that does.

    Of a cut channel the norm's shift stays: it gives a constant, which training goes on to use.

    >>> Slimming(without="error").bind(steps=100).end
    75
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Liu, Li, Shen, Huang, Yan, Zhang, "Learning efficient convolutional networks through '
            'network slimming", ICCV 2017'
        ),
        when=(
            "For channels of convolutional networks with BatchNorm: it also finds how wide each "
            "layer should be. It takes many steps until the scales tell: in a short run the global "
            "threshold closes layers. Where there are no norms take group_lasso."
        ),
        memory="Dense until the cut; nothing beside it.",
        flops="3 f_D a step before the cut, 3 f_S after it; inference f_S.",
        published="none verified",
        departs=(
            "The threshold counts weights, not channels, so that the sparsity asked for is met; "
            "every layer keeps a tenth of its channels at least (least); layers without a norm are "
            "judged too, unless without='error'. The public code takes a strength of 1e-4 for "
            "VGG-19 and 1e-5 for ResNet-164. The scale and shift of a cut channel stay."
        ),
    )
    strength: float = 1e-4
    norms: Mapping[str, str] = field(default_factory=dict)
    without: Without = "length"
    least: float = 0.1
    scope: Scope = field(default="global", kw_only=True)
    scales: Mapping[str, nn.Parameter] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength("Slimming", "strength", self.strength)
        if not 0.0 <= self.least <= 1.0:
            raise ConfigError(f"method Slimming: least must be in [0, 1]; got {self.least}")
        check_option("Slimming", "without", self.without, WITHOUT)

    def meet(self, model: nn.Module, layers: Sequence[Layer]) -> Slimming:
        scales = self._scales(model, layers)
        bare = [layer.name for layer in layers if layer.name not in scales]
        if bare and self.without == "error":
            raise ConfigError(
                f"method Slimming: no norm with a scale for each output follows layer {bare[0]!r} "
                f"({len(bare)} of {len(layers)} have none): leave such layers out "
                f"(skip=[{bare[0]!r}]), name their norms (norms={{layer: norm}}), or judge them by "
                "the length of their rows (without='length')"
            )
        return replace(self, scales=scales)

    def _scales(self, model: nn.Module, layers: Sequence[Layer]) -> dict[str, nn.Parameter]:
        """Layer name -> the scale of its norm, if it has one; names in `norms` must fit."""
        modules, found = dict(model.named_modules()), norms_after(model, layers, ALL)
        for name in self.norms:
            if name not in {layer.name for layer in layers}:
                raise UnknownNameError("sparse layer", name, [layer.name for layer in layers])
        scales = {}
        for layer in layers:
            named = self.norms.get(layer.name)
            norm = found.get(layer.name) if named is None else modules.get(named)
            scale = None if layer.is_lookup else scale_of(norm, layer)
            if scale is not None:
                scales[layer.name] = scale
            elif named is not None:
                raise ConfigError(
                    f"layer {layer.name!r}: its norm {named!r} must be a BatchNorm, LayerNorm, "
                    f"GroupNorm or InstanceNorm of the model with a scale for each of its "
                    f"{layer.shape[0]} outputs"
                )
        return scales

    @property
    def importance(self) -> str | Score:
        assert self.scales is not None, "meet() comes first"
        return ByScale(self.scales)

    def rebudget(self, layers: Sequence[Layer], step: int) -> None:
        assert self.scales is not None, "meet() comes first"
        if step == self.end and self.scope == "global":
            normed = [layer for layer in layers if layer.name in self.scales]
            share_by_rank(normed, self.importance, per_weight=False, least=self.least)

    def before_step(self, layer: Layer, step: int) -> None:
        assert self.scales is not None, "meet() comes first"
        if self.is_over(step):
            return
        scale = self.scales.get(layer.name)
        if scale is None:
            weight = wide(layer.weight)
            pull = (self.strength * weight).div_(_row_lengths(layer, weight))
            add_to_gradient(layer, pull)
        elif scale.grad is not None:
            scale.grad.add_(scale.detach().sign(), alpha=self.strength)

    def after_step(self, layer: Layer, step: int) -> None:
        """Nothing: the optimizer's step was the penalty's too."""


def _row_lengths(layer: Layer, weight: Tensor) -> Tensor:
    """The L2 norm of its row for every weight, 1 where it is 0, in a shape that goes with that of
    `layer.weight`."""
    if weight.shape == layer.shape:
        rows = weight.flatten(1).square().sum(dim=1).sqrt()
        return rows.masked_fill_(rows == 0, 1.0).view(-1, *[1] * (weight.dim() - 1))
    row = layer.storage.rows()
    total = weight.new_zeros(layer.shape[0]).index_add_(0, row, weight.square()).sqrt()
    return total.masked_fill_(total == 0, 1.0)[row]
