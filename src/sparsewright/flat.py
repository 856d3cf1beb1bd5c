"""A graph as one flat function of Python, everything that it refers to bound to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from .graph import BATCH
from .kernels.bound import Call, binder_of
from .operations import expect_width
from .pieces import MISS
from .pooling import max_pool2d
from .shared_calls import SharedCalls
from .signature import Signature

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


def flat(
    module: fx.GraphModule,
    signature: Signature,
    hooks: tuple[Mapping[int, Any], ...],
    graph: fx.Graph | None = None,
) -> tuple[Callable[..., Any], Call | None]:
    """The module's graph, or another over its tensors, as one function, everything that it refers
    to bound to it; and, if one bound call is all that the graph does, that call.

    No text of the graph becomes Python: variables are numbered, and all but integers is bound.
    """
    writer = _Writer(module, signature, graph or module.graph)
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
    return run, writer.whole


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

    def __init__(self, module: fx.GraphModule, signature: Signature, graph: fx.Graph):
        self.module = module
        self.constants: list[Any] = [MISS]
        self.names: dict[fx.Node, str] = {}
        self.same: dict[fx.Node, fx.Node] = {}  # a width check that cannot fail -> what it checks
        self.widths: dict[fx.Node, int] = {}  # last sizes that hold for every input served
        inputs = [n for n in graph.nodes if n.op == "placeholder"]
        for node, (_, _, shape) in zip(inputs, signature.inputs, strict=True):
            self.names[node] = f"x{len(self.names)}"
            if shape and isinstance(shape[-1], int):
                self.widths[node] = shape[-1]
        for node in graph.nodes:
            self._learn(node)
        self.nodes = [n for n in graph.nodes if n not in self.same]
        products = ((n, self._kept(n)) for n in self.nodes)
        self.kept = {n: rest for n, rest in products if rest is not None}
        self.runs = self._runs()
        self.whole: Call | None = None

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
        end = {n: last for last, run in self.runs.items() for n in run}
        last = {self._real(used): end.get(n, n) for n in self.nodes for used in n.all_input_nodes}
        known: dict[fx.Node, list[fx.Node]] = {}  # node -> what nobody reads after it
        for used, reader in last.items():
            if used.op != "get_attr" and end.get(used, used) is used:
                known.setdefault(reader, []).append(used)
        lines = []
        for node in self.nodes:
            if end.get(node, node) is not node:
                continue  # a run's last product calls all of it
            lines += self._lines(node)
            done = [self.names[n] for n in known.get(node, ())]
            if done and node.op != "output":
                lines.append(" = ".join([*done, "None"]))  # memory that the next step may have
        return lines

    def _runs(self) -> dict[fx.Node, list[fx.Node]]:
        """Products with matrices, each but the first fed by the one before and nobody else: the
        last of them -> all."""
        users: dict[fx.Node, list[fx.Node]] = {}
        for node in self.nodes:
            for used in {self._real(n) for n in node.all_input_nodes}:
                users.setdefault(used, []).append(node)
        runs: dict[fx.Node, list[fx.Node]] = {}
        for node in self.nodes:
            if node in self.kept and _residual_of(node) is None:
                before = self._real(node.args[0])
                run = runs.pop(before, []) if users[before] == [node] else []
                runs[node] = [*run, node]
        return runs

    def _kept(self, node: fx.Node) -> list[Any] | None:
        """What follows x in a product that can be bound: all the same at every call, but for the
        residual, which is None here."""
        if node.op != "call_function" or node.kwargs or binder_of(_target(node)) is None:
            return None
        residual = _residual_of(node)
        try:
            rest = enumerate(node.args[1:])
            return [None if i == residual else self._constant(v) for i, v in rest]
        except KeyError:
            return None

    def _product(self, node: fx.Node) -> str:
        """A call of a product, or of the run of products that ends with it."""
        run = self.runs.get(node, [node])
        given, residual = [self.value(run[0].args[0])], _residual_of(node)
        if residual is not None:
            given.append(self.value(node.args[1 + residual]))
        shared = SharedCalls(self.module)
        calls = [shared.bind(_target(n), self.kept[n]) for n in run]
        call = calls[0] if len(calls) == 1 else shared.chain(calls)
        if node in self.runs and self._is_all(run):
            self.whole = call
        return f"{self.bind(call)}({', '.join(given)})"

    def _is_all(self, run: list[fx.Node]) -> bool:
        """Whether the graph takes one input, gives what becomes of it here, and does no more."""
        others = [n for n in self.nodes if n not in run and n.op != "get_attr"]
        ends = [self._real(run[0].args[0]), run[-1]]
        return [n.op for n in others] == ["placeholder", "output"] and ends == [
            others[0],
            self._real(others[1].args[0]),
        ]

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
        if node in self.kept:
            call = self._product(node)
            self.names[node] = f"v{len(self.names)}"
            return [f"{self.names[node]} = {call}"]
        target: Any = node.target
        if node.op == "call_module":
            target = self.module.get_submodule(str(target)).forward
        arguments = [self.value(a) for a in node.args]
        if node.kwargs:
            arguments.append(f"**{self.value(dict(node.kwargs))}")
        self.names[node] = f"v{len(self.names)}"
        if "held" in node.meta:
            target = _holding(target, node.meta["held"])
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


def _holding(function: Callable[..., Any], held: Any) -> Callable[..., Any]:
    """The function, which keeps alive what its arguments only number."""
    made = functools.partial(function)
    made.held = held  # type: ignore[attr-defined]
    return made


def _target(node: fx.Node) -> Any:
    return node.target


def _residual_of(node: fx.Node) -> int | None:
    """Where a product's arguments after x have what is added to its output, if they have it."""
    names = [a.name for a in _target(node)._schema.arguments[1:]]
    return names.index("residual") if "residual" in names else None


def _ends_in_size(shape: Any) -> bool:
    is_list = isinstance(shape, (list, tuple)) and len(shape) > 0
    return is_list and type(shape[-1]) is int and shape[-1] >= 0
