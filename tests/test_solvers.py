"""Solvers: against least squares, brute force and each other; budgets and patterns to the unit."""

from __future__ import annotations

import heapq
import itertools
import math
import re
from typing import Any

import pytest
import torch
from layer_inputs import activations
from torch import Tensor

import sparsewright as sw
from sparsewright.core import table_size
from sparsewright.errors import ConfigError, StateError
from sparsewright.patterns import PATTERNS, as_pattern
from sparsewright.solvers import SOLVERS, Problem, Solution, as_solver
from sparsewright.solvers.obc import OBC, merge
from sparsewright.solvers.obs import OBS
from sparsewright.solvers.sparsegpt import SparseGPT
from sparsewright.solvers.wanda import WandaInOrder

NEAR = {"rtol": 1e-7, "atol": 1e-9}  # float64, condition numbers of a few thousand


def problem(
    rows: int = 4,
    inputs: int = 8,
    keep: int | None = None,
    pattern: str = "unstructured",
    second: Tensor | None = None,
    columns: int = 64,
    seed: int = 0,
) -> Problem:
    """A layer with correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, rows, inputs, generator=generator, dtype=torch.float64)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = mix @ torch.randn(inputs, columns, generator=generator, dtype=torch.float64)
    x += torch.randn(1, columns, generator=generator, dtype=torch.float64)
    chosen, shape = as_pattern(pattern), (rows, inputs)
    _, units = table_size(chosen, shape)
    if keep is None:
        keep = chosen.allowed(units)[len(chosen.allowed(units)) // 2]
    second = x @ x.T if second is None else second
    return Problem("fc", weight, second.view(1, inputs, inputs), columns, chosen, shape, keep)


def best_on(given: Problem, row: int, kept: list[int]) -> tuple[float, Tensor]:
    """(error, weights) of the least squares on some inputs, from the normal equations."""
    w, h = given.weight[0, row], given.second[0]
    found = torch.zeros_like(w)
    found[kept] = torch.linalg.solve(h[kept][:, kept], (h @ w)[kept])
    change = found - w
    return float(change @ h @ change), found


def greedy(given: Problem, row: int) -> list[tuple[int, float]]:
    """All removals of a row, each the one that leaves the least error: by trying all."""
    kept, before, out = list(range(given.shape[1])), 0.0, []
    while kept:
        tried = {q: best_on(given, row, [k for k in kept if k != q])[0] for q in kept}
        q = min(tried, key=lambda one: tried[one])
        out.append((q, tried[q] - before))
        kept.remove(q)
        before = tried[q]
    return out


def magnitude(given: Problem) -> Tensor:
    """Mask of the largest, as `prune` has it."""
    table = sw.keep_best(given.pattern.fold(given.weight[0].abs()), given.keep)
    return given.pattern.unfold(table, given.shape)[None]


def check(given: Problem, found: Solution) -> None:
    """Absent weights are 0, and the pattern holds to the unit."""
    assert not found.weight[~found.mask].any()
    counts = given.pattern.fold(found.mask[0].to(torch.int64).view(given.shape))
    full = int(counts.max())
    assert ((counts == 0) | (counts == full)).all()
    assert ((counts == full).sum(dim=1) == given.keep).all()


def test_one_removal_is_least_squares_on_what_is_kept() -> None:
    given = problem(rows=1, keep=7)
    found = OBS().solve(given)
    (gone,) = (~found.mask[0, 0]).nonzero().flatten().tolist()
    tried = [best_on(given, 0, [k for k in range(8) if k != q]) for q in range(8)]
    assert gone == min(range(8), key=lambda q: tried[q][0])
    torch.testing.assert_close(found.weight[0, 0], tried[gone][1], **NEAR)
    inverse = torch.linalg.inv(2 * given.second[0])  # H = 2 X X^T, and L_q = w_q^2 / 2 [H^-1]_qq
    loss = given.weight[0, 0, gone] ** 2 / (2 * inverse[gone, gone])
    assert given.error(found.weight) == pytest.approx(float(loss))


@pytest.mark.parametrize("solver", [OBS(), OBC()])
def test_a_row_goes_as_by_brute_force(solver: Any) -> None:
    for seed, keep in itertools.product(range(3), (1, 3, 6)):
        given = problem(rows=1, keep=keep, seed=seed)
        found = solver.solve(given)
        gone = {q for q, _ in greedy(given, 0)[: 8 - keep]}
        assert set((~found.mask[0, 0]).nonzero().flatten().tolist()) == gone
        wanted = best_on(given, 0, sorted(set(range(8)) - gone))[1]
        torch.testing.assert_close(found.weight[0, 0], wanted, **NEAR)


@pytest.mark.parametrize("solver", [OBS(), OBC()])
def test_rows_are_merged_by_what_the_next_removal_costs(solver: Any) -> None:
    for seed in range(3):
        given = problem(rows=5, inputs=7, keep=14, seed=seed)
        traces = [greedy(given, row) for row in range(5)]
        heap = [(trace[0][1], row, 0) for row, trace in enumerate(traces)]
        heapq.heapify(heap)
        mask = torch.ones(5, 7, dtype=torch.bool)
        for _ in range(35 - 14):
            _, row, place = heapq.heappop(heap)
            mask[row, traces[row][place][0]] = False
            if place + 1 < 7:
                heapq.heappush(heap, (traces[row][place + 1][1], row, place + 1))
        found = solver.solve(given)
        assert torch.equal(found.mask[0], mask)


def test_merge_is_a_heap() -> None:
    for seed in range(20):
        costs = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed))
        heap = [(float(costs[row, 0]), row, 0) for row in range(4)]
        heapq.heapify(heap)
        counts = [0] * 4
        for total in range(25):
            assert merge(costs, total).tolist() == counts
            if total < 24:
                _, row, place = heapq.heappop(heap)
                counts[row] += 1
                if place < 5:
                    heapq.heappush(heap, (float(costs[row, place + 1]), row, place + 1))


@pytest.mark.parametrize("pattern", ["2:4", "3:8", "fan_in", "unstructured"])
def test_obc_finds_what_obs_finds(pattern: str) -> None:
    """The same removals, one with factors and row by row, the other with whole inverses."""
    given = problem(rows=6, inputs=16, pattern=pattern)
    first, second = OBS().solve(given), OBC().solve(given)
    check(given, first)
    assert torch.equal(first.mask, second.mask)
    torch.testing.assert_close(first.weight, second.weight, **NEAR)


def test_rows_of_very_different_worth_are_traced_on() -> None:
    """One row holds nearly all that can go: its even share of the removals is far too little."""
    given = problem(rows=8, inputs=16, keep=108)
    given.weight[0, 3] *= 1e-3
    first, second = OBS().solve(given), OBC().solve(given)
    assert int((~first.mask[0, 3]).sum()) > 10
    assert torch.equal(first.mask, second.mask)


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 1), (2, 4), (4, 8)])
def test_blocks_go_as_one(rows: int, columns: int) -> None:
    """The first block is the one of least error over all its rows, and so is each one after."""
    given = problem(rows=4, inputs=8, pattern=f"block:{rows}x{columns}")
    found = OBC().solve(given)
    check(given, found)
    _, units = table_size(given.pattern, given.shape)
    kept = torch.ones(1, units, dtype=torch.bool)

    def error(table: Tensor) -> float:
        mask = given.pattern.unfold(table, given.shape)
        return sum(best_on(given, r, mask[r].nonzero().flatten().tolist())[0] for r in range(4))

    for _ in range(units - given.keep):
        tried = {}
        for unit in kept[0].nonzero().flatten().tolist():
            table = kept.clone()
            table[0, unit] = False
            tried[unit] = error(table)
        kept[0, min(tried, key=lambda one: tried[one])] = False
    assert torch.equal(found.mask[0], given.pattern.unfold(kept, given.shape))
    assert given.error(found.weight) == pytest.approx(error(kept))


def test_whole_rows_that_matter_least_go() -> None:
    given = problem(rows=6, pattern="channel", keep=4)
    found = OBC().solve(given)
    energy = torch.einsum("ri,ij,rj->r", given.weight[0], given.second[0], given.weight[0])
    assert found.mask[0].all(dim=1).tolist() == sw.keep_best(energy[None], 4)[0].tolist()
    assert torch.equal(found.weight[found.mask], given.weight[found.mask])


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "3:32", "fan_in"])
def test_sparsegpt_on_apart_inputs_is_magnitude_block_by_block(pattern: str) -> None:
    """With H proportional to I nothing can be made up for: no other weight changes."""
    inputs = 320
    given = problem(5, inputs, pattern=pattern, second=3.0 * torch.eye(inputs).double())
    found = SparseGPT().solve(given)
    check(given, found)
    assert torch.equal(found.weight[found.mask], given.weight[found.mask])
    if given.pattern.sparsity is not None:
        assert torch.equal(found.mask, magnitude(given))
        return
    groups, units = table_size(given.pattern, given.shape)
    zeros = units - given.keep
    for begin in range(0, inputs, 128):
        end = min(begin + 128, inputs)
        share = zeros * end // inputs - zeros * begin // inputs
        part = given.weight[0, :, begin:end].abs().reshape(groups, -1)
        wanted = sw.keep_best(part, part.shape[1] - share)
        assert torch.equal(found.mask[0, :, begin:end].reshape(groups, -1), wanted)


def test_sparsegpt_by_hand() -> None:
    """Two columns: the first goes, and the second takes over what it said of the output."""
    second = torch.tensor([[4.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    given = problem(1, 2, keep=1, second=second, columns=1)
    given.weight[0, 0] = torch.tensor([0.5, 3.0])
    found = SparseGPT(damp=0.0).solve(given)
    assert found.mask.tolist() == [[[False, True]]]
    torch.testing.assert_close(found.weight, torch.tensor([[[0.0, 3.25]]]).double(), **NEAR)


def sweep(given: Problem, mask: Tensor, damp: float) -> Tensor:
    """SparseGPT's weights for a mask, with the inverse of what is left solved anew per column."""
    h = given.second[0] / given.count
    h = h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    out = given.weight[0].clone()
    for j in range(len(h)):
        left = torch.linalg.inv(h[j:, j:])
        error = (out[:, j] - out[:, j] * mask[:, j]) / left[0, 0]
        out[:, j:] -= error[:, None] * left[0]
        out[:, j] *= mask[:, j]
    return out


@pytest.mark.parametrize("pattern", ["unstructured", "fan_in", "2:4", "3:5"])
@pytest.mark.parametrize("block", [4, 7, 128])
def test_sparsegpt_sweeps_as_with_an_inverse_for_each_column(pattern: str, block: int) -> None:
    given = problem(6, 20, pattern=pattern)
    found = SparseGPT(damp=0.05, block=block).solve(given)
    check(given, found)
    torch.testing.assert_close(found.weight[0], sweep(given, found.mask[0], 0.05), **NEAR)


@pytest.mark.parametrize("pattern", ["unstructured", "fan_in"])
@pytest.mark.parametrize("block", [4, 7, 128])
def test_sparsegpt_is_the_papers_algorithm_block_by_block(pattern: str, block: int) -> None:
    """Which weights go, too: the least w^2 / [H^-1]_cc of a block as it is when the sweep comes
    to it, H^-1 that of column c and those behind it; over all rows, or in each."""
    given = problem(6, 20, pattern=pattern, seed=3)
    h = given.second[0] / given.count
    h = h + 0.01 * h.diagonal().mean() * torch.eye(20, dtype=h.dtype)
    w, mask = given.weight[0].clone(), torch.ones(6, 20, dtype=torch.bool)
    left = [torch.linalg.inv(h[c:, c:]) for c in range(20)]
    groups, units = table_size(given.pattern, given.shape)
    zeros = units - given.keep
    for begin in range(0, 20, block):
        end = min(begin + block, 20)
        share = zeros * end // 20 - zeros * begin // 20
        scale = torch.stack([left[c][0, 0] for c in range(begin, end)])
        scores = (w[:, begin:end].square() / scale).reshape(groups, -1)
        lowest = scores.argsort(dim=1)[:, :share]
        gone = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, lowest, True)
        mask[:, begin:end] = ~gone.view(6, end - begin)
        for j in range(begin, end):
            error = w[:, j] * ~mask[:, j] / left[j][0, 0]
            w[:, j:] -= error[:, None] * left[j][0]
            w[:, j] *= mask[:, j]
    found = SparseGPT(block=block).solve(given)
    assert torch.equal(found.mask[0], mask)
    torch.testing.assert_close(found.weight[0], w, **NEAR)


def test_n_of_m_is_chosen_by_weights_as_they_are_by_then() -> None:
    """The second group's choice differs from that by first weights, and is that by swept ones."""
    given = problem(32, 8, pattern="2:4")
    found = SparseGPT(damp=0.0).solve(given)
    first = found.mask[0].clone()
    first[:, 4:] = True
    swept = sweep(given, first, 0.0)[:, 4:]
    upper = torch.linalg.cholesky(torch.linalg.inv(given.second[0] / 64), upper=True)
    scale = upper.diagonal()[4:]
    assert torch.equal(found.mask[0, :, 4:], sw.keep_best((swept / scale).square(), 2))
    plain = sw.keep_best((given.weight[0, :, 4:] / scale).square(), 2)
    assert not torch.equal(found.mask[0, :, 4:], plain)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "fan_in"])
def test_errors_fall_from_magnitude_to_exact(pattern: str) -> None:
    """Each solver's error on correlated inputs is at most that of the simpler one."""
    for seed in range(4):
        x = activations(64, 512, seed)
        given = problem(32, 64, pattern=pattern, seed=seed, second=x @ x.T, columns=512)
        plain = given.error(given.weight * magnitude(given))
        wanda = given.error(WandaInOrder().solve(given).weight)
        swept = given.error(SparseGPT().solve(given).weight)
        exact = given.error(OBC().solve(given).weight)
        assert exact < swept < wanda < plain


@pytest.mark.parametrize("name", SOLVERS.names())
@pytest.mark.parametrize("keep", [1, 101, 102, 2559])
def test_budgets_are_met_to_the_weight(name: str, keep: int) -> None:
    given = problem(8, 320, keep=keep) if name != "obs" else problem(8, 32, keep=min(keep, 255))
    damped = as_solver(name) if name == "wanda" else SOLVERS[name](damp=0.01)  # type: ignore[call-arg]
    check(given, damped.solve(given))


@pytest.mark.parametrize("name", ["obc", "obs", "sparsegpt"])
def test_dead_inputs_lose_their_weights_first(name: str) -> None:
    given = problem(4, 8, keep=16)
    given.second[0, [1, 5]] = 0
    given.second[0, :, [1, 5]] = 0
    found = as_solver(name).solve(given)
    assert not found.mask[0, :, [1, 5]].any()
    alone = [0, 2, 3, 4, 6, 7]
    rest = Problem(
        "fc",
        given.weight[..., alone],
        given.second[:, alone][:, :, alone],
        given.count,
        given.pattern,
        (4, 6),
        16,
    )
    torch.testing.assert_close(found.weight[..., alone], as_solver(name).solve(rest).weight, **NEAR)
    silent = problem(4, 8, keep=16, second=torch.zeros(8, 8).double())
    assert not as_solver(name).solve(silent).weight.any()


@pytest.mark.parametrize("name", ["obc", "obs", "sparsegpt"])
def test_too_little_data_says_so(name: str) -> None:
    given = problem(2, 8, columns=3)
    with pytest.raises(StateError) as error:
        SOLVERS[name](damp=0.0).solve(given)  # type: ignore[call-arg]
    kind = SOLVERS[name].__name__
    assert f"layer 'fc': {kind} needs an X X^T" in str(error.value)
    assert "3 columns of data are too few for 8 inputs" in str(error.value)
    assert f"solver={kind}(damp=0.01" in str(error.value)
    assert "damp was 0" in str(error.value)
    check(given, SOLVERS[name](damp=0.01).solve(given))  # type: ignore[call-arg]


def test_why_the_data_do_not_determine_a_layer() -> None:
    """Too few columns, or inputs that repeat others; inputs that are always 0 are no reason."""
    solved = OBC(damp=0.0)
    x = activations(8, 64, seed=0)
    x[7] = 2 * x[0] - x[1]
    with pytest.raises(StateError, match="8 inputs are linear combinations of 7"):
        solved.solve(problem(2, 8, second=x @ x.T, columns=64))
    x[3] = 0
    with pytest.raises(StateError, match=r"7 inputs that are not always 0 are linear combin.* 6"):
        solved.solve(problem(2, 8, second=x @ x.T, columns=64))
    with pytest.raises(StateError, match="5 columns of data are too few for 7 inputs that are not"):
        solved.solve(problem(2, 8, second=x[:, :5] @ x[:, :5].T, columns=5))
    check(problem(2, 8), solved.solve(problem(2, 8)))
    x = activations(8, 64, seed=0)
    x[7] = x[6] * (1 + 1e-9)
    with pytest.raises(StateError, match="damp was 1e-20"):  # too small to count
        OBC(damp=1e-20).solve(problem(2, 8, second=x @ x.T, columns=64))


def test_the_solver_that_the_error_names_serves() -> None:
    """Inputs of a second group that are all the same, in a convolution of two."""
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1, groups=2))
    data = [torch.randn(2, 4, 16)]
    data[0][:, 3] = data[0][:, 2]
    plan = {"sparsity": 0.5, "allocate": "uniform_all", "data": data}
    with pytest.raises(StateError) as error:
        sw.prune(model, solver=sw.OBC(), **plan)
    assert "layer '0': OBC needs" in str(error.value)
    assert "inputs of group 1 depend on each other: 2 inputs are linear combinations of 1" in str(
        error.value
    )
    (named,) = re.findall(r"solver=(\w+\(.*?\))\)", str(error.value))
    sw.prune(model, solver=eval(named, vars(sw)), **plan)
    assert int((model[0].weight != 0).sum()) == 4


@pytest.mark.parametrize("name", ["obc", "obs", "sparsegpt"])
@pytest.mark.parametrize("damp", [-0.1, math.inf, math.nan])
def test_options_are_checked(name: str, damp: float) -> None:
    with pytest.raises(ConfigError, match="damp must be a finite number of 0 or more"):
        SOLVERS[name](damp=damp)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="block must be 1 or more; got 0"):
        SparseGPT(block=0)
    with pytest.raises(ConfigError, match="per must be one of row, layer; got 'all'"):
        WandaInOrder(per="all")


def test_every_pattern_is_served_or_refused_by_name() -> None:
    for example in [e for _, kind in PATTERNS.items() for e in kind.examples]:
        pattern, shape = as_pattern(example), (32, 32)
        for name in SOLVERS.names():
            reason = as_solver(name).refuses(pattern, shape, 1)
            assert reason is None or (name in reason and str(pattern) in reason)
            if reason is None:
                given = problem(*shape, pattern=example)
                check(given, as_solver(name).solve(given))
    for name in ("obs", "sparsegpt"):
        for example in ("block:4x4", "channel"):
            assert as_solver(name).refuses(as_pattern(example), (8, 8), 1) is not None
    assert OBC().refuses(as_pattern("block:4x1"), (8, 2), 4) is not None  # two rows to a group
    assert OBS().refuses(as_pattern("unstructured"), (1024, 1024), 1) is not None
