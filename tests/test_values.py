"""Values in bf16 and int8: rounded once, within what their type allows, and every layout holds the
same weight to the bit. That kernels compute with it is in test_kernels.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsewright.core import Packed
from sparsewright.errors import LayoutError, UnknownNameError
from sparsewright.layouts import (
    LAYOUTS,
    STORED,
    VALUES,
    count_present,
    pack,
    rounded,
    unpack,
    validate,
    values_name,
)

NARROW = ["bf16", "int8"]
TINY = torch.finfo(torch.float32).tiny
HUGE = torch.finfo(torch.float32).max


def random_weight(out: int, width: int, density: float = 0.3) -> Tensor:
    return torch.randn(out, width) * (torch.rand(out, width) < density)


@pytest.mark.parametrize("values", NARROW)
@pytest.mark.parametrize("layout", LAYOUTS.names())
@pytest.mark.parametrize("shape", [(0, 0), (0, 8), (8, 0), (1, 1), (17, 64), (40, 70)], ids=str)
def test_every_layout_holds_the_rounded_weight(
    shape: tuple[int, int], layout: str, values: str
) -> None:
    weight = random_weight(*shape, 0.7)
    packed = pack(layout, weight, values)
    validate(packed)
    assert values_name(packed) == values
    assert torch.equal(unpack(packed), rounded(weight, values))
    assert count_present(packed) == int((weight != 0).sum())
    assert packed.nbytes == sum(t.numel() * t.element_size() for t in packed.tensors.values())
    whole = pack(layout, weight).tensors
    for name in set(whole) - {"values"}:  # the places are the same
        assert torch.equal(packed.tensors[name], whole[name]), name
    assert packed.tensors["values"].element_size() < whole["values"].element_size()


@pytest.mark.parametrize("values", VALUES.names())
@given(exponent=st.integers(-148, 127), spread=st.floats(0, 40), seed=st.integers(0, 99))
def test_rounding_keeps_to_its_type_and_to_the_mask(
    values: str, exponent: int, spread: float, seed: int
) -> None:
    """At any magnitude that float32 has, and at rows that mix them."""
    torch.manual_seed(seed)
    weight = random_weight(6, 30).double() * 2.0**exponent
    weight *= 2.0 ** (-spread * torch.rand(6, 30).double())
    weight = weight.clamp(-HUGE, HUGE).float()
    near = rounded(weight, values)
    assert torch.equal(near != 0, weight != 0)
    assert torch.equal(near.sign(), weight.sign())
    assert bool(near.isfinite().all())
    allowed = VALUES[values].error(weight)
    assert bool(((near.double() - weight.double()).abs() <= allowed.double()).all())
    assert bool((allowed[weight == 0] == 0).all())
    assert torch.equal(rounded(near, values), near) or values == "int8"


def test_bf16_is_torch_s_where_that_keeps_the_mask_and_is_finite() -> None:
    weight = torch.randn(40, 70)
    assert torch.equal(rounded(weight, "bf16"), weight.bfloat16().float())
    edge = torch.tensor([[HUGE, -HUGE, 1e-45, -1e-45, 2.0**-133, 1.0 + 2.0**-9, 0.0, -0.0]])
    most, least = torch.finfo(torch.bfloat16).max, 2.0**-133
    expected = torch.tensor([[most, -most, least, -least, least, 1.0, 0.0, 0.0]])
    assert torch.equal(rounded(edge, "bf16"), expected)
    special = torch.tensor([[float("inf"), float("-inf"), float("nan")]])
    assert torch.equal(rounded(special, "bf16")[:, :2], special[:, :2])
    assert bool(rounded(special, "bf16")[0, 2].isnan())


def test_int8_by_hand() -> None:
    weight = torch.tensor([[127.0, -50.4, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1e-9, 0.0, -1.0]])
    packed = pack("csr", weight, "int8")
    assert packed.tensors["values"].tolist() == [127, -50, 1, 127, 1, -127]
    scales = packed.tensors["scales"]
    assert scales[:2].tolist() == [1.0, 1.0]  # a row without weights has one too
    assert 0 <= 1 / 127 - float(scales[2]) < 2.0**-16 / 127


def test_a_step_times_its_scale_is_exact() -> None:
    """So the weight that `unpack` gives is the one of the kernels, which multiply at the end."""
    packed = pack("csr", torch.randn(50, 300) * torch.logspace(-30, 30, 50)[:, None], "int8")
    steps, scales = packed.tensors["values"].view(50, 300), packed.tensors["scales"]
    exact = steps.double() * scales.double()[:, None]
    assert torch.equal(unpack(packed).double(), exact)


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
def test_int8_refuses_what_has_no_step(value: float) -> None:
    with pytest.raises(LayoutError, match="int8 values need a finite weight"):
        pack("csr", torch.tensor([[1.0, value]]), "int8")


def test_unknown_types_list_those_that_exist() -> None:
    with pytest.raises(UnknownNameError, match="There are: bf16, fp32, int8"):
        pack("csr", torch.eye(2), "fp8")


@pytest.mark.parametrize("values", NARROW)
@pytest.mark.parametrize(
    ("weight", "reason"),
    [(torch.ones(3), "needs a matrix"), (torch.ones(2, 2).double(), "needs float32")],
    ids=["vector", "float64"],
)
def test_refuses_what_is_no_weight(weight: Tensor, reason: str, values: str) -> None:
    with pytest.raises(LayoutError, match=f"layout nm: {reason}"):
        pack("nm", weight, values)


def broken(packed: Packed, **tensors: Tensor | None) -> Packed:
    held = {**packed.tensors, **tensors}
    return dataclasses.replace(packed, tensors={n: t for n, t in held.items() if t is not None})


@pytest.mark.parametrize("layout", LAYOUTS.names())
def test_rejects_hostile_scales(layout: str) -> None:
    packed = pack(layout, torch.ones(5, 16), "int8")
    for scales, rule in (
        (None, "needs tensors"),
        (torch.ones(4), r"scales must have 5 entries; got shape \(4,\)"),
        (torch.ones(5, 1), "scales must have 5 entries"),
        (torch.ones(5).double(), "scales must be float32"),
        (torch.ones(10)[::2], "scales must be contiguous"),
        (torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]), "finite and greater than 0"),
        (torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0]), "finite and greater than 0"),
        (torch.tensor([1.0, 1.0, float("inf"), 1.0, 1.0]), "finite and greater than 0"),
        (torch.tensor([1.0, 1.0, float("nan"), 1.0, 1.0]), "finite and greater than 0"),
    ):
        for call in (validate, unpack):
            with pytest.raises(LayoutError, match=rule):
                call(broken(packed, scales=scales))
    for values in ("fp32", "bf16"):  # scales are for int8 alone
        with pytest.raises(LayoutError, match="needs tensors"):
            validate(broken(pack(layout, torch.ones(5, 16), values), scales=torch.ones(5)))


@pytest.mark.parametrize("layout", LAYOUTS.names())
@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, torch.int16, torch.float64])
def test_rejects_other_types(layout: str, dtype: torch.dtype) -> None:
    packed = pack(layout, torch.ones(5, 16))
    with pytest.raises(LayoutError, match="values must be float32 or bfloat16 or int8"):
        validate(broken(packed, values=packed.tensors["values"].to(dtype)))


@pytest.mark.parametrize("values", NARROW)
@pytest.mark.parametrize("layout", sorted({*LAYOUTS} - {"csr"}))
def test_a_value_of_zero_where_a_place_is_named_is_rejected(layout: str, values: str) -> None:
    """As in float32: what is 0 is padding, whatever its type."""
    packed = pack(layout, torch.ones(20, 16), values)
    held = packed.tensors["values"].clone()
    held.view(-1)[0] = 0
    with pytest.raises(LayoutError):
        validate(broken(packed, values=held))


def test_every_type_is_told_by_its_dtype() -> None:
    assert sorted(str(kind.dtype) for _, kind in VALUES.items()) == sorted(map(str, STORED))
