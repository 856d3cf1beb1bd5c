"""Which weights are there: those that are not 0. A deployment asks every layer, more than once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def present_in(weight: Tensor) -> Tensor:
    """A bool tensor on the CPU, True where `weight` is not 0. On one thread numpy compares float32
    faster than torch does.

    >>> present_in(torch.tensor([1.0, 0.0, -0.0, torch.nan]))
    tensor([ True, False, False,  True])
    """
    weight = weight.detach().cpu()
    if weight.dtype != torch.float32 or weight.is_neg():
        return weight != 0
    return torch.from_numpy(np.not_equal(weight.numpy(), 0))


def count_true(present: Tensor) -> int:
    """How many are True: numpy counts bytes, torch widens them first.

    >>> count_true(torch.tensor([True, False, True]))
    2
    """
    return int(np.count_nonzero(present.numpy()))
