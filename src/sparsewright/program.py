"""A traced model as one flat function, so that a call costs little beyond its kernels' own work.

The weights of a small model fill the CPU's caches at every call, and push Python's own data out;
then a module's call, an attribute and a check each cost several times what they cost in a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_leaves

from .declared import Declared, describe, with_best_isa
from .errors import ArtifactError, KernelError
from .fuse import TOLERANCE
from .graph import BATCH, Document, Graph, is_same, trace, written
from .kernels.bound import bind, binder_of
from .measure.dense import relative_error
from .nn import Prepacked
from .operations import expect_width
from .pieces import MISS, in_pieces
from .pooling import max_pool2d
from .rebuild import build
from .signature import Signature, field
from .swap import swap

aten = torch.ops.aten
QUICK: Mapping[object, Callable[..., Any]] = {
    aten.linear.default: F.linear,
    aten.relu.default: torch.relu,
    aten.view.default: Tensor.view,
    aten.reshape.default: Tensor.reshape,
    aten.sym_size.int: Tensor.size,
    aten.max_pool2d.default: max_pool2d,
}
"""The same operations where torch has a quicker way to them, or to their numbers."""

SAME_WIDTH = (aten.relu.default, aten.gelu.default, aten.sigmoid.default, aten.tanh.default)
"""Operations whose output has the shape of their first argument."""
RESHAPES = (aten.view.default, aten.reshape.default)


class Program:
    """The flat function of a graph, `run`: inputs -> outputs, or MISS where the modules must run.

    module: the graph and what it refers to. It is served inputs that `signature` allows, plain
    tensors without gradients, while no module of `model`, whose trace it is, has a forward hook.
    size: samples at a time, None for whole batches; KernelError where `mixed` says why not.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        signature: Signature,
        model: nn.Module,
        size: int | None = None,
    ):
        self.module, self.signature, self.model, self.size = module, signature, model, size
        if size is not None and self.mixed is not None:
            raise KernelError(f"a batch cannot be run in pieces: {self.mixed}")
        self._bind()

    @property
    def mixed(self) -> str | None:
        """Why the samples of a batch must not be run in pieces, or None."""
        reason: str | None = self.module.meta["mixed"]
        return reason

    def cut(self, size: int | None) -> Program:
        """The same program with so many samples at a time."""
        return Program(self.module, self.signature, self.model, size)

    def _bind(self) -> None:
        self.run = flat(self.module, self.signature, tuple(hooks_of(self.model)))
        if self.size is not None:
            batched = [shape[:1] == (BATCH,) for *_, shape in self.signature.inputs]
            _, most = self.signature.batch or (0, None)
            self.run = in_pieces(self.run, batched, self.size, most)

    def __getstate__(self) -> dict[str, Any]:  # a copy has a function over its own tensors
        return {k: v for k, v in self.__dict__.items() if k != "run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()


def hooks_of(model: nn.Module) -> Iterator[Mapping[int, Any]]:
    """The tables of forward hooks of a model's modules: empty ones unless somebody listens."""
    for module in model.modules():
        yield module._forward_hooks
        yield module._forward_pre_hooks


def module_of(document: Document, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """The module of a document with its layers; ArtifactError if it breaks a rule."""
    layers = Declared(field(document, "layers", list, "the document"), tensors)
    graph = field(document, "graph", dict, "the document")
    return build(graph, tensors, layers.own, layers.prepacked)


def layers_and_graph(model: nn.Module, graph: Graph) -> Document:
    """The part of a document that `module_of` reads."""
    return {"layers": describe(model, graph), "graph": with_best_isa(graph.document)}


def program_of(
    model: nn.Module, example: tuple[Tensor, ...], exported: Any = None
) -> tuple[Program | None, Graph | None]:
    """A model's program and its trace; None for what it has not.

    exported: torch.export's program of what the model was deployed from, if it is at hand.
    A program gives the model's outputs on the example, and at batches of 1 and 3 where any batch
    is served: bit for bit, or within fuse.TOLERANCE where something was fused that rounds.
    """
    if any(hooks_of(model)):
        return None, None  # a trace has no place for them
    try:
        swapped = None if exported is None else swap(exported, model)
        graph = trace(model, example) if swapped is None else written(exported, *swapped)
        document = layers_and_graph(model, graph)
        module = module_of(document, graph.tensors)
    except ArtifactError:
        return None, None  # its modules run; `save` says what is wrong
    _share_reordered(module, model)
    program = Program(module, Signature.read(document["graph"]), model)
    batch = document["graph"]["batch"]
    trials = [example]
    if batch is not None:
        if batch["min"] <= 1 and example[0].shape[0] != 1:
            trials.append(tuple(rows(x, 1) for x in example))
        if (batch["max"] or 3) >= 3:
            trials.append(tuple(rows(x, 3) for x in example))
    same = _equal if graph.exact else _close
    return (program if all(_agree(model, program, t, same) for t in trials) else None), graph


def rows(x: Tensor, count: int) -> Tensor:
    """`count` rows of the example, repeated as often as needed."""
    return x[torch.arange(count) % x.shape[0]]


def _agree(
    model: nn.Module,
    program: Program,
    inputs: tuple[Tensor, ...],
    same: Callable[[Tensor, Tensor], bool],
) -> bool:
    """Whether both give the same outputs."""
    try:
        expected, got = model(*inputs), program.run(*inputs)
    except Exception:  # whatever a user's forward may raise at another batch: the modules serve
        return False
    return same_outputs(got, expected, same)


def same_outputs(
    got: Any, expected: Any, same: Callable[[Tensor, Tensor], bool] | None = None
) -> bool:
    """Whether two outputs are alike, tensor by tensor; within fuse.TOLERANCE unless `same` says."""
    a, b = ([x for x in tree_leaves(v) if isinstance(x, Tensor)] for v in (got, expected))
    return got is not MISS and len(a) == len(b) and all(map(same or _close, a, b))


def _equal(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _close(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and relative_error(a.float(), b.float()) <= TOLERANCE


def _share_reordered(module: fx.GraphModule, model: nn.Module) -> None:
    """Let the program use the model's own prepacked layers: one reordered copy of each weight."""
    known = [m for m in model.modules() if isinstance(m, Prepacked)]
    for made in module.children():
        for layer in known:
            if isinstance(made, Prepacked) and _alike(made, layer):
                made.share(layer)


def _alike(a: Prepacked, b: Prepacked) -> bool:
    return (a.kernel, a.operation) == (b.kernel, b.operation) and is_same(a.weight, b.weight)


# --- the function ----------------------------------------------------------------------------


def flat(
    module: fx.GraphModule, signature: Signature, hooks: tuple[Mapping[int, Any], ...]
) -> Callable[..., Any]:
    """The graph as one function, everything that it refers to bound to it.

    No text of the graph becomes Python: variables are numbered, and all but integers is bound.
    """
    writer = _Writer(module, signature)
    names = ", ".join(f"x{i}" for i in range(len(signature.inputs)))
    fits = [_fits(shape, signature.batch) for _, _, shape in signature.inputs]
    served = [f"len(inputs) != {len(fits)}", writer.watch(hooks)]
    body = [_returns_miss(served), *([f"{names}, = inputs"] if names else [])]
    for i, (_, dtype, _) in enumerate(signature.inputs):
        body += writer.entry(i, dtype, fits[i])
    batched = [f"s{i}" for i, (*_, shape) in enumerate(signature.inputs) if shape[:1] == (BATCH,)]
    body += [_returns_miss([f"{a}[0] != {b}[0]"]) for a, b in pairwise(batched)]
    body += writer.lines()
    constants = {f"c{i}": v for i, v in enumerate(writer.constants)}
    lines = [f"def make({', '.join(constants)}):"]
    lines += [f" u{i} = None" for i in range(len(fits))]
    lines += [" def run(*inputs):"]
    lines += [f"  nonlocal u{i}" for i in range(len(fits))]
    lines += [f"  {line}" for line in body]
    lines += [" return run"]
    space: dict[str, Any] = {"__builtins__": {"len": len, "type": type}}
    exec(compile("\n".join(lines), "<sparsewright program>", "exec"), space)
    run: Callable[..., Any] = space["make"](**constants)
    return run


def _returns_miss(conditions: list[str]) -> str:
    return f"if {' or '.join(conditions)}: return c0"


def _fits(shape: tuple[int | str, ...], batch: tuple[int, int | None] | None) -> Any:
    """shape -> whether the signature serves it."""
    least, most = batch or (0, None)
    if shape[:1] != (BATCH,):
        return lambda sizes: sizes == shape
    return lambda sizes: (
        len(sizes) == len(shape)
        and sizes[1:] == shape[1:]
        and least <= sizes[0]
        and (most is None or sizes[0] <= most)
    )


class _Writer:
    """A graph on its way into lines of Python."""

    def __init__(self, module: fx.GraphModule, signature: Signature):
        self.module = module
        self.constants: list[Any] = [MISS]
        self.names: dict[fx.Node, str] = {}
        self.same: dict[fx.Node, fx.Node] = {}  # a width check that cannot fail -> what it checks
        self.widths: dict[fx.Node, int] = {}  # last sizes that hold for every input served
        inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
        for node, (_, _, shape) in zip(inputs, signature.inputs, strict=True):
            self.names[node] = f"x{len(self.names)}"
            if shape and isinstance(shape[-1], int):
                self.widths[node] = shape[-1]
        for node in module.graph.nodes:
            self._learn(node)

    def _learn(self, node: fx.Node) -> None:
        """Note the node's last size where the graph alone tells it."""
        first, second = (*map(self._real, node.args[:2]), None, None)[:2]
        if "width" in node.meta:
            self.widths[node] = node.meta["width"]
        elif node.target is expect_width and self.widths.get(first) == second:
            self.same[node] = first
        elif node.target in SAME_WIDTH and first in self.widths:
            self.widths[node] = self.widths[first]
        elif node.target in RESHAPES and _ends_in_size(second):
            self.widths[node] = second[-1]

    def _real(self, value: Any) -> Any:
        return self.same.get(value, value) if isinstance(value, fx.Node) else value

    def bind(self, value: Any) -> str:
        self.constants.append(value)
        return f"c{len(self.constants) - 1}"

    def watch(self, hooks: tuple[Mapping[int, Any], ...]) -> str:
        """Whether anybody listens."""
        everywhere = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
        return f"{self.bind(any)}({self.bind((*everywhere, *hooks))})"

    def entry(self, i: int, dtype: torch.dtype, fits: Callable[..., bool]) -> list[str]:
        """The check of input i; its last shape that did is the one that is likely to come."""
        plain = f"type(x{i}) is not {self.bind(Tensor)} or x{i}.dtype is not {self.bind(dtype)}"
        return [
            _returns_miss([plain, f"x{i}.requires_grad"]),
            f"s{i} = x{i}.shape",
            f"if s{i} != u{i}:",
            f" if not {self.bind(fits)}(s{i}): return c0",
            f" u{i} = s{i}",
        ]

    def lines(self) -> list[str]:
        nodes = [n for n in self.module.graph.nodes if n not in self.same]
        last = {self._real(used): n for n in nodes for used in n.all_input_nodes}
        lines = []
        for node in nodes:
            lines += self._lines(node)
            done = [self.names[n] for n in last if last[n] is node and n.op != "get_attr"]
            if done and node.op != "output":
                lines.append(" = ".join([*done, "None"]))  # memory that the next step may have
        return lines

    def _bound(self, node: fx.Node) -> str | None:
        """A call of an operation whose arguments never change but for x and the residual."""
        target: Any = node.target
        rest = list(node.args[1:])
        if node.op != "call_function" or node.kwargs or binder_of(target) is None:
            return None
        given = [self.value(node.args[0])]
        names = [a.name for a in target._schema.arguments[1:]]
        if "residual" in names:
            place = names.index("residual")
            given.append(self.value(rest[place]))
            rest[place] = None
        try:
            kept = [self._constant(value) for value in rest]
        except KeyError:
            return None
        return f"{self.bind(bind(target, kept))}({', '.join(given)})"

    def _constant(self, value: Any) -> Any:
        """An argument that is the same at every call; KeyError if it is not."""
        if not isinstance(value, fx.Node):
            return value
        if value.op != "get_attr":
            raise KeyError(value)
        return self.module.get_buffer(str(value.target))

    def _lines(self, node: fx.Node) -> list[str]:
        if node.op == "placeholder":
            return []
        if node.op == "output":
            return [f"return {self.value(node.args[0])}"]
        if node.op == "get_attr":
            self.names[node] = self.bind(self.module.get_buffer(str(node.target)))
            return []
        bound = self._bound(node)
        if bound is not None:
            self.names[node] = f"v{len(self.names)}"
            return [f"{self.names[node]} = {bound}"]
        target: Any = node.target
        if node.op == "call_module":
            target = self.module.get_submodule(str(target)).forward
        arguments = [self.value(a) for a in node.args]
        if node.kwargs:
            arguments.append(f"**{self.value(dict(node.kwargs))}")
        self.names[node] = f"v{len(self.names)}"
        function = self.bind(QUICK.get(target, target) if not node.kwargs else target)
        return [f"{self.names[node]} = {function}({', '.join(arguments)})"]

    def value(self, value: Any) -> str:
        """An argument as Python text."""
        if isinstance(value, fx.Node):
            return self.names[self._real(value)]
        if value is None or type(value) is int:
            return str(value)
        if isinstance(value, list):
            return f"[{', '.join(map(self.value, value))}]"
        if isinstance(value, tuple):
            return f"({''.join(self.value(v) + ', ' for v in value)})"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{self.bind(k)}: {self.value(v)}' for k, v in value.items())}}}"
        return self.bind(value)


def _ends_in_size(shape: Any) -> bool:
    is_list = isinstance(shape, (list, tuple)) and len(shape) > 0
    return is_list and type(shape[-1]) is int and shape[-1] >= 0
