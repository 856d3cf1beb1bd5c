"""Network slimming: |gamma|, the scale that a norm gives to a filter's output, is the filter's
worth (Liu, Li, Shen, Huang, Yan, Zhang 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..calibration import Calibration
from ..core import Layer
from ..errors import StateError
from ..facts import Facts
from ..norms import norms_after, scale_of
from . import SCORES
from ._measured import FoundUnits, ToMeasure, check_rows


@dataclass(frozen=True)
class Slimming(ToMeasure):
    """|gamma| of the BatchNorm (or InstanceNorm) that follows a layer, for each of its filters or
    neurons; pattern "channel". As published: allocate="global", after training with an L1 penalty
    on gamma (1e-4 for VGG-19, 1e-5 for ResNet-164 in the public code).

    The norm is the next module in the same parent, or with data the one that is given the layer's
    output in a run; an activation, a pooling or a dropout may lie between. Layers that none
    follows must be skipped.

    >>> from sparsewright import prune
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> prune(model, 0.5, "channel", score="slimming", allocate="uniform_all").present
    108
    """

    of_rows: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        source="Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks "
        "through Network Slimming. ICCV 2017.",
        when="For whole filters of networks with BatchNorm that were trained with an L1 penalty on "
        "its scales. Without the penalty the scales tell little.",
        memory="A number for every filter.",
        flops="None, or one forward of a batch.",
        published="none verified",
        departs="A global ranking compares |gamma| over the weights of its filter, since the "
        "budget is counted in weights. An absent filter still passes on relu(beta) of its norm, "
        "and no layer becomes narrower; sw.deploy folds the norm, so that the constant is the "
        "filter's bias.",
    )

    def measured(self, calibration: Calibration) -> FoundUnits:
        """StateError for a layer without a norm; MisfitError for units that are no filters."""
        batch = calibration.first_batch()
        norms = norms_after(calibration.model, calibration.layers, batch=batch)
        return FoundUnits({y.name: self._scales(y, norms.get(y.name)) for y in calibration.layers})

    def _scales(self, layer: Layer, norm: nn.Module | None) -> Tensor:
        check_rows(self, layer.name, layer.pattern, layer.shape)
        scale = scale_of(norm, layer)
        if scale is None:
            what = "none follows" if norm is None else f"{norm} follows"
            raise StateError(
                f"layer {layer.name!r}: score {self} needs a BatchNorm with a scale for each of "
                f"its {layer.shape[0]} outputs behind it; {what}. Leave it out "
                f"(skip=[{layer.name!r}])"
            )
        return scale.detach().float().abs().view(layer.groups, layer.units)


SCORES.register("slimming")(Slimming())
