"""The dense ways of computing a Linear in torch: what every sparse kernel has to beat."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Packed
from .table import KERNELS, Kernel, Prepared, as_dense, never


def _plain(weight: Packed | Tensor, rows: int) -> Prepared:
    return Prepared({"weight": as_dense(weight).detach()})


def _why_no_onednn(weight: Tensor | None = None) -> str | None:
    if weight is not None and weight.numel() == 0:
        return "oneDNN takes no empty weight"
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    if not torch.backends.mkldnn.enabled:
        return "oneDNN is switched off (torch.backends.mkldnn.enabled)"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this torch has no prepacked oneDNN op (mkldnn::_linear_pointwise)"
    return None


def prepack(weight: Tensor, rows: int) -> Tensor:
    """A (out, in) weight reordered once by oneDNN, for inputs of about `rows` rows; opaque."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), max(1, rows))


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) -> y (..., out) through oneDNN; weight from `prepack`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _reordered(weight: Packed | Tensor, rows: int) -> Prepared:
    return Prepared({"weight": prepack(as_dense(weight), rows)})


KERNELS.register("dense.eager")(Kernel("dense.eager", "dense", "cpu", never, _plain, F.linear))
KERNELS.register("dense.onednn")(
    Kernel("dense.onednn", "dense", "cpu", _why_no_onednn, _reordered, onednn_linear)
)
