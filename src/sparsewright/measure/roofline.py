"""The roofline: no kernel beats the time its bytes or its arithmetic need on this machine.

The rates are measured, not looked up: multiply-adds that depend on nothing, and reads of blocks
of every size from L1 to memory (Williams, Waterman and Patterson, "Roofline", 2009).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .. import library

SIZES = tuple(2**power for power in range(15, 28, 2))  # 32 KiB to 128 MiB
SAMPLE = 2e-3  # seconds that one sample lasts at least, so that waking threads costs nothing
ENOUGH = 0.2  # seconds that no stall of the threads takes


@dataclass(frozen=True)
class Roofline:
    """What this machine reaches with so many threads.

    flops: float32 operations per second, a multiply-add counted as two. reads: (bytes of a block
    that is read again and again, bytes per second), ascending. how: which loops measured it.

    >>> roof = Roofline(1, 1e9, ((1000, 4e9), (4000, 1e9)), "by hand")
    >>> round(roof.bandwidth(2000) / 1e9, 6)
    2.0
    >>> roof.floor(1000, 500)  # seconds: 500 flop take longer than 1000 bytes
    5e-07
    """

    threads: int
    flops: float
    reads: tuple[tuple[int, float], ...]
    how: str

    def bandwidth(self, size: float) -> float:
        """Bytes per second of reading `size` bytes: between two measured sizes, by logarithms."""
        below = [pair for pair in self.reads if pair[0] <= size]
        above = [pair for pair in self.reads if pair[0] > size]
        if not below or not above:
            return (below or above)[-1 if below else 0][1]
        (a, slow), (b, fast) = below[-1], above[0]
        part = math.log(size / a) / math.log(b / a)
        return math.exp((1 - part) * math.log(slow) + part * math.log(fast))

    def floor(self, size: float, flop: float) -> float:
        """Seconds that reading `size` bytes or computing `flop` takes, whichever is more."""
        return max(size / self.bandwidth(size), flop / self.flops)

    def to_dict(self) -> dict[str, Any]:
        reads = [list(pair) for pair in self.reads]
        return {"threads": self.threads, "flops": self.flops, "reads": reads, "how": self.how}


def measure_roofline(*, sizes: tuple[int, ...] = SIZES, seconds: float = 0.05) -> Roofline:
    """The machine's rates with torch's number of threads; `seconds` for each of the figures.

    >>> measure_roofline(sizes=(2**15,), seconds=0.001).flops > 0
    True
    """
    native = library.LIBRARY.path is not None
    fma, read = (_native_fma, _native_read) if native else (_torch_fma, _torch_read)
    return Roofline(
        threads=torch.get_num_threads(),
        flops=_rate(fma(), seconds),
        reads=tuple((size, _rate(read(size), seconds)) for size in sorted(sizes)),
        how="compiled loops" if native else "torch.matmul and torch.sum: below the CPU's own limit",
    )


Work = Callable[[int], float]
"""(rounds) -> how much was done in them."""


def _rate(work: Work, seconds: float) -> float:
    """Work per second in the fastest of the samples that fit into `seconds`, three at least."""
    rounds = _enough(work)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end:
        amount, taken = _timed(work, rounds)
        rates.append(amount / taken)
    return max(rates)


def _enough(work: Work) -> int:
    """Rounds that are long enough to be believed: twice as many take longer by half at least, and
    so do twice as many of these.

    Else what is timed is a stall of the threads: that of a pool that starts lasts some calls, and
    on a machine that others share it lasts as long as they like.
    """
    rounds, taken, grown = 1, _least(work, 1), 0
    while taken < ENOUGH and grown < 2:
        twice = _least(work, 2 * rounds)
        grown = grown + 1 if taken >= SAMPLE and twice >= 1.5 * taken else 0
        rounds, taken = 2 * rounds, twice
    return rounds


def _least(work: Work, rounds: int) -> float:
    return min(_timed(work, rounds)[1] for _ in range(3))


def _timed(work: Work, rounds: int) -> tuple[float, float]:
    """How much was done, and in how many seconds."""
    start = time.perf_counter()
    amount = work(rounds)
    return amount, time.perf_counter() - start


def _native_fma() -> Work:
    return torch.ops.sparsewright.roofline_fma.default


def _native_read(size: int) -> Work:
    steps = max(size // 4, 256 * torch.get_num_threads())  # each thread reads 256 floats or more
    block = torch.ones(steps)
    return lambda rounds: torch.ops.sparsewright.roofline_read.default(block, rounds)


def _torch_fma() -> Work:
    a = torch.randn(256, 256)

    def work(rounds: int) -> float:
        for _ in range(rounds):
            torch.mm(a, a)
        return 2.0 * rounds * 256**3

    return work


def _torch_read(size: int) -> Work:
    block = torch.ones(size // 4)

    def work(rounds: int) -> float:
        for _ in range(rounds):
            block.sum()
        return float(rounds * block.numel() * 4)

    return work
