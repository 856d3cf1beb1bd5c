"""What the pages say is true: their code runs, their commands parse, their links lead somewhere.

A Python block that cannot run here is preceded by `<!-- skip: the reason -->`. Blocks marked `file`
or `use` are about new files of the package: test_extending.py runs them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import sparsewright as sw

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- (\w+): ([^>]*?) -->\s*\Z")
CHEAP = {"methods", "doctor", "--help", "--version"}
"""Subcommands that are run, not only parsed: they train, download and write nothing."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, its first line, and the comment just before it."""

    page: Path
    language: str
    code: str
    line: int
    mark: str
    note: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    out: list[Block] = []
    for match in BLOCK.finditer(text):
        comment = COMMENT.search(text[: match.start()])
        mark, note = comment.groups() if comment else ("", "")
        line = text.count("\n", 0, match.start()) + 2
        out.append(Block(page, match[1], match[2], line, mark, note))
    return [block for block in out if block.language in languages]


def commands() -> list[tuple[str, list[str]]]:
    """(place, arguments) of every `sparsewright` command line in the pages."""
    out = []
    for page in PAGES:
        for block in blocks(page, "console", "bash", "sh"):
            joined = block.code.replace("\\\n", " ")
            for line in joined.splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and words[0].endswith("sparsewright"):
                    out.append((block.place, words[1:]))
    return out


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def runnable(page: Path) -> list[Block]:
    return [b for b in blocks(page, "python") if b.mark not in ("skip", "file", "use")]


@pytest.mark.parametrize("page", list(filter(runnable, PAGES)), ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run in order, in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    for block in runnable(page):
        # Blank lines in front, so that a traceback names the page's own line.
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, str(page), "exec"), names)


def test_skipped_blocks_say_why() -> None:
    skipped = [b for page in PAGES for b in blocks(page, "python") if b.mark == "skip"]
    assert [b.place for b in skipped if len(b.note.split()) < 3] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_public_names_exist(page: Path) -> None:
    named = set(re.findall(r"\bsw\.([A-Za-z_]\w*)", page.read_text(encoding="utf-8")))
    assert sorted(named - {*sw.__all__, "__version__", "__all__"}) == []


def test_all_is_complete_and_sorted_names_exist() -> None:
    assert [name for name in sw.__all__ if not hasattr(sw, name)] == []
    assert len(set(sw.__all__)) == len(sw.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    """Relative links lead to files of the repository, and their #anchors to headings."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown page's headings get."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize(("place", "words"), commands(), ids=lambda value: str(value)[:60])
def test_command_lines_parse(place: str, words: list[str]) -> None:
    from sparsewright.cli import parser

    if words in (["--help"], ["--version"]):
        return  # run below
    try:
        parser().parse_args(words)
    except SystemExit:
        pytest.fail(f"{place}: the command line's parser refuses: sparsewright {' '.join(words)}")


CHEAP_COMMANDS = sorted({tuple(w) for _, w in commands() if len(w) == 1 and w[0] in CHEAP})


@pytest.mark.parametrize("words", CHEAP_COMMANDS, ids=" ".join)
def test_cheap_commands_run(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparsewright", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
