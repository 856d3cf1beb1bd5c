"""A page of the docs for every method, score, solver and allocation, printed from its docstring
and facts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..abilities import Measured, MeasuredAllocation
from ..allocate import ALLOCATIONS
from ..errors import UnknownNameError
from ..facts import Facts
from ..files import write_text
from ..methods import METHODS
from ..registry import Table
from ..scores import SCORES
from ..solvers import SOLVERS

PAGED: tuple[Table[Any], ...] = (METHODS, SCORES, SOLVERS, ALLOCATIONS)
"""The tables whose parts have pages."""

OURS = "[The comparison](../comparison.md) has it beside all others, where it was run."
OURS_THERE = "Mean ± spread over seeds, beside all others in [the comparison](../comparison.md)."

USE = {
    METHODS.kind: "sw.attach(model, optimizer, method={name!r}, sparsity=0.9, steps=steps)",
    SCORES.kind: "sw.prune(model, sparsity=0.9, score={name!r}{takes})",
    SOLVERS.kind: "sw.prune(model, sparsity=0.7, solver={name!r}, data=batches)",
    ALLOCATIONS.kind: "sw.prune(model, sparsity=0.9, allocate={name!r}{takes})",
}
"""The line of code that uses a part of a kind."""


def _takes(part: Any) -> str:
    """What a score or an allocation must be given besides its name."""
    pattern = ", pattern='channel'" if getattr(part, "of_rows", False) else ""
    looks = isinstance(part, Measured | MeasuredAllocation) or getattr(
        part, "needs_gradient", False
    )
    return pattern + (", data=batches" if looks else "")


def parts() -> Iterator[tuple[str, str, Any]]:
    """(kind, name, part) of everything that has a page."""
    for table in PAGED:
        for name, part in table.items():
            yield table.kind, name, part


def facts_of(part: Any) -> Facts | None:
    """What a part says of itself, if it does."""
    found = getattr(part, "facts", None)
    return found if isinstance(found, Facts) else None


def page_of(kind: str, name: str, part: Any, ours: str | None = None) -> str:
    """One part's page in Markdown; ours: what this library measured of it."""
    facts = facts_of(part)
    about, example = split_docstring(inspect.getdoc(part) or "")
    article = "an" if kind[0] in "aeiou" else "a"
    lines = [f"# {name}: {article} {kind}", "", about, ""]
    if kind in USE:
        use = USE[kind].format(name=name, takes=_takes(part)).replace("'", '"')
        lines += [f"Used as `{use}`.", ""]
    if facts is not None:
        lines += [f"**When.** {facts.when}", ""]
    if options := _options(part):
        lines += ["## Options and their defaults", "", options, ""]
    if example:
        lines += ["## Example", "", f"```pycon\n{example}\n```", ""]
    if facts is not None:
        lines += [
            *("## What it costs", ""),
            *("| | |", "|---|---|"),
            *(f"| memory | {facts.memory} |", f"| FLOPs | {facts.flops} |", ""),
            *("f_D and f_S are a dense and a sparse forward; a backward is two.", ""),
            *("## Source", "", _ended(facts.source), ""),
            *(f"**Published.** {_ended(facts.published)}", ""),
            *((f"**Ours.** {ours}", "") if ours else ()),
        ]
        if facts.departs:
            lines += [f"**Where this differs.** {facts.departs}", ""]
    return "\n".join(lines).rstrip() + "\n"


def split_docstring(text: str) -> tuple[str, str]:
    """(prose as Markdown, the example's lines) of a docstring.

    >>> split_docstring("One.\\n\\nTwo\\nlines.\\n\\n>>> 1 + 1\\n2")
    ('One.\\n\\nTwo lines.', '>>> 1 + 1\\n2')
    """
    prose, _, example = text.partition(">>>")
    paragraphs = [" ".join(one.split()) for one in prose.strip().split("\n\n")]
    listed = "\n\n".join(_options_as_list(one) for one in paragraphs)
    return listed, (">>>" + example).rstrip() if example else ""


def _options_as_list(paragraph: str) -> str:
    """A paragraph of "name: meaning." after another as a list; any other as it is."""
    parts = re.split(r"(?:^|(?<=[.] ))(?=[a-z_]+(?:, [a-z_]+)*: )", paragraph)
    before, *named = [part.strip() for part in parts]
    items = "\n".join("- **" + one.replace(":", "**:", 1) for one in named)
    return "\n\n".join(text for text in (before, items) if text)


def _options(part: Any) -> str:
    kind = part if isinstance(part, type) else type(part)
    if not is_dataclass(kind) or not fields(kind):
        return ""
    made = [_option(part, f) for f in fields(kind) if f.init]
    return "`" + "`, `".join(made) + "`"


def _option(part: Any, option: Field[Any]) -> str:
    """An option and what it is if nobody says: of an object in a table, what it has there."""
    if not isinstance(part, type):
        return f"{option.name}={getattr(part, option.name)!r}"
    made = option.default_factory
    default = option.default if made is MISSING else made()
    return option.name if default is MISSING else f"{option.name}={default!r}"


def _ended(sentence: str) -> str:
    text = sentence[0].upper() + sentence[1:] if sentence else "None."
    return text if text.endswith(".") else text + "."


def index() -> str:
    """The list of all pages, by kind."""
    lines = [
        "# Every method, score, solver and allocation",
        "",
        "Made by `sparsewright methods --pages` from the docstrings and the lines of comparisons.",
        "",
    ]
    for table in PAGED:
        lines += [f"## {table.kind.capitalize()}s", "", "| name | what it is |", "|---|---|"]
        for name, part in table.items():
            about = split_docstring(inspect.getdoc(part) or "")[0].split("\n\n")[0]
            about = about.replace("|", "\\|")  # |w| in a table
            lines.append(f"| [{name}]({file_of(table.kind, name)}) | {about} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def page_named(name: str, tables: Sequence[Table[Any]] = PAGED) -> str:
    """The page of the part or parts of a name in some tables; UnknownNameError if there is none.

    Those that read short names of their own, such as "2:4", are found by these too.
    """
    found = [
        page_of(table.kind, one, part)
        for table in tables
        for one, part in table.items()
        if one == name or _reads(part, name)
    ]
    if not found:
        kinds = ", ".join(table.kind for table in tables)
        raise UnknownNameError(f"part ({kinds})", name, _names(tables))
    return "\n".join(found)


def _reads(part: Any, name: str) -> bool:
    parse = getattr(part, "parse", None)
    return parse is not None and parse(name) is not None


def _names(tables: Sequence[Table[Any]]) -> list[str]:
    """What can be asked for, each name once."""
    return list(
        {
            name: None
            for table in tables
            for one, part in table.items()
            for name in getattr(part, "examples", (one,))
        }
    )


def file_of(kind: str, name: str) -> str:
    """The file name of a part's page."""
    return f"{kind}-{name.replace('_', '-')}.md"


def pages(ours: Mapping[tuple[str, str], str] | None = None) -> dict[str, str]:
    """File name -> text of all pages and their index; ours: (kind, name) -> what was measured."""
    known = ours or {}
    made = {
        file_of(kind, name): page_of(kind, name, part, _ours(known.get((kind, name))))
        for kind, name, part in parts()
    }
    return {"index.md": index(), **made}


def _ours(table: str | None) -> str:
    """What a page of the docs says of a comparison's table, or in its place."""
    return OURS if table is None else f"{OURS_THERE}\n\n{table}"


def write_pages(folder: Path, ours: Mapping[tuple[str, str], str] | None = None) -> int:
    """Write all pages into a folder, remove those of parts that are no more; how many there are.

    ours: as of `pages`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = pages(ours)
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        write_text(folder / name, text)
    return len(made)
