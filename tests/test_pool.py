"""Large outputs come from memory that is kept between calls, and go back to it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from packaging.version import Version

from sparsewright.kernels import KERNELS, kernel_info
from sparsewright.layouts import pack

pytestmark = pytest.mark.skipif(
    not kernel_info().native or Version(torch.__version__) < Version("2.11"),
    reason="needs compiled kernels, and a torch that tells when a tensor dies (2.11)",
)
ROWS = 1024  # times 512 outputs of 4 bytes: 2 MiB
MIB = 2**20


def product(rows: int = ROWS) -> torch.Tensor:
    torch.manual_seed(0)
    kernel, weight = KERNELS["csr.portable"], torch.eye(512)
    return kernel.run(torch.randn(rows, 512), kernel.prepare(pack("csr", weight), rows), None)


def test_memory_of_a_dead_output_serves_the_next() -> None:
    first, other = product(), product()
    kept, place = first.clone(), first.data_ptr()
    assert place % (2 * MIB) == 0
    del other, first  # of two that fit, the one that was last in use: caches may hold it still
    idle = torch.ops.sparsewright.pool_bytes()
    assert idle >= 2 * MIB
    again = product()
    assert torch.equal(again, kept)
    assert again.data_ptr() == place
    assert torch.ops.sparsewright.pool_bytes() == idle - 2 * MIB


def test_living_outputs_never_share_memory() -> None:
    outputs = [product() for _ in range(4)]
    assert len({y.data_ptr() for y in outputs}) == 4
    view = outputs[0][3:5]
    kept = view.clone()
    del outputs  # a view keeps its memory alive
    product().zero_()
    assert torch.equal(view, kept)


def test_small_outputs_are_torch_s_own() -> None:
    assert product(8).untyped_storage().resizable()


@pytest.mark.parametrize(("mib", "pooled"), [("0", False), ("1", True), ("64", True)])
def test_environment_bounds_what_is_kept(mib: str, pooled: bool) -> None:
    code = """
import torch
from sparsewright.kernels import KERNELS
from sparsewright.layouts import pack
kernel = KERNELS["csr.portable"]
prepared = kernel.prepare(pack("csr", torch.eye(512)), 1)
y = kernel.run(torch.randn(1024, 512), prepared, None)
print(y.untyped_storage().resizable())
del y
print(torch.ops.sparsewright.pool_bytes())
"""
    environment = {**os.environ, "SPARSEWRIGHT_POOL_MIB": mib}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    torch_s_own, idle = done.stdout.split()
    assert torch_s_own == str(not pooled)
    assert int(idle) == (2 * MIB if mib == "64" else 0)  # 2 MiB exceed a pool of one


@pytest.mark.parametrize("mib", ["-1", "much", "1.5", "99999999999"])
def test_a_wrong_bound_is_an_error(mib: str) -> None:
    code = "import torch, sparsewright; torch.ops.sparsewright.pool_bytes()"
    environment = {**os.environ, "SPARSEWRIGHT_POOL_MIB": mib}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (
        f"SPARSEWRIGHT_POOL_MIB must be a whole number in [0, 1048576]; got '{mib}'" in done.stderr
    )
