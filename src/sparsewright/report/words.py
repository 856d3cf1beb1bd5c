"""Numbers and verdicts in plain words; every figure comes from the run's own files."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .run import Batch, Run

THIN = "\N{NARROW NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage, without trailing zeros.

    >>> percent(0.90625, 3), percent(0.9)
    ('90.625\\u202f%', '90\\u202f%')
    """
    if fraction is None:
        return NOTHING
    if not math.isfinite(fraction):
        return "not a number"
    text = f"{100 * fraction:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{THIN}%"


def times(ratio: float | None) -> str:
    """A ratio to three figures, or two where it is small.

    >>> times(4.123), times(41.23), times(0.00123)
    ('4.12×', '41.2×', '0.0012×')
    """
    if ratio is None or not math.isfinite(ratio):
        return NOTHING
    if 0 < ratio < 0.01:
        return f"{ratio:.2g}{TIMES}"
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}{TIMES}"


def size(number: int | float | None) -> str:
    """Bytes in decimal units.

    >>> size(999), size(12_345)
    ('999\\u202fB', '12.3\\u202fkB')
    """
    if number is None:
        return NOTHING
    value, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f}{THIN}{unit}" if unit == "B" else f"{value:.3g}{THIN}{unit}"


def milliseconds(value: float | None) -> str:
    """Milliseconds to three figures.

    >>> milliseconds(0.01234), milliseconds(12.34)
    ('0.0123', '12.3')
    """
    if value is None:
        return NOTHING
    if not value > 0:
        return f"{value}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def seconds(value: float | None) -> str:
    """Seconds for people.

    >>> seconds(5.04), seconds(75)
    ('5.0\\u202fs', '1\\u202fmin 15\\u202fs')
    """
    if value is None:
        return NOTHING
    if value < 60:
        return f"{value:.1f}{THIN}s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}{THIN}min {rest}{THIN}s"


def count(number: int) -> str:
    """A whole number with its thousands apart.

    >>> count(1863680)
    '1\\u202f863\\u202f680'
    """
    return f"{number:,}".replace(",", THIN)


def dense_twin(run: Run, runs: Sequence[Run]) -> Run | None:
    """The dense run of the same model on the same data, of as many epochs if there is one."""
    twins = [r for r in runs if not r.sparse and r is not run and r.same_task(run)]
    twins = [r for r in twins if r.accuracy is not None]
    same = [r for r in twins if r.last_epoch == run.last_epoch]
    return next(iter(same or twins), None)


def disk_ratio(run: Run) -> float | None:
    """How many times smaller the artifact is than the dense weights, or None."""
    sizes = run.deployment.bytes if run.deployment else {}
    dense, artifact = sizes.get("dense_fp32"), sizes.get("artifact")
    return dense / artifact if dense and artifact else None


def verdict(run: Run, runs: Sequence[Run]) -> str:
    """One sentence on a run: what is gone, what it costs in accuracy, what it buys."""
    parts = [_gone(run), _accuracy(run, runs), _speed(run), _disk(run), _wrong(run)]
    said = [part for part in parts if part]
    if not said:
        return "Nothing to tell yet: no epoch has ended."
    sentence = "; ".join(said)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _gone(run: Run) -> str | None:
    if run.ended is not None and run.sparse:
        return f"{percent(run.ended.sparsity_of_all)} of the weights are gone"
    if run.masks:
        last = run.masks[-1]
        share = percent(1 - last.present / max(1, last.total))
        return f"{share} of the weights of its sparse layers are gone (the run has not ended)"
    if run.epochs and run.epochs[-1].sparsity > 0:
        return f"{percent(run.epochs[-1].sparsity)} of the weights of its sparse layers are gone"
    return "all weights are present (dense)" if run.epochs or run.ended else None


def _accuracy(run: Run, runs: Sequence[Run]) -> str | None:
    if run.accuracy is None:
        return None
    text = f"accuracy {percent(run.accuracy)}"
    twin = dense_twin(run, runs) if run.sparse else None
    if twin is None:
        return text
    same = twin.last_epoch == run.last_epoch
    more = "" if same else f" (trained for {twin.last_epoch} epochs, not {run.last_epoch})"
    return f"{text} against {percent(twin.accuracy)} dense{more}"


def _speed(run: Run) -> str | None:
    batches = [b for b in run.deployment.batches if b.speedup] if run.deployment else []
    if not run.sparse or not batches:
        return None
    first, *rest = [_ratio(batch) for batch in batches]
    said = [first.replace(TIMES, f"{TIMES} the speed of the best dense way", 1), *rest]
    return " and ".join([", ".join(said[:-1]), said[-1]] if rest else said)


def _ratio(batch: Batch) -> str:
    ratio = batch.speedup or 0.0
    slower = (
        " (slower)" if round(ratio, 2) < 1 else ""
    )  # as printed, so that words and figure agree
    return f"{times(ratio)}{slower} at batch {batch.size}"


def _disk(run: Run) -> str | None:
    ratio = disk_ratio(run)
    if ratio is None or not run.sparse:
        return None
    if ratio < 1:
        return f"{times(1 / ratio)} larger on disk than its dense weights"
    return f"{times(ratio)} smaller on disk"


def _wrong(run: Run) -> str | None:
    if run.deployment is not None and run.deployment.outputs_equal is False:
        return "but the deployed outputs are NOT equal to those of the trained model"
    return None
