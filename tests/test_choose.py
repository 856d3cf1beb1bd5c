"""The choice: every candidate is timed and checked, every refusal has its reason."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from sparsewright.errors import KernelError, UnknownNameError
from sparsewright.kernels import KERNELS, Kernel, choose, explain, kernel_info
from sparsewright.kernels.choose import Timing, _summary, _time, is_dense
from sparsewright.layouts import LAYOUTS
from sparsewright.nn import LayoutLinear, PrepackedLinear, build_linear


def three_of_32(out: int, width: int) -> Tensor:
    keep = torch.rand(out * width // 32, 32).argsort(dim=1) < 3
    return torch.randn(out, width) * keep.view(out, width)


def test_every_kernel_is_timed_or_gives_its_reason() -> None:
    weight = three_of_32(64, 128)
    choice = choose(weight, torch.randn(64), torch.randn(2, 128), seconds=0)
    timed, refused = {t.kernel for t in choice.timings}, dict(choice.refusals)
    assert timed | set(refused) == {n for n, k in KERNELS.items() if k.operation == "linear"}
    assert not timed & set(refused)
    assert all(refused.values())
    assert {"dense.eager", "csr.portable", "nm.portable"} <= timed or not kernel_info().native
    assert [t.median for t in choice.timings] == sorted(t.median for t in choice.timings)
    assert choice.kernel == choice.timings[0].kernel
    assert all(t.low <= t.median <= t.high and t.error <= choice.tolerance for t in choice.timings)
    assert (choice.batch, choice.threads) == (2, torch.get_num_threads())


def test_packed_is_there_exactly_when_a_packed_kernel_won() -> None:
    weight, x = three_of_32(32, 64), torch.randn(1, 64)
    packed = choose(weight, None, x, kernels=["csr.portable"], seconds=0)
    assert packed.packed is not None
    assert packed.packed.layout == packed.layout == "csr"
    assert packed.best_dense is None
    assert packed.speedup is None
    dense = choose(weight, None, x, kernels=["dense.eager"], seconds=0)
    assert dense.packed is None
    assert dense.layout == "dense"
    assert dense.speedup == 1.0


def test_speedup_is_over_the_best_dense_way() -> None:
    choice = choose(three_of_32(32, 64), None, torch.randn(1, 64), seconds=0)
    times = [("dense.onednn", 2.0), ("dense.eager", 3.0)]
    slow = tuple(Timing(name, t, t, t, 1, 0.0) for name, t in times)
    made = dataclasses.replace(choice, timings=(Timing("csr.portable", 0.5, 0, 1, 1, 0.0), *slow))
    assert made.best_dense is not None
    assert made.best_dense.kernel == "dense.onednn"
    assert made.speedup == 4.0


def test_layouts_that_refuse_are_not_packed() -> None:
    weight = torch.zeros(64, 256)
    weight[0] = 1.0
    choice = choose(weight, None, torch.randn(1, 256), seconds=0)
    assert (
        "slots would be empty" in dict(choice.refusals)["nm.portable"] or not kernel_info().native
    )


def test_reference_is_timed_only_when_named() -> None:
    if not kernel_info().native:
        pytest.skip("without compiled kernels the reference is a candidate")
    weight, x = three_of_32(32, 64), torch.randn(1, 64)
    assert "specification" in dict(choose(weight, None, x, seconds=0).refusals)["csr.reference"]
    named = choose(weight, None, x, kernels=["csr.reference"], seconds=0)
    assert named.kernel == "csr.reference"


def test_explain_names_everything() -> None:
    choice = choose(three_of_32(32, 64), None, torch.randn(3, 64), seconds=0)
    text = explain(choice, "fc1")
    assert text.startswith(f"fc1: {choice.kernel}, ")
    assert "x the best dense way (batch 3, 2 threads)" in text
    assert all(t.kernel in text for t in choice.timings)
    assert all(f"{name:14} refused: {reason}" in text for name, reason in choice.refusals)


def wrong(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias) + 1e-2


def missing(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.full((*x.shape[:-1], weight.shape[0]), float("nan"))


def misshapen(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)[..., :-1]


@pytest.mark.parametrize(
    ("op", "message"),
    [(wrong, "disagrees"), (missing, "disagrees"), (misshapen, "gave shape")],
)
def test_a_kernel_that_is_wrong_raises(
    op: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = dataclasses.replace(KERNELS["dense.eager"], name="dense.broken", op=op)
    monkeypatch.setitem(KERNELS._parts, "dense.broken", broken)
    with pytest.raises(KernelError, match=f"dense.broken {message}"):
        choose(three_of_32(32, 64), None, torch.randn(2, 64), seconds=0)


def test_a_kernel_that_crashes_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: object) -> Tensor:
        raise ZeroDivisionError("a bug")

    broken = dataclasses.replace(KERNELS["dense.eager"], name="dense.broken", op=crash)
    monkeypatch.setitem(KERNELS._parts, "dense.broken", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        choose(three_of_32(32, 64), None, torch.randn(2, 64), seconds=0)


def test_no_kernel_at_all_lists_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    none = dataclasses.replace(KERNELS["dense.eager"], name="dense.none", refuses=lambda w: "rainy")
    monkeypatch.setitem(KERNELS._parts, "dense.none", none)
    with pytest.raises(KernelError, match=r"no kernel serves this layer\. dense\.none: rainy"):
        choose(torch.eye(4), None, torch.ones(1, 4), kernels=["dense.none"], seconds=0)


@pytest.mark.parametrize(
    ("weight", "example", "message"),
    [
        (torch.eye(4), torch.ones(1, 3), r"got \(4, 4\) and \(1, 3\)"),
        (torch.ones(4), torch.ones(1, 4), "needs a weight"),
        (torch.eye(4).double(), torch.ones(1, 4), "weight must be float32 on the CPU"),
        (torch.eye(4), torch.ones(1, 4).half(), "example must be float32 on the CPU"),
        (torch.eye(4), torch.full((1, 4), float("inf")), "example must be finite"),
        (torch.full((4, 4), float("nan")), torch.ones(1, 4), "weight must be finite"),
    ],
)
def test_rejects_what_cannot_be_checked(weight: Tensor, example: Tensor, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        choose(weight, None, example, seconds=0)


def test_unknown_kernels_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"no kernel is called 'csr\.avx1024'"):
        choose(torch.eye(4), None, torch.ones(1, 4), kernels=["csr.avx1024"], seconds=0)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("batch", [0, 1])
def test_tiny_layers(shape: tuple[int, int], batch: int) -> None:
    weight, x = torch.ones(shape), torch.ones(batch, shape[1])
    choice = choose(weight, None, x, seconds=0)
    assert torch.equal(build_linear(choice, weight, None)(x), x @ weight.t())


def test_rounds_are_interleaved_and_slow_sparse_kernels_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    clock = [0.0]

    def run(name: str, seconds: float) -> Tensor:
        calls.append(name)
        clock[0] += seconds
        return torch.ones(1)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    lengths = {"csr.portable": 1.0, "nm.portable": 6.0, "dense.eager": 6.0}
    runs = {name: functools.partial(run, name, length) for name, length in lengths.items()}
    samples = _time(runs, seconds=0)
    assert samples["nm.portable"] == [6.0] * 3
    assert samples["dense.eager"] == [6.0] * 5
    assert samples["csr.portable"] == [1.0] * 5
    one = ["csr.portable"] * 2 + ["dense.eager"] * 2  # each sample warms its candidate first
    assert calls[-8:] in (one * 2, one[2:] + one[:2] + one, one + one[2:] + one[:2])


def test_summary_by_hand() -> None:
    assert _summary("k", [5.0, 1.0, 3.0, 2.0, 4.0], 0.5) == Timing("k", 3.0, 1.0, 4.0, 5, 0.5)


def test_built_modules_follow_the_choice() -> None:
    weight, bias, x = three_of_32(32, 64), torch.randn(32), torch.randn(5, 64)
    expected = torch.nn.functional.linear(x, weight, bias)
    kinds = {"csr.portable": LayoutLinear, "nm.portable": LayoutLinear}
    kinds |= {"dense.eager": torch.nn.Linear, "dense.onednn": PrepackedLinear}
    for name, kind in kinds.items():
        if KERNELS[name].refuses() is None:
            module = build_linear(choose(weight, bias, x, kernels=[name], seconds=0), weight, bias)
            assert type(module) is kind
            assert not module.training
            assert not any(p.requires_grad for p in module.parameters())
            torch.testing.assert_close(module(x), expected)


def test_contract_of_every_kernel() -> None:
    for name, kernel in KERNELS.items():
        assert isinstance(kernel, Kernel)
        assert kernel.name == name
        assert is_dense(name) or kernel.layout in LAYOUTS
        reason = kernel.refuses()
        assert reason is None or reason


def test_kernel_info_agrees_with_the_table() -> None:
    info = kernel_info()
    assert set(info.kernels) == set(KERNELS)
    assert info.native == (info.why_not is None) == (info.library is not None)
    assert info.isas.get(info.isa, "") is None or not info.native
