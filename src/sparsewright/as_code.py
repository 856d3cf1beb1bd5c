"""Layers whose weights are run as code (csrc/csb_code.h), held against loops in the whole model.

A layer is timed with its own weight alone in the caches. Code takes two to three times the bytes of
a packed weight, so several layers that are fastest as code, each for itself, may drive each other
out of the caches, and take longer together than their loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .kernels import KERNELS
from .plan import LayerPlan
from .plan_text import best_dense

MARGIN = 1.03
"""What is less is noise: the layers keep what was fastest for each."""


@dataclass(frozen=True)
class Together:
    """Medians of the whole model in ms: its layers as code, and by loops instead."""

    code_ms: float
    loops_ms: float

    @property
    def note(self) -> str | None:
        """For the plan, where loops are faster by more than MARGIN."""
        if self.code_ms <= MARGIN * self.loops_ms:
            return None
        return (
            "Some layers are fastest with their weights as code, each alone, but slow each other "
            f"down: the whole model takes {self.code_ms:.3g} ms so, {self.loops_ms:.3g} ms by the "
            "kernels above, timed in turn."
        )


def loops_for_code(rows: Sequence[LayerPlan]) -> tuple[LayerPlan, ...] | None:
    """The rows, each kernel that runs code replaced by the fastest of its other candidates; None
    where that changes fewer than two, for one that is alone was timed as it runs."""
    loops = tuple(_by_loops(row) for row in rows)
    changed = sum(new.kernel != old.kernel for new, old in zip(loops, rows, strict=True))
    return loops if changed > 1 else None


def _by_loops(row: LayerPlan) -> LayerPlan:
    if not _runs_code(row.kernel):
        return row
    timed = [c for c in row.candidates if c.median_ms is not None and c.kernel in KERNELS]
    other = next((c for c in timed if not _runs_code(c.kernel)), None)
    if other is None:
        return row
    dense, layout = best_dense(row), KERNELS[other.kernel].layout
    speedup = dense.median_ms / other.median_ms if dense else None  # type: ignore[operator]
    return replace(row, kernel=other.kernel, layout=layout, speedup=speedup)


def _runs_code(kernel: str) -> bool:
    return kernel in KERNELS and KERNELS[kernel].runs_code
