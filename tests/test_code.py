"""Weights that are made code: what that code computes, and when there is none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparsewright import library, plan_cache
from sparsewright.errors import KernelError
from sparsewright.image_units import IMAGES
from sparsewright.kernels.bound import bind_beside
from sparsewright.lab.doctor import compiled
from sparsewright.layouts import store
from sparsewright.layouts.csb import Csb

OPS = torch.ops.sparsewright


def can_run() -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEWRIGHT_CODE", "1")
        return library.makes_code()


needs_code = pytest.mark.skipif(
    not can_run(), reason="needs AVX-512, compiled kernels, and a system that runs new code"
)


def sparse(out: int, channels: int, kernel: int, density: float) -> Tensor:
    shape = out, channels, kernel, kernel
    return torch.randn(shape) * (torch.rand(shape) < density)


def bind(
    weight: Tensor, size: int, bias: Tensor | None, code: str, relu=True, isa=0, values="fp32"
):
    """The convolution at stride one of IMAGES images of `size` rows and columns; SPARSEWRIGHT_CODE
    as given while it is bound."""
    out, channels, kernel, _ = weight.shape
    packed = store(Csb().pack, weight.flatten(1), values)
    t, meta = packed.tensors, packed.meta
    head = [t["starts"], t["pairs"], t["columns"], t["values"], t.get("scales"), bias, out]
    where = [1, 1, kernel // 2, kernel // 2, 1, 1, int(relu), channels, size, size, IMAGES, 1, isa]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEWRIGHT_CODE", code)
        return bind_beside([*head, meta["chunk"], meta["block"], kernel, kernel, *where])


def both(weight: Tensor, size: int, bias: Tensor | None, relu=True):
    code, loops = (bind(weight, size, bias, wish, relu) for wish in "10")
    assert OPS.code_bytes(code.number) > 0
    assert OPS.code_bytes(loops.number) == 0
    return code, loops


def there(x: Tensor) -> Tensor:
    return OPS.to_beside(x, IMAGES, 1, 0)


def back(y: Tensor, x: Tensor) -> Tensor:
    return OPS.from_beside(y, *x.shape[:1], *x.shape[2:], IMAGES, 1, 0)


@needs_code
@given(
    st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 3]), st.integers(1, 9),
    st.sampled_from([0.0, 0.02, 0.1, 0.5]), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_code_gives_what_loops_give(out, channels, kernel, size, density, biased, relu, adds):
    """Rows of up to 28 sums, groups of up to 256 columns: with more of both, and fewer."""
    weight = sparse(out, channels, kernel, density)
    assume(int((weight != 0).sum()) <= 0.75 * weight.numel())
    bias = torch.randn(out) if biased else None
    code, loops = both(weight, size, bias, relu)
    x = torch.randn(IMAGES, channels, size, size)
    more = torch.randn(IMAGES, out, size, size) if adds else None
    given = there(x), None if more is None else there(more)
    got, other = (back(OPS.bound(b.number, *given), x) for b in (code, loops))
    assert torch.allclose(got, other, rtol=1e-4, atol=1e-4)
    right = F.conv2d(x.double(), weight.double(), None, 1, kernel // 2)
    right = right if bias is None else right + bias.double()[:, None, None]
    right = right if more is None else right + more
    right = right.relu() if relu else right
    assert torch.allclose(got.double(), right, rtol=1e-4, atol=1e-4)


@needs_code
@pytest.mark.parametrize(("out", "channels", "kernel"), [(700, 1100, 1), (130, 90, 3), (3, 3, 7)])
def test_values_far_from_their_pointer(out, channels, kernel) -> None:
    """More values than a short displacement reaches, several functions, a weight of few rows; the
    output is written over what is added to it, which several groups of columns wait in."""
    torch.manual_seed(0)
    weight, bias = sparse(out, channels, kernel, 0.3), torch.randn(out)
    x, more = torch.randn(IMAGES, channels, 7, 7), torch.randn(IMAGES, out, 7, 7)
    code, _ = both(weight, 7, bias)
    residual = there(more)
    (y,) = OPS.beside_chain(there(x), [residual], [code.number], 1, 1, 1)
    assert y.data_ptr() == residual.data_ptr()
    right = F.conv2d(x.double(), weight.double(), bias.double(), padding=kernel // 2) + more
    assert torch.allclose(back(y, x).double(), right.relu(), rtol=1e-4, atol=1e-3)


@needs_code
def test_no_number_goes_where_a_weight_is_absent_and_nowhere_else() -> None:
    torch.manual_seed(0)
    weight = sparse(60, 300, 1, 0.1)
    x = torch.randn(IMAGES, 300, 7, 7)
    x[3, 17, 2, 5], x[4, 18, 0, 0] = float("nan"), -float("inf")
    code, _ = both(weight, 7, None)
    y = back(OPS.bound(code.number, there(x), None), x)
    reached = weight[:, 17, 0, 0] != 0
    assert reached.any()
    assert not reached.all()
    assert torch.equal(y[3, :, 2, 5].isnan(), reached)  # ReLU keeps what is no number
    assert int(y.isnan().sum()) == int(reached.sum())
    sunk = weight[:, 18, 0, 0]
    assert torch.equal(y[4, :, 0, 0] == float("inf"), sunk < 0)


@needs_code
def test_how_much_memory_it_takes() -> None:
    """docs/deploying.md: about 16 bytes for each weight."""
    weight = sparse(256, 512, 1, 0.1)
    code, _ = both(weight, 7, None)
    assert 14 < OPS.code_bytes(code.number) / int((weight != 0).sum()) < 18


@needs_code
def test_when_there_is_no_code() -> None:
    weight = sparse(40, 40, 1, 0.2)

    def is_code(w: Tensor = weight, code: str = "1", then: int = 1, **given) -> bool:
        bound = bind(w, 7, None, code, then, **given)
        return OPS.code_bytes(bound.number) > 0

    assert is_code()
    assert is_code(then=0)
    assert is_code(isa=library.ISAS["avx512"])
    assert not is_code(code="0")
    assert not is_code(isa=library.ISAS["avx2"])
    assert not is_code(then=2)  # GELU follows the sums
    assert not is_code(values="bf16")
    assert not is_code(values="int8")
    assert not is_code(torch.randn(40, 40, 1, 1))  # a dense weight
    assert is_code(sparse(40, 40, 1, 0.6))
    assert not is_code(sparse(1500, 4000, 1, 0.4))  # 2.4 million multiply-adds of 7 bytes and more
    bound = bind(sparse(1500, 4000, 1, 0.4), 7, None, "1")
    assert OPS.bound(bound.number, torch.zeros(1, 7, 1, 4000, 7, 16), None).shape[3] == 1500


def test_the_environment_says_whether(monkeypatch) -> None:
    from sparsewright.kernels.info import kernel_info

    monkeypatch.setenv("SPARSEWRIGHT_CODE", "0")
    assert library.makes_code() is False
    assert compiled(kernel_info())["weights as code"].startswith("no: ")
    assert plan_cache._machine()["code"] is False
    if can_run():
        monkeypatch.setenv("SPARSEWRIGHT_CODE", "1")
        assert library.makes_code() is True
        assert compiled(kernel_info())["weights as code"] == "active"
        assert plan_cache._machine()["code"] is True
        monkeypatch.setenv("SPARSEWRIGHT_CODE", "yes")
        with pytest.raises(KernelError, match="SPARSEWRIGHT_CODE must be 0 or 1; got 'yes'"):
            library.makes_code()
        monkeypatch.delenv("SPARSEWRIGHT_CODE")
        with pytest.raises(RuntimeError, match="SPARSEWRIGHT_CODE must be 0 or 1; got '2'"):
            bind(sparse(4, 4, 1, 0.5), 7, None, "2")
