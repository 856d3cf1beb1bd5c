"""Drawing units that are not taken: exact counts, no unit twice, none taken, all equally likely."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsewright.sampling import draw, is_in


@given(data=st.data())
def test_as_many_as_asked_in_every_group_and_none_that_is_taken(data) -> None:
    groups, units = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 40))
    everything = st.sets(st.integers(0, max(0, groups * units - 1))) if groups else st.just(set())
    taken = torch.tensor(sorted(data.draw(everything)), dtype=torch.int64)
    free = units - torch.bincount(taken // units, minlength=groups)
    counts = torch.tensor([data.draw(st.integers(0, int(f))) for f in free], dtype=torch.int64)
    found = draw(groups, units, counts, taken, torch.Generator().manual_seed(0))
    assert torch.equal(torch.bincount(found // units, minlength=groups), counts)
    assert bool((found[1:] > found[:-1]).all())
    assert not is_in(found, taken).any()


@pytest.mark.parametrize("taken", [[3], [0, 1, 2, 3, 4, 5, 6]], ids=["by trial", "by keys"])
def test_all_free_units_are_equally_likely(taken) -> None:
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(12)
    for _ in range(3000):
        counts[draw(1, 12, torch.tensor([2]), torch.tensor(taken), generator)] += 1
    free = [i for i in range(12) if i not in taken]
    expected = 6000 / len(free)
    # a count is near binomial: within six of its deviations
    assert ((counts[free] - expected).abs() < 6 * expected**0.5).all()
    assert not counts[taken].any()


def test_memory_follows_what_is_drawn() -> None:
    side = 10**6
    none = torch.empty(0, dtype=torch.int64)
    drawn = draw(1, side * side, torch.tensor([10000]), none, torch.Generator().manual_seed(0))
    assert len(drawn.unique()) == 10000
    assert drawn[-1] < side * side
    assert drawn.double().mean().item() == pytest.approx(side * side / 2, rel=0.02)  # 6 deviations


def test_the_same_seed_draws_the_same() -> None:
    drawn = [
        draw(3, 50, torch.tensor([4, 0, 9]), torch.tensor([2]), torch.Generator().manual_seed(7))
        for _ in range(2)
    ]
    assert torch.equal(*drawn)
