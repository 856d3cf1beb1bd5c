"""Every layout gives the weight back bit for bit, and validation rejects every broken rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsewright.core import Packed
from sparsewright.errors import LayoutError, UnknownNameError
from sparsewright.layouts import (
    LAYOUTS,
    MAX_SIDE,
    count_present,
    pack,
    rounded,
    unpack,
    validate,
    window,
)
from sparsewright.layouts.csb import Csb
from sparsewright.layouts.nm import NMLanes

SHAPES = [(0, 0), (0, 8), (8, 0), (1, 1), (1, 33), (3, 5), (16, 32), (17, 64), (40, 70), (33, 300)]


def n_of_m(out: int, width: int, n: int, m: int) -> Tensor:
    """Exactly n weights present in every m columns."""
    keep = torch.rand(out * width // m, m).argsort(dim=1) < n
    weight = torch.randn(out, width)
    weight[weight == 0] = 1.0
    return weight * keep.view(out, width)


def random_weight(out: int, width: int, density: float) -> Tensor:
    return torch.randn(out, width) * (torch.rand(out, width) < density)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("layout", LAYOUTS.names())
def test_gives_the_weight_back(layout: str, density: float, shape: tuple[int, int]) -> None:
    weight = random_weight(*shape, density)
    reason = LAYOUTS[layout].refuses(weight)
    try:
        packed = pack(layout, weight)
    except LayoutError:  # a layout may also pack what it advises against
        assert reason is not None
        return
    validate(packed)
    assert torch.equal(unpack(packed), weight)
    assert count_present(packed) == int((weight != 0).sum())
    assert packed.nbytes == sum(t.numel() * t.element_size() for t in packed.tensors.values())


@given(
    out=st.integers(0, 40),
    width=st.integers(0, 90),
    density=st.floats(0, 1),
    chunk=st.integers(1, 256),
    seed=st.integers(0, 999),
)
def test_any_chunk_gives_the_weight_back(
    out: int, width: int, density: float, chunk: int, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = random_weight(out, width, density)
    for packed in (
        NMLanes().pack(weight, chunk),
        Csb().pack(weight, min(chunk, 255), 1 + chunk % 128),
    ):
        validate(packed)
        assert torch.equal(unpack(packed), weight)


def test_special_values_and_strides_survive() -> None:
    weight = torch.tensor([[float("nan"), float("inf"), 1e-45, 0.0, -0.0, -3.0]]).repeat(6, 1).t()
    assert not weight.is_contiguous()
    for layout in LAYOUTS:
        packed = pack(layout, weight)
        assert torch.equal(torch.nan_to_num(unpack(packed)), torch.nan_to_num(weight))
        assert torch.isnan(unpack(packed)).sum() == 6


def test_csr_by_hand() -> None:
    packed = pack("csr", torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [7.0, 0.0, 9.0]]))
    assert packed.tensors["rows"].tolist() == [0, 1, 1, 3]
    assert packed.tensors["columns"].tolist() == [1, 0, 2]
    assert packed.tensors["values"].tolist() == [5.0, 7.0, 9.0]
    assert packed.nbytes == 4 * 4 + 3 * 2 + 3 * 4


def test_csr_columns_are_as_narrow_as_they_can_be() -> None:
    weight = torch.zeros(1, 2**16)
    weight[0, -1] = 1.0
    assert pack("csr", weight).tensors["columns"].dtype == torch.uint16
    assert torch.equal(unpack(pack("csr", weight)), weight)
    wide = torch.zeros(1, 2**16 + 1)
    wide[0, -1] = 1.0
    assert pack("csr", wide).tensors["columns"].dtype == torch.int32
    assert torch.equal(unpack(pack("csr", wide)), wide)


def test_nm_by_hand() -> None:
    weight = torch.zeros(17, 6)
    weight[0, 1], weight[0, 3], weight[0, 5], weight[16, 2] = 1.0, 3.0, 5.0, 2.0
    packed = NMLanes().pack(weight, 4)
    values, columns = packed.tensors["values"], packed.tensors["columns"]
    assert values.shape == (2, 2, 2, 16)
    assert values[0, :, :, 0].tolist() == [[1.0, 3.0], [5.0, 0.0]]
    assert columns[0, :, :, 0].tolist() == [[1, 3], [1, 255]]
    assert (values[1, 0, 0, 0], columns[1, 0, 0, 0]) == (2.0, 2)
    assert int((columns != 255).sum()) == 4


@pytest.mark.parametrize(
    ("capability", "width", "chunk"),
    [
        *(("AVX2", 512, 255), ("AVX2", 70, 70), ("DEFAULT", 3072, 255)),
        *(("AVX512", 512, 128), ("AVX512", 161, 81), ("AVX512", 160, 160), ("AVX512", 0, 1)),
    ],
)
def test_csb_chunks_fit_the_vectors(
    monkeypatch: pytest.MonkeyPatch, capability: str, width: int, chunk: int
) -> None:
    """Even and narrower where a vector has sixteen floats, else as wide as a place can name."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    weight = random_weight(6, width, 1.0)
    packed = Csb().pack(weight)
    assert packed.meta["chunk"] == chunk
    assert torch.equal(unpack(packed), weight)


@pytest.mark.parametrize(("n", "m", "chunk"), [(3, 32, 32), (2, 4, 32), (2, 24, 24), (5, 48, 48)])
def test_nm_patterns_fill_every_slot(n: int, m: int, chunk: int) -> None:
    packed = pack("nm", n_of_m(32, 4 * 96, n, m))
    assert packed.meta["chunk"] == chunk
    assert bool((packed.tensors["values"] != 0).all())


def test_nm_refuses_waste_with_its_measure() -> None:
    weight = torch.zeros(64, 256)
    weight[0] = 1.0
    reason = LAYOUTS["nm"].refuses(weight)
    assert reason == "98% of the slots would be empty; at most 50% may be"


@pytest.mark.parametrize("layout", LAYOUTS.names())
@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.ones(3), "needs a matrix"),
        (torch.ones(2, 2, dtype=torch.float64), "needs float32; got float64"),
        (torch.eye(2).to_sparse(), "needs a dense tensor"),
    ],
    ids=["vector", "float64", "sparse"],
)
def test_refuses_what_is_no_weight(layout: str, weight: Tensor, reason: str) -> None:
    assert reason in str(LAYOUTS[layout].refuses(weight))
    with pytest.raises(LayoutError, match=reason):
        pack(layout, weight)


def test_unknown_layout_lists_what_exists() -> None:
    with pytest.raises(UnknownNameError, match="There are: block, csb, csr, nm, sell, window"):
        pack("ellpack", torch.eye(2))


CSR = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 4.0]])


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def short(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64).to(torch.uint16)


@pytest.mark.parametrize(
    ("name", "tensor", "rule"),
    [
        ("rows", ints(0, 2, 1, 4), "rows must not descend"),
        ("rows", ints(0, 5, 2, 4), "rows must not descend"),
        ("rows", ints(0, -1, 2, 4), "rows must not descend"),
        ("rows", ints(1, 2, 2, 4), "rows must run from 0 to 4; got 1 to 4"),
        ("rows", ints(0, 2, 2, 3), "rows must run from 0 to 4; got 0 to 3"),
        ("rows", ints(0, 2, 2, 2**31 - 1), "rows must run from 0 to 4"),
        ("rows", ints(0, 2, 4), "rows must have 4 entries"),
        ("rows", ints(), "rows must have 4 entries"),
        ("rows", torch.zeros(4, 1, dtype=torch.int32), "rows must have 4 entries"),
        ("rows", torch.tensor([0, 2, 2, 4]), "rows must be int32; got int64"),
        ("columns", short(1, 2, 0, 4), r"columns must lie in \[0, 4\)"),
        ("columns", short(1, 2, 0, 65535), r"columns must lie in \[0, 4\)"),
        ("columns", ints(1, 2, -1, 3), r"columns must lie in \[0, 4\)"),
        ("columns", ints(1, 2, 0, 2**31 - 1), r"columns must lie in \[0, 4\)"),
        ("columns", short(2, 1, 0, 3), "columns must ascend"),
        ("columns", short(1, 1, 0, 3), "columns must ascend"),
        ("columns", short(1, 2, 0), "must be equally long"),
        ("columns", ints(1, 2, 0, 3).long(), "columns must be uint16 or int32; got int64"),
        ("columns", torch.arange(8).to(torch.uint16)[::2], "columns must be contiguous"),
        ("values", torch.ones(4, 1), "must be equally long"),
        ("values", torch.ones(4).double(), "values must be float32"),
    ],
)
def test_csr_rejects_hostile_tensors(name: str, tensor: Tensor, rule: str) -> None:
    packed = pack("csr", CSR)
    broken = dataclasses.replace(packed, tensors={**packed.tensors, name: tensor})
    with pytest.raises(LayoutError, match=rule):
        validate(broken)
    with pytest.raises(LayoutError, match=rule):
        unpack(broken)


@pytest.mark.parametrize("layout", LAYOUTS.names())
@pytest.mark.parametrize(
    "shape", [(3,), (3, 4, 1), (-1, 4), (3, MAX_SIDE + 1), (2**62, 2**62), (3.0, 4), (True, 4), ()]
)
def test_rejects_hostile_shapes(layout: str, shape: Any) -> None:
    broken = dataclasses.replace(pack(layout, torch.ones(3, 4)), shape=shape)
    with pytest.raises(LayoutError, match="shape must be two sizes"):
        validate(broken)


@pytest.mark.parametrize("layout", LAYOUTS.names())
@pytest.mark.parametrize("shape", [(4, 4), (2**31 - 2, 4), (200, 4), (0, 4)])
def test_rejects_claims_that_tensors_do_not_bear_out(layout: str, shape: Any) -> None:
    # Of the layout nm, 3 and 4 rows look alike but for the rows beyond, which must be empty.
    weight = torch.ones(shape[0] + 1 if shape[0] < 16 else 3, 4)
    with pytest.raises(LayoutError):
        validate(dataclasses.replace(pack(layout, weight), shape=shape))


@pytest.mark.parametrize("layout", LAYOUTS.names())
def test_rejects_missing_surplus_and_foreign_tensors(layout: str) -> None:
    packed = pack(layout, torch.ones(3, 4))
    fewer = {k: v for k, v in packed.tensors.items() if k != "columns"}
    for tensors in (fewer, {}, {**packed.tensors, "more": torch.ones(1)}):
        with pytest.raises(LayoutError, match="needs tensors"):
            validate(dataclasses.replace(packed, tensors=tensors))
    with pytest.raises(LayoutError, match="is not"):
        LAYOUTS[layout].validate(dataclasses.replace(packed, layout="other"))


@pytest.mark.parametrize(
    "meta", [{}, {"chunk": 0}, {"chunk": 257}, {"chunk": -32}, {"chunk": 2**70}, {"chunk": 32.0},
             {"chunk": True}, {"chunk": 32, "more": 1}, {"slots": 4}],
)  # fmt: skip
def test_nm_rejects_hostile_meta(meta: Any) -> None:
    broken = dataclasses.replace(pack("nm", torch.ones(3, 64)), meta=meta)
    with pytest.raises(LayoutError, match="chunk"):
        validate(broken)


def test_csr_rejects_meta() -> None:
    with pytest.raises(LayoutError, match="has no meta"):
        validate(dataclasses.replace(pack("csr", torch.eye(2)), meta={"chunk": 32}))


def break_place(columns: Tensor, values: Tensor) -> None:
    columns[0, 0, 0, 0] = 32


def break_tail(columns: Tensor, values: Tensor) -> None:
    columns[0, 1, 0, 0] = 8  # the last chunk has columns 0..7


def break_empty(columns: Tensor, values: Tensor) -> None:
    values[0, 0, 0, 0] = 0.0


def break_order(columns: Tensor, values: Tensor) -> None:
    columns[0, 0, 0, 0], columns[0, 0, 1, 0] = 5, 4


def break_twice(columns: Tensor, values: Tensor) -> None:
    columns[0, 0, 1, 0] = columns[0, 0, 0, 0]


def break_gap(columns: Tensor, values: Tensor) -> None:
    values[0, 0, 0, 0], columns[0, 0, 0, 0] = 0.0, 255


def break_rows(columns: Tensor, values: Tensor) -> None:
    values[0, 0, 0, 15], columns[0, 0, 0, 15] = 1.0, 0


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (break_place, "a place lies outside of its chunk"),
        (break_tail, "a place lies outside of its chunk"),
        (break_empty, "empty slots must have place 255"),
        (break_order, "must ascend"),
        (break_twice, "must ascend"),
        (break_gap, "must ascend"),
        (break_rows, "rows beyond 3 must be empty"),
    ],
)
def test_nm_rejects_hostile_places(damage: Callable[[Tensor, Tensor], None], rule: str) -> None:
    packed = NMLanes().pack(torch.ones(3, 40), 32)
    tensors = {name: t.clone() for name, t in packed.tensors.items()}
    damage(tensors["columns"], tensors["values"])
    with pytest.raises(LayoutError, match=rule):
        validate(dataclasses.replace(packed, tensors=tensors))


@pytest.mark.parametrize(
    ("values", "columns", "rule"),
    [
        ((1, 2, 32, 16), (1, 2, 31, 16), "columns must have the shape of values"),
        ((1, 3, 32, 16), (1, 3, 32, 16), "values must be"),
        ((2, 2, 32, 16), (2, 2, 32, 16), "values must be"),
        ((1, 2, 32, 8), (1, 2, 32, 8), "values must be"),
        ((1, 2, 33, 16), (1, 2, 33, 16), "at most 32 slots; got 33"),
        ((1024,), (1024,), "values must be"),
    ],
)
def test_nm_rejects_hostile_sizes(values: Any, columns: Any, rule: str) -> None:
    tensors = {"values": torch.zeros(values), "columns": torch.full(columns, 255).to(torch.uint8)}
    with pytest.raises(LayoutError, match=rule):
        validate(Packed("nm", (3, 64), tensors, {"chunk": 32}))


def test_nm_chunk_argument_is_checked() -> None:
    for chunk in (0, 257):
        with pytest.raises(LayoutError, match="chunk must be in"):
            NMLanes().pack(torch.eye(2), chunk)


@pytest.mark.parametrize(
    ("name", "at", "value", "rule"),
    [
        ("starts", 0, 1, "starts must run from 0 to 10"),
        ("starts", 1, 11, "starts must not descend"),
        ("order", (0, 0), 18, "order must lie in"),
        ("order", (0, 0), -2, "order must lie in"),
        ("order", (0, 0), -1, "order must name every row once"),
        ("order", (0, 1), 0, "order must name every row once"),
        ("columns", (0, 0), 6, "columns must lie in"),
        ("columns", (1, 0), 0, "columns of a row must ascend"),
        ("values", (0, 0), 0.0, "padding at 5"),
        ("values", (5, 2), 1.0, "columns must lie in"),
    ],
)
def test_sell_rejects_hostile_tensors(name: str, at: Any, value: float, rule: str) -> None:
    packed = pack("sell", torch.ones(18, 5))  # the second slice has two rows
    assert packed.tensors["columns"].shape == (10, 16)
    _reject(packed, name, at, value, rule)


@pytest.mark.parametrize(("layout", "place"), [("sell", "columns"), ("window", "places")])
def test_lanes_without_a_row_hold_nothing(layout: str, place: str) -> None:
    packed = pack(layout, torch.ones(18, 40))  # the second slice has two rows
    tensors = {k: t.clone() for k, t in packed.tensors.items()}
    tensors["values"].view(-1)[40 * 16 + 2] = 1.0
    tensors[place].view(-1)[40 * 16 + (2 * 4 if layout == "window" else 2)] = 0
    with pytest.raises(LayoutError, match="lanes without a row must be empty"):
        validate(dataclasses.replace(packed, tensors=tensors))


@pytest.mark.parametrize(
    ("name", "at", "value", "rule"),
    [
        ("starts", 0, 4, "starts must run from 0 to 80"),
        ("starts", 1, 84, "starts must not descend"),
        ("starts", 1, 42, "starts must be multiples of 4"),
        ("order", (0, 0), 18, "order must lie in"),
        ("order", (0, 1), 0, "order must name every row once"),
        ("columns", 0, 9, r"columns must lie in \[0, 8\]"),
        ("places", (0, 0, 0), 32, r"places must lie in \[0, 32\)"),
        ("places", (0, 0, 1), 0, "columns of a row must ascend"),
        ("firsts", 0, 1, "firsts must run from 0 to 1280"),
        ("firsts", 1, 1281, "firsts must not descend"),
        ("firsts", 1, 624, "firsts must count the values before each slice"),
        ("values", 0, 0.0, "padding at 255"),
        ("values", 40 * 16 + 2, 1.0, "padding at 255"),
    ],
)
def test_window_rejects_hostile_tensors(name: str, at: Any, value: float, rule: str) -> None:
    packed = pack("window", torch.ones(18, 40))  # the second slice has two rows
    assert packed.tensors["values"].shape == (80 * 16,)
    _reject(packed, name, at, value, rule)


def test_window_rejects_hostile_sizes() -> None:
    packed = pack("window", torch.ones(3, 20))
    _reject(packed, "places", (0, 0, 0), 25, r"columns of weights must lie in \[0, 20\)")
    for name, shape, rule in (
        ("values", (20, 8), "values must be"),
        ("values", (321,), "values must be"),
        ("values", (319,), "firsts must run from 0 to 319"),
        ("firsts", (3,), "firsts must have 2 entries"),
        ("columns", (20,), r"columns must be \(10,\)"),
        ("columns", (10, 1), r"columns must be \(10,\)"),
        ("places", (320,), "places must be"),
        ("places", (5, 4, 16), "places must be"),
    ):
        tensors = dict(packed.tensors)
        tensors[name] = torch.zeros(shape).to(tensors[name].dtype)
        with pytest.raises(LayoutError, match=rule):
            validate(dataclasses.replace(packed, tensors=tensors))


@pytest.mark.parametrize(
    ("name", "at", "value", "rule"),
    [
        ("starts", (0, 0), 1, "starts must run from"),
        ("starts", (1, 0), 9, "starts must not descend"),
        ("starts", (1, 1), 2, "steps must fit the starts"),
        ("pairs", 0, -1, "pairs must not be negative"),
        ("pairs", 0, 0 | 5 << 8 | 4 << 16, r"rows of a pair must lie in \[0, 4\]"),
        ("pairs", 0, 0 | 1 << 8 | 3 << 16, "steps of a pair must be even"),
        ("pairs", 0, 0 | 1 << 8 | 6 << 16, "steps must fit the starts"),
        ("pairs", 0, 2 | 1 << 8 | 4 << 16, "must name a row once"),
        ("columns", (0, 0), 4, "a place must lie inside its chunk"),
        ("columns", (-1, 0), 0, "padding at 255"),
        ("columns", (1, 0), 0, "places of a row must ascend"),
        ("values", (0, 0), 0.0, "padding at 255"),
    ],
)
def test_csb_rejects_hostile_tensors(name: str, at: Any, value: float, rule: str) -> None:
    packed = Csb().pack(torch.ones(6, 7), 4, 4)  # the last chunk has 3 columns, so a step is empty
    assert packed.tensors["pairs"][0] == 0 | 1 << 8 | 4 << 16
    assert packed.tensors["columns"][-1].tolist() == [255, 255]
    _reject(packed, name, at, value, rule)


def test_csb_rejects_rows_beyond_the_weight() -> None:
    packed = Csb().pack(torch.ones(6, 4), 4, 4)
    with pytest.raises(LayoutError, match="beyond 5"):
        validate(dataclasses.replace(packed, shape=(5, 4)))


@pytest.mark.parametrize(
    "meta", [{}, {"chunk": 8}, {"chunk": 0, "block": 64}, {"chunk": 256, "block": 64},
             {"chunk": 8, "block": 129}, {"chunk": 8, "block": 0}, {"chunk": True, "block": 64},
             {"chunk": 8, "block": 2.0}, {"chunk": 8, "block": 64, "more": 1}],
)  # fmt: skip
def test_csb_rejects_hostile_meta(meta: Any) -> None:
    broken = dataclasses.replace(pack("csb", torch.ones(3, 8)), meta=meta)
    with pytest.raises(LayoutError, match=r"chunk|block"):
        validate(broken)


def test_csb_s_sizes_are_checked() -> None:
    for sizes in ((0, 4), (256, 4), (8, 0), (8, 129)):
        with pytest.raises(LayoutError, match="needs chunk in"):
            Csb().pack(torch.eye(2), *sizes)


def test_rows_of_like_counts_need_little_padding() -> None:
    """Which is what the order is for: 90 % sparse, at random."""
    weight = random_weight(512, 1024, 0.1)
    for layout, most in (("sell", 1.02), ("csb", 1.08), ("window", 1.6)):
        packed = pack(layout, weight)
        assert packed.tensors["values"].numel() <= most * count_present(packed)


def test_windows_begin_at_multiples_of_eight_columns_or_end_with_the_row() -> None:
    columns = pack("window", random_weight(160, 2001, 0.1)).tensors["columns"].to(torch.int32)
    last = columns == 2001 - 32
    assert bool((last | (columns % 8 == 0)).all())
    assert bool((columns[~last] % 16 == 8).any())
    assert 0 < last.float().mean() < 0.1


def test_two_steps_of_a_window_take_two_columns_of_each_row() -> None:
    weight = torch.zeros(16, 100)
    weight[0, [8, 9, 20, 90]], weight[1, 30] = torch.tensor([1.0, 2, 3, 4]), 5
    packed = pack("window", weight)
    assert packed.tensors["columns"].tolist() == [8, 16, 68, 0]  # the last is of padding
    places = packed.tensors["places"].transpose(1, 2).reshape(-1, 16)
    none = 255
    assert places[:, 0].tolist() == [0, 1, 4, none, 22, none, none, none]
    assert places[:, 1].tolist() == [22, none, none, none, none, none, none, none]


def squeezed(weight: Tensor, monkeypatch: pytest.MonkeyPatch, values: str = "fp32") -> Packed:
    with monkeypatch.context() as patch:
        patch.setattr(window, "NEAR", -1)  # as if it were large
        patch.setattr(window, "DENSE_USE", 1.0)
        return pack("window", weight, values)


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
def test_padding_of_a_large_weight_has_no_values(values, monkeypatch) -> None:
    weight = random_weight(70, 300, 0.1)
    weight[5] = 0
    weight[40, 20:90] = 2
    packed = squeezed(weight, monkeypatch, values)
    assert packed.tensors["values"].numel() == count_present(packed) == int((weight != 0).sum())
    assert torch.equal(unpack(packed), rounded(weight, values))
    place = packed.tensors["places"]
    hole = int((place.transpose(1, 2).reshape(-1) == 255).nonzero()[0])
    at = (hole // 64, hole % 16, hole // 16 % 4)
    for name, where, value, rule in (
        ("firsts", 2, int(packed.tensors["firsts"][2]) - 1, "firsts must count the values"),
        ("places", at, 31, "firsts must count the values"),
        ("values", 3, 0, "padding at 255"),
    ):
        _reject(packed, name, where, value, rule)


def test_windows_of_much_padding_are_squeezed_where_the_weight_is_large() -> None:
    dense, thin = random_weight(800, 2000, 0.5), random_weight(2000, 2000, 0.1)
    larger = random_weight(1200, 2000, 0.9)
    for weight, whole in ((dense, True), (thin[:160], True), (thin, False), (larger, False)):
        packed = pack("window", weight)
        places = packed.tensors["places"].numel()
        assert packed.tensors["values"].numel() == (places if whole else count_present(packed))
        assert torch.equal(unpack(packed), weight)


def test_windows_of_many_weights_and_of_views() -> None:
    weight = torch.ones(2100, 2100)
    assert LAYOUTS["window"].refuses(weight) is None
    assert count_present(pack("window", weight)) == weight.numel()
    negative = torch._neg_view(random_weight(40, 50, 0.5))
    assert torch.equal(unpack(pack("window", negative)), negative + 0.0)


def test_a_few_long_rows_take_no_memory_for_the_others() -> None:
    weight = torch.zeros(2000, 700)
    weight[:, 3], weight[5:9] = 1, 2
    packed = pack("window", weight)
    assert torch.equal(unpack(packed), weight)
    assert packed.tensors["starts"].diff()[1:].max() == 4


def test_rows_that_lie_apart_do_not_share_windows() -> None:
    weight = torch.zeros(64, 64 * 64)
    for row in range(64):
        weight[row, row * 64 : row * 64 + 40] = 1
    assert "of the places would be padding" in str(LAYOUTS["window"].refuses(weight))
    assert torch.equal(unpack(pack("window", weight)), weight)


def _reject(packed: Packed, name: str, at: Any, value: float, rule: str) -> None:
    tensors = {k: t.clone() for k, t in packed.tensors.items()}
    tensors[name][at] = value
    validate(packed)
    with pytest.raises(LayoutError, match=rule):
        validate(dataclasses.replace(packed, tensors=tensors))
