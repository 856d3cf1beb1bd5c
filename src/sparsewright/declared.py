"""The layers that an artifact declares: what a file says of each, and what a kernel may rely on.

No kernel follows an index of a file before the layout has validated the layer that it is in, and
none is called on anything but one declared layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .calls import Rule, rule_of
from .core import Packed
from .errors import ArtifactError, LayoutError
from .graph import Document, Graph, same
from .held import Held
from .kernels import KERNELS
from .kernels import Operation as Product
from .kernels.reference import ACTIVATIONS
from .layouts import LAYOUTS, count_present, validate
from .nn import LayoutLayer, Prepacked
from .operations import DENSE, Operation, own_operation, own_parts
from .plan import pattern_of
from .rebuild import tensor_name
from .signature import MAX_TEXT, field

HINTS = {2: ("rows",), 4: ("batch", "height", "width")}
"""Axes of a dense weight -> what its meta say of the input that the layer is likely to get."""
Key = tuple[str, frozenset[tuple[str, str]]]
"""The layout, and the layout's name of each tensor with its name in the file."""
Layer = LayoutLayer | Prepacked


def describe(model: nn.Module, graph: Graph) -> list[Document]:
    """One entry for every packed or prepacked layer of a model that its graph uses."""
    return [
        {
            "name": name,
            "layout": packed.layout,
            "shape": list(packed.shape),
            "nnz": _count(packed),
            "pattern": pattern_of(_dense(module)),
            "kernel": module.kernel,
            "tensors": refs,
            "meta": dict(packed.meta),
        }
        for name, module, packed, refs in _used(model, graph)
    ]


def _used(model: nn.Module, graph: Graph) -> Iterator[tuple[str, Layer, Packed, dict[str, str]]]:
    """(name, layer, its weight, the graph's names of its tensors) of all that a graph uses."""
    stored = {same(t): n for n, t in graph.tensors.items() if t.numel()}
    for name, module in model.named_modules():
        if not isinstance(module, (LayoutLayer, Prepacked)):
            continue
        packed, refs = _packed(module), {}
        for key, tensor in packed.tensors.items():
            own = f"{name}.{key}"  # or that of the layer that it shares the tensor with
            refs[key] = own if own in graph.tensors else stored.get(same(tensor))
        named = {key: ref for key, ref in refs.items() if ref is not None}
        if len(named) == len(refs):  # else the model never calls it
            yield name, module, packed, named


def _packed(module: Layer) -> Packed:
    if isinstance(module, LayoutLayer):
        return module.packed
    names = HINTS[module.weight.dim()]
    sizes = (module.shape[0], *module.shape[2:])  # the weight tells the channels
    hints = {name: max(1, size) for name, size in zip(names, sizes, strict=True)}
    return Packed(DENSE, tuple(module.weight.shape), {"weight": module.weight}, hints)


def _dense(module: Layer) -> Tensor:
    """The weight, with a convolution's kernel as its last sizes."""
    return module.to_dense() if isinstance(module, LayoutLayer) else module.weight


def _count(packed: Packed) -> int:
    if packed.layout == DENSE:
        return int(torch.count_nonzero(packed.tensors["weight"]))
    return count_present(packed)


def with_best_isa(graph: Document) -> Document:
    """The graph with every instruction set left to the machine that loads it (isa 0)."""
    nodes = []
    for node in graph["nodes"]:
        names = _argument_names(node["op"])
        if "isa" in names:
            args = [0 if n == "isa" else a for n, a in zip(names, node["args"], strict=True)]
            node = {**node, "args": args}
        nodes.append(node)
    return {**graph, "nodes": nodes}


def _argument_names(name: str) -> list[str]:
    """The arguments of a sparsewright operation, in order; none for any other."""
    operation = own_operation(name)
    return [] if operation is None else [a.name for a in operation._schema.arguments]  # type: ignore[attr-defined]


class Declared:
    """Layers, each validated; `own` checks calls against them.

    prepacked: name of a dense weight that its kernel holds in an order of its own -> how.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors
        self.layers: dict[Key, Packed] = {}
        self.kernels: dict[Key, str] = {}
        self.prepacked: dict[str, Held] = {}

    @classmethod
    def of_file(cls, entries: list[Any], tensors: Mapping[str, Tensor]) -> Declared:
        """Those of a document, each validated here."""
        declared = cls(tensors)
        for place, entry in enumerate(entries):
            declared._add(entry, f"layer {place}")
        return declared

    @classmethod
    def of_model(cls, model: nn.Module, graph: Graph) -> Declared:
        """Those of a model that its graph uses: each was validated when its module was made."""
        declared = cls(graph.tensors)
        for name, module, packed, refs in _used(model, graph):
            declared._keep((packed.layout, frozenset(refs.items())), packed, module.kernel, name)
        return declared

    @property
    def exact(self) -> bool:
        """Whether what is made of the layers' kernels, bound and in chains, gives the bits of
        their ops."""
        return all(
            KERNELS[name].chains_exactly for name in self.kernels.values() if name in KERNELS
        )

    def _add(self, entry: Any, place: str) -> None:
        place = f"{place} ({field(entry, 'name', str, place)[:MAX_TEXT]!r})"
        layout, refs = field(entry, "layout", str, place), field(entry, "tensors", dict, place)
        if not all(isinstance(r, str) and r in self.tensors for r in refs.values()):
            raise ArtifactError(f"{place} names a tensor that the file does not hold")
        shape, meta = field(entry, "shape", list, place), field(entry, "meta", dict, place)
        held = {name: self.tensors[ref] for name, ref in refs.items()}
        packed = Packed(layout, tuple(shape), held, meta)
        _validate(packed, place)
        nnz, counted = field(entry, "nnz", int, place), _count(packed)
        if nnz != counted:
            raise ArtifactError(f"{place}: nnz must be {counted}; got {str(nnz)[:MAX_TEXT]}")
        field(entry, "pattern", str, place)
        kernel = field(entry, "kernel", str, place)
        self._keep((layout, frozenset(refs.items())), packed, kernel, place)

    def _keep(self, key: Key, packed: Packed, kernel: str, place: str) -> None:
        known = self.layers.setdefault(key, packed)
        if known.shape != packed.shape or known.meta != packed.meta:
            raise ArtifactError(f"{place}: its tensors are declared with another shape or meta")
        self.kernels.setdefault(key, kernel)
        if packed.layout == DENSE:
            ((_, ref),) = key[1]
            product = "linear" if len(packed.shape) == 2 else "conv2d"
            if _serves(kernel, DENSE, product, packed.tensors["weight"]):
                self.prepacked[ref] = Held(
                    kernel, tuple(packed.meta[n] for n in HINTS[len(packed.shape)])
                )

    def own(
        self, name: str, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[Operation, list[Any], Rule]:
        """What to call for a sparsewright operation, its arguments, and what holds for it.

        ArtifactError unless its tensors, numbers and bias are those of one declared layer.
        """
        operation, parts, names = own_operation(name), own_parts(name), _argument_names(name)
        if operation is None or parts is None or kwargs or len(args) != len(names):
            raise ArtifactError(f"no operation {name[:MAX_TEXT]!r} takes {len(args)} arguments")
        given = dict(zip(names, args, strict=True))
        free: Document = {k: given.pop(k) for k in ("x", "residual") if k in given}
        bias, isa, activation = (given.pop(n) for n in ("bias", "isa", "activation"))
        refs = {key: ref for key, v in given.items() if (ref := tensor_name(v)) is not None}
        key = (parts[0], frozenset(refs.items()))
        if key not in self.layers:
            raise ArtifactError(f"{name}: its tensors are those of no declared layer")
        packed = self.layers[key]
        # Scales that are null are those of a layer without any: its tensors are the call's.
        numbers = {k: v for k, v in given.items() if k not in refs and (k, v) != ("scales", None)}
        if isa != 0 or type(isa) is not int:
            raise ArtifactError(f"{name} must be called with isa 0")
        if bias is not None and not self._is_bias(tensor_name(bias), packed.shape[0]):
            raise ArtifactError(f"{name}: bias must be null or {packed.shape[0]} F32 of the file")
        if type(activation) is not int or not 0 <= activation < len(ACTIVATIONS):
            known = ", ".join(f"{i} {name}" for i, (name, _) in enumerate(ACTIVATIONS))
            raise ArtifactError(
                f"{name}: activation must be one of {known}; got {str(activation)[:MAX_TEXT]}"
            )
        try:
            rule = rule_of(parts[1], packed, numbers)
        except ArtifactError as error:
            raise ArtifactError(f"{name} {error}") from error
        best = _isa(self.kernels[key], packed, rule.product, operation)
        own: Document = {**free, **given, "bias": bias, "activation": activation, "isa": best}
        return operation, [own[n] for n in names], rule

    def _is_bias(self, ref: str | None, out: int) -> bool:
        tensor = None if ref is None else self.tensors.get(ref)
        return tensor is not None and tensor.shape == (out,) and tensor.dtype == torch.float32


def _validate(packed: Packed, place: str) -> None:
    if packed.layout == DENSE:
        weight, hints = packed.tensors.get("weight"), HINTS.get(len(packed.shape), ())
        is_plain = weight is not None and tuple(weight.shape) == packed.shape
        is_hint = all(type(n) is int and 0 < n < 2**31 for n in packed.meta.values())
        named = (sorted(packed.tensors), sorted(packed.meta)) == (["weight"], sorted(hints))
        if not (is_plain and is_hint and named and hints):
            raise ArtifactError(
                f"{place}: a dense layer has a weight of its shape, and meta "
                + " or ".join(", ".join(names) for names in HINTS.values())
            )
        if packed.tensors["weight"].dtype != torch.float32:
            raise ArtifactError(f"{place}: a dense layer's weight must be F32")
    elif packed.layout not in LAYOUTS:
        known = ", ".join([*LAYOUTS.names(), DENSE])
        raise ArtifactError(f"{place}: no layout {packed.layout[:MAX_TEXT]!r}; there are: {known}")
    else:
        try:
            validate(packed)
        except LayoutError as error:
            raise ArtifactError(f"{place}: {error}") from error


def _isa(kernel: str, packed: Packed, product: Product, operation: Operation) -> int:
    """The instruction set of the kernel that was chosen, if it serves here; else the best one."""
    if not _serves(kernel, packed.layout, product.name) or KERNELS[kernel].op is not operation:
        return 0
    weight = packed.tensors["weight"] if packed.layout == DENSE else packed
    return product.prepare(KERNELS[kernel], weight, ()).numbers[-1] or 0


def _serves(kernel: str, layout: str, product: str, *weight: Tensor) -> bool:
    """Whether a file's hint names a kernel that can compute the product here."""
    if kernel not in KERNELS:
        return False
    found = KERNELS[kernel]
    return (found.layout, found.operation) == (layout, product) and found.refuses(*weight) is None
