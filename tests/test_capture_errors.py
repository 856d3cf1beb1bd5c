"""What capture cannot measure says so, by the layer's name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsewright as sw
from sparsewright.capture import input_squares, walk
from sparsewright.errors import ConfigError, StateError
from sparsewright.weights import find_weights


def batches(count: int = 3) -> list[Tensor]:
    return [torch.randn(5, 7, 4) for _ in range(count)]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.never = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (Tied(), batches(1), "layer 'first': its weight is tied, 'first' and 'second' share it"),
        (Unused(), batches(1), r"layer 'never' is never called on the data.*skip=\['never'\]"),
        (nn.Sequential(nn.Embedding(4, 2)), batches(1), "layer '0': the inputs of Embedding"),
        (nn.MultiheadAttention(4, 2), batches(1), "layer 'in_proj_weight': the inputs of Multi"),
        (nn.Linear(4, 2), [], "data holds no batch"),
        (sw.pack(nn.Sequential(nn.Linear(4, 2))), batches(1), "layer '0' is packed"),
    ],
)
def test_what_cannot_be_measured_says_so(model: nn.Module, data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        next(walk(model, find_weights(model), data))
    with pytest.raises(ConfigError, match=message):
        input_squares(model, find_weights(model), data)


def test_other_errors() -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(sw.UnknownNameError, match="way to measure together is called 'modell'"):
        next(walk(model, find_weights(model), batches(1), together="modell"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"torch\.float64 or float32; got torch\.float16"):
        next(walk(model, find_weights(model), batches(1), dtype=torch.float16))
    with pytest.raises(StateError, match="layer 'weight': its inputs on the data are not finite"):
        next(walk(model, find_weights(model), [torch.full((1, 4), torch.inf)]))
