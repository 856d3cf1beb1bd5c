"""Allocation and budget: published vectors, hand-worked rankings, and totals met to the unit."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsewright.allocate import (
    ALLOCATIONS,
    ER,
    ERK,
    LAMP,
    Global,
    Uniform,
    as_allocation,
    lamp_scores,
)
from sparsewright.budget import Budgeted, solve_budget, zeros_of
from sparsewright.errors import BudgetError, MisfitError, UnknownNameError
from sparsewright.patterns import as_pattern

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
ALL = Uniform(dense_first=False)


def budgeted(shapes, pattern="unstructured", scores=None, **own):
    """Budgeted layers of these shapes; own: name -> sparsity of its own."""
    return [
        Budgeted.of(name, shape, as_pattern(pattern), own.get(name), (scores or {}).get(name))
        for name, shape in shapes.items()
    ]


def kept(layers, keep):
    return sum(keep[y.name] * y.groups * y.unit_size for y in layers if y.name in keep)


def total(layers):
    return sum(layer.numel for layer in layers)


# Allocations


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.2, (0.1622, 0.4694, 1.0)),
        (0.1, (0.0796, 0.2302, 1.0)),
        (0.05, (0.0385, 0.1113, 0.9185)),
        (0.02, (0.0154, 0.0445, 0.3674)),
    ],
)
def test_erk_of_lenet_300_100(density, expected):
    found = ERK()(LENET, 1 - density)
    assert [1 - found[name] for name in LENET] == pytest.approx(expected, abs=5e-5)


def test_er_ignores_the_kernel_and_erk_does_not():
    shapes = {"wide": (64, 64, 5, 5), "narrow": (64, 64)}
    found = ER()(shapes, 0.9)
    assert found["wide"] == pytest.approx(found["narrow"])
    found = ERK()(shapes, 0.97)
    assert found["narrow"] > 0
    ratio = (64 + 64 + 5 + 5) / (64 * 64 * 25) / ((64 + 64) / (64 * 64))
    assert (1 - found["wide"]) / (1 - found["narrow"]) == pytest.approx(ratio)


def test_erk_makes_all_layers_equal_to_the_largest_dense_at_once():
    shapes = {"a": (4, 4), "big": (1000, 1000), "b": (4, 4)}
    found = ERK()(shapes, 0.99)
    assert (found["a"], found["b"]) == (0.0, 0.0)
    assert (1 - found["big"]) * 1_000_000 == pytest.approx(0.01 * 1_000_032 - 32)


SHAPES = st.lists(
    st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6
).map(lambda shapes: {f"layer{i}": shape for i, shape in enumerate(shapes)})
SPARSITIES = st.floats(0, 0.999)


@given(SHAPES, SPARSITIES, st.sampled_from([ER(), ERK()]))
def test_er_and_erk_meet_the_budget_in_proportion(shapes, sparsity, allocate):
    def raw(shape):
        counted = shape if isinstance(allocate, ERK) else shape[:2]
        return sum(counted) / math.prod(counted)

    found = allocate(shapes, sparsity)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    asked = (1 - sparsity) * sum(sizes.values())
    assert sum((1 - found[n]) * sizes[n] for n in shapes) == pytest.approx(asked)
    scale = {n: (1 - found[n]) / raw(shape) for n, shape in shapes.items() if found[n] > 0}
    if scale:
        eps = max(scale.values())
        assert min(scale.values()) == pytest.approx(eps, rel=1e-6)
        for name in set(shapes) - set(scale):  # dense only where the share reaches the size
            assert raw(shapes[name]) * eps >= 1 - 1e-6


def test_global_keeps_the_best_wherever_they_are():
    scores = {"a": torch.tensor([[9.0, 8.0, 1.0]]), "b": torch.tensor([[7.0, 0.5, 0.25]])}
    found = Global()({"a": (1, 3), "b": (1, 3)}, 0.5, scores)
    assert found == pytest.approx({"a": 1 / 3, "b": 2 / 3})


def test_global_lets_the_first_layer_win_ties():
    scores = {name: torch.ones(1, 4) for name in "ab"}
    assert Global()({"a": (1, 4), "b": (1, 4)}, 0.5, scores) == {"a": 0.0, "b": 1.0}


def test_global_compares_mean_scores_per_weight():
    # b's units are of four weights: by sums they would win, by means they lose.
    scores = {"a": torch.full((2, 4), 3.0), "b": torch.full((2, 4), 1.0)}
    layers = [
        Budgeted.of("a", (2, 4), as_pattern("unstructured"), scores=scores["a"]),
        Budgeted.of("b", (2, 4), as_pattern("block:2x2"), scores=scores["b"]),
    ]
    assert solve_budget(layers, 0.25, Global()) == {"a": 8, "b": 1}


def test_lamp_scores_by_hand():
    # squares 1, 4, 9: over the sums of those at or above: 14, 13, 9
    expected = [1 / 14, 4 / 13, 1.0]
    assert lamp_scores(torch.tensor([[2.0, 3.0, 1.0]])).tolist() == pytest.approx(expected)


def test_lamp_ranks_all_layers_by_score_as_the_paper_has_it():
    rand = torch.Generator().manual_seed(1)
    shapes = {"a": (4, 9), "b": (5, 6)}
    scores = {name: torch.rand(shape, generator=rand) for name, shape in shapes.items()}
    scores["b"] *= 9.0
    ranked = []
    for name, one in scores.items():
        values = one.flatten().double()
        for value in values:
            above = values[values >= value].square().sum()
            ranked.append((float(value**2 / above), name))
    best = [name for _, name in sorted(ranked, reverse=True)[:20]]
    keep = solve_budget(budgeted(shapes, scores=scores), 1 - 20 / 66, LAMP())
    assert keep == {"a": best.count("a"), "b": best.count("b")}


@given(
    st.lists(st.floats(0, 1e38, allow_subnormal=True), min_size=1, max_size=20).map(torch.tensor)
)
def test_lamp_gives_every_layers_best_exactly_one(scores):
    found = lamp_scores(scores)
    assert float(found[-1]) == 1.0
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert (found.diff() >= -1e-12).all()


def test_lamp_does_not_depend_on_a_layers_scale():
    scores = torch.rand(50, generator=torch.Generator().manual_seed(0)).double()
    for scale in (1e-200, 1e200):
        assert torch.allclose(lamp_scores(scores * scale), lamp_scores(scores), rtol=1e-9)


@pytest.mark.parametrize("bad", [-1.0, math.inf])
def test_lamp_refuses_what_it_cannot_square(bad):
    with pytest.raises(BudgetError, match=r"layer 'a': LAMP .*finite and 0 or more; got from"):
        LAMP()({"a": (1, 2)}, 0.5, {"a": torch.tensor([1.0, bad])})


def test_lamp_empties_no_layer_where_global_does():
    shapes = {"small": (10, 10), "large": (10, 10)}
    rand = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(10, 10, generator=rand) + 0.1 for n in shapes}
    scores["small"] *= 1e-6
    layers = budgeted(shapes, scores=scores)
    assert solve_budget(layers, 0.9, Global()) == {"small": 1, "large": 19}
    found = solve_budget(layers, 0.9, LAMP())
    assert found["small"] > 5
    assert sum(found.values()) == 20


@pytest.mark.parametrize("allocate", [Global(), LAMP()])
def test_rankings_need_scores_and_no_nan(allocate):
    with pytest.raises(BudgetError, match="layer 'a': this allocation ranks scores"):
        solve_budget(budgeted({"a": (2, 2)}), 0.5, allocate)
    scores = {"a": torch.tensor([[1.0, math.nan]])}
    with pytest.raises(BudgetError, match="layer 'a': scores hold NaN"):
        allocate({"a": (1, 2)}, 0.5, scores)
    with pytest.raises(BudgetError, match="layer 'a': this allocation ranks scores"):
        allocate({"a": (1, 2)}, 0.5)


def test_names_and_objects():
    assert {"er", "erk", "global", "lamp", "uniform", "uniform_all"} <= set(ALLOCATIONS.names())
    assert as_allocation("uniform") == Uniform()
    assert as_allocation("uniform_all") == ALL
    assert as_allocation(LAMP()) == LAMP()
    with pytest.raises(UnknownNameError, match="no allocation is called 'erdos'"):
        as_allocation("erdos")


# The budget


@pytest.mark.parametrize(
    ("sparsity", "size", "zeros"),
    [
        (0.9, 1000, 900),
        (0.29, 100, 29),
        (0.95, 10, 9),
        (1 / 3, 3, 1),
        (1 - 1 / 3, 3, 2),
        (0.0, 5, 0),
    ],
)
def test_zeros_are_the_floor_guarded_against_rounding(sparsity, size, zeros):
    assert zeros_of(sparsity, size) == zeros


@given(st.integers(1, 10**12), st.data())
def test_a_fraction_of_integers_is_that_integer(size, data):
    zeros = data.draw(st.integers(0, size - 1))
    assert zeros_of(zeros / size, size) == zeros
    assert zeros_of(1 - (size - zeros) / size, size) == zeros


@st.composite
def free_layers(draw, patterns=("unstructured", "channel", "fan_in", "block:2x3", "block:1x1")):
    """Layers of patterns that hold any count, with random scores."""
    layers = []
    for i in range(draw(st.integers(1, 6))):
        name = draw(st.sampled_from(patterns))
        shape = (2 * draw(st.integers(1, 12)), 3 * draw(st.integers(1, 8)))
        shape += draw(st.sampled_from([(), (3,), (2, 2)]))
        seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        scores = torch.rand(shape, generator=seed)
        layers.append(Budgeted.of(f"layer{i}", shape, as_pattern(name), scores=scores))
    return layers


EVERY = st.sampled_from([ALL, ER(), ERK(), Global(), LAMP()])


def target_of(layers, sparsity):
    return total(layers) - zeros_of(sparsity, total(layers))


@given(free_layers(("unstructured",)), st.floats(0, 0.97), EVERY)
def test_unstructured_meets_the_sparsity_to_the_weight(layers, sparsity, allocate):
    assume(target_of(layers, sparsity) >= len(layers))
    keep = solve_budget(layers, sparsity, allocate)
    assert kept(layers, keep) == target_of(layers, sparsity)
    assert all(1 <= keep[y.name] <= y.units for y in layers)


@given(free_layers(), st.floats(0, 0.97), EVERY)
def test_no_step_of_any_layer_comes_nearer(layers, sparsity, allocate):
    target = target_of(layers, sparsity)
    assume(target >= sum(y.groups * y.unit_size for y in layers))
    keep = solve_budget(layers, sparsity, allocate)
    assert list(keep) == [y.name for y in layers]
    missing = target - kept(layers, keep)
    for layer in layers:
        assert 1 <= keep[layer.name] <= layer.units
        step = layer.groups * layer.unit_size
        for way in (1, -1):
            if 1 <= keep[layer.name] + way <= layer.units:
                assert abs(missing - way * step) >= abs(missing)
    if any(str(y.pattern) == "unstructured" and 1 < keep[y.name] < y.units for y in layers):
        assert missing == 0


@given(free_layers(), st.data(), EVERY)
def test_more_sparsity_never_keeps_more(layers, data, allocate):
    most = 1 - sum(y.groups * y.unit_size for y in layers) / total(layers)
    low, high = sorted(data.draw(st.tuples(st.floats(0, most), st.floats(0, most))))
    finest = min(y.groups * y.unit_size for y in layers)
    first, second = (kept(layers, solve_budget(layers, s, allocate)) for s in (low, high))
    coarse = any(str(y.pattern) != "unstructured" for y in layers)
    assert second <= first + (finest if coarse else 0)


@given(free_layers(), EVERY)
def test_no_sparsity_keeps_everything(layers, allocate):
    assert solve_budget(layers, 0.0, allocate) == {y.name: y.units for y in layers}


@given(SHAPES, st.floats(0.1, 0.9))
def test_erk_is_followed_to_the_weight(shapes, sparsity):
    layers = budgeted(shapes)
    wanted = {name: 1 - s for name, s in ERK()(shapes, sparsity).items()}
    assume(all(wanted[layer.name] * layer.numel >= 1 for layer in layers))
    keep = solve_budget(layers, sparsity, ERK())
    # Half a weight of its own, half a weight taken over, and the floor's part of a weight.
    for layer in layers:
        assert abs(keep[layer.name] - wanted[layer.name] * layer.numel) < 2


def test_exact_counts_of_a_ranking_are_kept():
    shapes = {"a": (7, 11), "b": (13, 5), "c": (3, 3)}
    rand = torch.Generator().manual_seed(3)
    scores = {name: torch.rand(shape, generator=rand) for name, shape in shapes.items()}
    layers = budgeted(shapes, scores=scores)
    keep = solve_budget(layers, 0.6, Global())
    flat = torch.cat([s.flatten() for s in scores.values()])
    cut = flat.sort(descending=True).values[sum(keep.values()) - 1]
    assert keep == {name: int((s >= cut).sum()) for name, s in scores.items()}


def test_giant_layers_are_counted_in_integers():
    side = 2**20
    layers = budgeted({"a": (side, side), "b": (3, 3)})
    keep = solve_budget(layers, 0.9, ERK())
    assert sum(keep.values()) == (side * side + 9) - (9 * (side * side + 9)) // 10


def test_the_finest_step_makes_up_the_difference():
    layers = [
        Budgeted.of("free", (10, 10), as_pattern("unstructured")),
        Budgeted.of("fan", (10, 30), as_pattern("fan_in")),
        Budgeted.of("rows", (10, 100), as_pattern("channel")),
    ]
    # 350 kept. rows: 250 asked, 3 rows held, 50 too many. fan: 75 - 50 asked, 3 inputs each held,
    # 5 too many. free: 25 - 5.
    assert solve_budget(layers, 0.75, ALL) == {"free": 20, "fan": 3, "rows": 3}


def test_nm_takes_its_own_and_free_layers_make_up_the_difference():
    layers = [
        Budgeted.of("in", (64, 50), as_pattern("unstructured")),
        Budgeted.of("body", (64, 64), as_pattern("3:32")),
    ]
    keep = solve_budget(layers, 0.9, ERK())
    size = 64 * 50 + 64 * 64
    assert keep == {"in": size - 9 * size // 10 - 64 * 64 * 3 // 32, "body": 3}


def test_nm_alone_holds_its_own_sparsity_only():
    layers = budgeted({"a": (8, 64), "b": (4, 32)}, "3:32")
    assert solve_budget(layers, 0.90625, ALL) == {"a": 3, "b": 3}
    assert solve_budget(layers, None, ALL) == {"a": 3, "b": 3}
    for asked in (0.9, 0.91):
        with pytest.raises(BudgetError) as caught:
            solve_budget(layers, asked, ALL)
        assert str(caught.value) == (
            f"sparsity {asked} cannot be held: pattern 3:32 fixes the sparsity of every layer "
            "(leave it out); the nearest is 0.90625"
        )


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_every_nm_accepts_the_sparsity_it_states(n):
    pattern = as_pattern(f"{n}:7")
    layers = [Budgeted.of("a", (9, 21), pattern)]
    assert solve_budget(layers, pattern.sparsity, ALL) == {"a": n}
    assert solve_budget(layers, 1 - n / 7, ALL) == {"a": n}


def test_what_free_layers_cannot_make_up_is_an_error():
    layers = [
        Budgeted.of("free", (4, 8), as_pattern("unstructured")),
        Budgeted.of("body", (32, 32), as_pattern("2:4")),
    ]
    for asked, nearest in [(0.6, 1 - 513 / 1056), (0.4, 1 - 544 / 1056)]:
        with pytest.raises(BudgetError, match="2:4 fixes the sparsity of some layers") as caught:
            solve_budget(layers, asked, ALL)
        assert str(caught.value).endswith(f"the nearest is {nearest}")


def test_no_layer_is_ever_emptied():
    layers = budgeted({"a": (2, 5), "b": (2, 5)}, "fan_in")
    assert solve_budget(layers, 0.8, ALL) == {"a": 1, "b": 1}
    with pytest.raises(BudgetError, match=r"at least one unit in every group; the nearest is 0\.8"):
        solve_budget(layers, 0.9, ALL)


def test_leaving_sparsity_out_needs_patterns_that_fix_it():
    layers = [*budgeted({"a": (4, 4)}, "2:4"), *budgeted({"b": (4, 4)})]
    with pytest.raises(
        BudgetError, match=r"layer 'b': pattern unstructured fixes no .*give a spars"
    ):
        solve_budget(layers, None, ALL)


@pytest.mark.parametrize("asked", [-0.1, 1.0, 1.5, math.nan])
def test_sparsity_outside_its_range_is_an_error(asked):
    with pytest.raises(BudgetError, match=rf"sparsity must be in \[0, 1\); got {asked}"):
        solve_budget(budgeted({"a": (4, 4)}), asked, ALL)
    with pytest.raises(BudgetError, match=rf"layer 'a': sparsity must be in \[0, 1\); got {asked}"):
        budgeted({"a": (4, 4)}, a=asked)


def test_overrides_are_outside_of_the_budget():
    layers = budgeted({"a": (10, 10), "b": (10, 10), "c": (10, 10)}, b=0.37)
    assert solve_budget(layers, 0.9, ALL) == {"a": 10, "b": 63, "c": 10}
    assert solve_budget(layers[1:2], 0.9, ALL) == {"b": 63}
    layers = budgeted({"a": (10, 10)}, a=0.0)
    assert solve_budget(layers, None, ALL) == {"a": 100}


def test_an_override_takes_what_its_pattern_holds_nearest():
    assert solve_budget(budgeted({"a": (4, 10)}, "fan_in", a=0.73), 0.5, ALL) == {"a": 3}
    assert solve_budget(budgeted({"a": (4, 10)}, "fan_in", a=0.99), 0.5, ALL) == {"a": 1}
    assert solve_budget(budgeted({"a": (4, 32)}, "3:32", a=0.90625), 0.5, ALL) == {"a": 3}
    with pytest.raises(BudgetError, match=r"layer 'a': sparsity 0.9 .*pattern 3:32.* is 0\.90625"):
        solve_budget(budgeted({"a": (4, 32)}, "3:32", a=0.9), 0.5, ALL)


def test_the_first_layer_is_left_dense_and_not_counted():
    layers = budgeted(LENET)
    keep = solve_budget(layers, 0.9, Uniform())
    assert keep == {"fc2": 3000, "fc3": 100}
    assert solve_budget(layers, 0.9, ERK(dense_first=True)).keys() == {"fc2", "fc3"}
    # The model's first weight was skipped, so it is dense already.
    assert solve_budget(layers, 0.9, Uniform(), first="conv").keys() == LENET.keys()
    # It has a sparsity of its own.
    own = budgeted(LENET, fc1=0.5)
    assert solve_budget(own, 0.9, Uniform()) == {"fc1": 117_600, "fc2": 3000, "fc3": 100}


def test_a_single_layer_cannot_be_the_dense_first():
    with pytest.raises(BudgetError, match=r"first layer 'a' dense, and no other.*'uniform_all'"):
        solve_budget(budgeted({"a": (4, 4)}), 0.5, Uniform())


def test_nothing_to_make_sparse_is_an_error():
    with pytest.raises(BudgetError, match="no weight to make sparse"):
        solve_budget([], 0.5, ALL)


@pytest.mark.parametrize("pattern", ["unstructured", "channel", "fan_in", "2:4", "block:2x2"])
def test_empty_weights_take_no_part(pattern):
    layers = [*budgeted({"empty": (4, 0)}, pattern), *budgeted({"a": (10, 10)})]
    assert solve_budget(layers, 0.9, ERK())["a"] == 10


def test_a_misfit_is_named():
    with pytest.raises(MisfitError) as caught:
        Budgeted.of("fc2", (10, 100), as_pattern("3:32"))
    assert (
        str(caught.value) == "layer 'fc2': pattern 3:32 needs in_features divisible by 32; got 100"
    )


class Custom:
    needs_scores = dense_first = False

    def __init__(self, proposal):
        self.proposal = proposal

    def __call__(self, shapes, sparsity, scores):
        return self.proposal


@pytest.mark.parametrize("proposal", [{}, {"a": 1.5}, {"a": -0.1}, {"a": math.nan}])
def test_a_broken_allocation_is_named(proposal):
    with pytest.raises(BudgetError, match=r"layer 'a': .*must propose a sparsity in \[0, 1\]"):
        solve_budget(budgeted({"a": (4, 4)}), 0.5, Custom(proposal))


def test_an_allocation_that_misses_the_sum_is_repaired():
    layers = [
        Budgeted.of("fan", (10, 10), as_pattern("fan_in")),
        Budgeted.of("free", (3, 10), as_pattern("unstructured")),
    ]
    keep = solve_budget(layers, 0.5, Custom({"fan": 0.9, "free": 0.9}))
    assert keep == {"fan": 4, "free": 25}  # free first, to its limit; fan, past it; free, back
    keep = solve_budget(layers, 0.9, Custom({"fan": 0.0, "free": 0.0}))
    assert kept(layers, keep) == 13
