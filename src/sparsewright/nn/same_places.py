"""Replicas of a packed model must hold the same places: wrappers compare and share only values."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ..errors import StateError
from .packed import PackedModule


def check_replicas(model: nn.Module, group: Any = None) -> None:
    """StateError, on every process, unless all hold each packed weight at the same places.

    DistributedDataParallel gives every process the first one's values, not its places: values at
    other places would train without an error. group: of processes, all of them if None; each must
    call this. Without torch.distributed there is nothing to compare.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for name, module in model.named_modules():
        if isinstance(module, PackedModule):
            own = _digest(module).to(module.weight.device)
            all_of = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
            distributed.all_gather(all_of, own, group=group)
            other = [i for i, one in enumerate(all_of) if not torch.equal(one, all_of[0])]
            if other:
                raise StateError(
                    f"layer {name!r}: process {other[0]} holds the weight at other places than "
                    "process 0: build the model from one seed, or load one state_dict, everywhere"
                )


def _digest(module: PackedModule) -> Tensor:
    """32 bytes (uint8) that are equal where places are."""
    digest = hashlib.sha256(repr(module.shape).encode())
    for tensor in (module.starts, module.columns):
        digest.update(tensor.cpu().view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
