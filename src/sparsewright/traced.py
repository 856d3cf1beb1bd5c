"""What torch.export traces of a model, as a graph of one's own: it needs nothing of the tracer any
more, whose imports alone take longer than many a deploy, and it can be kept (kept_trace.py)."""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from .errors import ArtifactError
from .operations import name_of
from .samples import TRIAL
from .switches import COLLECTOR

Document = dict[str, Any]

ASSERTIONS = ("aten._assert", "aten.sym_constrain", "aten._assert_tensor_metadata")
COPIES = ("aten.clone.default", "aten.alias.default", "aten.detach.default")
DROPPED = (*ASSERTIONS, *COPIES, "aten.dropout.default")
INPUT, TENSOR = "input", "tensor"
HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass(frozen=True)
class Varies:
    """A size that follows the batch: as a text of the tracer's, and at a batch of TRIAL; None there
    if it follows the values of a tensor."""

    text: str
    trial: int | None


Size = int | Varies


@dataclass(frozen=True)
class Like:
    """A traced tensor's type and sizes."""

    dtype: torch.dtype
    shape: tuple[Size, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Like:
        return cls(tensor.dtype, tuple(map(_size, tensor.shape)))

    def dim(self) -> int:
        return len(self.shape)

    def unsqueeze(self, axis: int) -> Like:
        return Like(self.dtype, (*self.shape[:axis], 1, *self.shape[axis:]))

    def fake(self) -> Tensor:
        """At a batch of TRIAL: it has sizes and no memory."""
        return torch.empty(fakes_of(self.shape), dtype=self.dtype, device="meta")


def fakes_of(value: Any) -> Any:
    """What a node gives (Trace.graph), at a batch of TRIAL."""
    if isinstance(value, Like):
        return value.fake()
    if isinstance(value, (list, tuple)):
        return [fakes_of(v) for v in value]
    return value.trial if isinstance(value, Varies) else value


def is_told(value: Any) -> bool:
    """Whether `fakes_of` knows all sizes of what a node gives."""
    if isinstance(value, Like):
        return all(map(is_told, value.shape))
    if isinstance(value, (list, tuple)):
        return all(map(is_told, value))
    return not isinstance(value, Varies) or value.trial is not None


@dataclass(frozen=True)
class Place:
    """What a placeholder of the graph stands for: an input of this name, a tensor of the model, or,
    as `kind` says, what no file can hold."""

    kind: str
    name: str


@dataclass(frozen=True)
class Trace:
    """A traced model.

    graph: of functions. Each node's meta say what it gives ("val": a Like, a size, or a list of
    them) and the path of the module that called it ("owner"). places: of its placeholders, in
    order. tensors: what they name. output: the outputs' JSON value, with a number for each leaf.
    batch: the range of batches that it holds for, None if that is fixed. refused: why no file can
    hold the model, or None. is_plain: whether a file can hold each operation as it stands.
    """

    graph: fx.Graph
    places: tuple[Place, ...]
    tensors: Mapping[str, Tensor]
    output: Any
    batch: Document | None
    refused: str | None
    is_plain: bool

    def held(self) -> dict[fx.Node, str]:
        """The names of the tensors that placeholders stand for."""
        nodes = (n for n in self.graph.nodes if n.op == "placeholder")
        both = zip(nodes, self.places, strict=True)
        return {node: place.name for node, place in both if place.kind == TENSOR}


def traced(model: nn.Module, example: tuple[Tensor, ...]) -> Trace:
    """The trace of `model` as it is called, at any batch where it allows that, else at the
    example's shapes. ArtifactError, with the reason, if torch.export cannot trace it."""
    program = export(model, example)
    return _trace_of(program, _is_plain(program.graph))


def traced_plain(model: nn.Module, example: tuple[Tensor, ...]) -> Trace:
    """The same, its operations taken apart where a file cannot hold them as they stand."""
    program = export(model, example)
    if not _is_plain(program.graph):
        with _explained():
            program = program.run_decompositions({})
    return _trace_of(program, True)


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


def _is_plain(graph: fx.Graph) -> bool:
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


def _trace_of(program: Any, is_plain: bool) -> Trace:
    graph, copies = fx.Graph(), dict[fx.Node, Any]()
    graph.output(graph.graph_copy(program.graph, copies))
    for old, node in copies.items():
        stack = list(old.meta.get("nn_module_stack", {}).values())
        node.meta = {"val": _value(old.meta.get("val")), "owner": stack[-1][0] if stack else ""}
        node.kwargs = {key: v for key, v in node.kwargs.items() if key != "device"}  # it is a CPU
    if is_plain:
        _tidy(graph)
    signature = program.graph_signature
    try:
        output, refused = _nest(program.call_spec.out_spec, iter(range(_MOST))), _changes(signature)
    except ArtifactError as error:
        output, refused = None, str(error)
    places = tuple(_place(spec) for spec in signature.input_specs)
    tensors = {**program.constants, **program.state_dict}
    return Trace(graph, places, tensors, output, _batch(program), refused, is_plain)


_MOST = 2**31  # leaves of an output


def _size(size: Any) -> Size:
    if not _is_free(size):
        return int(size)
    expression = size.node.expr
    if any(symbol.name.startswith("u") for symbol in expression.free_symbols):  # torch's: unbacked
        return Varies(str(size), None)
    at_trial = expression.subs(dict.fromkeys(expression.free_symbols, TRIAL))
    return Varies(str(size), int(at_trial))


def _value(value: Any) -> Any:
    """What a node gives, in terms of one's own; None where that is neither tensors nor sizes."""
    if isinstance(value, Tensor):
        return Like.of(value)
    if isinstance(value, (int, torch.SymInt)):
        return _size(value)
    if isinstance(value, (list, tuple)):
        return [_value(v) for v in value]
    return None


def _place(spec: Any) -> Place:
    if spec.kind == InputKind.USER_INPUT:
        return Place(INPUT, spec.arg.name)
    return Place(TENSOR if spec.kind in HELD else spec.kind.name, spec.target or spec.arg.name)


def _changes(signature: Any) -> str | None:
    for spec in signature.output_specs:
        if spec.kind != OutputKind.USER_OUTPUT:
            return (
                f"the model changes {spec.target!r} while it runs; a file holds only models "
                "whose outputs are all that a run leaves behind"
            )
    return None


def _batch(program: Any) -> Document | None:
    """The range of batches that the trace holds for, or None if it is fixed."""
    found = [x for x in _inputs(program) if isinstance(x, Tensor)]
    sizes: list[Any] = [s for x in found for s in x.shape[:1] if _is_free(s)]
    if not sizes:
        return None
    limits: Any = program.range_constraints[sizes[0].node.expr]
    low, high = int(limits.lower), limits.upper
    # The tracer always assumes 2 or more; `save` tries 1.
    at_most = int(high) if high.is_Integer and int(high) < 2**31 else None
    return {"min": 1 if low <= 2 else low, "max": at_most}


def _nest(spec: Any, leaves: Iterator[int]) -> Any:
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
    if value.dim() != 2 or isinstance(value.shape[1], Varies) or isinstance(value.shape[0], int):
        return
    with graph.inserting_before(node):
        batch = graph.call_function(torch.ops.aten.sym_size.int, (x, 0))
        sizes: Any = [batch, value.shape[1]]
        flat = graph.call_function(torch.ops.aten.reshape.default, (x, sizes))
    batch.meta = {**node.meta, "val": value.shape[0]}
    flat.meta = dict(node.meta)
    node.replace_all_uses_with(flat)
    graph.erase_node(node)


def _plain_batch_norm(graph: fx.Graph, node: fx.Node) -> None:
    if any(u.target is not operator.getitem or u.args[1] != 0 for u in node.users):
        return
    x, weight, bias, mean, variance, momentum, eps = node.args
    with graph.inserting_before(node):
        args = (x, weight, bias, mean, variance, False, momentum, eps, True)
        plain = graph.call_function(torch.ops.aten.batch_norm.default, args)
    plain.meta = {**node.meta, "val": node.meta["val"][0]}
    for user in list(node.users):
        user.replace_all_uses_with(plain)
