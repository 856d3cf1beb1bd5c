"""deploy with values in bf16 and int8: never unasked, named in the plan, every layer held to what
its type rounds, and the whole model to the original with its weights rounded."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsewright as sw
from sparsewright import plan_cache, serve
from sparsewright.errors import KernelError, UnknownNameError
from sparsewright.kernels import KERNELS, choose
from sparsewright.layouts import VALUES, rounded
from sparsewright.nn import LayoutLayer, task_of
from sparsewright.weights import find_weights

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

NARROW = ["bf16", "int8"]
SERVING = [name for name, kernel in KERNELS.items() if kernel.refuses() is None]
CSR = next(n for n in SERVING if (KERNELS[n].layout, KERNELS[n].operation) == ("csr", "linear"))
CSB = next(n for n in SERVING if (KERNELS[n].layout, KERNELS[n].operation) == ("csb", "conv2d"))


def mlp() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8))
    sw.prune(model, sparsity=0.8, allocate="uniform_all")
    return model


def net() -> nn.Module:
    """Convolutions of both kinds, and a norm that is folded."""
    model = nn.Sequential(
        nn.Conv1d(4, 8, 3, padding=1),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Unflatten(1, (2, 4)),
        nn.Conv2d(2, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8 * 4 * 16, 5),
    ).eval()
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    return model


def with_rounded(fast: sw.Deployed, model: nn.Module, values: str) -> nn.Module:
    """The model with the weights of its sparse layers rounded."""
    for row in fast.plan.layers:
        weight = model.get_submodule(row.layer).weight
        assert isinstance(weight, nn.Parameter)
        near = rounded(weight.detach().flatten(1), values).view_as(weight)
        weight.data = near if row.is_sparse else weight.data
    return model


@pytest.mark.parametrize("values", NARROW)
def test_outputs_are_those_of_the_rounded_model(values: str) -> None:
    model, x = mlp(), torch.randn(3, 64)
    fast = sw.deploy(model, x, kernels=[CSR], seconds=0, values=values)
    assert {row.values for row in fast.plan.layers} == {values}
    original = model(x).detach()
    near = with_rounded(fast, model, values)(x).detach()
    # As in serve.py: float32 sums in another order.
    torch.testing.assert_close(fast(x), near, rtol=1e-4, atol=1e-5)
    assert float((near - original).abs().max()) > 1e-4 * float(original.abs().max())


def test_fp32_stays_unless_something_else_is_asked_for() -> None:
    fast = sw.deploy(mlp(), torch.randn(1, 64), seconds=0)
    assert {row.values for row in fast.plan.layers} == {"fp32"}
    held = [m.packed.tensors["values"] for m in fast.modules() if isinstance(m, LayoutLayer)]
    assert all(tensor.dtype == torch.float32 for tensor in held)
    assert not any("Values in" in note for note in fast.plan.notes)


@pytest.mark.parametrize("values", NARROW)
def test_the_plan_names_the_type_the_bytes_and_the_loss(values: str) -> None:
    model, x = mlp(), torch.randn(1, 64)
    whole = sw.deploy(model, x, kernels=[CSR], seconds=0).plan
    fast = sw.deploy(model, x, kernels=[CSR], seconds=0, values=values)
    for row, before in zip(fast.plan.layers, whole.layers, strict=True):
        assert row.bytes < before.bytes
    (note,) = fast.plan.notes
    found = re.fullmatch(
        rf"Values in {values}: outputs on the example differ from the original's by (\S+) of the "
        r"largest\.",
        note,
    )
    assert found is not None, note
    expected = model(x).detach()
    off = (fast(x) - expected).abs().max() / expected.abs().max()
    assert float(found[1]) == pytest.approx(float(off), rel=0.06)  # two digits
    assert f"{CSR} {values}" in str(fast.plan)


@pytest.mark.parametrize("values", NARROW)
def test_convolutions_and_folded_norms(values: str, tmp_path: Path) -> None:
    model, x = net(), torch.randn(2, 4, 16)
    fast = sw.deploy(model, x, kernels=[CSR, CSB], seconds=0, values=values)
    assert [row.values for row in fast.plan.layers] == [values] * 3
    assert len(fast.plan.notes) == 2  # what was folded, and the loss
    sw.save(fast, tmp_path / "model")
    assert torch.equal(sw.load(tmp_path / "model")(x), fast(x))


def test_dense_ways_are_candidates_and_stay_float32() -> None:
    """Where one of them wins, nothing is rounded."""
    fast = sw.deploy(mlp(), torch.randn(1, 64), kernels=["dense.eager"], seconds=0, values="int8")
    assert {(row.kernel, row.values) for row in fast.plan.layers} == {("dense.eager", "fp32")}
    assert fast.plan.notes == ()
    model, x = mlp(), torch.randn(4, 64)
    both = sw.deploy(model, x, kernels=["dense.eager", CSR], seconds=0, values="int8")
    for row in both.plan.layers:
        assert {c.kernel for c in row.candidates} == {"dense.eager", CSR}
        assert all(c.error is not None and c.error < 1e-5 for c in row.candidates)
        assert row.values == ("int8" if row.kernel == CSR else "fp32")


def test_a_weight_that_something_else_reads_is_not_rounded_there() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.words = nn.Linear(32, 12, bias=False), nn.Embedding(12, 32)
            self.words.weight = self.head.weight

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.words(x)
            return hidden, self.head(hidden)

    model = Tied()
    sw.prune(model, sparsity=0.5, allocate="uniform_all")
    fast = sw.deploy(model, torch.arange(6), kernels=[CSR], seconds=0, values="int8")
    assert torch.equal(fast(torch.arange(6))[0], model(torch.arange(6))[0])
    assert not torch.equal(fast(torch.arange(6))[1], model(torch.arange(6))[1])


def test_a_plan_repeats_its_types() -> None:
    model, x = mlp(), torch.randn(1, 64)
    first = sw.deploy(model, x, kernels=[CSR], seconds=0, values="bf16")
    again = sw.deploy(model, x, plan=sw.Plan.from_dict(first.plan.to_dict()))
    assert [row.values for row in again.plan.layers] == ["bf16", "bf16"]
    assert torch.equal(again(x), first(x))
    with pytest.raises(KernelError, match="a plan names how its values are stored"):
        sw.deploy(model, x, plan=first.plan, values="bf16")
    rows = tuple(dataclasses.replace(row, values="fp8") for row in first.plan.layers)
    with pytest.raises(KernelError, match="the plan stores values in 'fp8'; there are: bf16"):
        sw.deploy(model, x, plan=dataclasses.replace(first.plan, layers=rows))


def test_measurements_of_one_type_are_not_those_of_another(tmp_path: Path) -> None:
    model, x = mlp(), torch.randn(1, 64)
    task = task_of(model.get_submodule("0"), x)
    assert not isinstance(task, str)
    row = serve.dense_row(find_weights(model)[0])
    keys = [plan_cache.circumstances(task, row, None, values) for values in VALUES]
    assert len({str(key) for key in keys}) == 3
    sw.deploy(model, x, kernels=[CSR], seconds=0)
    fast = sw.deploy(model, x, kernels=[CSR], seconds=0, values="bf16")
    again = sw.deploy(model, x, kernels=[CSR], seconds=0, values="bf16")  # from the cache
    assert [row.values for row in again.plan.layers] == ["bf16", "bf16"]
    assert [r.candidates for r in again.plan.layers] == [r.candidates for r in fast.plan.layers]


def test_unknown_types_and_kernels_without_them_have_their_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = mlp(), torch.randn(1, 64)
    with pytest.raises(UnknownNameError, match="There are: bf16, fp32, int8"):
        sw.deploy(model, x, values="fp8")
    whole = dataclasses.replace(KERNELS[CSR], values=("fp32",))
    monkeypatch.setitem(KERNELS._parts, CSR, whole)
    with pytest.raises(KernelError, match="computes with values in fp32; these are in bf16"):
        sw.deploy(model, x, kernels=[CSR], seconds=0, values="bf16")


def _halved(weight: Tensor) -> tuple[Tensor, None]:
    """To 4 bits, which bf16 does not."""
    return (weight * 2**4).round() / 2**4 + weight.sign() * 2**-5 * (weight.abs() < 2**-5), None


def test_a_rounding_beyond_its_type_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the layer's check: its kernel computes rightly with what the wrong rounding left."""
    model, x = mlp(), torch.randn(1, 64)
    wrong = dataclasses.replace(VALUES["bf16"], split=_halved)
    monkeypatch.setitem(VALUES._parts, "bf16", wrong)
    choose(model.get_submodule("0").weight, None, x, kernels=[CSR], seconds=0, values="bf16")
    message = "layer '0': kernel .* beyond what rounding its values may do; it is off by"
    with pytest.raises(KernelError, match=message):
        sw.deploy(model, x, kernels=[CSR], seconds=0, values="bf16")


@pytest.mark.parametrize("values", VALUES.names())
def test_a_wrong_kernel_is_caught_whatever_the_type(
    values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By much less than rounding does: a kernel is held against the rounded weight."""
    good = KERNELS[CSR]

    def wrong(x: Tensor, *rest: Any) -> Tensor:
        return good.op(x, *rest) * (1 + 2**-12)

    monkeypatch.setitem(KERNELS._parts, CSR, dataclasses.replace(good, op=wrong))
    with pytest.raises(KernelError, match=r"layer '0': .* disagrees with the dense product"):
        sw.deploy(mlp(), torch.randn(1, 64), kernels=[CSR], seconds=0, values=values)


def test_the_check_of_a_layer_takes_infinite_outputs() -> None:
    expected = torch.tensor([[1.0, float("inf"), float("nan")]])
    slack = torch.full((1, 3), 0.5)
    serve._check("a", "k", expected + 0.4, expected, slack)
    for off in (0.6, float("inf")):
        with pytest.raises(KernelError, match="beyond what rounding"):
            serve._check("a", "k", expected + off, expected, slack)
