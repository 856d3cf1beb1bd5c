"""A model as a JSON graph of listed operations, written from its trace.

README.md states the document; rebuild.py reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import ArtifactError
from .fuse import fuse
from .operations import name_of
from .traced import INPUT, TENSOR, Document, Like, Place, Trace, Varies, is_told, traced_plain

Same = tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]

BATCH = "batch"
DTYPES = {str(t).removeprefix("torch."): t for t in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
)}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FORMATS = {
    str(f).removeprefix("torch."): f
    for f in (torch.contiguous_format, torch.preserve_format, torch.channels_last)
}
LAYOUTS = {"strided": torch.strided}
FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


@dataclass(frozen=True)
class Graph:
    """A traced model: the JSON document, and the tensors that it refers to by name.

    exact: whether it gives the model's own bits, or sums in another order (fuse.py). values: what
    each of its nodes gave when it was traced, as the trace has it.
    """

    document: Document
    tensors: Mapping[str, Tensor]
    exact: bool = True
    values: Mapping[str, Any] = field(default_factory=dict)


def trace(model: nn.Module, example: tuple[Tensor, ...]) -> Graph:
    """The graph of `model` at any batch where it allows that, else at the example's shapes.

    example: its positional inputs. Raises ArtifactError with the reason if torch.export cannot
    trace the model or a file cannot hold what it does.
    """
    return written(traced_plain(model, example))


def written(found: Trace) -> Graph:
    """The document of a trace, whose graph is changed on the way."""
    return _Writer(found).graph()


class _Writer:
    """One trace on its way into a document."""

    def __init__(self, found: Trace):
        self.found = found
        places = [n for n in found.graph.nodes if n.op == "placeholder"]
        self.places = dict(zip(places, found.places, strict=True))
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[Same, str] = {}
        self.inputs: list[Document] = []
        self.values: dict[fx.Node, Any] = {}  # node -> the JSON value that refers to it

    def graph(self) -> Graph:
        if self.found.refused is not None:
            raise ArtifactError(self.found.refused)
        exact = fuse(self.found.graph)
        nodes: list[Document] = []
        output: Any = None
        for node in self.found.graph.nodes:
            if node.op == "call_function":
                nodes.append(self._node(node))
            elif node.op == "get_attr":
                name = str(node.target)
                self.values[node] = {"tensor": self._store(name, self.found.tensors[name])}
            elif node.op == "output":
                output = _with_leaves(
                    self.found.output, [self.value(v, node) for v in node.args[0]]
                )
            elif node.op != "placeholder":
                raise ArtifactError(f"node {node.name!r}: a file cannot hold a {node.op!r} node")
            else:
                self._placeholder(node, self.places[node])
        document = {
            "inputs": self.inputs,
            "batch": self.found.batch,
            "nodes": nodes,
            "output": output,
        }
        given = {n.name: n.meta.get("val") for n in self.found.graph.nodes if n in self.values}
        values = {name: value for name, value in given.items() if is_told(value)}
        return Graph(document, self.tensors, exact, values)

    def _placeholder(self, node: fx.Node, place: Place) -> None:
        if place.kind == INPUT:
            self._input(node, place.name)
        elif place.kind == TENSOR:
            if node.users:
                stored = self.found.tensors[place.name]
                self.values[node] = {"tensor": self._store(place.name, stored)}
        else:
            raise ArtifactError(f"input {node.name!r}: a file cannot hold a {place.kind}")

    def _input(self, node: fx.Node, name: str) -> None:
        value = node.meta.get("val")
        if not isinstance(value, Like):
            raise ArtifactError(f"input {name!r} must be a tensor; got {type(value).__name__}")
        shape = [BATCH if isinstance(s, Varies) else s for s in value.shape]
        dtype = _word(DTYPE_NAMES, value.dtype, name)
        self.inputs.append({"name": name, "dtype": dtype, "shape": shape})
        self.values[node] = {"node": name}

    def _store(self, name: str, tensor: Tensor) -> str:
        """The file's name of a tensor; the same storage gets one name."""
        known = self.names.setdefault(same(tensor), name) if tensor.numel() else name
        if known == name:
            self.tensors[name] = tensor.detach()
        return known

    def _node(self, node: fx.Node) -> Document:
        name = name_of(node.target)
        if name is None:
            raise ArtifactError(
                f"node {node.name!r}: a file cannot hold the operation {str(node.target)!r}; "
                "the README's section on the format says which it can"
            )
        self.values[node] = {"node": node.name}
        kwargs = {k: self.value(v, node) for k, v in node.kwargs.items()}
        args = [self.value(v, node) for v in node.args]
        return {"name": node.name, "op": name, "args": args, "kwargs": kwargs}

    def value(self, value: Any, node: fx.Node) -> Any:
        return json_value(value, node.name, self.values)


def json_value(value: Any, place: str, nodes: Mapping[fx.Node, Any]) -> Any:
    """An argument as a JSON value (README.md, "Values"). nodes: what refers to them."""
    if isinstance(value, fx.Node):
        return nodes[value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        word = next((w for w, f in FLOATS.items() if str(f) == str(value)), None)
        return {"float": value if word is None else word}
    if isinstance(value, (list, tuple)):
        return [json_value(v, place, nodes) for v in value]
    if isinstance(value, torch.dtype):
        return {"dtype": _word(DTYPE_NAMES, value, place)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": _word({f: n for n, f in FORMATS.items()}, value, place)}
    if value is torch.strided:
        return {"layout": "strided"}
    raise ArtifactError(f"node {place!r}: a file cannot hold {value!r} as an argument")


def _word(words: Mapping[Any, str], value: Any, place: str) -> str:
    if value not in words:
        known = ", ".join(sorted(words.values()))
        raise ArtifactError(f"{place!r}: a file cannot hold {value}; it can hold: {known}")
    return words[value]


def same(tensor: Tensor) -> Same:
    """What tensors have in common that are the same part of the same storage, unless empty."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def is_same(a: Tensor, b: Tensor) -> bool:
    return a.numel() > 0 and same(a) == same(b)


def _with_leaves(output: Any, leaves: list[Any]) -> Any:
    """The outputs' JSON value, with these for its numbers."""
    if isinstance(output, int):
        return leaves[output]
    if isinstance(output, list):
        return [_with_leaves(v, leaves) for v in output]
    if "tuple" in output:
        return {"tuple": _with_leaves(output["tuple"], leaves)}
    return {"dict": [[key, _with_leaves(v, leaves)] for key, v in output["dict"]]}
