"""Layout window computes the same, to the bit, whether its padding has values or not."""

from __future__ import annotations

import pytest
import torch
from test_chain import product
from torch import Tensor, nn

import sparsewright as sw
from sparsewright.kernels import KERNELS, kernel_info
from sparsewright.kernels.bound import Call, chain, transposed
from sparsewright.layouts import count_present, pack, window
from sparsewright.measure.environment import threads

compiled = pytest.mark.skipif(not kernel_info().native, reason="needs the compiled kernels")
ISAS = [isa for isa in ("portable", "avx2", "avx512") if KERNELS[f"csr.{isa}"].refuses() is None]
BATCHES = [1, 2, 3, 4, 7, 8, 9, 33]
SIZES = [(1, 1), (5, 20), (16, 32), (70, 45), (64, 300), (33, 70001)]


def both(
    name: str, weight: Tensor, monkeypatch: pytest.MonkeyPatch, **rest: object
) -> tuple[Call, Call]:
    """A product with a weight whose padding has values, and with one whose padding has none."""
    whole = product(name, weight, **rest)[0]  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(window, "_most", lambda weights: 0)
        packed = pack("window", weight)
        assert packed.tensors["values"].numel() == count_present(packed)
        return whole, product(name, weight, **rest)[0]  # type: ignore[arg-type]


def same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@compiled
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
def test_padding_without_values_changes_nothing(isa, values, count, monkeypatch):
    torch.manual_seed(0)
    for out, width in SIZES:
        for density in (0.02, 0.3, 1.0):
            weight = torch.randn(out, width) * (torch.rand(out, width) < density)
            given = {"bias": torch.randn(out), "activation": 2, "values": values}
            whole, squeezed = both(f"window.{isa}", weight, monkeypatch, **given)
            with threads(count):
                for batch in BATCHES:
                    x = torch.randn(batch, width)
                    same(squeezed(x), whole(x))
                    across = x.t().contiguous()
                    same(transposed(squeezed)(across), transposed(whole)(across))


@compiled
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", BATCHES)
def test_infinite_activations_meet_no_padding(isa, batch, monkeypatch):
    torch.manual_seed(0)
    weight = torch.randn(70, 300) * (torch.rand(70, 300) < 0.1)
    weight[:, 7] = 0
    whole, squeezed = both(f"window.{isa}", weight, monkeypatch, bias=None)
    x = torch.randn(batch, 300)
    x[0, 7], x[-1, 9] = torch.inf, torch.nan
    same(squeezed(x), whole(x))
    assert bool((squeezed(x).isfinite() | (weight[:, 9] != 0)).all())


@compiled
@pytest.mark.parametrize("batch", [1, 4, 40])
def test_a_chain_takes_it(batch, monkeypatch):
    torch.manual_seed(0)
    pairs = []
    for out, width in ((90, 64), (70, 90), (40, 70)):
        weight = torch.randn(out, width) * (torch.rand(out, width) < 0.3)
        pairs.append(both(f"window.{ISAS[-1]}", weight, monkeypatch, bias=torch.randn(out)))
    whole, squeezed = (chain(list(calls)) for calls in zip(*pairs, strict=True))
    x = torch.randn(batch, 64)
    same(squeezed(x), whole(x))


def test_a_model_of_it_is_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(window, "_most", lambda weights: 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 90), nn.ReLU(), nn.Linear(90, 40))
    sw.prune(model, 0.8)
    x = torch.randn(2, 200)
    best = kernel_info().isa if kernel_info().native else "reference"
    fast = sw.deploy(model, x, kernels=[f"window.{best}"], seconds=0)
    assert [row.kernel for row in fast.plan.layers] == [f"window.{best}"] * 2
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    sw.save(fast, tmp_path / "a.sw")
    monkeypatch.undo()
    loaded = sw.load(tmp_path / "a.sw")
    same(loaded(x), fast(x))
