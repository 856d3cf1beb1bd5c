"""The fastest kernel for one layer on this machine, by timing all candidates side by side.

Every candidate is first held against the dense product in float64. The error of a sum of n
products in float32, in any order, is at most about n * eps * sum |w| |x| (Higham, "Accuracy and
Stability of Numerical Algorithms", 2002, section 3.1): a kernel beyond that raises KernelError.
Where values are stored in fewer bytes, that product is the rounded weight's: what rounding does is
no kernel's doing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import library
from ..core import Packed
from ..errors import KernelError
from ..keeping import all_finite
from ..layouts import FP32, LAYOUTS, pack, rounded
from .bound import call_on
from .operation import Linear, Operation
from .table import KERNELS

DENSE = "dense"
LINEAR = Linear()
SAMPLE = 500e-6  # seconds that a sample lasts at least
MIN_ROUNDS = 5
TRIAL = 3  # rounds that every candidate gets: one may meet an interruption
HOPELESS = 5.0  # a sparse kernel this many times slower than the best is timed no more
MARGIN = 8  # added to the fan-in: the bias, and sums kept side by side


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, 10th and 90th percentile over rounds; largest error."""

    kernel: str
    median: float
    low: float
    high: float
    rounds: int
    error: float


@dataclass(frozen=True)
class Choice:
    """The kernel taken for a layer, and why.

    packed: the weight in the kernel's layout, None where dense won. timings: fastest first.
    refusals: (kernel, reason). batch: rows of the example, or its images. tolerance: largest
    error allowed. operation: what the layer computes. shape: of the example. values: the type of
    the packed ones.
    """

    kernel: str
    layout: str
    packed: Packed | None
    timings: tuple[Timing, ...]
    refusals: tuple[tuple[str, str], ...]
    batch: int
    threads: int
    tolerance: float
    operation: Operation = LINEAR
    shape: tuple[int, ...] = ()
    values: str = FP32

    @property
    def timing(self) -> Timing:
        """Of the kernel taken."""
        return self.timings[0]

    @property
    def best_dense(self) -> Timing | None:
        """The fastest dense way, if one was timed."""
        dense = [t for t in self.timings if is_dense(t.kernel)]
        return dense[0] if dense else None

    @property
    def speedup(self) -> float | None:
        """Median of the best dense way over that of the kernel taken; None without a dense way."""
        return self.best_dense.median / self.timing.median if self.best_dense else None


def choose(
    weight: Tensor,
    bias: Tensor | None,
    example: Tensor,
    *,
    operation: Operation = LINEAR,
    kernels: Iterable[str] | None = None,
    seconds: float = 0.2,
    values: str = FP32,
) -> Choice:
    """Time every kernel that serves, on the example's shape and torch's threads; keep the fastest.

    weight: (out, in) float32, absent weights exactly 0. example: (..., in), finite. operation:
    what the layer computes; with a Conv2d the weight is (out, C / groups, height, width) and the
    example (N, C, H, W). kernels: names of the candidates, by default all of the operation.
    seconds: spent on timing, at least. values: how packed weights store theirs, "fp32", "bf16" or
    "int8"; dense ones stay as they are. Raises KernelError if a kernel disagrees with the dense
    product, or none serves.

    >>> weight = torch.eye(64)
    >>> choice = choose(weight, None, torch.ones(1, 64), seconds=0.01)
    >>> choice.kernel in KERNELS
    True
    """
    library.warn_if_missing()
    _check_example(operation, weight, example)
    with torch.no_grad():
        found = _candidates(operation, weight, bias, example, kernels, values)
        runs, packed, refusals = found
        if not runs:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals)
            raise KernelError(f"no kernel serves this layer. {reasons}")
        errors, tolerance = _check(operation, runs, weight, bias, example, values)
        samples = _time(runs, seconds)
    timings = sorted((_summary(n, s, errors[n]) for n, s in samples.items()), key=_median)
    best = KERNELS[timings[0].kernel]
    return Choice(
        kernel=best.name,
        layout=best.layout,
        packed=packed.get(best.layout),
        timings=tuple(timings),
        refusals=tuple(refusals),
        batch=operation.batch(tuple(example.shape)),
        threads=torch.get_num_threads(),
        tolerance=tolerance,
        operation=operation,
        shape=tuple(example.shape),
        values=FP32 if best.layout == DENSE else values,
    )


def recall(
    weight: Tensor,
    example: Tensor,
    timings: tuple[Timing, ...],
    refusals: tuple[tuple[str, str], ...],
    *,
    operation: Operation = LINEAR,
    values: str = FP32,
) -> Choice | str:
    """The choice that earlier timings make, the fastest first, or why its kernel cannot serve now.

    Nothing is timed, and no output is compared: whoever calls the kernel then checks it.

    >>> first = choose(torch.eye(8), None, torch.ones(1, 8), seconds=0)
    >>> recall(torch.eye(8), torch.ones(1, 8), first.timings, ()).kernel == first.kernel
    True
    """
    library.warn_if_missing()
    _check_example(operation, weight, example)
    name = timings[0].kernel
    if name not in KERNELS:
        return f"no kernel is called {name!r} here"
    kernel, matrix = KERNELS[name], operation.matrix(weight.detach())
    if kernel.operation != operation.name:
        return f"{name} serves {kernel.operation}, not {operation.name}"
    reason = kernel.refuses(weight)
    packed = None
    if reason is None and kernel.layout != DENSE:
        reason = kernel.refuses_values(values) or LAYOUTS[kernel.layout].refuses(matrix)
        packed = None if reason else pack(kernel.layout, matrix, values)
    if reason is not None:
        return f"{name}: {reason}"
    shape = tuple(example.shape)
    return Choice(
        kernel=name,
        layout=kernel.layout,
        packed=packed,
        timings=timings,
        refusals=refusals,
        batch=operation.batch(shape),
        threads=torch.get_num_threads(),
        tolerance=0.0,
        operation=operation,
        shape=shape,
        values=FP32 if packed is None else values,
    )


def explain(choice: Choice, name: str = "layer") -> str:
    """The choice as text: every candidate's time and error, every refusal's reason.

    >>> print(explain(choose(torch.eye(8), None, torch.ones(1, 8), seconds=0)).split(":")[0])
    layer
    """
    faster = f", {choice.speedup:.2f}x the best dense way" if choice.speedup else ""
    threads = f"{choice.threads} thread{'s' if choice.threads > 1 else ''}"
    lines = [f"{name}: {choice.kernel}{faster} (batch {choice.batch}, {threads})"]
    for t in choice.timings:
        micro = f"{t.median * 1e6:9.1f} us [{t.low * 1e6:.1f} - {t.high * 1e6:.1f}]"
        lines.append(f"  {t.kernel:14} {micro}, error {t.error:.1e} of {choice.tolerance:.1e}")
    lines += [f"  {kernel:14} refused: {reason}" for kernel, reason in choice.refusals]
    return "\n".join(lines)


Runs = dict[str, Callable[[], Tensor]]


def is_dense(kernel: str) -> bool:
    """Whether a kernel of the table works on the dense weight.

    >>> is_dense("dense.eager")
    True
    """
    return KERNELS[kernel].layout == DENSE


def _check_example(operation: Operation, weight: Tensor, example: Tensor) -> None:
    misfit = operation.misfit(weight, example)
    if misfit is not None:
        raise KernelError(misfit)
    for what, tensor in (("weight", weight), ("example", example)):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise KernelError(
                f"the {what} must be float32 on the CPU; got {tensor.dtype} on {tensor.device}"
            )
        if not all_finite(tensor):
            raise KernelError(f"the {what} must be finite: kernels are checked on it")


def _candidates(
    operation: Operation,
    weight: Tensor,
    bias: Tensor | None,
    example: Tensor,
    kernels: Iterable[str] | None,
    values: str,
) -> tuple[Runs, dict[str, Packed], list[tuple[str, str]]]:
    runs: Runs = {}
    packed: dict[str, Packed] = {}
    refusals: list[tuple[str, str]] = []
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    matrix = operation.matrix(weight)
    reasons: dict[str, str | None] = {DENSE: None}
    for name in kernels_of(operation) if kernels is None else list(kernels):
        kernel = KERNELS[name]
        reason = kernel.refuses(weight)
        if kernels is None:
            batch = operation.batch(tuple(example.shape))
            reason = reason or kernel.reserve or kernel.refuses_batch(batch)
        if kernel.operation != operation.name:
            reason = f"it serves {kernel.operation}, not {operation.name}"
        if kernel.layout != DENSE:
            reason = reason or kernel.refuses_values(values)
        if reason is None and kernel.layout not in reasons:
            layout = LAYOUTS[kernel.layout]
            reasons[layout.name] = layout.refuses(matrix)
            if reasons[layout.name] is None:
                packed[layout.name] = pack(layout.name, matrix, values)
        reason = reason or reasons.get(kernel.layout)
        if reason is not None:
            refusals.append((name, reason))
            continue
        prepared = operation.prepare(
            kernel, packed.get(kernel.layout, weight), tuple(example.shape)
        )
        rest = (*prepared.tensors.values(), bias, *prepared.numbers)
        runs[name] = call_on(kernel.op, example, rest)
    return runs, packed, refusals


def kernels_of(operation: Operation) -> list[str]:
    """Names of all kernels that compute an operation, sorted.

    >>> kernels_of(LINEAR) == [n for n, k in KERNELS.items() if k.operation == "linear"]
    True
    """
    return [name for name, kernel in KERNELS.items() if kernel.operation == operation.name]


def _check(
    operation: Operation,
    runs: Runs,
    weight: Tensor,
    bias: Tensor | None,
    example: Tensor,
    values: str,
) -> tuple[dict[str, float], float]:
    """Largest error of every candidate, and the largest that was allowed anywhere."""
    if values == FP32:
        return _errors(operation, runs, weight, bias, example)
    dense = {name: run for name, run in runs.items() if is_dense(name)}
    sparse = {name: run for name, run in runs.items() if name not in dense}
    near = rounded(operation.matrix(weight), values).view_as(weight)
    parts = [(dense, weight), (sparse, near)]
    found = [_errors(operation, part, of, bias, example) for part, of in parts if part]
    return {k: e for errors, _ in found for k, e in errors.items()}, max(t for _, t in found)


def _errors(
    operation: Operation, runs: Runs, weight: Tensor, bias: Tensor | None, example: Tensor
) -> tuple[dict[str, float], float]:
    """The same of candidates that compute with one weight."""
    start = None if bias is None else bias.double()
    expected = operation.dense(example.double(), weight.double(), start)
    size = operation.dense(
        example.double().abs(), weight.double().abs(), None if start is None else start.abs()
    )
    matrix = operation.matrix(weight)
    fan_in = int((matrix != 0).sum(dim=1).max()) if matrix.numel() else 0
    allowed = (fan_in + MARGIN) * torch.finfo(torch.float32).eps * size
    errors = {}
    for name, run in runs.items():
        got = run()
        if got.shape != expected.shape:
            raise KernelError(f"{name} gave shape {tuple(got.shape)}, not {tuple(expected.shape)}")
        error = (got.double() - expected).abs()
        if not bool((error <= allowed).all()):  # NaN is no agreement
            raise KernelError(
                f"{name} disagrees with the dense product: off by {float(error.max()):.3g}, where "
                f"float32 over {fan_in} weights allows {float(allowed.max()):.3g}"
            )
        errors[name] = float(error.max()) if error.numel() else 0.0
    return errors, float(allowed.max()) if allowed.numel() else 0.0


def _time(runs: Runs, seconds: float) -> dict[str, list[float]]:
    """Seconds of one call, candidate after candidate, round after round."""
    repeats = {name: _repeats(run) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    active = list(runs)
    done = 0
    while done < MIN_ROUNDS or time.perf_counter() < end:
        for name in active[done % len(active) :] + active[: done % len(active)]:
            samples[name].append(_sample(runs[name], repeats[name]))
        done += 1
        if done == TRIAL:
            limit = HOPELESS * min(min(times) for times in samples.values())
            active = [n for n in runs if is_dense(n) or min(samples[n]) <= limit]
    return samples


def _repeats(run: Callable[[], Tensor]) -> int:
    run()
    taken = _sample(run, 1)
    return max(1, min(1000, round(SAMPLE / max(taken, 1e-7))))


def _sample(run: Callable[[], Tensor], repeats: int) -> float:
    run()  # brings the candidate's weight back into the cache after the others
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _summary(kernel: str, samples: list[float], error: float) -> Timing:
    ordered = sorted(samples)
    low, median, high = (ordered[int(q * (len(ordered) - 1))] for q in (0.1, 0.5, 0.9))
    return Timing(kernel, median, low, high, len(ordered), error)


def _median(timing: Timing) -> float:
    return timing.median
