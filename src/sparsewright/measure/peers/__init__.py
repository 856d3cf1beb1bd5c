"""Peers: every other way to run the same model on this CPU, dense or sparse. One file each.

A peer takes a `Case` and gives a `Ready`, or says why it cannot. Packages that a peer needs are
imported when it is asked, so that a missing one is a reason and not an error.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...layouts import FP32
from ...registry import Table
from ..dense import export_onnx
from ..timing import Call
from ._onnx import chain_onnx, old_onnx

FEATURE_MAJOR = "activations feature-major, the transposes not charged"
"""What the note says of whoever is given x (in, batch) and gives (out, batch)."""
SAME_MEMORY = "into the same memory at every call"
"""What the note says of whoever writes its output where it is told, and allocates none."""


class Case:
    """What is timed: a float32 model and an example on the CPU, and what several peers share.

    compiled: whether peers that compile for long were asked for. deepsparse: the Python of an
    environment that has DeepSparse, or None. values: how sparsewright's packed weights store
    theirs; peers keep float32. The model is copied, and is in eval mode.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        compiled: bool = False,
        deepsparse: str | None = None,
        values: str = FP32,
    ):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.example = example.detach().contiguous()
        self.compiled = compiled
        self.deepsparse = deepsparse
        self.values = values
        self.threads = torch.get_num_threads()

    @functools.cached_property
    def expected(self) -> Tensor:
        """The output in float64."""
        return copy.deepcopy(self.model).double()(self.example.double())

    @functools.cached_property
    def onnx(self) -> bytes:
        """The model as ONNX, in the newest words that torch's exporter has."""
        plain = chain_onnx(self.model, self.example)
        return export_onnx(self.model, self.example) if isinstance(plain, str) else plain

    @functools.cached_property
    def old_onnx(self) -> bytes:
        """The model as ONNX in words of 2021, for libraries that stopped there."""
        plain = chain_onnx(self.model, self.example)
        return old_onnx(self.model, self.example) if isinstance(plain, str) else plain

    @functools.cached_property
    def filters(self) -> tuple[bytes, Tensor] | None:
        """A chain of Linear layers as 1x1 convolutions, and its example; None of other models."""
        plain = chain_onnx(self.model, self.example, filters=True)
        return None if isinstance(plain, str) else (plain, self.example[:, :, None, None])


@dataclass(frozen=True)
class Ready:
    """A call that runs the case once, and how its output is read where the call does not return it.

    close: frees what the peer holds. note: what a reader of its figures must know. expected: the
    float64 output that it is held against, where that is not the case's own.
    """

    run: Call
    read: Callable[[], Tensor] | None = None
    close: Callable[[], None] | None = None
    note: str = ""
    expected: Tensor | None = None

    def output(self) -> Tensor:
        """The output of one run, as a tensor of its own."""
        made = self.run()
        if self.read is not None:
            return self.read().clone()
        if isinstance(made, (tuple, list)) and made:
            made = made[0]
        return torch.as_tensor(made).clone()


@dataclass(frozen=True)
class Peer:
    """One way to run a case.

    sparse: it makes use of zeros. build: (case) -> Ready, or why it cannot serve. published:
    whether its figures may be written to files; where not, they are printed only.
    """

    name: str
    about: str
    sparse: bool
    build: Callable[[Case], Ready | str]
    published: bool = True


PEERS: Table[Peer] = Table("peer", __name__)
