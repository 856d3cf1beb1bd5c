"""The comparison's text suite: characters told by a small GPT, nothing seen of what comes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsewright.errors import DataError
from sparsewright.lab.compare import groups
from sparsewright.lab.compare.recipes import recipe_of
from sparsewright.lab.compare.suites import SUITES, text
from sparsewright.lab.compare.trial import Trial
from sparsewright.measure.flops import forward_flops

SUITE = replace(SUITES["shakespeare-char-gpt"], hidden=(16,))
TEXT = "".join("abcd"[(i * i + i // 4) % 4] + "xyz\n"[i % 4] for i in range(1000))


def test_blocks_and_what_follows_them() -> None:
    x, y = text.cut(torch.arange(200), 3)
    assert x.tolist()[1][:2] == [64, 65]
    assert y.tolist()[1][:2] == [65, 66]
    assert y.tolist()[2][-1] == 192


def test_epochs_cut_the_text_elsewhere_and_seeds_decide() -> None:
    problem = text.text_of(SUITE, TEXT)
    assert (len(problem.train), len(problem.test)) == (1800, 200)
    first = torch.cat([x for x, _ in problem.batches(0, 1)])
    assert first.shape == (1800 // 64 - 1, 64)
    assert torch.equal(first, torch.cat([x for x, _ in problem.batches(0, 1)]))
    assert not torch.equal(first, torch.cat([x for x, _ in problem.batches(0, 2)]))
    assert len(list(problem.batches(0, 1))) == problem.steps_per_epoch
    held = problem.held_out()
    assert torch.equal(torch.cat([held.train, held.test]), problem.train)


def test_no_character_sees_what_comes() -> None:
    torch.manual_seed(0)
    model = text.GPT(8, 16).eval()
    x = torch.randint(8, (1, 64))
    other = x.clone()
    other[0, 40:] = (other[0, 40:] + 1) % 8
    with torch.no_grad():
        same = (model(x) - model(other)).abs().amax(dim=2)[0]
    assert float(same[:40].max()) == 0.0
    assert float(same[40:].min()) > 0.0


def test_bits_are_those_of_the_loss() -> None:
    problem = text.text_of(SUITE, TEXT)
    model = problem.model()
    with torch.no_grad():
        model.head.weight.zero_()
    nats, bits = problem.evaluate(model)
    assert nats == pytest.approx(math.log(8), rel=1e-5)  # eight symbols, all alike; float32 sums
    assert bits == pytest.approx(3.0, rel=1e-5)


def test_any_width_has_a_network() -> None:
    problem = text.text_of(SUITE, TEXT)
    for scale in (0.01, 0.7, 1.0):
        assert problem.model(scale)(problem.example).shape == (1, 64, 8)
    cost = forward_flops(problem.model(), problem.example)
    assert cost.layers["blocks.0.mix"] == 2 * 64 * 16 * 48
    assert cost.layers["tokens"] == 0.0  # a lookup
    assert cost.other == 3 * 2 * (2 * 64 * 64 * 16)  # of 3 blocks


@pytest.mark.parametrize("name", ["rigl", "start-snip", "solved-sparsegpt", "small-dense"])
def test_recipes_train_it_and_leave_lookups_dense(name: str) -> None:
    suite = replace(SUITE, config=replace(SUITE.config, batch=4))
    trial = Trial(suite, text.text_of(suite, TEXT), sparsity=0.8, seed=0, epochs=10)
    model = recipe_of(name)[1].run(trial)
    assert bool((model.tokens.weight != 0).all())
    if trial.sparse is not None:
        assert trial.sparse.report().sparsity == pytest.approx(0.8, abs=1e-4)
        assert {row.name for row in trial.sparse.report().left_dense} == {"tokens", "places"}
        # Three bits are those of chance, and half of the characters are certain.
        assert trial.problem.evaluate(model)[1] < 2.9


def test_less_is_better() -> None:
    outcome = groups.Outcome("t", SUITE, 1, (), ())
    assert outcome.better(2.0, 2.5) == 0.5


def test_a_text_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEWRIGHT_DATA", str(tmp_path))
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="'tinyshakespeare' is not on this machine"):
        text.text_problem(SUITE)
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text(TEXT)
    assert text.text_problem(SUITE).symbols == 8
