"""The comparison: runs at equal budgets, resumed after a kill, failures kept, claims judged."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsewright.cli import main
from sparsewright.errors import ConfigError, StateError, UnknownNameError
from sparsewright.lab.compare import claims, page
from sparsewright.lab.compare.command import compare
from sparsewright.lab.compare.groups import outcome_of, pareto
from sparsewright.lab.compare.pool import make_runs, shared_out
from sparsewright.lab.compare.recipes import Recipe, recipe_of, recipes
from sparsewright.lab.compare.recipes._masks import is_start
from sparsewright.lab.compare.recipes.floors import parameters, smaller_scale, sparse_parameters
from sparsewright.lab.compare.recipes.trained import scaled_options
from sparsewright.lab.compare.run import run
from sparsewright.lab.compare.runs import Asked, Job, Results, jobs_of, settings_of
from sparsewright.lab.compare.suites import SUITES, Suite
from sparsewright.lab.compare.table import failures, results_tables
from sparsewright.lab.compare.trial import Trial
from sparsewright.lab.compare.tune import grid_text, tune
from sparsewright.methods import METHODS
from sparsewright.report import write_comparison
from sparsewright.scores import SCORES
from sparsewright.solvers import SOLVERS

TINY = "digits-mlp"


def job(recipe: str, sparsity: float = 0.9, epochs: int = 1, seed: int = 0) -> Job:
    return Job(TINY, recipe, sparsity, seed, epochs)


def trial(sparsity: float = 0.9, epochs: int = 1) -> Trial:
    suite = SUITES[TINY]
    return Trial(suite, suite.problem(suite), sparsity=sparsity, seed=0, epochs=epochs)


# --- recipes --------------------------------------------------------------------------------------


def test_every_method_and_score_of_the_tables_is_compared() -> None:
    names = set(recipes())
    assert set(METHODS.names()) <= names
    assert {f"start-{score}" for score in SCORES} <= names
    assert {f"tuned-{score}" for score in SCORES if not is_start(score)} <= names
    assert {f"solved-{solver}" for solver in SOLVERS} <= names
    with pytest.raises(UnknownNameError, match="did you mean 'rigl'"):
        recipe_of("rigel")


STARTS = ("start-weight_gradient", "start-snip", "start-small_world")


@pytest.mark.parametrize("name", SCORES.names())
def test_every_score_that_fits_the_network_runs(name: str) -> None:
    """A recipe gives a score what it needs and nothing that it refuses."""
    begin = f"start-{name}"
    if name == "slimming":  # an MLP without norms: its error is the run's line
        with pytest.raises(StateError, match="needs a BatchNorm"):
            run(job(begin))
        return
    assert run(job(begin))["absent"] > 0


@pytest.mark.parametrize("name", ["static", "rigl", "gradual", "solved-obs", *STARTS])
@pytest.mark.parametrize("sparsity", [0.8, 0.98])
def test_sparse_recipes_meet_one_budget(name: str, sparsity: float) -> None:
    line = run(job(name, sparsity))
    assert line["weights"] == 64 * 64 + 64 * 32 + 32 * 10
    assert line["absent"] == math.floor(sparsity * line["weights"] + 1e-9)
    assert line["parameters"] == line["weights"] + 64 + 32 + 10 - line["absent"]
    # Every weight of an MLP is used once: its inference FLOPs are two for each that is present.
    assert line["inference_flops"] == 2 * (line["weights"] - line["absent"])
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_training_flops_by_hand() -> None:
    examples, weights = 1437, 6464
    dense, static = run(job("dense", 0.0)), run(job("static"))
    assert dense["training_flops"] == examples * 3 * 2 * weights
    assert static["training_flops"] == examples * 3 * 2 * (weights - static["absent"])
    midway = run(job("tuned-magnitude", epochs=2))
    assert midway["training_flops"] == dense["training_flops"] + static["training_flops"]
    assert midway["epochs_trained"] == 2
    assert midway["options"]["dense_epochs"] == 1


def test_scores_that_look_at_data_pay_for_it() -> None:
    blind, sees = run(job("start-magnitude")), run(job("start-weight_gradient"))
    seen = 1024
    # Forward, both gradients; but that of the first layer's inputs nobody makes.
    paid = seen * 2 * (3 * 6464 - 4096)
    assert sees["training_flops"] - blind["training_flops"] == paid


def test_a_lottery_ticket_pays_for_its_rounds() -> None:
    ticket, twin = run(job("lottery")), run(job("lottery-redrawn"))
    assert ticket["epochs_trained"] == twin["epochs_trained"] == 6
    assert ticket["training_flops"] == pytest.approx(twin["training_flops"])
    shares = [0.1 ** (k / 5) for k in range(6)]
    dense = run(job("dense", 0.0))["training_flops"]
    assert ticket["training_flops"] == pytest.approx(dense * sum(shares), rel=1e-3)
    assert ticket["measure"] != twin["measure"] or ticket["loss"] != twin["loss"]


def test_a_small_dense_network_has_no_more_parameters() -> None:
    one = trial()
    small = one.problem.model(smaller_scale(one))
    wider = one.problem.model(smaller_scale(one) * 1.1 + 0.01)
    assert sparse_parameters(one) == 6464 - math.floor(0.9 * 6464) + 106
    assert parameters(small) <= sparse_parameters(one) < parameters(wider)


def test_steps_between_updates_are_scaled_and_written_down() -> None:
    assert scaled_options("rigl", 2500) == {"every": 100}
    assert scaled_options("rigl", 2475) == {"every": 99}
    line = run(job("rigl"))
    assert line["options"]["every"] == 1  # 45 steps
    assert line["options"]["end"] == 33


def test_the_same_job_gives_the_same_line() -> None:
    first, again = run(job("rigl")), run(job("rigl"))
    for name in ("measure", "loss", "training_flops", "layers"):
        assert first[name] == again[name], name
    assert run(job("rigl", seed=1))["loss"] != first["loss"]
    assert "percolation" in run(job("static", 0.98))["warnings"][0]


def test_dense_and_sparse_networks_begin_alike() -> None:
    one = trial()
    first = one.model()
    assert torch.equal(first[1].weight, one.model()[1].weight)
    # Variance 2 / fan-in; 4096 draws give its root to within 5 %.
    assert float(first[1].weight.detach().std()) == pytest.approx(math.sqrt(2 / 64), rel=0.05)


# --- runs, lines and processes --------------------------------------------------------------------


def test_jobs_of_a_comparison() -> None:
    jobs = jobs_of(Asked(TINY, ("dense", "s*t*"), (0.5, 0.9), (3, 4)))
    assert jobs[0] == Job(TINY, "dense", 0.0, 3, SUITES[TINY].config.epochs)
    assert [j.sparsity for j in jobs if j.recipe == "static" and j.seed == 3] == [0.5, 0.9]
    assert [j.seed for j in jobs] == sorted(j.seed for j in jobs)
    with pytest.raises(UnknownNameError, match="no recipe is called 'x\\*'"):
        jobs_of(Asked(TINY, ("x*",)))
    with pytest.raises(ConfigError, match=r"between 0 and 1; got 1\.0"):
        jobs_of(Asked(TINY, (), (1.0,)))
    with pytest.raises(UnknownNameError, match="suite"):
        jobs_of(Asked("digits-mpl"))


def line_of(recipe: str, sparsity: float, measure: float, seed: int = 0, **more: Any) -> Any:
    done = Job(TINY, recipe, sparsity, seed, 1)
    settings = {"data": "digits", "lr": SUITES[TINY].config.lr}
    figures = {"training_flops": 10.0, "inference_flops": 2.0, "seconds": 1.0, "cpu_seconds": 1.0}
    figures |= {"parameters": 9, "epochs_trained": 1, "measure": measure}
    about = {"cpu": "one", "threads": 1, "torch": "2", "commit": None}
    line = {**vars(done), "kind": "trained", "settings": settings, "machine": about}
    return {**line, **figures, **more}


def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append(line_of("rigl", 0.9, 0.5))
    with results.path.open("a") as file:
        file.write('{"suite": "digits')
    assert len(results.lines()) == 1
    results.append(line_of("set", 0.9, 0.4))
    assert [line["recipe"] for line in results.lines()] == ["rigl", "set"]
    with results.path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(StateError, match=r"runs.jsonl, line 3: must be the JSON of a run"):
        results.lines()


def test_what_is_left_and_what_must_not_be_mixed(tmp_path: Path) -> None:
    suite, results = SUITES[TINY], Results(tmp_path)
    line = run(job("static"))
    results.append(line)
    failed = {k: line[k] for k in ("suite", "sparsity", "seed", "epochs", "kind", "settings")}
    results.append({**failed, "recipe": "rigl", "error": "it broke"})
    jobs = [job("static"), job("rigl"), job("set")]
    assert results.left(jobs, suite, retry=False) == [job("set")]
    assert results.left(jobs, suite, retry=True) == [job("rigl"), job("set")]
    results.append({**line, "recipe": "rigl"})  # the last line of a job counts
    assert results.left(jobs, suite, retry=True) == [job("set")]
    results.append({**line, "settings": {**line["settings"], "lr": 0.3}})
    with pytest.raises(StateError, match=r"lr is 0\.3 there and"):
        results.left(jobs, suite, retry=False)


def test_a_failing_run_does_not_stop_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(TINY, ("dense", "static"), (0.9999, 0.9), (0,), 1)
    results = compare(asked, tmp_path, processes=1)
    by = {Job.of(line): line for line in results.lines()}
    assert by[job("static", 0.9999)]["error"].startswith("BudgetError: ")
    assert by[job("static")]["measure"] > 0.1
    assert by[job("dense", 0.0)]["measure"] > 0.1
    said = capfd.readouterr().err
    assert "[3/3]" in said
    assert "ERROR BudgetError" in said
    assert "0 min left" in said
    before = results.path.read_bytes()
    compare(asked, tmp_path, processes=1)
    assert results.path.read_bytes() == before  # nothing is run again, not even what failed
    shown = results_tables(outcome_of(results.lines(), TINY))
    assert any("failed: static, sparsity 0.9999" in str(text) for text in shown)


COMPARE = """
import sys
from sparsewright.cli import main
if __name__ == "__main__":  # its processes import this file
    sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_comparison_goes_on_where_it_stopped(tmp_path: Path) -> None:
    words = ["compare", "--suite", TINY, "--methods", "dense,static,set", "--sparsity", "0.9"]
    words += ["--seeds", "0", "1", "--epochs", "2", "--jobs", "1", "--out", str(tmp_path / "out")]
    script = tmp_path / "it.py"
    script.write_text(COMPARE)
    command = [sys.executable, str(script), *words]
    results = Results(tmp_path / "out")
    begun = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not results.lines():
        assert begun.poll() is None
        time.sleep(0.01)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    kept = results.lines()
    assert 1 <= len(kept) < 6
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = results.lines()
    assert lines[: len(kept)] == kept
    assert len(lines) == 6
    assert not any("error" in line for line in lines)
    assert f"6 runs, {len(kept)} are there" in done.stderr
    assert "digits-mlp, sparsity 0.9, 2 epochs" in done.stdout


def die(trial: Trial) -> Any:
    os._exit(3)


def test_a_process_that_dies_is_an_error_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsewright.lab.compare.pool._work", _dies_on_static)
    found = dict(make_runs([job("static"), job("dense", 0.0)], 1))
    assert found[job("static")]["error"] == "the process ended with code 3"
    assert found[job("dense", 0.0)] == {"well": True}


def _dies_on_static(connection: Any, share: Any, parent: int) -> None:
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            return
        if asked.recipe == "static":
            os._exit(3)
        connection.send({"well": True})


def test_cores_are_shared_out() -> None:
    shares = shared_out(1)
    assert len(shares) == 1
    everything = shared_out(0)
    assert sorted(core for share in everything for core in share) == sorted(shares[0])
    assert {len(share) for share in everything} == {1}
    with pytest.raises(ConfigError, match="must not be more than"):
        shared_out(len(everything) + 1)


# --- what came out --------------------------------------------------------------------------------


def test_groups_and_fronts() -> None:
    lines = [line_of("dense", 0.0, 0.9, training_flops=100.0, inference_flops=20.0)]
    lines += [line_of("rigl", 0.9, m, seed=s) for s, m in enumerate((0.7, 0.8, 0.9))]
    lines += [{**line_of("rigl", 0.9, 0.0, seed=3), "error": "it broke"}]
    outcome = outcome_of(lines, TINY)
    group = outcome.group("rigl", 0.9)
    assert group is not None
    assert group.mean == pytest.approx(0.8)
    assert group.spread == pytest.approx(0.1)
    assert group.seeds == (0, 1, 2)
    assert (group.training, group.inference, group.errors) == (0.1, 0.1, ("it broke",))
    assert outcome.group("dense", 0.9) is outcome.dense
    points = [(1.0, 0.5), (1.0, 0.6), (2.0, 0.6), (3.0, 0.7), (math.nan, 0.9)]
    assert pareto(points) == [1, 3]
    assert pareto([(1.0, 3.0), (2.0, 2.0), (3.0, 2.5)], higher=False) == [0, 1]


def verdict(text: str, *lines: Any) -> claims.Verdict:
    found = [v for v in claims.verdicts(outcome_of(lines, TINY)) if text in v.claim.text]
    assert len(found) == 1
    return found[0]


def test_claims_are_judged_by_the_means() -> None:
    order = [line_of(n, s, m) for s in (0.9, 0.95) for n, m in (("rigl", 0.9), ("set", 0.8))]
    assert verdict("RigL is at least as good as SET", *order).came_out is True
    static = [line_of("static", 0.95, 0.81)]
    found = verdict("RigL is at least as good as SET", *order, *static)
    assert found.came_out is False
    (broken,) = [f for f in found.findings if not f.holds]
    assert (broken.pair.worse, broken.sparsity) == ("static", 0.95)
    assert broken.by == pytest.approx(-1.0)
    assert math.isnan(broken.error)
    assert (claims.Pair("rigl", "set"), 0.98) in found.missing
    assert verdict("SRigL", *order).came_out is None


def test_claims_with_a_margin_and_strict_ones() -> None:
    dense = [line_of("dense", 0.0, 0.9)]
    near = [line_of("gradual", 0.8, 0.8951), line_of("rigl", 0.8, 0.91)]
    assert verdict("within 0.5 of the dense", *dense, *near).came_out is True
    far = [line_of("gradual", 0.8, 0.8949)]
    assert verdict("within 0.5 of the dense", *dense, *far).came_out is False
    small = [line_of("small-dense", 0.8, 0.91), line_of("rigl", 0.8, 0.91)]
    assert verdict("small dense", *small).came_out is False  # equal is not better
    assert verdict(
        "lottery", line_of("lottery", 0.8, 0.5), line_of("lottery-redrawn", 0.8, 0.5)
    ).came_out
    start = [line_of("start-random", 0.9, 0.8), line_of("start-gradient", 0.9, 0.7)]
    assert verdict("gradient alone", *start).came_out is True


def test_chance_is_named() -> None:
    lines = [line_of("lottery", 0.8, m, seed=s) for s, m in enumerate((0.80, 0.84))]
    lines += [line_of("lottery-redrawn", 0.8, m, seed=s) for s, m in enumerate((0.79, 0.83))]
    (finding,) = verdict("lottery", *lines).findings
    # Both spreads are 0.02 * sqrt(2): the difference has an error of sqrt(2 * 0.0008 / 2).
    assert finding.error == pytest.approx(100 * math.sqrt(0.0008))
    assert finding.by == pytest.approx(1.0)
    assert finding.is_near
    text = page.finding_text(outcome_of(lines, TINY), finding)
    assert text.startswith("at 0.8: lottery is better than lottery-redrawn by 1.00 points")
    assert text.endswith("chance may have decided")


def test_the_page_is_made_of_the_lines(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs")
    with pytest.raises(ConfigError, match="no runs in"):
        page.write_page([tmp_path / "runs"], tmp_path / "comparison.md")
    for made in (job("dense", 0.0), job("static"), job("rigl")):
        results.append(run(made))
    results.append({**line_of("set", 0.9, 0.0), "error": "it | broke"})
    text = page.write_page([tmp_path / "runs"], tmp_path / "comparison.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == sorted(
        ["| dense", "| static", "| rigl"],
        key=lambda name: -{f"| {x['recipe']}": x["measure"] for x in results.lines()}[name],
    )
    assert text.count("**was not measured**") == len(claims.CLAIMS)
    assert "- failed: set, sparsity 0.9, seed 0: it | broke" in text


def test_runs_that_failed_alike_are_one_line() -> None:
    broken = [
        {**line_of(name, sparsity, 0.0, seed), "error": error}
        for name, error in (("set", "it broke"), ("rigl", "it broke"))
        for sparsity in (0.8, 0.9)
        for seed in (0, 1)
    ]
    broken[-1]["error"] = "otherwise"
    assert failures(outcome_of(broken, TINY)) == [
        "failed: set, sparsity 0.8, 0.9, seed 0, 1 (4 runs): it broke",
        "failed: rigl, sparsity 0.8, 0.9, seed 0, 1 (3 runs): it broke",
        "failed: rigl, sparsity 0.9, seed 1: otherwise",
    ]


def test_the_page_names_the_front_of_training_flops() -> None:
    costs = {"training_flops": 100.0, "inference_flops": 20.0, "seconds": 9.0}
    lines = [
        line_of("dense", 0.0, 0.9, **costs, kind="floor"),
        line_of("static", 0.9, 0.7),
        line_of("rigl", 0.9, 0.8, training_flops=12.0),
        line_of("gradual", 0.9, 0.75, training_flops=50.0),
    ]
    front = page.front_text(outcome_of(lines, TINY), 0.9)
    assert front.endswith("in fewer FLOPs: static (0.100x), rigl (0.120x), dense (1.000x).")


def test_the_html_page_holds_claims_fronts_and_tables(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs")
    costs = {"training_flops": 100.0, "inference_flops": 20.0, "seconds": 9.0}
    results.append(line_of("dense", 0.0, 0.9, **costs, kind="floor"))
    results.append(line_of("rigl", 0.9, 0.8))
    results.append(line_of("<set>", 0.9, 0.85))
    results.append({**line_of("static", 0.9, 0.0), "error": "<broke>"})
    text = write_comparison([tmp_path / "runs"], tmp_path / "it.html").read_text()
    assert "On the front, by rising cost: &lt;set&gt; (0.9), dense (0)." in text
    assert text.count("It was not measured.") == len(claims.CLAIMS)
    assert "failed: static, sparsity 0.9, seed 0: &lt;broke&gt;" in text
    assert "<set>" not in text
    assert "http-equiv" in text
    assert "src=" not in text.split("<script>")[0]
    with pytest.raises(ConfigError, match="no runs in"):
        write_comparison([tmp_path], tmp_path / "it.html")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare"]) == 2
    assert "needs --suite, --list, or --page with --from" in capsys.readouterr().err
    assert main(["compare", "--list"]) == 0
    assert "rigl (trained): Every `every` steps move" in capsys.readouterr().out
    Results(tmp_path).append(line_of("rigl", 0.9, 0.8))
    for name in ("it.html", "it.md"):
        assert main(["compare", "--from", str(tmp_path), "--page", str(tmp_path / name)]) == 0
        assert "rigl" in (tmp_path / name).read_text()


def test_a_comparison_of_which_no_run_ends_well_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--suite", TINY, "--methods", "static", "--sparsity", "0.9", "--seeds", "0"]
    words += ["--epochs", "1", "--jobs", "1", "--out", str(tmp_path)]
    line = line_of("static", 0.9, 0.8, settings=settings_of(SUITES[TINY]))
    Results(tmp_path).append({**line, "error": "it broke"})
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "none of the 1 runs ended well; the first: it broke. With --retry they" in told
    Results(tmp_path).append(line)
    assert main(words) == 0


def test_a_rate_is_tuned_on_what_is_held_out(tmp_path: Path, monkeypatch: Any) -> None:
    suite = SUITES[TINY]
    held = suite.problem(suite).held_out()
    assert len(held.images.test[1]) == 1437 // 6  # type: ignore[attr-defined]
    assert len(held.images.train[1]) == 1437 - 1437 // 6  # type: ignore[attr-defined]
    from dataclasses import replace

    monkeypatch.setitem(SUITES._parts, TINY, replace(suite, grid=(0.05, 1e6)))
    path = tmp_path / "tuned.json"
    path.write_text('{"other": {"lr": 1.0}}')
    found = tune(TINY, epochs=2, path=path)
    assert found["lr"] == 0.05
    assert found["grid"]["1e+06"] in (None, pytest.approx(0.1, abs=0.05))
    assert "best: lr 0.05" in grid_text(found)
    assert json.loads(path.read_text())["other"] == {"lr": 1.0}


@pytest.mark.parametrize("name", SUITES.names())
def test_the_rate_of_a_suite_is_the_best_of_its_grid(name: str) -> None:
    from sparsewright.lab.compare.suites import TUNED

    known = json.loads(TUNED.read_text()) if TUNED.is_file() else {}
    if name not in known:
        pytest.skip("not tuned yet")
    suite: Suite = SUITES[name]
    grid = {float(r): m for r, m in known[name]["grid"].items() if m is not None}
    best = (max if suite.higher else min)(grid, key=lambda rate: grid[rate])
    assert suite.config.lr == known[name]["lr"] == best


def test_two_recipes_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsewright.lab.compare.recipes import KINDS

    KINDS.load()
    twice = Recipe("rigl", "The same again.", die)
    monkeypatch.setitem(KINDS._parts, "zz", lambda: [twice])
    with pytest.raises(ValueError, match="two recipes are called 'rigl'"):
        recipes()


def test_the_committed_page_is_what_the_committed_lines_give(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    folders = sorted((root / "benchmarks" / "results" / "compare").iterdir())
    made = page.write_page(folders, tmp_path / "comparison.md")
    assert made.read_text() == (root / "docs" / "comparison.md").read_text()
