"""Processes that make the runs of a comparison side by side, each on its share of the cores.

A run that fails, or whose process dies, is a line with its error; the others go on. Processes end
when the one that began them does, however that ended.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from ...errors import ConfigError
from ...measure.environment import cores
from .runs import Job

Line = dict[str, Any]


def make_runs(jobs: Sequence[Job], count: int) -> Iterator[tuple[Job, Line]]:
    """(job, its line) of every run, as they end; `count` processes, or 0 for one on each core.

    ConfigError for more processes than cores.
    """
    shares = shared_out(count)[: max(1, len(jobs))]
    left = deque(jobs)
    workers = [Worker(share) for share in shares]
    try:
        for worker in workers:
            worker.begin(left)
        while busy := [worker for worker in workers if worker.job]:
            ready = wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection in ready:
                    yield worker.end()
                    worker.begin(left)
    finally:
        for worker in workers:
            worker.stop()


def shared_out(count: int) -> list[list[int]]:
    """The cores of each of so many processes; those of this process, all alike in number.

    >>> all(shared_out(1))
    True
    """
    known = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    total = len(known) or cores()
    if count < 0:
        raise ConfigError(f"jobs must be 0 (one on each core) or more; got {count}")
    if count > total:
        raise ConfigError(f"jobs must not be more than the {total} cores of this process")
    each = total // (count or total)
    names = known or list(range(total))
    return [names[i * each : (i + 1) * each] for i in range(count or total)]


class Worker:
    """A process on some cores, and the job that it has in hand."""

    def __init__(self, share: Sequence[int]):
        self.share, self.job = list(share), None  # type: list[int], Job | None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.share, os.getpid()))
        self.process.start()
        theirs.close()

    def begin(self, left: deque[Job]) -> None:
        """Take the next job, if there is one."""
        if left:
            self.job = left.popleft()
            self.connection.send(self.job)

    def end(self) -> tuple[Job, Line]:
        """What came of the job; of a process that died, an error, and another takes its place."""
        assert self.job is not None
        job, self.job = self.job, None
        try:
            return job, self.connection.recv()
        except (EOFError, ConnectionError):
            from .run import failed

            self.process.join()
            line = failed(job, f"the process ended with code {self.process.exitcode}")
            self.connection.close()
            self._start()
            return job, line

    def stop(self) -> None:
        """End the process, in the middle of a run if need be."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _work(connection: Connection, share: Sequence[int], parent: int) -> None:
    """Make runs until nobody asks for more."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)
    os.environ["OMP_NUM_THREADS"] = str(len(share))
    import torch

    from .run import failed, run

    torch.set_num_threads(len(share))

    def alive() -> None:
        if os.getppid() != parent:
            os._exit(1)

    while True:
        try:
            job = connection.recv()
        except (EOFError, ConnectionError, KeyboardInterrupt):
            return
        try:
            line = run(job, alive)
        except Exception as error:  # whatever a run dies of, the others go on
            line = failed(job, described(error))
        try:
            connection.send(line)
        except (ConnectionError, KeyboardInterrupt):
            return


def described(error: Exception) -> str:
    """An error with its kind and its place, on a line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(last.filename)}:{last.lineno}"
    return f"{type(error).__name__}: {error} ({place})"


class Clock:
    """Time left, by the time that the runs so far took.

    >>> clock = Clock(total=4)
    >>> clock.left(1) >= 0
    True
    """

    def __init__(self, total: int):
        self.total, self._begun = total, time.monotonic()

    def left(self, done: int) -> float:
        """Seconds, once so many runs are done."""
        return (time.monotonic() - self._begun) / max(1, done) * (self.total - done)
