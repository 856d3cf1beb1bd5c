"""BatchNorm folded into the layer before it: in eval mode both are one affine map of the input.

y = gamma (W x + b - mean) / sqrt(variance + eps) + beta has the weights s W and the bias
s (b - mean) + beta, with s = gamma / sqrt(variance + eps) for each output (Jacob et al.,
"Quantization and training of neural networks for efficient integer-arithmetic-only inference",
2018). Zeros of W stay zeros. Which layer comes before which norm is read from the traced graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import ArtifactError
from .keeping import all_finite
from .traced import Trace, traced

aten = torch.ops.aten
PRODUCTS = (
    *(aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding),
    aten.linear.default,
)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
CACHED = 2**15
"""Weights that are scaled at a time: so many float64 stay in cache."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Folded:
    """layers: names of (layer, norm) that became one. why_not: why none could be looked for."""

    layers: tuple[tuple[str, str], ...] = ()
    why_not: str | None = None

    @classmethod
    def of_error(cls, error: ArtifactError) -> Folded:
        """None, for the model could not be traced: why_not is what torch.export raised."""
        cause = error.__cause__ or error
        reason = str(cause).strip().split("\n")[0][:200] or type(cause).__name__
        return cls(why_not=f"torch.export failed with {type(cause).__name__}: {reason}")

    def notes(self) -> tuple[str, ...]:
        """For the plan."""
        if self.why_not is not None:
            return (f"BatchNorm is not folded: {self.why_not}",)
        pairs = ", ".join(f"{norm!r} into {layer!r}" for layer, norm in self.layers)
        return (f"BatchNorm folded: {pairs}",) if pairs else ()


def fold_norms(model: nn.Module, inputs: tuple[Tensor, ...], found: Trace | None = None) -> Folded:
    """Fold every BatchNorm1d/2d whose input is a Linear's or a Conv1d/2d's output alone; in place.

    model: in eval mode; its norms become nn.Identity. A layer that is called twice, shares its
    weight, has hooks, or whose output has another reader stays as it is. The sums are done in
    float64 and rounded once. found: the model's trace, if it is at hand.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    >>> fold_norms(model, (torch.ones(1, 3, 8, 8),)).layers
    (('0', '1'),)
    >>> type(model[1]).__name__
    'Identity'
    """
    if not has_norms(model):
        return Folded()
    try:
        found = found or traced(model, inputs)
    except ArtifactError as error:
        return Folded.of_error(error)
    folded = []
    gone = set()
    for layer, norm in list(_pairs(model, found)):
        module: Any = model.get_submodule(layer)
        weight, bias = _affine(module, model.get_submodule(norm))
        if all_finite(weight) and all_finite(bias):
            module.weight = nn.Parameter(weight, requires_grad=False)
            module.bias = nn.Parameter(bias, requires_grad=False)
            gone.add(model.get_submodule(norm))
            folded.append((layer, norm))
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in gone:
                parent._modules[key] = nn.Identity()
    return Folded(tuple(folded))


def has_norms(model: nn.Module) -> bool:
    """Whether there is anything that could be folded."""
    return any(type(m) in NORMS for m in model.modules())


def _pairs(model: nn.Module, found: Trace) -> Iterator[tuple[str, str]]:
    """(name of the layer, name of the norm) wherever the graph shows that they can become one."""
    names = found.held()
    for norm in found.graph.nodes:
        if norm.target is not aten.batch_norm.default or norm.args[5] is not False:
            continue
        product, mean, reader = norm.args[0], norm.args[3], norm
        while product.target is aten.dropout.default and set(product.users) == {reader}:
            product, reader = product.args[0], product  # in eval mode it does nothing
        if product.target not in PRODUCTS or set(product.users) != {reader}:
            continue
        if product.target is aten.linear.default and product.meta["val"].dim() != 2:
            continue  # the norm's channels are another axis than the layer's outputs
        own = _owner(model, names, product.args[1], "weight", LAYERS)
        after = _owner(model, names, mean, "running_mean", NORMS)
        if own is not None and after is not None:
            yield own, after


def _owner(
    model: nn.Module, names: dict[fx.Node, str], node: Any, key: str, kinds: tuple[type, ...]
) -> str | None:
    """The name of the plain module of these kinds that owns a tensor with a single reader."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    path, _, found = names.get(node, "").rpartition(".")
    if found != key:
        return None
    module = model.get_submodule(path)
    heard = [table for table in (module._forward_hooks, module._forward_pre_hooks) if table]
    return path if type(module) in kinds and not heard else None


def _affine(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """The weight and the bias of both together."""
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    scale = gamma.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = torch.zeros_like(norm.running_mean) if layer.bias is None else layer.bias
    weight = torch.empty_like(layer.weight, dtype=torch.float32)
    matrix, made = layer.weight.flatten(1), weight.view(weight.shape[0], -1)
    rows = max(1, CACHED // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), rows):
        part = slice(start, start + rows)
        made[part] = matrix[part].double().mul_(scale[part, None])
    shifted = (bias.double() - norm.running_mean.double()) * scale + beta.double()
    return weight, shifted.float()
