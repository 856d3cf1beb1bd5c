"""One cell of the bench: a model on an example, every candidate checked, then timed in turn.

A candidate that cannot serve, or whose output is wrong, is a row that says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layouts import FP32, VALUES
from ..measure.dense import relative_error
from ..measure.peers import FEATURE_MAJOR, PEERS, SAME_MEMORY, Case, Ready
from ..measure.roofline import Roofline
from ..measure.timing import interleave

LAYER_TOLERANCE = 1e-4
"""Of the largest output, against float64: float32 sums of one layer, in any order."""
MODEL_TOLERANCE = 1e-3
"""The same through all layers of a model."""
ROUNDS = 5
HOPELESS = 8.0  # a candidate this many times slower than the best is timed for a few rounds only
DENSE, PEER, OURS = "dense", "peer", "ours"
"""The sides of a row: ways that multiply zeros, other sparse ways, and sparsewright's."""

Row = dict[str, Any]
Build = Callable[[Case], Ready | str]


@dataclass(frozen=True)
class Candidate:
    """Somebody who runs the cell. published: whether its figures may be written to files."""

    name: str
    side: str
    build: Build
    published: bool = True


def peers(names: Iterable[str] | None = None) -> list[Candidate]:
    """The peers of these names, by default all."""
    chosen = PEERS.names() if names is None else list(dict.fromkeys(names))
    return [
        Candidate(
            name, PEER if PEERS[name].sparse else DENSE, PEERS[name].build, PEERS[name].published
        )
        for name in chosen
    ]


def measure_cell(
    case: Case,
    candidates: Iterable[Candidate],
    roofline: Roofline,
    *,
    tolerance: float = LAYER_TOLERANCE,
    seconds: float = 0.0,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """What the cell costs at least, and a row for every candidate, fastest first.

    seconds: of timing, at least; `rounds` are run in any case.
    """
    ready: dict[str, Ready] = {}
    rows: dict[str, Row] = {}
    try:
        for candidate in candidates:
            row: Row = {"name": candidate.name, "side": candidate.side}
            if not candidate.published:
                row["printed_only"] = True
            rows[candidate.name] = row
            try:
                built = candidate.build(case)
                if isinstance(built, str):
                    row["refused"] = built
                    continue
                ready[candidate.name] = built
                row.update({"note": built.note} if built.note else {})
                expected = case.expected if built.expected is None else built.expected
                error = _error(built.output(), expected)
            except Exception as broken:  # another library's: one of them must not end the run
                row["failed"] = f"{type(broken).__name__}: {(str(broken).splitlines() or [''])[0]}"
                continue
            if error <= tolerance:
                row["error"] = error
            else:
                off = f"off by {error:.3g} of the largest, where {tolerance:g} is allowed"
                row["failed"] = f"wrong output: {off}"
        right = {name: r.run for name, r in ready.items() if "failed" not in rows[name]}
        with torch.inference_mode():
            times = interleave(right, seconds=seconds, min_rounds=rounds, hopeless=HOPELESS)
    finally:
        for built in ready.values():
            if built.close is not None:
                built.close()
    size, flop = work(case.model, case.example, case.values)
    floor = roofline.floor(size, flop)
    for name, time in times.items():
        rows[name].update({f"{k}_ms": 1e3 * getattr(time, k) for k in ("median", "low", "high")})
        rate = case.example.shape[0] / time.median
        rows[name].update(
            {"rounds": time.rounds, "of_floor": floor / time.median, "per_second": rate}
        )
    found = sorted(rows.values(), key=lambda row: row.get("median_ms", math.inf))
    return {
        "threads": case.threads,
        "batch": case.example.shape[0],
        "tolerance": tolerance,
        "bytes": size,
        "flop": flop,
        "floor_ms": 1e3 * floor,
        "rows": found,
    }


def _error(got: Tensor, expected: Tensor) -> float:
    if got.numel() != expected.numel():
        return math.inf
    return relative_error(got.double().reshape(expected.shape), expected)


def work(model: nn.Module, example: Tensor, values: str = FP32) -> tuple[int, int]:
    """(bytes, flop) that no way of running the model on the example avoids.

    Bytes: of each present weight those of its value (fp32 4, bf16 2, int8 1 and a float32 scale for
    each row that has any), and of its place as many bits as unstructured places have at that
    sparsity (their entropy); the example and the output once. Flop: two for every present weight
    and place of its layer's output. What lies between layers counts for nothing: a floor may leave
    things out. Layers: Linear and convolutions.

    >>> layer = nn.Linear(4, 2, bias=False)
    >>> work(layer, torch.ones(3, 4))  # 8 dense weights, 12 numbers in, 6 out
    (104, 48)
    >>> work(layer, torch.ones(3, 4), "int8")  # 8 weights of one byte, 2 scales
    (88, 48)
    """
    size, flop = 0.0, 0
    seen: set[int] = set()
    hooks = []

    def count(module: Any, inputs: Any, output: Tensor) -> None:
        nonlocal size, flop
        weight = module.weight.detach()
        present = int(torch.count_nonzero(weight))
        places = output.numel() // weight.shape[0]
        flop += 2 * present * places
        if id(module) not in seen:
            seen.add(id(module))
            size += value_bytes(weight.flatten(1), values)
            size += weight.numel() * entropy(present / max(weight.numel(), 1)) / 8

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for module in model.modules():
        if isinstance(module, kinds):
            hooks.append(module.register_forward_hook(count))
    try:
        with torch.no_grad():
            output = model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return math.ceil(size + 4 * (example.numel() + output.numel())), flop


def value_bytes(weight: Tensor, values: str) -> int:
    """Bytes of the present values of a weight (out, in), and of their scales.

    >>> value_bytes(torch.eye(3), "bf16")
    6
    """
    kind = VALUES[values]
    present, (_, scales) = weight != 0, kind.split(weight)
    rows = 0 if scales is None else int(present.any(dim=1).sum())
    return kind.dtype.itemsize * int(present.sum()) + 4 * rows


def entropy(part: float) -> float:
    """Bits of one yes or no that is yes so often.

    >>> entropy(0.5)
    1.0
    """
    return -sum(p * math.log2(p) for p in (part, 1 - part) if p > 0)


def is_transposed(row: Mapping[str, Any]) -> bool:
    """Whether its activations lie feature by feature."""
    return FEATURE_MAJOR in row.get("note", "")


def is_into(row: Mapping[str, Any]) -> bool:
    """Whether it writes where it is told, and allocates no output."""
    return SAME_MEMORY in row.get("note", "")


def best(
    rows: Iterable[Mapping[str, Any]],
    *sides: str,
    published: bool = False,
    transposed: bool | None = False,
    into: bool = False,
) -> Row | None:
    """The fastest right row of these sides; published: of those that may be written. Of ours,
    transposed: those whose activations lie feature by feature, or only the others, or (None) all;
    into: those that write where they are told, or only the others."""
    timed = _timed(rows, *sides, published=published)
    found = [
        row
        for row in timed
        if row["side"] != OURS
        or (transposed in (None, is_transposed(row)) and is_into(row) == into)
    ]
    return min(found, key=_median) if found else None


def nearest(
    rows: Sequence[Mapping[str, Any]], *sides: str, published: bool = False
) -> tuple[Row | None, Row | None]:
    """The other way that is nearest to ours, or farthest ahead, and ours that it is held against.

    Like is held against like: whoever is given activations feature by feature against our
    transposed calls, where such were timed; all others against calls with rows. Calls of ours that
    write where they are told count against those that do so alone.

    >>> ours = {"name": "ours", "side": OURS, "median_ms": 4.0}
    >>> turned = {**ours, "name": "turned", "median_ms": 2.0, "note": FEATURE_MAJOR}
    >>> theirs = {"name": "theirs", "side": PEER, "median_ms": 3.0, "note": FEATURE_MAJOR}
    >>> [row["name"] for row in nearest([ours, turned, theirs], PEER)]
    ['theirs', 'turned']
    """
    ours = [*_timed(rows, OURS, published=published)]

    def like(other: Mapping[str, Any]) -> Row | None:
        same = [row for row in ours if is_transposed(row) == is_transposed(other)]
        found = [row for row in same or ours if is_into(other) or not is_into(row)]
        return min(found, key=_median) if found else None

    pairs = [(row, like(row)) for row in _timed(rows, *sides, published=published)]
    if not pairs:
        return None, best(rows, OURS, published=published)
    return min(pairs, key=lambda pair: _median(pair[0]) / (_median(pair[1]) if pair[1] else 1.0))


def _timed(rows: Iterable[Mapping[str, Any]], *sides: str, published: bool) -> list[Row]:
    return [
        dict(row)
        for row in rows
        if row["side"] in sides
        and "median_ms" in row
        and not (published and row.get("printed_only"))
    ]


def _median(row: Row) -> float:
    return float(row["median_ms"])
