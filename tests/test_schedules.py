"""Schedules: published curves, exact ends, and no value outside of their span."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsewright.errors import ConfigError
from sparsewright.schedules import SCHEDULES, Constant, Cosine, Cubic, Exponential, Linear

RAMPS = sorted(set(SCHEDULES) - {"constant"})
VALUES = st.floats(1e-3, 1e3)


def test_cubic_as_zhu_and_gupta_have_it():
    schedule = Cubic(0.0, 0.9, begin=200, end=1200)
    values = [schedule(200 + 1000 * x) for x in (0, 0.1, 0.25, 0.5, 0.75, 1)]
    assert values == pytest.approx([0, 0.2439, 0.5203, 0.7875, 0.8859, 0.9], abs=5e-5)


def test_cosine_as_rigl_has_it():
    schedule = Cosine(0.3, end=75_000)
    values = [schedule(75_000 * x) for x in (0, 0.25, 0.5, 0.75, 1, 1.2)]
    assert values == pytest.approx([0.3, 0.2561, 0.15, 0.0439, 0, 0], abs=5e-5)
    assert schedule(75_000) == 0.0


def test_linear_and_exponential_by_hand():
    assert [Linear(1.0, 0.0, begin=2, end=6)(t) for t in (2, 3, 4, 6)] == [1, 0.75, 0.5, 0]
    halving = Exponential(8.0, 1.0, begin=1, end=4)
    assert [halving(t) for t in (1, 2, 3, 4)] == pytest.approx([8, 4, 2, 1])


def test_constant_is_constant():
    assert {Constant(0.5)(t) for t in (-1, 0, 7.5, 1e9)} == {0.5}


@pytest.mark.parametrize("name", RAMPS)
@given(
    initial=VALUES, final=VALUES, begin=st.floats(-1e6, 1e6), span=st.floats(1, 1e6), data=st.data()
)
def test_ramps_meet_both_ends_exactly_and_stay_between(name, initial, final, begin, span, data):
    end = begin + span
    ramp = SCHEDULES[name](initial, final, begin=begin, end=end)
    assert ramp(begin) == ramp(begin - 1) == ramp(-math.inf) == initial
    assert ramp(end) == ramp(end + 1) == ramp(math.inf) == final
    steps = sorted(data.draw(st.lists(st.floats(begin, end), min_size=2, max_size=5)))
    values = [ramp(step) for step in steps]
    low, high = min(initial, final), max(initial, final)
    slack = 1e-12 * high
    assert all(low - slack <= value <= high + slack for value in values)
    falls = [b - a for a, b in pairwise(values)]
    sign = 1 if final >= initial else -1
    assert all(sign * change >= -slack for change in falls)


@pytest.mark.parametrize("name", RAMPS)
@pytest.mark.parametrize(("begin", "end"), [(5, 5), (6, 5)])
def test_ramps_must_begin_before_they_end(name, begin, end):
    with pytest.raises(
        ConfigError, match=f"must begin before it ends; got begin={begin} and end=5"
    ):
        SCHEDULES[name](1.0, 0.5, begin=begin, end=end)


@pytest.mark.parametrize("name", RAMPS)
@pytest.mark.parametrize("field", ["initial", "final", "begin", "end"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_must_be_finite(name, field, value):
    fields = {"initial": 1.0, "final": 0.5, "begin": 0, "end": 1} | {field: value}
    with pytest.raises(ConfigError, match=f"needs a finite {field}; got {value}"):
        SCHEDULES[name](**fields)


def test_constant_must_be_finite():
    with pytest.raises(ConfigError, match="Constant needs a finite value; got nan"):
        Constant(math.nan)


@pytest.mark.parametrize(("initial", "final"), [(0.0, 1.0), (1.0, 0.0), (-1.0, -2.0)])
def test_exponential_needs_positive_values(initial, final):
    with pytest.raises(ConfigError, match=f"above 0; got {initial} and {final}"):
        Exponential(initial, final)


def test_all_are_in_the_table():
    assert SCHEDULES.names() == ["constant", "cosine", "cubic", "exponential", "linear"]
