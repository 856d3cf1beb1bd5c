"""A model as a JSON graph of listed operations, written from what torch.export traces.

README.md states the document; rebuild.py reads it.
"""

from __future__ import annotations

import contextlib
import math
import operator
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from .errors import ArtifactError
from .fuse import fuse
from .operations import name_of
from .switches import COLLECTOR

Document = dict[str, Any]
Same = tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]

BATCH = "batch"
DTYPES = {str(t).removeprefix("torch."): t for t in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
)}  # fmt: skip
FORMATS = {
    str(f).removeprefix("torch."): f
    for f in (torch.contiguous_format, torch.preserve_format, torch.channels_last)
}
LAYOUTS = {"strided": torch.strided}
FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
ASSERTIONS = ("aten._assert", "aten.sym_constrain", "aten._assert_tensor_metadata")
COPIES = ("aten.clone.default", "aten.alias.default", "aten.detach.default")
DROPPED = (*ASSERTIONS, *COPIES, "aten.dropout.default")


@dataclass(frozen=True)
class Graph:
    """A traced model: the JSON document, and the tensors that it refers to by name.

    exact: whether it gives the model's own bits, or sums in another order (fuse.py).
    """

    document: Document
    tensors: Mapping[str, Tensor]
    exact: bool = True


def trace(model: nn.Module, example: tuple[Tensor, ...]) -> Graph:
    """The graph of `model` at any batch where it allows that, else at the example's shapes.

    example: its positional inputs. Raises ArtifactError with the reason if torch.export cannot
    trace the model or a file cannot hold what it does.
    """
    program = export(model, example)
    if not is_plain(program.graph):
        with _explained():
            program = program.run_decompositions({})
    return written(program)


def written(
    program: Any, graph: fx.Graph | None = None, tensors: Mapping[str, Tensor] | None = None
) -> Graph:
    """The document of a program, or of a graph made from its own, with tensors of these names."""
    return _Writer(program, graph, tensors).graph()


def export(model: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """torch.export's program of a model, at any batch where it allows that; ArtifactError."""
    return _export_any_batch(model, example) or _export(model, example, None)


def _export_any_batch(model: nn.Module, example: tuple[Tensor, ...]) -> Any | None:
    """The program at a batch that may change, or None if the model or the example fixes it."""
    sizes = {x.shape[0] if x.dim() else None for x in example}
    if len(sizes) != 1 or None in sizes or sizes == {0}:
        return None
    if sizes == {1}:  # torch.export takes a 1 for fixed
        example = tuple(torch.cat([x, x]) for x in example)
    try:
        program = _export(model, example, tuple({0: torch.export.Dim.AUTO} for _ in example))
    except ArtifactError:
        return None  # the attempt at fixed shapes reports what is wrong
    batches = [x.shape[0] for x in _inputs(program)]
    inner = [s for x in _inputs(program) for s in x.shape[1:]]
    is_one = all(map(_is_free, batches)) and len({str(b) for b in batches}) == 1
    return program if is_one and not any(map(_is_free, inner)) else None


def _export(model: nn.Module, example: tuple[Tensor, ...], dynamic: Any) -> Any:
    with _explained(), COLLECTOR.off():
        return torch.export.export(model, example, dynamic_shapes=dynamic, strict=False)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Whatever a user's forward may raise while it is traced, as an ArtifactError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about torch
            yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ArtifactError(
            "the model's structure cannot be written: torch.export failed with "
            f"{type(error).__name__}: {reason}. Make `forward` free of branches on values (see "
            "torch.export's documentation), or deploy and save the part that holds the layers"
        ) from error


def is_plain(graph: fx.Graph) -> bool:
    """Whether every operation is one for a file as it stands, so that none has to be taken apart.

    Those for files change nothing in place, so a graph of them is one of pure functions.
    """
    calls = [n for n in graph.nodes if n.op == "call_function"]
    return all(name_of(n.target) or str(n.target).startswith(DROPPED) for n in calls)


def _inputs(program: Any) -> list[Tensor]:
    wanted = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted]
    return [n.meta["val"] for n in nodes]


def _is_free(size: Any) -> bool:
    """Whether a size of the trace may be any number, as the batch; the tracer may have fixed it."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols)


class _Writer:
    """One exported program on its way into a document."""

    def __init__(
        self,
        program: Any,
        graph: fx.Graph | None = None,
        tensors: Mapping[str, Tensor] | None = None,
    ):
        self.program = program
        self.nodes = program.graph if graph is None else graph
        own = {**program.constants, **program.state_dict}
        self.stored = own if tensors is None else tensors
        places = [n for n in self.nodes.nodes if n.op == "placeholder"]
        self.specs = dict(zip(places, program.graph_signature.input_specs, strict=True))
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[Same, str] = {}
        self.inputs: list[Document] = []
        self.values: dict[fx.Node, Any] = {}  # node -> the JSON value that refers to it

    def graph(self) -> Graph:
        self._refuse_mutations()
        _tidy(self.nodes)
        exact = fuse(self.nodes)
        nodes: list[Document] = []
        output: Any = None
        for node in self.nodes.nodes:
            if node.op == "call_function":
                nodes.append(self._node(node))
            elif node.op == "get_attr":
                name = str(node.target)
                self.values[node] = {"tensor": self._store(name, self.stored[name])}
            elif node.op == "output":
                leaves = [self.value(v, node) for v in node.args[0]]
                output = _nest(self.program.call_spec.out_spec, iter(leaves))
            elif node.op != "placeholder":
                raise ArtifactError(f"node {node.name!r}: a file cannot hold a {node.op!r} node")
            else:
                self._placeholder(node)
        document = {
            "inputs": self.inputs,
            "batch": self._batch(),
            "nodes": nodes,
            "output": output,
        }
        return Graph(document, self.tensors, exact)

    def _refuse_mutations(self) -> None:
        for spec in self.program.graph_signature.output_specs:
            if spec.kind != OutputKind.USER_OUTPUT:
                raise ArtifactError(
                    f"the model changes {spec.target!r} while it runs; a file holds only models "
                    "whose outputs are all that a run leaves behind"
                )

    def _placeholder(self, node: fx.Node) -> None:
        spec = self.specs[node]
        if spec.kind == InputKind.USER_INPUT:
            self._input(node, spec.arg.name)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            if node.users:
                name = spec.target
                self.values[node] = {"tensor": self._store(name, self.stored[name])}
        else:
            raise ArtifactError(f"input {node.name!r}: a file cannot hold a {spec.kind.name}")

    def _input(self, node: fx.Node, name: str) -> None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            raise ArtifactError(f"input {name!r} must be a tensor; got {type(value).__name__}")
        shape = [BATCH if _is_free(s) else int(s) for s in value.shape]
        dtype = _word({torch_type: n for n, torch_type in DTYPES.items()}, value.dtype, name)
        self.inputs.append({"name": name, "dtype": dtype, "shape": shape})
        self.values[node] = {"node": name}

    def _store(self, name: str, tensor: Tensor) -> str:
        """The file's name of a tensor; the same storage gets one name."""
        known = self.names.setdefault(same(tensor), name) if tensor.numel() else name
        if known == name:
            self.tensors[name] = tensor.detach()
        return known

    def _batch(self) -> Document | None:
        """The range of batches that the trace holds for, or None if it is fixed."""
        sizes: list[Any] = [s for x in _inputs(self.program) for s in x.shape[:1] if _is_free(s)]
        if not sizes:
            return None
        limits: Any = self.program.range_constraints[sizes[0].node.expr]
        low, high = int(limits.lower), limits.upper
        # The tracer always assumes 2 or more; `save` tries 1.
        at_most = int(high) if high.is_Integer and int(high) < 2**31 else None
        return {"min": 1 if low <= 2 else low, "max": at_most}

    def _node(self, node: fx.Node) -> Document:
        name = name_of(node.target)
        if name is None:
            raise ArtifactError(
                f"node {node.name!r}: a file cannot hold the operation {str(node.target)!r}; "
                "the README's section on the format says which it can"
            )
        self.values[node] = {"node": node.name}
        kwargs = {k: self.value(v, node) for k, v in node.kwargs.items() if k != "device"}
        args = [self.value(v, node) for v in node.args]
        return {"name": node.name, "op": name, "args": args, "kwargs": kwargs}

    def value(self, value: Any, node: fx.Node) -> Any:
        """An argument as a JSON value (README.md, "Values")."""
        if isinstance(value, fx.Node):
            return self.values[value]
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            word = next((w for w, f in FLOATS.items() if str(f) == str(value)), None)
            return {"float": value if word is None else word}
        if isinstance(value, (list, tuple)):
            return [self.value(v, node) for v in value]
        if isinstance(value, torch.dtype):
            return {"dtype": _word({t: n for n, t in DTYPES.items()}, value, node.name)}
        if isinstance(value, torch.memory_format):
            return {"memory_format": _word({f: n for n, f in FORMATS.items()}, value, node.name)}
        if value is torch.strided:
            return {"layout": "strided"}
        raise ArtifactError(f"node {node.name!r}: a file cannot hold {value!r} as an argument")


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


def _tidy(graph: fx.Graph) -> None:
    """Drop what the tracer only asserts or copies, and call batch norm as eager mode does."""
    for node in list(graph.nodes):
        target = str(node.target)
        if node.op == "call_function" and target.startswith(ASSERTIONS) and not node.users:
            graph.erase_node(node)
        elif target in COPIES:
            _skip_copy(node)
        elif target == "aten.dropout.default" and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)  # torch takes it for random in any case
        elif target == "aten.flatten.using_ints":
            _flatten_by_size(graph, node)
        elif target == "aten._unsafe_view.default":
            node.target = torch.ops.aten.reshape.default  # the copy before it is gone
        elif target == "aten._native_batch_norm_legit_no_training.default":
            _plain_batch_norm(graph, node)
    graph.eliminate_dead_code()


def _skip_copy(node: fx.Node) -> None:
    """Use a copy's source in its place: in a graph of pure functions nobody can tell."""
    returned = any(user.op == "output" for user in node.users)
    if not node.kwargs and not returned:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]


def _flatten_by_size(graph: fx.Graph, node: fx.Node) -> None:
    """Say the size of what a layer after it gets: then program.py need not look at every call."""
    value, x = node.meta["val"], node.args[0]
    if value.dim() != 2 or _is_free(value.shape[1]) or not _is_free(value.shape[0]):
        return
    with graph.inserting_before(node):
        batch = graph.call_function(torch.ops.aten.sym_size.int, (x, 0))
        sizes: Any = [batch, int(value.shape[1])]
        flat = graph.call_function(torch.ops.aten.reshape.default, (x, sizes))
    batch.meta["val"], flat.meta["val"] = value.shape[0], value
    node.replace_all_uses_with(flat)
    graph.erase_node(node)


def _plain_batch_norm(graph: fx.Graph, node: fx.Node) -> None:
    if any(u.target is not operator.getitem or u.args[1] != 0 for u in node.users):
        return
    x, weight, bias, mean, variance, momentum, eps = node.args
    with graph.inserting_before(node):
        args = (x, weight, bias, mean, variance, False, momentum, eps, True)
        plain = graph.call_function(torch.ops.aten.batch_norm.default, args)
    for user in list(node.users):
        user.replace_all_uses_with(plain)


def _nest(spec: Any, leaves: Any) -> Any:
    """The output's JSON value: its lists, tuples and dicts around the leaves."""
    if spec.is_leaf():
        return next(leaves)
    children = [_nest(c, leaves) for c in spec.children()]
    if spec.type is tuple:
        return {"tuple": children}
    if spec.type is list:
        return children
    if spec.type is dict and all(isinstance(k, str) for k in spec.context):
        return {"dict": [list(pair) for pair in zip(spec.context, children, strict=True)]}
    raise ArtifactError(
        "a file can hold outputs of tensors in lists, tuples and dicts with text keys; the model "
        f"returns a {getattr(spec.type, '__name__', spec.type)}"
    )
