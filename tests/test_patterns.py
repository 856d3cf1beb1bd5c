"""Patterns: round trips for every registered one, and masks worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsewright.core import Pattern
from sparsewright.errors import ConfigError, UnknownNameError
from sparsewright.keeping import keep_best
from sparsewright.patterns import PATTERNS, as_pattern, places_of, row_step, units_of
from sparsewright.patterns._places import unit_of_all
from sparsewright.patterns.block import Block
from sparsewright.patterns.channel import Channel
from sparsewright.patterns.fan_in import FanIn
from sparsewright.patterns.nm import NM
from sparsewright.patterns.unstructured import Unstructured

NAMES = [example for _, kind in PATTERNS.items() for example in kind.examples]
# Linear and Embedding have no kernel, Conv1d/2d/3d one to three dimensions of it.
KERNELS = st.lists(st.integers(1, 3), min_size=0, max_size=3)


@st.composite
def fitting(draw, name):
    """A shape that the pattern fits: multiples of what the examples' groups and tiles need."""
    pattern = as_pattern(name)
    widths = [w for w in (1, 2, 3, 4, 8, 32, 64) if pattern.misfit((4, w)) is None]
    heights = [h for h in (1, 3, 4, 8) if pattern.misfit((h, widths[-1])) is None]
    shape = (draw(st.sampled_from(heights)), draw(st.sampled_from(widths)), *draw(KERNELS))
    assert pattern.misfit(shape) is None
    return shape


@pytest.mark.parametrize("name", NAMES)
def test_name_and_text_are_one(name):
    assert isinstance(as_pattern(name), Pattern)
    assert str(as_pattern(name)) == name
    assert as_pattern(as_pattern(name)) == as_pattern(name)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_fold_undoes_unfold(name, data):
    pattern, shape = as_pattern(name), data.draw(fitting(name))
    groups, units = pattern.fold(torch.empty(shape, device="meta")).shape
    unit_size = torch.Size(shape).numel() // (groups * units)
    assert groups * units * unit_size == torch.Size(shape).numel()
    table = torch.arange(1.0, groups * units + 1).reshape(groups, units)
    spread = pattern.unfold(table, shape)
    assert spread.shape == shape
    assert torch.equal(pattern.fold(spread), table * unit_size)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_units_and_places_are_those_of_the_table(name, data):
    pattern, shape = as_pattern(name), data.draw(fitting(name))
    unit_of = unit_of_all(pattern, shape, torch.device("cpu"))
    places = torch.arange(len(unit_of))
    assert torch.equal(units_of(pattern, places, shape), unit_of)
    units = unit_of.unique()
    of_units = places_of(pattern, units, shape)
    assert torch.equal(unit_of[of_units], units[:, None].expand(of_units.shape))
    assert torch.equal(of_units.flatten().sort().values, places)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_rows_that_stay_together_have_a_run_of_the_units(name, data):
    pattern, shape = as_pattern(name), data.draw(fitting(name))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    step = row_step(pattern, shape)
    runs = [pattern.fold(weight[i : i + step]).flatten() for i in range(0, shape[0], step)]
    assert torch.equal(torch.cat(runs), pattern.fold(weight).flatten())


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_mask_has_exactly_what_the_table_has(name, data):
    pattern, shape = as_pattern(name), data.draw(fitting(name))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scores = pattern.fold(weight.abs())
    allowed = pattern.allowed(scores.shape[1])
    keep = data.draw(st.sampled_from(allowed))
    mask = pattern.unfold(keep_best(scores, keep), shape)
    assert mask.dtype == torch.bool
    assert mask.shape == shape
    assert int(mask.sum()) * scores.numel() == keep * scores.shape[0] * weight.numel()


@pytest.mark.parametrize("name", NAMES)
def test_sum_is_kept_by_folding(name):
    pattern = as_pattern(name)
    weight = torch.arange(32.0 * 64).reshape(32, 64)
    assert pattern.fold(weight).sum() == weight.sum()


@pytest.mark.parametrize("name", NAMES)
def test_empty_weights_fold_and_unfold(name):
    pattern = as_pattern(name)
    for shape in [(0, 32), (32, 0), (0, 0), (32, 32, 0)]:
        table = pattern.fold(torch.zeros(shape))
        assert table.dim() == 2
        assert pattern.unfold(table.bool(), shape).shape == shape


def bits(text):
    """'1 0 / 0 1' -> bool table."""
    return torch.tensor([[c == "1" for c in row.split()] for row in text.split("/")])


def test_unstructured_by_hand():
    assert torch.equal(Unstructured().unfold(bits("1 0 0 1"), (2, 2)), bits("1 0 / 0 1"))


def test_fan_in_by_hand():
    weight = torch.tensor([[1.0, 5.0, 3.0], [9.0, 8.0, 7.0]])
    table = keep_best(FanIn().fold(weight), 2)
    assert torch.equal(FanIn().unfold(table, (2, 3)), bits("0 1 1 / 1 1 0"))


def test_fan_in_of_a_convolution_counts_channels_and_kernel():
    assert FanIn().fold(torch.zeros(5, 2, 3, 3)).shape == (5, 18)


def test_channel_by_hand():
    weight = torch.tensor([[1.0, 1.0], [3.0, 0.0], [0.0, 2.5]])
    table = keep_best(Channel().fold(weight), 2)
    assert torch.equal(table, bits("0 1 1"))
    assert torch.equal(Channel().unfold(table, (3, 2)), bits("0 0 / 1 1 / 1 1"))


def test_block_by_hand():
    mask = Block(2, 3).unfold(bits("1 0 0 1"), (4, 6))
    top, bottom = "1 1 1 0 0 0", "0 0 0 1 1 1"
    assert torch.equal(mask, bits(" / ".join([top, top, bottom, bottom])))


def test_block_of_a_convolution_lies_in_one_kernel_position():
    # (out 2, in 2, kernel 2): one tile per kernel position.
    mask = Block(2, 2).unfold(bits("0 1"), (2, 2, 2))
    assert torch.equal(mask[..., 0], bits("0 0 / 0 0"))
    assert torch.equal(mask[..., 1], bits("1 1 / 1 1"))


def test_nm_by_hand():
    weight = torch.tensor([[1.0, -4.0, 2.0, -3.0, 0.0, 0.0, 7.0, 0.0]])
    table = keep_best(NM(2, 4).fold(weight.abs()), 2)
    assert torch.equal(NM(2, 4).unfold(table, (1, 8)), bits("0 1 0 1 1 0 1 0"))


def test_nm_groups_of_a_convolution_run_along_input_channels():
    # (out 1, in 4, kernel 2): the best two channels differ between the two kernel positions.
    weight = torch.tensor([[[9.0, 1.0], [8.0, 2.0], [1.0, 3.0], [2.0, 4.0]]])
    table = NM(2, 4).fold(weight)
    assert torch.equal(table, torch.tensor([[9.0, 8.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]]))
    mask = NM(2, 4).unfold(keep_best(table, 2), (1, 4, 2))
    assert torch.equal(mask[0], bits("1 0 / 1 0 / 0 1 / 0 1"))


TILES = "needs out_features divisible by 4 and in_features by 2"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("3:32", (10, 100), "needs in_features divisible by 32; got 100"),
        ("2:4", (8, 6, 3, 3), "needs in_features divisible by 4; got 6"),
        (
            "block:4x2",
            (6, 3),
            "needs out_features divisible by 4 and in_features by 2; got 6 and 3",
        ),
        (
            "block:4x2",
            (8, 3),
            "needs out_features divisible by 4 and in_features by 2; got 8 and 3",
        ),
        ("channel", (8,), "needs a weight of 2 dimensions or more; got 1"),
        ("fan_in", (8,), "needs a weight of 2 dimensions or more; got 1"),
        ("2:4", (8,), "needs a weight of 2 dimensions or more; got 1"),
        ("block:1x1", (8,), "needs a weight of 2 dimensions or more; got 1"),
    ],
)
def test_misfits_name_rule_and_value(name, shape, message):
    assert as_pattern(name).misfit(shape) == message


def test_unstructured_fits_everything():
    assert Unstructured().misfit((7,)) is None


@pytest.mark.parametrize("name", ["unstructured", "channel", "fan_in", "block:2x2"])
def test_free_patterns_hold_any_count(name):
    assert list(as_pattern(name).allowed(3)) == [0, 1, 2, 3]
    assert as_pattern(name).sparsity is None


def test_nm_holds_one_count_only():
    assert list(NM(3, 32).allowed(32)) == [3]
    assert NM(3, 32).sparsity == 0.90625


@pytest.mark.parametrize("name", ["4:4", "0:4", "5:4", "block:0x4", "block:4x0"])
def test_impossible_patterns_are_refused(name):
    with pytest.raises(ConfigError, match=name.removeprefix("block:")):
        as_pattern(name)


@pytest.mark.parametrize("name", ["2-4", "block:4", "channels", "", "2:4x", "-1:4"])
def test_unknown_names_list_what_exists(name):
    with pytest.raises(UnknownNameError, match="no pattern is called") as caught:
        as_pattern(name)
    for known in NAMES:
        assert known in str(caught.value)
