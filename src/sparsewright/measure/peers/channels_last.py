"""Eager torch with images and filters in channels_last order, which oneDNN prefers."""

from __future__ import annotations

import copy
import functools

import torch

from . import PEERS, Case, Peer, Ready


def _build(case: Case) -> Ready | str:
    if case.example.dim() != 4:
        return "only for images (batch, channels, height, width)"
    x = case.example.to(memory_format=torch.channels_last)
    model = copy.deepcopy(case.model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Ready(functools.partial(model, x))


PEERS.register("eager channels_last")(
    Peer("eager channels_last", "torch, channels last", False, _build)
)
