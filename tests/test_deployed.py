"""A deployed model as a module: what changes it, how it is copied, what it says of bad input."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.errors import KernelError
from sparsewright.kernels import KERNELS

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")


@pytest.fixture
def fast():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    names = [name for name in KERNELS if name.startswith("csr.")]
    fast = sw.deploy(model, torch.randn(4, 64), kernels=names, seconds=0)
    assert fast.program is not None
    return fast


@pytest.mark.parametrize(
    "same",
    [
        lambda fast: fast.to("cpu"),
        lambda fast: fast.to(torch.float32),
        lambda fast: fast.float(),
        lambda fast: fast.cpu(),
        lambda fast: nn.Sequential(fast).to("cpu"),
        lambda fast: fast.eval(),
    ],
)
def test_what_changes_nothing_keeps_the_program(fast, same):
    x, out = torch.randn(4, 64), torch.empty(4, 10)
    program, expected, run = fast.program, fast(x), fast.into(x, out)
    same(fast)
    assert fast.program is program
    run()
    assert torch.equal(fast(x), expected)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda fast: fast.double(),
        lambda fast: fast.share_memory(),
        lambda fast: fast.to_empty(device="cpu"),
        lambda fast: fast._apply(lambda t: t.mul_(2) if t.is_floating_point() else t),
        lambda fast: fast._apply(torch.clone),
        lambda fast: nn.Sequential(fast).double(),
    ],
)
def test_what_changes_tensors_drops_it(fast, change):
    run = fast.into(torch.randn(4, 64), torch.empty(4, 10))
    change(fast)
    assert fast.program is None
    assert fast.graph is None
    if kernel_bound(run):
        with pytest.raises(KernelError, match="has changed: deploy it again"):
            run()


def kernel_bound(run):
    return type(run).__name__ == "Into"


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (np.ones((4, 64), np.float32), "a value of type ndarray"),
        ([1.0], "a value of type list"),
        (None, "None"),
        (3, "3"),
    ],
)
def test_inputs_are_tensors(fast, given, what):
    with pytest.raises(KernelError, match=f"input 0 must be a tensor; got {what}"):
        fast(given)


def test_a_number_is_no_row(fast):
    with pytest.raises(KernelError, match=r"needs x \(\.\.\., 64\); got \(\)"):
        fast(torch.tensor(1.0))


def test_rows_given_as_columns_are_told_as_they_were_given(fast):
    wrong = r"x of shape \(4, 64\) was turned to \(64, 4\): layer '0': needs x \(\.\.\., 64\)"
    with pytest.raises(KernelError, match=wrong):
        fast.transposed(torch.randn(4, 64))
    with pytest.raises(KernelError, match=wrong):
        fast.into(torch.randn(4, 64), torch.empty(4, 10), transposed=True)
    told = r"of shape \(in_features, batch\); got a float32 Tensor of shape \(64,\)"
    with pytest.raises(KernelError, match=told):
        fast.transposed(torch.randn(64))


@pytest.mark.parametrize("shape", [(4, 11), (3, 10), (40,), (1, 4, 10)])
def test_an_output_of_another_shape_is_told_in_full(fast, shape):
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    wrong = rf"out must have the shape of the product, \(4, 10\); got {got}"
    with pytest.raises(KernelError, match=wrong):
        fast.into(torch.randn(4, 64), torch.empty(shape))


def test_a_view_of_negatives_is_no_memory(fast):
    x, out = torch.randn(4, 64), torch.empty(4, 10)
    torch.testing.assert_close(fast(torch._neg_view(x)), fast(-x))
    with pytest.raises(KernelError, match="no view of their negatives"):
        fast.into(torch._neg_view(x), out)
    with pytest.raises(KernelError, match="no view of their negatives"):
        fast.into(x, torch._neg_view(out))


def test_copies_are_apart(fast):
    x = torch.randn(4, 64)
    expected = fast(x)
    other = copy.deepcopy(fast)
    assert other.program is not None
    with torch.no_grad():
        other.model[0]._buffers["values"].zero_()
    assert torch.equal(fast(x), expected)
    assert not torch.equal(other(x), expected)
    other.double()
    assert fast.program is not None


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy])
def test_it_is_saved_and_not_pickled(fast, way, tmp_path):
    with pytest.raises(TypeError, match=r"is not pickled: sw\.save writes"):
        way(fast)
    sw.save(fast, tmp_path / "model")
    x = torch.randn(4, 64)
    assert torch.equal(sw.load(tmp_path / "model")(x), fast(x))


def test_columns_are_looked_at_though_one_shape_came_before(fast):
    x = torch.randn(64, 4)
    expected = fast(x.t()).t()
    for _ in range(2):
        torch.testing.assert_close(fast.transposed(x), expected)
    for wrong in (x.double(), x[:63], x[None], x.to(torch.int32)):
        with pytest.raises((KernelError, RuntimeError)):
            fast.transposed(wrong)
    heard = []
    handle = fast.model[1].register_forward_hook(lambda *_: heard.append(1))
    fast.transposed(x)
    assert heard == [1]
    handle.remove()
    torch.testing.assert_close(fast.transposed(x), expected)
    assert heard == [1]
