"""Every method, score, solver and allocation says what it is, whence it comes, what it costs; the
pages of the docs are what it says."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

import sparsewright as sw
from sparsewright.cli import main
from sparsewright.lab import part_pages
from sparsewright.lab.compare.ours import figures
from sparsewright.methods import METHODS, as_method

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "methods"
RUNS = sorted((ROOT / "benchmarks" / "results" / "compare").iterdir())
PARTS = {f"{kind} {name}": part for kind, name, part in part_pages.parts()}


@pytest.mark.parametrize("which", PARTS)
def test_every_part_tells_its_facts(which):
    facts = part_pages.facts_of(PARTS[which])
    assert facts is not None, "a part has a ClassVar `facts` of type Facts"
    for name in ("source", "when", "memory", "flops", "published"):
        assert len(getattr(facts, name)) > 4, f"{which}: facts.{name} says nothing"
    about = inspect.getdoc(PARTS[which])
    assert about
    assert len(about.split("\n\n")[0]) > 20


def test_the_committed_pages_are_those_of_now():
    made = part_pages.pages(figures(RUNS))
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    stale = sorted(name for name in made if committed.get(name) != made[name])
    hint = "run `sparsewright methods --pages docs/methods --from benchmarks/results/compare/*`"
    assert stale == [], hint
    assert sorted(set(committed) - set(made)) == [], hint


def test_the_guide_lists_every_method_and_which_can_be_packed():
    guide = (FOLDER.parent / "training.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| \[(\w+)\]\(methods/(\S+)\) \|.*\| ([\w, ]+) \| (yes|no) \|$", guide, re.M
    )
    assert sorted(name for name, *_ in rows) == METHODS.names()
    for name, page, training, packed in rows:
        method = as_method(name)
        latent = getattr(method, "keeps_absent", False)
        refused = latent or getattr(method, "masked_only", None) is not None
        assert page == part_pages.file_of("method", name)
        assert packed == ("no" if refused else "yes"), name
        assert ("latent" in training) == latent, name


def test_options_made_anew_each_time_show_what_is_made():
    """An address in memory would make the page another one in every run."""
    page = part_pages.pages()["method-slimming.md"]
    assert "`norms={}`" in page
    assert not [name for name, page in part_pages.pages().items() if " at 0x" in page]


def test_pages_are_written_and_those_of_no_part_removed(tmp_path):
    (tmp_path / "method-gone.md").write_text("old")
    assert part_pages.write_pages(tmp_path) == len(PARTS) + 1
    assert not (tmp_path / "method-gone.md").exists()
    assert "Evci" in (tmp_path / "method-rigl.md").read_text()


def test_a_page_shows_what_was_measured_of_each_recipe_of_a_part(tmp_path):
    def line(recipe, sparsity, seed, measure):
        figures = {"measure": measure, "seconds": 1.0, "cpu_seconds": 1.0, "parameters": 10}
        flops = {"training_flops": 2.0, "inference_flops": 1.0, "epochs_trained": 3}
        job = {"suite": "digits-mlp", "recipe": recipe, "sparsity": sparsity, "seed": seed}
        return {**job, "epochs": 3, "kind": "trained", **figures, **flops}

    (tmp_path / "runs").mkdir()
    lines = [
        *(line("dense", 0.0, seed, 0.9) for seed in (0, 1)),
        *(line("rigl", 0.9, seed, measure) for seed, measure in ((0, 0.80), (1, 0.84))),
        line("rigl-uniform", 0.8, 0, 0.75),
        {**line("set", 0.9, 0, 0.0), "error": "broke"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "runs" / "runs.jsonl").write_text(text)
    main(["methods", "--pages", str(tmp_path / "pages"), "--from", str(tmp_path / "runs")])
    page = (tmp_path / "pages" / "method-rigl.md").read_text()
    of = "digits-mlp, 3 epochs: accuracy (%)"
    assert "| recipe | measured | 0.8 | 0.9 | dense |" in page
    assert f"| rigl | {of} | - | 82.00 ± 2.83 | 90.00 ± 0.00 |" in page
    assert f"| rigl-uniform | {of} | 75.00 | - | 90.00 ± 0.00 |" in page
    assert "±" not in (tmp_path / "pages" / "method-set.md").read_text()


def test_figures_go_on_pages_alone(capsys):
    assert main(["methods", "--from", "runs"]) != 0
    assert "methods needs --pages with --from" in capsys.readouterr().err


def test_one_part_is_explained_on_the_command_line(capsys):
    main(["methods", "rigl"])
    said = capsys.readouterr().out
    assert said.startswith("# rigl: a method")
    assert "ICML 2020" in said
    assert main(["methods", "rigel"]) != 0
    assert "rigl" in capsys.readouterr().err


def test_unknown_names_list_what_exists():
    with pytest.raises(sw.UnknownNameError, match="rigl"):
        part_pages.page_named("rigel")
