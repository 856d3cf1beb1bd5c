"""Methods by hand: mask tables worked out on paper, schedules, options, timing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.core import Layer
from sparsewright.methods._drop_grow import drop_and_grow
from sparsewright.patterns import as_pattern
from sparsewright.scores import as_score
from sparsewright.storage import MaskedStorage

X = False
O = True  # noqa: E741 - drawn as a table


def layer_of(weight, table, pattern="unstructured", gradient=None, keep=None):
    """A layer in a given state."""
    weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    if gradient is not None:
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
    table = torch.tensor(table)
    if keep is None:
        keep = int(table.sum(dim=1)[0])
    generator = torch.Generator().manual_seed(0)
    storage = MaskedStorage(weight, as_pattern(pattern), table)
    return Layer("fc", storage, as_pattern(pattern), keep, generator)


def after(layer, exchange):
    """The flat units that a layer has after an exchange."""
    units = torch.cat([layer.present_units[~exchange.leaves], exchange.comes])
    return units.sort().values


def table_of(layer, units):
    """Flat units as a (groups, units) table, as a list."""
    table = torch.zeros(layer.groups, layer.units, dtype=torch.bool)
    table.view(-1)[units] = True
    return table.tolist()


#                  0    1    2   3   4   5   6   7
WEIGHT = [[0.1, -0.5, 0.3, 0.0, 0.0, 0.2, 0.0, 0.0]]
TABLE = [[O, O, O, X, X, O, X, X]]
GRADIENT = [[9.0, 9.0, 9.0, 4.0, 1.0, -8.0, -5.0, 2.0]]


def test_rigl_drops_the_smallest_and_grows_the_steepest_among_those_not_kept():
    # Half of 4 go: 0 (0.1) and 5 (0.2). Candidates are 0, 3, 4, 5, 6, 7; the steepest are 0 (9)
    # and 5 (8), which were just dropped and may return.
    layer = layer_of(WEIGHT, TABLE, gradient=GRADIENT)
    update = drop_and_grow(layer, 0.5, drop="magnitude", grow="gradient")
    assert table_of(layer, after(layer, update)) == [[O, O, O, X, X, O, X, X]]
    assert not len(update.comes), "dropped and grown at once: value and state stay (RigL's code)"


def test_rigl_without_the_just_dropped():
    # Without 0 and 5 the steepest are 6 (5) and 3 (4).
    layer = layer_of(WEIGHT, TABLE, gradient=GRADIENT)
    update = drop_and_grow(layer, 0.5, drop="magnitude", grow="gradient", exclude_dropped=True)
    assert table_of(layer, after(layer, update)) == [[X, O, O, O, X, X, O, X]]
    assert table_of(layer, update.comes) == [[X, X, X, O, X, X, O, X]]


def test_regrown_weights_can_start_anew():
    layer = layer_of(WEIGHT, TABLE, gradient=GRADIENT)
    update = drop_and_grow(layer, 0.5, drop="magnitude", grow="gradient", regrown="reset")
    assert table_of(layer, update.comes) == [[O, X, X, X, X, O, X, X]]


def test_ties_go_to_the_first():
    layer = layer_of([[1.0, 1.0, 0.0, 0.0]], [[O, O, X, X]], gradient=[[0.0, 0.0, 3.0, 3.0]])
    update = drop_and_grow(layer, 0.5, drop="magnitude", grow="gradient")
    assert table_of(layer, after(layer, update)) == [[O, X, O, X]]


def test_nm_drops_over_the_whole_table_and_refills_each_group():
    # 2:4, two groups. A quarter of 4 goes: the smallest of all, -0.1 in the second group, which
    # alone is refilled, by its steepest place.
    layer = layer_of(
        [[0.9, 0.8, 0.0, 0.0, 0.7, 0.0, -0.1, 0.0]],
        [[O, O, X, X], [O, X, O, X]],
        pattern="2:4",
        gradient=[[0.0, 0.0, 9.0, 9.0, 0.0, 1.0, 0.5, 2.0]],
    )
    update = drop_and_grow(layer, 0.25, drop="magnitude", grow="gradient")
    assert table_of(layer, after(layer, update)) == [[O, O, X, X], [O, X, X, O]]


def test_blocks_move_as_one():
    # Two of four 1x2 tiles present; sums of |w| are 0.3 and 1.0, of |g| 2 (tile 1) and 5 (tile 3).
    layer = layer_of(
        [[0.1, -0.2, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0]],
        [[O, X, O, X]],
        pattern="block:1x2",
        gradient=[[1.0, 1.0, 1.0, -1.0, 0.0, 0.0, -5.0, 0.0]],
    )
    update = drop_and_grow(layer, 0.5, drop="magnitude", grow="gradient")
    assert table_of(layer, after(layer, update)) == [[X, X, O, O]]


def test_set_drops_the_same_fraction_of_each_sign():
    # Positives .1 .2 .3 .4, negatives -1 -2 -3 -4: half of each sign goes, although by magnitude
    # all positives would. Growth is random over the 4 dropped and the 2 absent places.
    weight = [[0.1, 0.2, 0.3, 0.4, -1.0, -2.0, -3.0, -4.0, 0.0, 0.0]]
    layer = layer_of(weight, [[O] * 8 + [X] * 2])
    update = sw.SET(every=1, fraction=0.5).update(layer, 1)
    kept = [False, False, True, True, False, False, True, True]
    assert {i for i, k in enumerate(kept) if k} <= set(after(layer, update).tolist())
    assert len(after(layer, update)) == 8


def test_signed_rank_by_hand():
    layer = layer_of([[0.5, -0.1, 0.2, -0.9, 0.0, 0.0]], [[O, O, O, O, O, X]])
    scores = as_score("signed_rank")(layer)
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.5, 2 / 3, 1.0, 1 / 3, 0.0]]))


def test_set_grows_evenly():
    counts = torch.zeros(8)
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        layer = layer_of([[1.0, 2.0, 0, 0, 0, 0, 0, 0]], [[O, O, X, X, X, X, X, X]])
        layer.generator = generator
        update = drop_and_grow(layer, 0.5, drop="magnitude", grow="random", exclude_dropped=True)
        counts[after(layer, update)] += 1
    assert counts[:2].tolist() == [0, 400]
    # 400 draws over 6 places: mean 66.7, standard deviation 7.5; six of them either side
    assert ((counts[2:] > 22) & (counts[2:] < 112)).all()


def test_set_removes_without_adding_at_the_end_if_asked():
    layer = layer_of(WEIGHT, TABLE)
    method = sw.SET(every=2, fraction=0.5, drop="magnitude", last="remove").bind(steps=6)
    assert [t for t in range(7) if method.due(t)] == [2, 4, 5]
    assert table_of(layer, after(layer, method.update(layer, 5))) == [[X, O, O, X, X, X, X, X]]
    with pytest.raises(sw.ConfigError, match=r"layer 'fc': removing without adding .* 2:4"):
        method.begin(layer_of([[1.0, 2.0, 0, 0] * 2], [[O, O, X, X]] * 2, "2:4"))


def test_normal_start_of_grown_weights():
    layer = layer_of(torch.ones(1, 2000).tolist(), [[O] * 1000 + [X] * 1000])
    update = drop_and_grow(layer, 0.5, drop="magnitude", grow="random", grown="normal")
    assert update.values.std().item() == pytest.approx(0.1, rel=0.1)


def test_an_infinite_gradient_does_not_displace_what_is_kept():
    inf = float("inf")
    layer = layer_of([[0.0, 0.0, 0.1, 3.0]], [[X, X, O, O]], gradient=[[inf, inf, 0.0, 0.0]])
    update = drop_and_grow(layer, 0.5, drop="magnitude", grow="gradient")
    assert table_of(layer, after(layer, update)) == [[O, X, X, O]]


@pytest.mark.parametrize(
    ("method", "due"),
    [
        (sw.RigL(every=10), [0, 10, 20]),  # start 0 and end 3/4 of 40 = 30, exclusive
        (sw.RigL(every=10, start=5, end=26), [5, 15, 25]),
        (sw.SET(every=10), [10, 20, 30]),
        (sw.Gradual(every=10, end=25), [0, 10, 20, 25]),
        (sw.Static(), []),
    ],
)
def test_when_updates_fall(method, due):
    bound = method.bind(steps=40)
    assert [t for t in range(40) if bound.due(t)] == due


def test_rigl_alpha_of_the_paper():
    rigl = sw.RigL(fraction=0.3).bind(steps=400)
    found = [rigl.fraction_at(t) for t in (0, 75, 150, 225, 300)]
    assert found == pytest.approx([0.3, 0.256, 0.15, 0.0439, 0.0], abs=1e-4)


def test_gradual_follows_the_cubic_ramp_of_zhu_and_gupta():
    ramp = sw.Gradual(every=1, start=0, end=100)
    found = [1 - ramp.kept(100_000, 10_000, t) / 100_000 for t in (10, 25, 50, 75, 100)]
    assert found == pytest.approx([0.2439, 0.5203, 0.7875, 0.8859, 0.9], abs=1e-4)


def test_gradual_prunes_nothing_before_its_ramp_and_begins_it_where_asked():
    # s(x) = 0.9 - 0.7 (1 - x)^3: 0.2 at step 4, then 0.3897 and 0.8125, and 0.9 at step 104.
    layer = layer_of(torch.randn(1, 1000).tolist(), [[O] * 1000], keep=100)
    method = sw.Gradual(every=10, start=4, end=104, initial_sparsity=0.2)
    assert len(method.begin(layer)) == 1000
    assert not any(method.due(t) for t in range(4))
    kept = {t: len(method.update(layer, t)) for t in (4, 14, 54, 104)}
    assert kept == {4: 800, 14: 611, 54: 188, 104: 100}
    # A ramp from the first step on begins there.
    at_once = sw.Gradual(every=10, end=100, initial_sparsity=0.2)
    assert len(at_once.begin(layer)) == 800
    # Nor does it begin with fewer than are kept in the end.
    sparser = sw.Gradual(every=10, end=100, initial_sparsity=0.95)
    assert len(sparser.begin(layer)) == 100


def test_gradual_of_nm_passes_through_whole_numbers_to_n():
    ramp = sw.Gradual(every=1, end=20)
    kept = [ramp.kept(4, 2, t) for t in range(21)]
    assert (kept[0], kept[-1]) == (4, 2)
    assert kept == sorted(kept, reverse=True)


def test_gradual_never_regrows():
    layer = layer_of(WEIGHT, TABLE, keep=2)
    units = sw.Gradual(every=1, end=4).update(layer, 3)
    assert set(units.tolist()) < set(layer.present_units.tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sw.RigL(every=0), r"method RigL: every .* must be 1 or more; got 0"),
        (lambda: sw.RigL(fraction=1.5), r"method RigL: fraction .* must be in \[0, 1\]; got 1.5"),
        (lambda: sw.SET(every=5, end=2), r"end must not come before start=5; got 2"),
        (lambda: sw.Gradual(start=-1), r"method Gradual: start .* 0 or more; got -1"),
        (lambda: sw.Gradual(initial_sparsity=1.0), r"initial_sparsity must be in \[0, 1\)"),
        (lambda: sw.RigL().bind(None), r"method RigL must know when to stop: give attach\(steps="),
        (lambda: sw.Gradual(end=40).bind(40), r"end within the run, before step 40; got end=40"),
        (lambda: sw.SET(last="remove").bind(None), r"last='remove' must know the run's length"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(sw.ConfigError, match=message):
        make()


def test_fractions_may_be_schedules_of_ones_own():
    fall = sw.schedules.Linear(0.5, 0.0, end=10)
    assert sw.RigL(fraction=fall).bind(steps=20).fraction_at(5) == 0.25
    assert sw.SET(fraction=fall).bind(steps=20).fraction_at(10) == 0.0
    with pytest.raises(sw.ConfigError, match=r"layer 'fc': fraction .* in \[0, 1\]; got 2.0"):
        sw.SET(fraction=lambda step: 2.0).update(layer_of(WEIGHT, TABLE), 1)


def test_a_mistyped_option_is_refused():
    with pytest.raises(sw.UnknownNameError, match="no value of RigL's grown is called 'zeros'"):
        sw.RigL(grown="zeros")
    with pytest.raises(sw.UnknownNameError, match="no value of SET's last is called 'drop'"):
        sw.SET(last="drop")


def test_a_gradient_that_is_not_a_number_names_its_layer():
    layer = layer_of(WEIGHT, TABLE, gradient=[[float("nan")] * 8])
    with pytest.raises(sw.StateError, match="layer 'fc': scores by gradient hold NaN"):
        sw.RigL(end=10).update(layer, 0)


def test_gse_grows_the_steepest_of_its_sample():
    # Half of 4 go: 0 and 5. Besides the kept 1 and 2 six units are free; a sample of them all is
    # RigL, and of two sampled units both must come.
    layer = layer_of(WEIGHT, TABLE, gradient=GRADIENT)
    every = drop_and_grow(layer, 0.5, drop="magnitude", grow="gradient", sample=9.0)
    assert table_of(layer, after(layer, every)) == [[O, O, O, X, X, O, X, X]]
    layer.keep = 2 + 1
    seen = set()
    for _ in range(40):
        wish = drop_and_grow(layer, 0.5, drop="magnitude", grow="gradient", sample=0.5)
        (grown,) = set(after(layer, wish).tolist()) - {1, 2}  # the steeper of two
        seen.add(grown)
    assert 4 not in seen, "the flattest of all is never the steeper of two"
    assert len(seen) > 2


def test_gse_fills_every_group_of_nm():
    gradient = [[1.0, 2.0, 3.0, 4.0, -9.0, 0.0, 1.0, 1.0]]
    layer = layer_of([[1.0, 2, 0, 0, 3, 0, 4, 0]], [[O, O, X, X], [O, X, O, X]], "2:4", gradient)
    wish = drop_and_grow(layer, 0.5, drop="magnitude", grow="gradient", sample=2.0)
    assert table_of(layer, after(layer, wish)) == [[X, X, O, O], [O, X, O, X]]


def test_gse_refuses_what_makes_no_sense():
    with pytest.raises(sw.ConfigError, match=r"method GSE: sample .* above 0; got 0"):
        sw.GSE(sample=0)
    with pytest.raises(sw.ConfigError, match="method GSE: exclude_dropped must be False"):
        sw.GSE(exclude_dropped=True)
    with pytest.raises(sw.ConfigError, match=r"method GSE: every .* got 0"):
        sw.GSE(every=0)
