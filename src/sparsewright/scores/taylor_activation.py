"""Taylor, by activations: |mean over positions of dC/dz * z| of a feature map, the change of the
loss if the map were 0 (Molchanov, Tyree, Karras, Aila, Kautz 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..calibration import Calibration
from ..core import Layer
from ..errors import MisfitError
from ..facts import Facts
from ..norms import norms_after
from . import SCORES
from ._measured import FoundUnits, ToMeasure, check_reached, check_rows


@dataclass(frozen=True)
class TaylorActivation(ToMeasure):
    """|mean over positions of dC/dz * z| of every filter or neuron, the mean over all examples,
    divided by the layer's L2 norm of them; pattern "channel". As published: allocate="global".

    z is a layer's output, or that of the norm which follows it: before a norm in training mode the
    sum is 0. Behind a ReLU it is the same as before it. Positions are those of a feature map, or of
    a sequence. Each example's change is made positive before the mean is taken.
    """

    of_rows: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        source="Molchanov, Tyree, Karras, Aila, Kautz: Pruning Convolutional Neural Networks for "
        "Resource Efficient Inference. ICLR 2017.",
        when="For filters of a trained network, a few at a time with training between.",
        memory="All outputs of the layers for one batch, with their gradients.",
        flops="A dense forward and backward (3 f_D) for every batch.",
        published="none verified",
        departs="Without the paper's term for the cost of a filter; a global ranking compares "
        "filters by their score over their weights, since the budget is counted in weights; "
        "examples of batches of different size count by the batch's mean loss.",
    )

    def measured(self, calibration: Calibration) -> FoundUnits:
        """ConfigError without a loss; MisfitError for units that are no filters; StateError for a
        layer that does not run."""
        for layer in calibration.layers:
            check_rows(self, layer.name, layer.pattern, layer.shape)
            if layer.is_lookup:
                raise MisfitError(
                    f"layer {layer.name!r}: score {self} judges outputs, and the rows of an "
                    "embedding are its inputs"
                )
        modules, batch = calibration.modules(), calibration.first_batch()
        norms = norms_after(calibration.model, calibration.layers, batch=batch)
        targets = {y.name: norms.get(y.name, modules[y.name]) for y in calibration.layers}
        totals = {y.name: torch.zeros(y.shape[0]) for y in calibration.layers}
        reached = dict.fromkeys(totals, False)
        seen: list[tuple[Layer, Tensor]] = []

        def watch(layer: Layer) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.requires_grad:
                    seen.append((layer, output))

            return targets[layer.name].register_forward_hook(hook)

        hooks = [watch(layer) for layer in calibration.layers]
        try:
            for loss in calibration.losses():
                outputs = [z for _, z in seen]
                slopes = torch.autograd.grad(loss, outputs, allow_unused=True) if outputs else ()
                for (layer, z), slope in zip(seen, slopes, strict=True):
                    if slope is not None:
                        reached[layer.name] = True
                        change = changes(z.detach(), slope, is_map=len(layer.shape) > 2)
                        totals[layer.name] = totals[layer.name].to(change) + change
                seen.clear()
        finally:
            for hook in hooks:
                hook.remove()
        check_reached(reached, self)
        return FoundUnits(
            {y.name: _unit_length(totals[y.name]).view(y.groups, -1) for y in calibration.layers}
        )


def changes(z: Tensor, slope: Tensor, is_map: bool) -> Tensor:
    """(channels) sum over examples of |mean over positions of slope * z|.

    z: (examples, channels, *positions) of a feature map, else (examples, *positions, channels).

    >>> z = torch.tensor([[[1., 3.]], [[-1., -1.]]])  # two examples, one channel, two positions
    >>> changes(z, torch.ones_like(z), is_map=True)
    tensor([3.])
    """
    product = z.float() * slope.float()
    if product.dim() == 1:
        product = product.unsqueeze(0)
    if not is_map:
        product = product.movedim(-1, 1)
    return (
        product.flatten(2).mean(dim=2).abs().sum(0) if product.dim() > 2 else product.abs().sum(0)
    )


def _unit_length(values: Tensor) -> Tensor:
    norm = values.norm()
    return values / norm if norm > 0 else values


SCORES.register("taylor_activation")(TaylorActivation())
