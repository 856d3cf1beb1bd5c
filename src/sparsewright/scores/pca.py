"""PCA start: inputs that carry much of the data's variance begin with more links (a construction of
this project, on principal components as of Pearson 1901 and Hotelling 1933)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..arguments import check_mapping, told
from ..core import Score, View
from ..errors import ConfigError
from ..facts import Facts
from . import as_score
from ._network import best_of_rows, evenly, gumbel, in_unit, links_of, scored, size_of


@dataclass(frozen=True, eq=False)
class PCAStart:
    """A start: links are drawn in proportion to every input's weight in the leading components.

    data: layer name -> what the layer gets, (samples, inputs), or (samples, channels, ...) of a
    convolution. explained: the leading components are the fewest that hold this part of the
    variance, in (0, 1]. An input weighs sum over them of variance * loading^2. Every output has as
    many inputs. others: the score of layers that `data` does not name. Inputs without any weight
    come last. To prune or to begin with, as an object; not to rank layers by.

    >>> start = PCAStart({"fc": torch.tensor([[1., 0.], [-1., 0.], [2., .1], [-2., -.1]])})
    >>> start.weights("fc").argmax()
    tensor(0)
    """

    data: Mapping[str, Tensor]
    explained: float = 0.9
    others: str | Score = "random"
    needs_gradient: ClassVar[bool] = False
    needs_keep: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        source="a construction of this project, on Pearson 1901 and Hotelling 1933",
        when=(
            "Where some inputs carry much more of the data than others (pixels at an image's "
            "edge). Not for inputs that were scaled to the same variance and hardly depend on "
            "each other."
        ),
        memory="dense tables of the layer's weights while the mask is made, nothing after",
        flops="none in training",
        published="none verified",
        departs=("It follows no paper's method."),
    )

    def __post_init__(self) -> None:
        if not 0.0 < self.explained <= 1.0:
            raise ConfigError(f"start PCAStart: explained must be in (0, 1]; got {self.explained}")
        if as_score(self.others).needs_gradient:
            raise ConfigError("start PCAStart: others must be a score that needs no gradient")
        check_mapping("start PCAStart: data", self.data, "{layer: (samples, inputs) tensor}")
        for name, given in self.data.items():
            if not isinstance(given, Tensor):
                raise ConfigError(
                    f"start PCAStart: data of layer {name!r} must be a tensor; got {told(given)}"
                )
            if given.dim() < 2 or given.shape[0] < 2 or not torch.isfinite(given).all():
                raise ConfigError(
                    f"start PCAStart: data of layer {name!r} must be finite, (samples, inputs) "
                    f"with 2 samples or more; got shape {tuple(given.shape)}"
                )

    def weights(self, name: str) -> Tensor:
        """(inputs) float64: the variance of every input that lies in the leading components."""
        samples = self.data[name].detach().cpu().double().transpose(0, 1).flatten(1).T
        centred = samples - samples.mean(dim=0)
        variance, vectors = torch.linalg.eigh(centred.T @ centred / (len(centred) - 1))
        variance, vectors = variance.clamp(min=0.0).flip(0), vectors.flip(1)
        held = variance.cumsum(0) / variance.sum().clamp(min=1e-300)
        count = min(len(variance), 1 + int((held < self.explained - 1e-12).sum()))
        return vectors[:, :count].square() @ variance[:count]

    def __call__(self, layer: View) -> Tensor:
        """In the weight's shape; ConfigError if the data are not of the layer's inputs."""
        if layer.name not in self.data:
            return as_score(self.others)(layer)
        rows, columns = size_of(layer)
        weights = self.weights(layer.name)
        channels = layer.shape[1] if len(layer.shape) > 1 else columns
        if len(weights) != channels:
            raise ConfigError(
                f"layer {layer.name!r}: start PCAStart has data of {len(weights)} inputs; the "
                f"layer has {channels}"
            )
        pull = weights.clamp(min=1e-300).log().repeat_interleave(columns // max(1, channels))
        keys = pull + gumbel(layer, rows, columns)
        chosen = best_of_rows(keys, evenly(links_of(layer, "PCAStart"), rows))
        return scored(layer, chosen, in_unit(keys))
