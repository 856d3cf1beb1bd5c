"""A traced model as one flat function, so that a call costs little beyond its kernels' own work.

The weights of a small model fill the CPU's caches at every call, and push Python's own data out;
then a module's call, an attribute and a check each cost several times what they cost in a loop.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_leaves

from . import library
from .beside import beside
from .declared import Declared, describe, with_best_isa
from .errors import ArtifactError, KernelError
from .flat import flat
from .fuse import TOLERANCE
from .graph import BATCH, Document, Graph, is_same, trace, written
from .image_units import IMAGES, images_for
from .kernels.bound import Into, into, transposed
from .measure.dense import relative_error
from .nn import Prepacked
from .pieces import MISS, by_filling, in_pieces
from .rebuild import build
from .signature import Signature, field
from .swap import swap
from .traced import Trace

NOT_SO_MANY = "side by side lie {0} images, or fewer that leave too many places empty; got {1}"
NOT_BESIDE = "the model has no convolutions that take images side by side"


class Program:
    """The flat function of a graph, `run`: inputs -> outputs, or MISS where the modules must run.

    module: the graph and what it refers to. It is served inputs that `signature` allows, plain
    tensors without gradients, while no module of `model`, whose trace it is, has a forward hook.
    size: samples at a time, None for whole batches; KernelError where `mixed` says why not.
    side_by_side: whether its convolutions take so many images side by side (beside.py), of batches
    that fill them; KernelError where that is not for this graph. threads: that these are to keep
    busy; None: as many as there are now.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        signature: Signature,
        model: nn.Module,
        size: int | None = None,
        side_by_side: bool = False,
        threads: int | None = None,
    ):
        self.module, self.signature, self.model, self.size = module, signature, model, size
        self.side_by_side = side_by_side
        self.threads = torch.get_num_threads() if threads is None else threads
        if size is not None and self.mixed is not None:
            raise KernelError(f"a batch cannot be run in pieces: {self.mixed}")
        self._bind()

    @property
    def mixed(self) -> str | None:
        """Why the samples of a batch must not be run in pieces, or None."""
        reason: str | None = self.module.meta["mixed"]
        return reason

    def cut(
        self, size: int | None, side_by_side: bool = False, threads: int | None = None
    ) -> Program:
        """The same program with so many samples at a time, or images side by side."""
        return Program(self.module, self.signature, self.model, size, side_by_side, threads)

    def beside(self, batch: int = IMAGES) -> Program | None:
        """The same with images side by side, for a batch of so many; None where it is not for
        that."""
        images = images_for(batch)
        if images is None or self.mixed is not None or not any(self._batched()):
            return None
        try:
            return self.cut(images, side_by_side=True)
        except KernelError:
            return None

    def _in_pieces(self, graph: fx.Graph, *, hooks: tuple[Mapping[int, Any], ...]) -> Any:
        """The function of a graph over the module's tensors, a sample for each thread at a time."""
        run = flat(self.module, self.signature, hooks, graph)[0]
        return in_pieces(run, self._batched(), torch.get_num_threads())

    def _batched(self) -> list[bool]:
        return [shape[:1] == (BATCH,) for *_, shape in self.signature.inputs]

    def _bind(self) -> None:
        hooks = tuple(hooks_of(self.model))
        everywhere = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
        self._heard: Any = (*everywhere, *hooks)
        self._fits: Any = None
        self.run, product = flat(self.module, self.signature, hooks)
        self._product = product
        self._into: weakref.WeakSet[Into] = weakref.WeakSet()
        self._transposed = None if product is None else transposed(product)
        self.convs_as_code = 0  # of images side by side
        if self.side_by_side:
            images = self.size
            if images is None or images_for(images) != images:
                raise KernelError(NOT_SO_MANY.format(IMAGES, images))
            cut = functools.partial(self._in_pieces, hooks=hooks)
            graph = beside(self.module, cut, images, self.threads)
            if graph is None:
                raise KernelError(library.why_not_compiled("beside_cost") or NOT_BESIDE)
            held = [call.number for node in graph.nodes for call in node.meta.get("held", ())]
            code_bytes = torch.ops.sparsewright.code_bytes
            self.convs_as_code = sum(code_bytes(number) > 0 for number in held)
            run = flat(self.module, self.signature, hooks, graph)[0]
            self.run = by_filling(run, self.run, self._batched().index(True), images)
        if self.size is not None:
            _, most = self.signature.batch or (0, None)
            self.run = in_pieces(self.run, self._batched(), self.size, most)

    def run_transposed(self, x: Any) -> Any:
        """run(x.t()).t(), x and output contiguous, where the graph is a product with a matrix, or
        several one after the other; else, or of what `run` does not serve, MISS."""
        if self._transposed is None or any(self._heard):
            return MISS
        if type(x) is not Tensor or x.requires_grad or x.dtype is not self.signature.inputs[0][1]:
            return MISS
        if x.shape != self._fits:  # the shape that fitted last is the one that is likely to come
            try:
                self.signature.check((x.t(),))
            except (KernelError, RuntimeError):  # of the check, or of t() in three dimensions
                return MISS
            self._fits = x.shape
        return self._transposed(x)

    @property
    def is_product(self) -> bool:
        """Whether the graph is a product with a matrix, or several one after the other."""
        return self._product is not None

    def into(self, x: Tensor, out: Tensor, across: bool) -> Into | None:
        """`kernels.bound.into` of a graph that `is_product`; None of what `run` does not serve."""
        plain = isinstance(x, Tensor) and (x.dim() == 2 or not across)
        if self._product is None or not plain or is_heard(self.model):
            return None
        try:
            self.signature.check((x.t() if across else x,))
        except KernelError:
            return None
        made = into(self._product, x, out, across)
        if not isinstance(made, Into):
            return None
        self._into.add(made)
        return made

    def end(self, reason: str) -> None:
        """Let go of the calls that `into` gave: they raise KernelError with that reason."""
        for made in list(self._into):
            made.end(reason)

    def __getstate__(self) -> dict[str, Any]:  # a copy has functions over its own tensors
        own = ("run", "_product", "_transposed", "_into", "_heard")
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()


def hooks_of(model: nn.Module) -> Iterator[Mapping[int, Any]]:
    """The tables of forward hooks of a model's modules: empty ones unless somebody listens."""
    for module in model.modules():
        yield module._forward_hooks
        yield module._forward_pre_hooks


def is_heard(model: nn.Module) -> bool:
    """Whether anybody listens to a module of the model, or to all modules."""
    everywhere = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    return any([*hooks_of(model), *everywhere])


def module_of(document: Document, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """The module of a document with its layers; ArtifactError if it breaks a rule."""
    layers = Declared.of_file(field(document, "layers", list, "the document"), tensors)
    graph = field(document, "graph", dict, "the document")
    return build(graph, tensors, layers.own, layers.prepacked)


def layers_and_graph(model: nn.Module, graph: Graph) -> Document:
    """The part of a document that `module_of` reads."""
    return {"layers": describe(model, graph), "graph": with_best_isa(graph.document)}


def program_of(
    model: nn.Module,
    example: tuple[Tensor, ...],
    found: Trace | None = None,
    at_example: bool = False,
) -> tuple[Program | None, Graph | None]:
    """A model's program and its trace; None for what it has not.

    found: the trace of what the model was deployed from, if it is at hand.
    A program gives the model's outputs on the example, and at batches of 1 and 3 where any batch
    is served: bit for bit, or within fuse.TOLERANCE where something was fused that rounds, or a
    kernel's bound calls round in other places than its op.
    at_example: whether it need not be run at the two other batches.
    """
    if any(hooks_of(model)):
        return None, None  # a trace has no place for them
    try:
        swapped = None if found is None else swap(found, model)
        graph = trace(model, example) if swapped is None else written(swapped)
        document = with_best_isa(graph.document)
        layers = Declared.of_model(model, graph)
        module = build(document, graph.tensors, layers.own, layers.prepacked, graph.values)
    except ArtifactError:
        return None, None  # its modules run; `save` says what is wrong
    _share_reordered(module, model)
    program = Program(module, Signature.read(document), model)
    batch = document["batch"]
    trials = [example]
    if batch is not None and not at_example:
        if batch["min"] <= 1 and example[0].shape[0] != 1:
            trials.append(tuple(rows(x, 1) for x in example))
        if (batch["max"] or 3) >= 3:
            trials.append(tuple(rows(x, 3) for x in example))
    same = _equal if graph.exact and layers.exact else _close
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
