"""Traces on disk: a model that was traced before, by the same code, is not traced again.

One file (disk_cache.py) for all that a trace depends on (fingerprint.py). The deployed model is
held against the original on the example all the same.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import disk_cache, graph, operations, samples, traced
from .disk_cache import TRACES
from .errors import ArtifactError
from .fingerprint import fingerprint
from .graph import DTYPE_NAMES, DTYPES, FLOATS, json_value
from .operations import ARITHMETIC, name_of, operation_of
from .rebuild import WORDS
from .traced import TENSOR, Document, Like, Place, Trace, Varies

FORMAT = 1
PROGRAM, FOLDED = "program", "folded"
RIGHT = frozenset([PROGRAM, FOLDED])
"""The flat function of a trace (program.py), and the model with its norms folded (fold.py)."""
TARGETS: dict[str, Any] = {name: target for target, name in ARITHMETIC.items()}
TARGETS["getitem"] = operator.getitem
"""Names of targets that files look up elsewhere."""


def circumstances(model: nn.Module, inputs: tuple[Tensor, ...]) -> Document | None:
    """All that the trace of a model depends on; None where that cannot be told."""
    if torch.is_autocast_enabled("cpu") or torch._C._len_torch_function_stack():
        return None
    digest = fingerprint(model)
    if digest is None:
        return None
    return {
        "format": FORMAT,
        "trace of": digest,
        "inputs": [[str(x.dtype), list(x.shape), list(x.stride())] for x in inputs],
        "float": str(torch.get_default_dtype()),
        "writer": _own_digest(),
    }


@functools.cache
def _own_digest() -> str:
    """The version of what makes and keeps a trace."""
    makers = (traced, operations, samples, graph)
    files = [Path(__file__), *(Path(str(module.__file__)) for module in makers)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def write(key: Document, found: Trace, model: nn.Module, right: Collection[str]) -> None:
    """Keep a trace, if it can be: all its operations are known, and its tensors the model's.

    right: which of RIGHT, made of it, have given the model's outputs.
    """
    known = _tensors(model)
    names = {place.name for place in found.places if place.kind == TENSOR}
    if not found.is_plain or found.refused is not None or not names <= set(known):
        return
    try:
        document = {**_document(found), "right": sorted(right)}
    except ArtifactError:
        return
    disk_cache.write(TRACES, key, {"trace": document}, indent=None)


def read(key: Document, model: nn.Module) -> tuple[Trace, frozenset[str]] | None:
    """The trace that was kept under this key, and what was right; None if none was kept. A
    broken file is a warning."""
    return disk_cache.read(TRACES, key, functools.partial(_trace, model=model))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    both = [*model.named_parameters(remove_duplicate=False)]
    both += model.named_buffers(remove_duplicate=False)  # type: ignore[arg-type]
    return dict(both)


def _document(found: Trace) -> Document:
    refers = {node: {"node": node.name} for node in found.graph.nodes}
    nodes = []
    for node in found.graph.nodes:
        entry: Document = {"name": node.name, "owner": node.meta.get("owner", "")}
        if node.op == "call_function":
            entry["op"] = name_of(node.target)
            if entry["op"] is None:
                raise ArtifactError(f"{node.name!r} is no operation of files")
        elif node.op == "placeholder":
            entry["input"] = str(node.target)
        elif node.op != "output":
            raise ArtifactError(f"{node.name!r} is a {node.op!r}")
        entry["args"] = json_value(node.args, node.name, refers)
        entry["kwargs"] = {k: json_value(v, node.name, refers) for k, v in node.kwargs.items()}
        entry["val"] = _value(node.meta.get("val"))
        nodes.append(entry)
    return {
        "nodes": nodes,
        "places": [[place.kind, place.name] for place in found.places],
        "output": found.output,
        "batch": found.batch,
    }


def _value(value: Any) -> Any:
    """What a node gives, as JSON takes it."""
    if isinstance(value, Like):
        if value.dtype not in DTYPE_NAMES:
            raise ArtifactError(f"a file cannot hold {value.dtype}")
        return {"dtype": DTYPE_NAMES[value.dtype], "shape": [_value(s) for s in value.shape]}
    if isinstance(value, Varies):
        return {"varies": value.text, "trial": value.trial}
    return [_value(v) for v in value] if isinstance(value, list) else value


def _given(value: Any) -> Any:
    """The same, read."""
    if isinstance(value, list):
        return [_given(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "varies" in value:
        return Varies(value["varies"], value["trial"])
    return Like(DTYPES[value["dtype"]], tuple(map(_given, value["shape"])))


def _trace(entry: Document, model: nn.Module) -> tuple[Trace, frozenset[str]]:
    """What `write` was given; ValueError, KeyError or TypeError if the file is something else."""
    kept = entry["trace"]
    made, nodes = fx.Graph(), dict[str, fx.Node]()
    places = tuple(Place(kind, name) for kind, name in kept["places"])
    for given in kept["nodes"]:
        args = _arguments(given["args"], nodes)
        if "op" in given:
            target = TARGETS.get(given["op"]) or operation_of(given["op"])
            if target is None:
                raise ValueError(f"there is no operation {given['op']!r}")
            kwargs = {k: _arguments(v, nodes) for k, v in given["kwargs"].items()}
            node = made.create_node(
                "call_function", target, tuple(args), kwargs, name=given["name"]
            )
        elif "input" in given:
            node = made.create_node("placeholder", given["input"], name=given["name"])
        else:
            node = made.output(tuple(args[0]))
        node.meta = {"val": _given(given["val"]), "owner": given["owner"]}
        nodes[given["name"]] = node
    count = sum(node.op == "placeholder" for node in made.nodes)
    if count != len(places):
        raise ValueError(f"it has {count} placeholders for {len(places)} places")
    found = Trace(made, places, _tensors(model), kept["output"], kept["batch"], None, True)
    return found, RIGHT & set(kept["right"])


def _arguments(value: Any, nodes: dict[str, fx.Node]) -> Any:
    """What `json_value` wrote."""
    if isinstance(value, list):
        return [_arguments(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "float":
        return FLOATS[content] if isinstance(content, str) else float(content)
    return WORDS[kind][content]
