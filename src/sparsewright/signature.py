"""What a graph document says that its model takes: types, shapes and batches, read and checked.

The document may be hostile: every field is read by `field`, which checks its kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import ArtifactError, KernelError
from .graph import BATCH, DTYPES

MAX_TEXT = 64  # characters of a text, and of what an error repeats of one


def field(document: Any, key: str, kind: type | tuple[type, ...], place: str) -> Any:
    """document[key] if it is of the kind, else ArtifactError. A bool is no int here."""
    if not isinstance(document, dict):
        raise ArtifactError(f"{place} must be an object; got {type(document).__name__}")
    if key not in document:
        raise ArtifactError(f"{place} has no {key!r}")
    value = document[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(k.__name__ for k in kinds)
        raise ArtifactError(f"{place}: {key!r} must be {wanted}; got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class Signature:
    """What a graph takes: (name, type, shape) of each input, and its batches, None if fixed."""

    inputs: tuple[tuple[str, torch.dtype, tuple[int | str, ...]], ...]
    batch: tuple[int, int | None] | None

    @classmethod
    def read(cls, document: Any) -> Signature:
        """The signature of a graph document; ArtifactError if it breaks a rule."""
        batch = _read_batch(document)
        inputs = []
        for place, entry in enumerate(field(document, "inputs", list, "the graph")):
            dtype, shape = _read_input(entry, f"input {place}", batch)
            inputs.append((field(entry, "name", str, f"input {place}"), dtype, tuple(shape)))
        return cls(tuple(inputs), batch)

    def check(self, given: tuple[Any, ...]) -> None:
        """KernelError unless the inputs have the types and the shapes, and one batch, served."""
        if len(given) != len(self.inputs):
            some = f"{len(self.inputs)} input{'s' if len(self.inputs) != 1 else ''}"
            raise KernelError(f"the loaded model takes {some}; got {len(given)}")
        batches = set()
        for x, (name, dtype, shape) in zip(given, self.inputs, strict=True):
            if not isinstance(x, Tensor) or x.dtype != dtype or not _fits(x.shape, shape):
                got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                sizes = ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "")
                kind = str(dtype).removeprefix("torch.")
                raise KernelError(f"input {name!r} must be {kind} of shape ({sizes}); got {got}")
            if shape[:1] == (BATCH,):
                batches.add(x.shape[0])
        least, most = self.batch or (0, None)
        wrong = any(b < least or (most is not None and b > most) for b in batches)
        if wrong or len(batches) > 1:
            limit = "" if most is None else f" and at most {most}"
            raise KernelError(f"the batch must be at least {least}{limit}; got {sorted(batches)}")


def _fits(sizes: Sequence[int], shape: Sequence[int | str]) -> bool:
    pairs = zip(sizes, shape, strict=False)
    return len(sizes) == len(shape) and all(s in (BATCH, size) for size, s in pairs)


def _read_input(entry: Any, place: str, batch: object) -> tuple[torch.dtype, list[int | str]]:
    """The type and the shape that the document declares for one input."""
    dtype = field(entry, "dtype", str, place)
    shape = field(entry, "shape", list, place)
    if dtype not in DTYPES:
        raise ArtifactError(f"{place}: there is no dtype {dtype[:MAX_TEXT]!r}")
    for axis, size in enumerate(shape):
        is_batch = size == BATCH and axis == 0 and batch is not None
        if not is_batch and not (type(size) is int and 0 <= size < 2**31):
            raise ArtifactError(f"{place}: {str(size)[:MAX_TEXT]!r} is no size of axis {axis}")
    if len(shape) > 16 or math.prod(s for s in shape if isinstance(s, int)) >= 2**47:
        raise ArtifactError(f"{place}: a shape has at most 16 axes and fewer than 2**47 elements")
    return DTYPES[dtype], shape


def _read_batch(document: Any) -> tuple[int, int | None] | None:
    """The batches that the graph serves, (least, most or None), or None if they are fixed."""
    batch = field(document, "batch", (dict, type(None)), "the graph")
    if batch is None:
        return None
    least = field(batch, "min", int, "the batch")
    most = field(batch, "max", (int, type(None)), "the batch")
    if not 0 <= least < 2**31 or (most is not None and not least <= most < 2**31):
        raise ArtifactError("the batch: needs 0 <= min <= max < 2**31, or null for max")
    return least, most
