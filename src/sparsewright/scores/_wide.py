"""What scores share: float32 or wider, and the gradient or an error that says what to do.

Half-precision scores tie by the thousand and lose the small ones in sums; methods that grow by
gradient are known to fail on bfloat16 gradients (Zhang et al. 2025).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import View
from ..errors import StateError


def wide(tensor: Tensor) -> Tensor:
    """Detached, dense, and in float32 unless it is wider."""
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    return dense.to(torch.promote_types(dense.dtype, torch.float32))


def gradient_of(layer: View) -> Tensor:
    """The weight's gradient, wide; StateError if there is none."""
    if layer.weight.grad is None:
        raise StateError(
            f"layer {layer.name!r}: the score needs the weight's gradient, and it is None; "
            "call loss.backward() first, and leave requires_grad on"
        )
    return wide(layer.weight.grad)
