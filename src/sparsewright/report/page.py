"""Puts words, tables and charts into the one page, with all of its script and style inside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .. import __version__
from ..errors import ConfigError
from . import charts, words
from .costs import accuracy_by_time, cost_charts, cost_rows
from .figures import COLOURS, DASHES, Chart
from .load import load_run
from .run import Run

TEMPLATES = Path(__file__).parent / "templates"
FILES = (
    ("dense_fp32", "dense weights, fp32"),
    ("checkpoint", "training checkpoint"),
    ("artifact", "sparse artifact"),
)


def write_page(paths: Sequence[Path], out: Path) -> Path:
    """Read the runs, draw the page, and put it in place at once."""
    if not paths:
        raise ConfigError("a report needs one run folder or more; got none")
    if out.is_dir():
        raise ConfigError(f"{out}: a report is one file, e.g. {out / 'report.html'}; got a folder")
    html = render([load_run(path) for path in paths])
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.write_text(html, encoding="utf-8")
    os.replace(beside, out)
    return out


def render(runs: Sequence[Run]) -> str:
    """The runs as one HTML page."""
    drawing, numbered = Drawing(), list(enumerate(runs))
    return (
        _templates()
        .get_template("page.html")
        .render(
            runs=numbered,
            sparse=[(i, run) for i, run in numbered if run.ended and run.ended.rows],
            moving=[(i, run) for i, run in numbered if run.masks],
            bare=[(i, run) for i, run in numbered if not run.deployment],
            deployed=[(i, run) for i, run in numbered if run.deployment],
            title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
            verdicts=[words.verdict(run, runs) for run in runs],
            settings=_settings(runs),
            curves=drawing.add(charts.curves(runs)),
            layers=drawing.add(charts.layer_bars(runs)),
            masks=drawing.add(charts.mask_lines(runs)),
            heats=drawing.add([c for c in map(charts.heat_maps, runs) if c is not None]),
            cost_rows=cost_rows(runs),
            costs=[(i, run, drawing.add(some)) for i, run, some in cost_charts(runs)],
            by_time=drawing.add(accuracy_by_time(runs)),
            latency=[(i, run, _latency(drawing, run, i)) for i, run in enumerate(runs)],
            disk=drawing.add(charts.disk(runs, FILES)),
            files=FILES,
            machines=_machines(runs),
            figures=drawing.json(),
            plotly=Markup(get_plotlyjs()),
            version=__version__,
        )
    )


class Drawing:
    """The charts of one page: gives each its number, and keeps what the page's script draws."""

    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []

    def add(self, some: Sequence[Chart]) -> list[tuple[int, Chart]]:
        first = len(self.figures)
        self.figures += [chart.to_dict() for chart in some]
        return list(enumerate(some, first))

    def json(self) -> Markup:
        """All figures as JSON that cannot end the script element around it."""
        return Markup(json.dumps(self.figures, allow_nan=False).replace("<", "\\u003c"))


def _latency(drawing: Drawing, run: Run, index: int) -> list[tuple[Any, list[Any]]]:
    batches = run.deployment.batches if run.deployment else ()
    drawn = [(batch, charts.latency(run, index, batch)) for batch in batches]
    return [(batch, drawing.add([chart] if chart else [])) for batch, chart in drawn]


def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (words.percent, words.times, words.size, words.milliseconds, words.seconds)
    environment.filters |= {f.__name__: f for f in (*formats, words.count)}
    environment.globals |= {"dashes": DASHES, "colours": COLOURS}
    return environment


def _settings(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """(heading, rows) for what was asked and what came; a row is its name and a text per run.

    Rows that say nothing of any run are left out.
    """
    parts: list[tuple[str, dict[str, Callable[[Run], str]]]] = [
        ("asked", ASKED),
        ("came", {**CAME, **_speed_rows(runs), **SPENT}),
    ]
    return [(name, _rows(texts, runs)) for name, texts in parts]


def _rows(
    texts: Mapping[str, Callable[[Run], str]], runs: Sequence[Run]
) -> list[tuple[str, list[str]]]:
    rows = [(name, [text(run) for run in runs]) for name, text in texts.items()]
    return [(name, [said or words.NOTHING for said in texts]) for name, texts in rows if any(texts)]


def _config(key: str) -> Callable[[Run], str]:
    return lambda run: _said(run, key)


def _if_sparse(text: Callable[[Run], str]) -> Callable[[Run], str]:
    return lambda run: text(run) if run.sparse else ""


def _speed_rows(runs: Sequence[Run]) -> dict[str, Callable[[Run], str]]:
    deployed = [run.deployment for run in runs if run.sparse and run.deployment]
    sizes = sorted({batch.size for deployment in deployed for batch in deployment.batches})
    return {f"speed-up, batch {size}": _if_sparse(_speed(size)) for size in sizes}


def _speed(size: int) -> Callable[[Run], str]:
    def text(run: Run) -> str:
        batches = run.deployment.batches if run.deployment else ()
        found = [batch.speedup for batch in batches if batch.size == size]
        return words.times(found[0]) if found else ""

    return text


def _said(run: Run, key: str) -> str:
    value = run.config.get(key)
    return "" if value is None else str(value)


def _model(run: Run) -> str:
    return f"{_said(run, 'model')} {_said(run, 'widths')}".strip()


def _asked(run: Run) -> str:
    asked = run.ended.asked_sparsity if run.ended else run.config.get("sparsity")
    known = isinstance(asked, int | float)
    return words.percent(float(asked), 3) if known else "by the pattern"  # type: ignore[arg-type]


def _got(run: Run) -> str:
    return words.percent(run.ended.sparsity, 3) if run.ended else ""


def _got_of_all(run: Run) -> str:
    return words.percent(run.ended.sparsity_of_all, 3) if run.ended else ""


def _present(run: Run) -> str:
    if not run.ended:
        return ""
    return f"{words.count(run.ended.present)} of {words.count(run.ended.total)}"


def _disk(run: Run) -> str:
    ratio = words.disk_ratio(run)
    return words.times(ratio) if ratio else ""


def _accuracy(run: Run) -> str:
    return "" if run.accuracy is None else words.percent(run.accuracy, 2)


def _epochs(run: Run) -> str:
    asked = run.config.get("epochs")
    return (
        str(run.last_epoch) if asked in (None, run.last_epoch) else f"{run.last_epoch} of {asked}"
    )


def _time(run: Run) -> float | None:
    if run.ended and run.ended.seconds is not None:
        return run.ended.seconds
    return sum(epoch.seconds for epoch in run.epochs) or None


def _environment(run: Run) -> list[tuple[str, str]]:
    """The machine and the versions; the command and the time are each run's own."""
    own = ("command", "started")
    shown = {k: v for k, v in run.environment.items() if v is not None and k not in own}
    return [(str(k), v if isinstance(v, str) else json.dumps(v)) for k, v in shown.items()]


def _machines(runs: Sequence[Run]) -> list[tuple[list[int], list[tuple[str, str]]]]:
    """(runs, environment) for every different environment among the runs."""
    found: list[tuple[list[int], list[tuple[str, str]]]] = []
    for index, environment in enumerate(map(_environment, runs)):
        same = [where for where, known in found if known == environment]
        if same:
            same[0].append(index)
        elif environment:
            found.append(([index], environment))
    return found


ASKED: dict[str, Callable[[Run], str]] = {
    "data": _config("data"),
    "model": _model,
    "method": _config("method"),
    "score": _config("score"),
    "pruned from": _config("pruned_from"),
    "storage": _if_sparse(_config("storage")),
    "pattern": _if_sparse(_config("pattern")),
    "allocation": _if_sparse(_config("allocate")),
    "sparsity": _if_sparse(_asked),
    "optimizer": _config("optimizer"),
    "learning rate": _config("lr"),
    "batch size": _config("batch"),
    "seed": _config("seed"),
}
CAME: dict[str, Callable[[Run], str]] = {
    "test accuracy": _accuracy,
    "sparsity": _if_sparse(_got),
    "of all weights": _if_sparse(_got_of_all),
    "weights present": _if_sparse(_present),
}
SPENT: dict[str, Callable[[Run], str]] = {
    "smaller on disk": _if_sparse(_disk),
    "epochs": _epochs,
    "training time": lambda run: words.seconds(_time(run)) if _time(run) else "",
}
