"""Every method, score, solver and allocation says what it is, its source and its cost, and the
pages of the docs are what it says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import sparsewright as sw
from sparsewright.cli import main
from sparsewright.lab import part_pages
from sparsewright.methods import METHODS, as_method

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "methods"
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
    made = part_pages.pages()
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    stale = sorted(name for name in made if committed.get(name) != made[name])
    hint = "run `sparsewright methods --pages docs/methods`"
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
