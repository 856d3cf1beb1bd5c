"""`sparsewright doctor`: what this machine has, which kernels are active, why others are not."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from rich.table import Table as Printed

from ..kernels.info import KernelInfo, kernel_info
from ..measure.environment import environment
from .data import DATA, cache_folder
from .tables import where

EXTRAS = {
    "scikit-learn": "the data set digits (extra: lab)",
    "tensorboard": "live training curves (extra: lab)",
    "plotly": "the report's charts (extra: lab)",
    "onnxruntime": "a dense way to beat (extra: bench)",
    "openvino": "a peer of the bench (extra: bench)",
    "scipy": "a peer of the bench (extra: bench)",
    "mkl": "a peer of the bench (in no extra: it is large)",
    "sparseprop": "a peer of the bench (in no extra: it has no wheels)",
    "onnxscript": "export for ONNX Runtime (extra: bench)",
}


def doctor_tables() -> list[Printed]:
    """The tables that `sparsewright doctor` prints."""
    info = kernel_info()
    return [
        two_columns("this machine", {**environment(), **devices()}),
        two_columns("compiled kernels", compiled(info)),
        two_columns("kernels", refusals(info.kernels)),
        two_columns("data sets", {name: where(name) for name in DATA} | {"cache": cache_folder()}),
        two_columns("optional packages", extras()),
    ]


def two_columns(title: str, rows: Mapping[str, Any]) -> Printed:
    printed = Printed(
        title=title, title_justify="left", box=None, show_header=False, pad_edge=False
    )
    printed.add_column(no_wrap=True, min_width=16)
    printed.add_column(overflow="fold")
    for name, value in rows.items():
        printed.add_row(name, "none" if value is None else str(value))
    return printed


def devices() -> dict[str, str]:
    """GPUs that torch sees."""
    if not torch.cuda.is_available():
        return {"gpu": "none that torch can use"}
    count = torch.cuda.device_count()
    return {f"gpu {i}": torch.cuda.get_device_name(i) for i in range(count)}


def compiled(info: KernelInfo) -> dict[str, str]:
    """Whether the C++ kernels are loaded, and every instruction set or why it is not used."""
    return {
        "loaded": "yes" if info.native else f"no, the reference serves: {info.why_not}",
        "library": info.library or "none",
        "compiler": info.compiler,
        "best": info.isa,
        **refusals({**info.isas, "weights as code": info.why_no_code}),
    }


def refusals(reasons: Mapping[str, str | None]) -> dict[str, str]:
    """Name -> "active", or why it is not.

    >>> refusals({"a": None, "b": "too old"})
    {'a': 'active', 'b': 'no: too old'}
    """
    return {name: "active" if why is None else f"no: {why}" for name, why in reasons.items()}


def extras() -> dict[str, str]:
    """Every optional package with its version, or what is missed without it."""
    rows = {}
    for name, purpose in EXTRAS.items():
        try:
            rows[name] = f"{metadata.version(name)}: {purpose}"
        except metadata.PackageNotFoundError:
            rows[name] = f"not installed: {purpose}"
    return rows
