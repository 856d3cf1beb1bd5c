"""CONTRIBUTING's promise: a part is added by one file, and everything finds it.

Every `<!-- file: ... -->` block is written into a copy of the package. Contract tests and the
`<!-- use: ... -->` blocks then run against the copy, in a Python that does not see the clone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from test_docs import ROOT, Block, blocks

from sparsewright.library import LIBRARY

PAGE = ROOT / "CONTRIBUTING.md"
FILES = [block for block in blocks(PAGE, "python") if block.mark == "file"]
USES = [block for block in blocks(PAGE, "python") if block.mark == "use"]
CONTRACTS = "test_contract.py", "test_patterns.py", "test_scores.py", "test_solvers.py"
OPTIMIZERS_LEFT_OUT = "ada or asgd or lbfgs or prop or muon"
"""SGD will do here: the contract tests themselves run over all of them."""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a copy of the package with the page's files added."""
    site = tmp_path_factory.mktemp("extended")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "sparsewright", site / "sparsewright", ignore=ignore)
    for block in FILES:
        path = site / "sparsewright" / block.note
        assert not path.exists(), f"{block.place}: {block.note} exists already"
        path.write_text(block.code, encoding="utf-8")
    return site


def run(extended: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # -S: no .pth files, hence no editable installation of the clone.
    # The copy has no compiled library of its own: it takes the one that is in use here.
    compiled = {} if LIBRARY.path is None else {"SPARSEWRIGHT_LIBRARY": LIBRARY.path}
    search = [str(extended), str(ROOT / "tests"), sysconfig.get_path("purelib")]
    return subprocess.run(
        [sys.executable, "-S", *words],
        cwd=cwd,
        env={**os.environ, **compiled, "PYTHONPATH": os.pathsep.join(search)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_page_adds_one_part_of_every_kind() -> None:
    kinds = [Path(block.note).parts[0] for block in FILES]
    assert sorted(kinds) == ["kernels", "layouts", "methods", "patterns", "scores", "solvers"]


@pytest.mark.parametrize("block", USES, ids=lambda block: block.note)
def test_added_part_is_used_by_name(block: Block, extended: Path, tmp_path: Path) -> None:
    script = tmp_path / "use.py"
    script.write_text(block.code, encoding="utf-8")
    done = run(extended, str(script), cwd=tmp_path)
    assert done.returncode == 0, f"{block.place}\n{done.stderr}"


def test_added_parts_pass_the_contract_tests(extended: Path, tmp_path: Path) -> None:
    """The contract tests find the new parts in the tables and hold for them."""
    names = [Path(block.note).stem for block in FILES]
    tests = [str(ROOT / "tests" / name) for name in CONTRACTS]
    wanted = " or ".join(names)
    done = run(
        extended,
        *("-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"),
        *("-k", f"({wanted}) and not ({OPTIMIZERS_LEFT_OUT})", *tests),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_added_parts_have_pages(extended: Path, tmp_path: Path) -> None:
    """Facts and docstring of the page's methods, scores and solvers make pages of their own."""
    kinds = {"methods": "method", "scores": "score", "solvers": "solver"}
    added = [
        (kinds[p.parts[0]], p.stem) for p in (Path(b.note) for b in FILES) if p.parts[0] in kinds
    ]
    words = ["-m", "sparsewright", "methods", "--pages", "pages"]
    done = run(extended, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for kind, name in added:
        page = tmp_path / "pages" / f"{kind}-{name.replace('_', '-')}.md"
        assert "## Source" in page.read_text(encoding="utf-8")
