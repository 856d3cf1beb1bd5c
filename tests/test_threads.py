"""One deployed model may be called from several Python threads at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.deployed import plain_attention
from sparsewright.kernels import kernel_info

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

KIND = "portable" if kernel_info().native else "reference"
NAMES = [f"csr.{KIND}", f"csb.conv2d.{KIND}"]
WORKERS = 6


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.fc(torch.relu(self.body(x) + x).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x):
        return self.block(x)


CASES = {"convolutions": (Cnn, (2, 9, 9)), "attention": (Attention, (4, 16))}


@pytest.mark.parametrize("by_modules", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_right_from_many_threads_at_once(name, by_modules):
    build, shape = CASES[name]
    model = build().eval().requires_grad_(False)
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    fast = sw.deploy(model, torch.randn(2, *shape), kernels=NAMES, seconds=0)
    assert fast.program is not None
    call = fast.run_modules if by_modules else fast
    inputs = [torch.randn(batch, *shape) for batch in (1, 2, 5, 17)] * 15
    expected = [call(x) for x in inputs]
    start = threading.Barrier(WORKERS)

    def work(part):
        start.wait()
        return [call(x) for x in inputs[part::WORKERS]]

    with ThreadPoolExecutor(WORKERS) as pool:
        for part, outputs in enumerate(pool.map(work, range(WORKERS))):
            for got, right in zip(outputs, expected[part::WORKERS], strict=True):
                assert torch.equal(got, right)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_switch_stays_off_until_the_last_has_left():
    """Two that overlap, the first to come being the first to leave."""
    first, second = plain_attention(), plain_attention()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.mha.get_fastpath_enabled()
    second.__exit__(None, None, None)
    assert torch.backends.mha.get_fastpath_enabled()
