"""What a figure was measured on: versions, processor, threads, instruction set, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """The machine and the versions, as plain values that JSON takes.

    cores: those that this process may run on. threads: torch's. isa: the widest instruction set
    that torch uses here. commit: of the checkout that this package runs from, else None.

    >>> sorted(environment())
    ['commit', 'cores', 'cpu', 'isa', 'platform', 'python', 'sparsewright', 'threads', 'torch']
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparsewright": _version("sparsewright"),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "commit": commit(Path(__file__).parents[1]),
    }


def cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _wished() -> int | None:
    """The number of threads that the environment names, as OpenMP reads it: a list has one for
    each level of nesting."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` threads of torch; 0: OMP_NUM_THREADS of them where that is set, else as many
    as the process has cores.

    >>> with threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or _wished() or cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name, where Linux tells it; else its architecture."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def commit(folder: Path) -> str | None:
    """The git commit of the checkout that holds `folder`, with "+" if files were changed.

    None outside of a checkout, where git is missing, or where the folder is not under version
    control (an installed package inside somebody else's checkout).
    """

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(folder), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "."):
        return None
    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{head}+" if head and changed else head


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
