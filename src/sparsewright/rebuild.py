"""A JSON graph from a file, which may be hostile, back into a module that runs.

Names are looked up in operations.py and nothing else is called. Every node is run on fake
tensors as it is built, so that wrong arguments, types and shapes are found before any real
tensor is touched; fake tensors have a shape and no memory, so nothing is allocated either.
README.md, section "The artifact format", states the rules.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .calls import Rule
from .errors import ArtifactError
from .graph import BATCH, DTYPES, FLOATS, FORMATS, LAYOUTS
from .held import HOLD, Held, Make
from .operations import OWN, Operation, operation_of
from .samples import TRIAL, why_mixed
from .signature import MAX_TEXT, Signature, field
from .traced import Like, fakes_of

Own = Callable[[str, list[Any], dict[str, Any]], tuple[Operation, list[Any], Rule]]
"""(operation, args, kwargs as written) -> what to call, its arguments as written, what holds."""


MAX_NODES = 100_000
MAX_INPUTS = 256
MAX_DEPTH = 8  # of lists in lists
MAX_PARTS = 2**16  # results of one split
MAX_INT = 2**63

WORDS: dict[str, Mapping[str, Any]] = {
    "dtype": DTYPES,
    "memory_format": FORMATS,
    "layout": LAYOUTS,
}


def build(
    document: Any,
    tensors: Mapping[str, Tensor],
    own: Own,
    prepacked: Mapping[str, Held],
    values: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    """The module of a graph document, or ArtifactError naming the node that breaks a rule.

    tensors: the file's, by name. own: checks the call of one of sparsewright's operations.
    prepacked: name of a dense weight that its kernel holds in an order of its own -> how. values:
    what the nodes of a document that is no file's gave when it was traced (graph.Graph): then no
    node is run on trial. The module's meta say why its graph may mix the samples of a batch
    ("mixed"), None if it does not.
    """
    with _unlogged(), contextlib.ExitStack() as stack:
        if values:
            fakes = {name: Like.of(t).fake() for name, t in tensors.items()}
        else:
            mode = stack.enter_context(FakeTensorMode())
            fakes = {name: mode.from_tensor(t) for name, t in tensors.items()}
        reader = _Reader(fakes, own, prepacked, values or {})
        reader.read(document)
        mixed = reader.why_mixed(Signature.read(document))
    module = reader.module(tensors)
    module.meta["mixed"] = mixed
    return module


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """torch logs a stack trace of what fails on trial; here it is an ArtifactError already."""
    own, logger = threading.get_ident(), logging.getLogger("torch._subclasses.fake_tensor")

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != own

    logger.addFilter(elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(elsewhere)


class _Reader:
    """One document on its way into an fx graph; `fakes` is what every node gives on trial."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        own: Own,
        prepacked: Mapping[str, Held],
        values: Mapping[str, Any],
    ):
        self.tensors = tensors
        self.own = own
        self.known = values
        self.prepacked = prepacked
        self.held: dict[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {}  # name -> module
        self.graph = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}
        self.attributes: dict[str, fx.Node] = {}  # tensor name -> its node
        self.fakes: dict[fx.Node, Any] = {}

    def read(self, document: Any) -> None:
        inputs = Signature.read(document).inputs
        nodes = field(document, "nodes", list, "the graph")
        if len(nodes) > MAX_NODES or len(inputs) > MAX_INPUTS:
            raise ArtifactError(
                f"a graph has at most {MAX_INPUTS} inputs and {MAX_NODES} nodes; "
                f"got {len(inputs)} and {len(nodes)}"
            )
        for name, dtype, shape in inputs:
            self._input(name, dtype, shape)
        for place, entry in enumerate(nodes):
            self._node(entry, f"node {place}")
        output = field(document, "output", (dict, list), "the graph")
        self.graph.output(self._value(output, "the output", nested=True))

    def module(self, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
        root = nn.Module()
        for name, node in self.attributes.items():
            root.register_buffer(str(node.target), tensors[name])
        for module, make in self.held.items():
            root.add_module(module, make(tensors))
        return fx.GraphModule(root, self.graph).eval()

    def why_mixed(self, signature: Signature) -> str | None:
        """Why a batch must not be run in pieces, or None."""
        if signature.batch is None:
            return "the trace is of one batch alone"
        if signature.batch[0] > 1:
            return f"the trace is of batches of {signature.batch[0]} or more"
        batched = [shape[:1] == (BATCH,) for _, _, shape in signature.inputs]
        return why_mixed(self.graph, batched, self.fakes)

    def _name(self, name: str, place: str, node: fx.Node) -> None:
        if name in self.nodes:
            raise ArtifactError(f"{place}: the name {name[:MAX_TEXT]!r} is taken already")
        self.nodes[name] = node

    def _input(self, name: str, dtype: torch.dtype, shape: tuple[int | str, ...]) -> None:
        node = self.graph.placeholder(f"input_{len(self.nodes)}")
        self._name(name, "inputs", node)
        sizes = [s if isinstance(s, int) else TRIAL for s in shape]
        self.fakes[node] = torch.empty(sizes, dtype=dtype, device="meta" if self.known else None)
        _note_sizes(node, self.fakes[node])

    def _node(self, entry: Any, place: str) -> None:
        name = field(entry, "op", str, place)
        known = self.known.get(field(entry, "name", str, place))
        place = f"{place} ({name[:MAX_TEXT]})"
        args = field(entry, "args", list, place)
        kwargs = field(entry, "kwargs", dict, place)
        if name.startswith(OWN):
            target, args, rule = self.own(name, args, kwargs)
            x = self._value(args[0], place)
            guarded = None if known is None else self.fakes[x]
            first = self._call(rule.guard, (x, rule.size), {}, place, guarded)
            values = [first, *(self._value(a, place) for a in args[1:])]
            node = self._call(target, tuple(values), {}, place, fakes_of(known))
            if rule.width is not None:  # of its output, whatever x is: program.py relies on it
                node.meta["width"] = rule.width
        elif (operation := operation_of(name)) is not None:
            positional = tuple(self._value(a, place) for a in args)
            named = {k: self._value(v, place) for k, v in kwargs.items()}
            _refuse_special(name, positional, named, place)
            node = self._call(operation, positional, named, place, fakes_of(known))
            if name in HOLD and not kwargs:
                node = self._prepacked(name, node, args)
        else:
            raise ArtifactError(
                f"{place}: a file may not use the operation {name[:MAX_TEXT]!r}; "
                "the README's section on the format says which it may"
            )
        self._name(field(entry, "name", str, place), place, node)

    def _call(
        self,
        target: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        place: str,
        known: Any = None,
    ) -> fx.Node:
        """A call, run on trial unless it is known what it gives."""
        result = self._tried(target, args, kwargs, place) if known is None else known
        node = self.graph.call_function(target, args, kwargs)
        self.fakes[node] = result
        _note_sizes(node, result)
        return node

    def _tried(
        self, target: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], place: str
    ) -> Any:
        fake_args = fx.node.map_arg(args, self.fakes.__getitem__)
        fake_kwargs = fx.node.map_arg(kwargs, self.fakes.__getitem__)
        try:
            _refuse_many_parts(target, fake_args)
            return target(*fake_args, **fake_kwargs)
        except Exception as error:  # torch raises what it likes; all of it means a wrong graph
            reason = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise ArtifactError(f"{place} cannot run on its inputs: {reason[:300]}") from error

    def _prepacked(self, name: str, plain: fx.Node, args: list[Any]) -> fx.Node:
        """The same product by the module that holds the weight as its kernel wants it."""
        weight, bias = tensor_name(args[1]), args[2] if len(args) > 2 else None
        if weight is None or weight not in self.prepacked:
            return plain
        if bias is not None and tensor_name(bias) is None:
            return plain
        make = HOLD[name](weight, tensor_name(bias), self.prepacked[weight], plain.args)
        if make is None:
            return plain
        module = f"held_{len(self.held)}"
        self.held[module] = lambda tensors: _made(make, weight, tensors)
        node = self.graph.create_node("call_module", module, (plain.args[0],))
        self.fakes[node] = self.fakes.pop(plain)
        _note_sizes(node, self.fakes[node])
        node.meta["axes"] = self.tensors[weight].dim()
        if self.tensors[weight].dim() == 2:
            node.meta["width"] = self.tensors[weight].shape[0]
        self.graph.erase_node(plain)
        return node

    def _value(self, value: Any, place: str, depth: int = 0, nested: bool = False) -> Any:
        """A JSON value as an argument; nested: tuples and dicts too, as outputs have them."""
        if depth > MAX_DEPTH:
            raise ArtifactError(f"{place}: values lie at most {MAX_DEPTH} deep")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return _bounded(value, place)
        if isinstance(value, str):
            return _short(value, place)
        if isinstance(value, list):
            return [self._value(v, place, depth + 1, nested) for v in value]
        if isinstance(value, dict) and len(value) == 1:
            ((kind, content),) = value.items()
            if nested and kind == "tuple" and isinstance(content, list):
                return tuple(self._value(v, place, depth + 1, nested) for v in content)
            if nested and kind == "dict" and _are_pairs(content):
                return {
                    _short(k, place): self._value(v, place, depth + 1, nested) for k, v in content
                }
            return self._typed(kind, content, place)
        raise ArtifactError(f"{place}: a value is {_short(str(value)[:40], place)}, which is none")

    def _typed(self, kind: str, content: Any, place: str) -> Any:
        if kind == "node" and isinstance(content, str) and content in self.nodes:
            return self.nodes[content]
        if kind == "tensor" and isinstance(content, str) and content in self.tensors:
            return self._attribute(content)
        if kind == "float" and isinstance(content, str) and content in FLOATS:
            return FLOATS[content]
        if kind == "float" and isinstance(content, float):
            return content
        if kind == "float" and type(content) is int:
            return float(_bounded(content, place))
        if kind in WORDS and isinstance(content, str) and content in WORDS[kind]:
            return WORDS[kind][content]
        raise ArtifactError(f"{place}: there is no {kind[:MAX_TEXT]} {str(content)[:MAX_TEXT]!r}")

    def _attribute(self, name: str) -> fx.Node:
        if name not in self.attributes:
            # The file's names never become Python's: fx writes a program and compiles it.
            node = self.graph.create_node("get_attr", f"tensor_{len(self.attributes)}")
            self.attributes[name] = node
            self.fakes[node] = self.tensors[name]
            _note_sizes(node, self.tensors[name])
        return self.attributes[name]


def _note_sizes(node: fx.Node, result: Any) -> None:
    """Of float32 results, with a batch of TRIAL."""
    if isinstance(result, Tensor) and result.dtype == torch.float32:
        node.meta["sizes"] = tuple(result.shape)


def _made(make: Make, weight: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    try:
        return make(tensors)
    except RuntimeError as error:  # oneDNN has limits of its own on what a file may claim
        raise ArtifactError(
            f"tensor {weight[:MAX_TEXT]!r}: oneDNN cannot reorder it for the input named"
        ) from error


def _are_pairs(content: Any) -> bool:
    pairs = content if isinstance(content, list) else [None]
    return all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in pairs)


def tensor_name(value: Any) -> str | None:
    """The name that a {"tensor": name} value holds."""
    if isinstance(value, dict) and list(value) == ["tensor"] and isinstance(value["tensor"], str):
        return value["tensor"]
    return None


def _refuse_special(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], place: str) -> None:
    if "device" in kwargs:
        raise ArtifactError(f"{place}: a file names no device")
    if name == "aten.batch_norm.default" and (len(args) != 9 or args[5] is not False):
        raise ArtifactError(f"{place}: batch norm takes nine arguments and does not train")
    dropped = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
    if name == "aten.scaled_dot_product_attention.default" and dropped != 0.0:
        raise ArtifactError(f"{place}: attention does not drop: dropout_p must be 0")


def _refuse_many_parts(target: Operation, args: tuple[Any, ...]) -> None:
    """A split has as many results as the sizes say, which a file can claim for nothing."""
    schema = getattr(target, "_schema", None)
    if schema is None or not any(
        "[]" in str(r.type) or "List" in str(r.type) for r in schema.returns
    ):
        return
    sizes = args[0].shape if args and isinstance(args[0], Tensor) else ()
    if max(sizes, default=0) > MAX_PARTS:
        raise ArtifactError(f"what is split has sizes of at most {MAX_PARTS}; got {max(sizes)}")


def _bounded(value: int, place: str) -> int:
    if not -MAX_INT <= value < MAX_INT:
        raise ArtifactError(f"{place}: an int has 64 bits; got one of {value.bit_length()}")
    return value


def _short(text: str, place: str) -> str:
    if len(text) > MAX_TEXT:
        raise ArtifactError(f"{place}: a text has at most {MAX_TEXT} characters; got {len(text)}")
    return text
