"""The report: one self-contained HTML page from one run folder, or from several compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import StateError


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one HTML page about the runs to the file `out`; it needs no network to be read.

    runs: run folders; at least config.json is in each. A run that is dense, unfinished or not
    deployed gives a page that says how to get what is missing. The dense run of the same model
    and data among them, if any, is what the sparse ones are compared with.
    Returns `out`. Raises ConfigError, naming file and line, where a file is missing or broken;
    StateError where the charts' libraries are not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "config.json").write_text('{"name": "a run that has only begun"}')
    ...     write_report([Path(folder)], Path(folder, "report.html")).name
    'report.html'
    """
    try:
        from .page import write_page
    except ImportError as error:
        raise _lacking(error) from error
    return write_page([Path(run) for run in runs], Path(out))


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write one HTML page about the runs in folders of `sparsewright compare`; returns `out`.

    Raises ConfigError if no run is in them; StateError where the charts' libraries are not
    installed.
    """
    try:
        from .comparison import write_comparison as write
    except ImportError as error:
        raise _lacking(error) from error
    return write([Path(folder) for folder in folders], Path(out))


def _lacking(error: ImportError) -> StateError:
    return StateError(
        f"a report needs {error.name}, which is not installed: pip install 'sparsewright[lab]'"
    )
