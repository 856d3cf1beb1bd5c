"""Several Python threads at once get right results, and a kernel at work lets the others run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import sparsewright as sw
from sparsewright.kernels import KERNELS, Kernel
from sparsewright.layouts import LAYOUTS, pack

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

PATTERNS = ("3:32", "block:4x4", "unstructured")
SHAPES = [(64, 96), (208, 320), (48, 1024), (512, 64)]
BATCHES = [1, 2, 7, 40, 130]
AT_ONCE = 6
SERVING = [
    k
    for _, k in KERNELS.items()
    if k.layout in LAYOUTS and k.operation == "linear" and k.refuses() is None
]
"""Not the dense ones: their bits depend on how many threads torch gives the calling thread."""


def sparse_weight(kernel: Kernel, out: int, width: int) -> Tensor:
    """A weight that the kernel's layout takes."""
    for pattern in PATTERNS:
        linear = nn.Linear(width, out, bias=False)
        sparsity = None if pattern == "3:32" else 0.9
        sw.prune(linear, sparsity, pattern, allocate="uniform_all", on_misfit="skip")
        weight = linear.weight.detach()
        if kernel.refuses(weight) is None and LAYOUTS[kernel.layout].refuses(weight) is None:
            return weight
    raise AssertionError(f"no pattern of {PATTERNS} fits layout {kernel.layout}")


def bound(kernel: Kernel, out: int, width: int, batch: int) -> Callable[[], Tensor]:
    """A call of the kernel on a weight and activations of its own."""
    weight, x, bias = sparse_weight(kernel, out, width), torch.randn(batch, width), torch.randn(out)
    prepared = kernel.prepare(pack(kernel.layout, weight), batch)
    return lambda: kernel.run(x, prepared, bias)


def same_at_once(calls: list[Callable[[], Tensor]]) -> None:
    """Each call alone, then all from several threads, in an order that differs every time."""
    expected = [call().clone() for call in calls]
    start, count = threading.Barrier(AT_ONCE), torch.get_num_threads()

    def work(number: int) -> list[tuple[int, Tensor]]:
        torch.set_num_threads(count)  # each Python thread has a number of its own
        start.wait()
        order = torch.randperm(len(calls), generator=torch.Generator().manual_seed(number))
        return [(i, calls[i]()) for i in order.tolist()]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for results in pool.map(work, range(AT_ONCE)):
            assert all(torch.equal(got, expected[i]) for i, got in results)


@pytest.mark.parametrize("threads", [1, 2])
def test_all_kernels_at_once(threads: int) -> None:
    """Kernels and sizes mixed: the memory that a call keeps for the next is its thread's own."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        same_at_once([bound(k, *s, b) for k in SERVING for s in SHAPES for b in BATCHES[::2]])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layout", sorted({k.layout for k in SERVING}))
def test_one_deployed_model_at_once(layout: str) -> None:
    """One model, its batches changing from call to call; each thread enters no_grad itself."""
    kernel = next(k for k in reversed(SERVING) if k.layout == layout and k.reserve is None)
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32))
    for place, linear in ((0, model[0]), (2, model[2])):
        assert isinstance(linear, nn.Linear), place
        linear.weight.data = sparse_weight(kernel, *linear.weight.shape)
    fast = sw.deploy(model, torch.randn(2, 96), kernels=[kernel.name], seconds=0)

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            return fast(x)

    inputs = [torch.randn(batch, 96) for batch in BATCHES * 4]
    same_at_once([lambda x=x: call(x) for x in inputs])  # type: ignore[misc]


# --- the interpreter's lock ------------------------------------------------------------------


@pytest.fixture
def progress() -> Iterator[Callable[[Callable[[], object]], int]]:
    """How far another Python thread gets while a function runs.

    Nobody is made to give the lock up (the switch interval is far beyond the test's end), so the
    other thread gets on only where the function lets the lock go itself.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    count, stop = [0], threading.Event()

    def work() -> None:
        while not stop.is_set():
            count[0] += 1
            time.sleep(0)  # lets the lock go

    def measure(function: Callable[[], object]) -> int:
        first = count[0]
        function()
        return count[0] - first

    other = threading.Thread(target=work)
    other.start()
    yield measure
    stop.set()
    other.join()
    sys.setswitchinterval(before)


@pytest.mark.parametrize("name", [k.name for k in SERVING])
def test_a_kernel_at_work_lets_other_threads_run(
    name: str, progress: Callable[[Callable[[], object]], int]
) -> None:
    call = bound(KERNELS[name], 512, 1024, 130)
    assert any(progress(call) for _ in range(200)), f"{name} keeps the interpreter's lock"


def test_work_that_keeps_the_lock_is_told_apart(
    progress: Callable[[Callable[[], object]], int],
) -> None:
    """The measure itself: built-in functions of Python let nobody in."""
    numbers = list(range(200_000))
    assert not any(progress(lambda: sorted(numbers)) for _ in range(20))
