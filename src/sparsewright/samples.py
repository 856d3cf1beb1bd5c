"""Whether a graph treats the samples of a batch one by one, proved by a walk over its operations.

Every value is one of three: of the samples (a tensor one of whose axes is the batch, and whose
entry i along it depends on entry i of the inputs alone), the batch itself (a number), or apart
from both. Most operations are known only for samples along the first axis; some move the axis.
An operation is passed if a rule of this file shows that it keeps the samples apart. All others
end the walk, so that what nobody thought of is not split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from .operations import SIZES, expect_channels, expect_width, get_item, own_parts

Kind = int | str
"""Of samples: their axis."""
SAMPLES, COUNT, APART = 0, "the batch", "apart"
TRIAL = 2
"""The batch of the fake results."""


@dataclass(frozen=True)
class Call:
    """One operation: its arguments by name, what every node is, and the fake results."""

    given: Mapping[str, Any]
    kinds: Mapping[fx.Node, Kind]
    fakes: Mapping[fx.Node, Any]
    result: Any

    def kind(self, value: Any) -> Kind:
        return self.kinds[value] if isinstance(value, fx.Node) else APART

    def rank(self, value: Any) -> int:
        return int(self.fakes[value].dim())

    @property
    def first(self) -> fx.Node:
        """What the operation works on: its first argument."""
        return next(iter(self.given.values()))

    def only_first(self) -> bool:
        """Whether the first argument holds samples, and no other argument does."""
        values = list(self.given.values())
        others = [self.kind(leaf) for v in values[1:] for leaf in tree_leaves(v)]
        return self.kind(values[0]) == SAMPLES and set(others) <= {APART}

    def spreads(self, value: Any) -> bool:
        """Whether a tensor is alike for all samples when it meets a result of this rank."""
        if self.kind(value) != APART or not isinstance(value, fx.Node):
            return self.kind(value) == APART
        fake = self.fakes[value]
        if not isinstance(fake, Tensor):
            return True
        return fake.dim() < self.result.dim() or fake.shape[0] == 1

    def axes(self, name: str, rank: int) -> list[int]:
        """The axes that an argument names, from the front; none where it is left out."""
        value = self.given[name]
        return [a % rank for a in (value if isinstance(value, (list, tuple)) else [value])]


Rule = Callable[[Call], bool]


def _pointwise(call: Call) -> bool:
    """Samples meet samples of the same rank, or what is alike for all of them."""
    rank = call.result.dim()
    tensors = [v for v in tree_leaves(list(call.given.values())) if isinstance(v, fx.Node)]
    return all(
        call.rank(v) == rank if call.kind(v) == SAMPLES else call.spreads(v) for v in tensors
    )


def _of_rank(least: int, most: int | None = None) -> Rule:
    """An operation on its first argument, whose first axis is the samples' from some rank on."""

    def rule(call: Call) -> bool:
        return call.only_first() and least <= call.rank(call.first) <= (most or 99)

    return rule


def _along(name: str = "dim", more: int = 0) -> Rule:
    """An operation along the axes that it names, none of them the first; `more`: axes added."""

    def rule(call: Call) -> bool:
        if not call.only_first() or call.given[name] is None or call.given[name] == []:
            return False
        return 0 not in call.axes(name, call.rank(call.first) + more)

    return rule


def _swap(call: Call, axis: int) -> int:
    (a,), (b,) = (call.axes(name, call.rank(call.first)) for name in ("dim0", "dim1"))
    return {a: b, b: a}.get(axis, axis)


def _permute(call: Call, axis: int) -> int:
    return call.axes("dims", call.rank(call.first)).index(axis)


def _take(call: Call, axis: int) -> int | None:
    """Entries along another axis, which is gone then."""
    (gone,) = call.axes("dim", call.rank(call.first))
    return None if gone == axis else axis - (gone < axis)


MOVES: Mapping[str, Callable[[Call, int], int | None]] = {
    "aten.transpose.int": _swap,
    "aten.permute.default": _permute,
    "aten.unbind.int": _take,
    "aten.select.int": _take,
}
"""Operation -> (call, axis of the samples) -> their axis in the result, or None if it is gone."""


def _flatten(call: Call) -> bool:
    return call.only_first() and call.axes("start_dim", call.rank(call.first))[0] > 0


def _normalise(call: Call) -> bool:
    """Over the last sizes, of which the first is none."""
    sizes = call.given["normalized_shape"]
    return call.only_first() and 0 < len(sizes) < call.rank(call.first)


def _batch_norm(call: Call) -> bool:
    """By statistics of its own, not by those of the batch."""
    kept = call.given["training"] is False and call.given["running_mean"] is not None
    return kept and call.only_first() and call.rank(call.first) >= 2


def _pad(call: Call) -> bool:
    """Pairs from the last axis on that do not reach the first."""
    return call.only_first() and len(call.given["pad"]) < 2 * call.rank(call.first)


def _join(call: Call) -> bool:
    """A list of samples, side by side in another axis; a rank more where they are stacked."""
    values = call.given["tensors"]
    rank = call.result.dim()
    return all(call.kind(v) == SAMPLES for v in values) and 0 not in call.axes("dim", rank)


def _shape(call: Call) -> bool:
    """The first size stays the batch: the number itself, or what the others leave of the whole."""
    sizes = call.given.get("size", call.given.get("shape"))
    rest = [call.kind(s) for s in sizes[1:]]
    if call.kind(call.first) != SAMPLES or not sizes or set(rest) - {APART}:
        return False
    # At -1 the first size is the batch if it is so in one case: it grows with the batch alone.
    return call.kind(sizes[0]) == COUNT or (sizes[0] == -1 and call.result.shape[0] == TRIAL)


def _expand(call: Call) -> bool:
    """Samples along other axes, or what is alike for all of them once for each."""
    sizes, x = call.given["size"], call.first
    if {call.kind(s) for s in sizes[1:]} - {APART} or not sizes:
        return False
    if call.kind(x) == SAMPLES:
        kept = call.kind(sizes[0]) == COUNT or sizes[0] == -1
        return kept and call.rank(x) == len(sizes)
    return call.kind(x) == APART and call.spreads(x) and call.kind(sizes[0]) == COUNT


def _filled(call: Call) -> bool:
    """One value everywhere, as often as there are samples."""
    sizes = call.given["size"]
    return bool(sizes) and call.kind(sizes[0]) == COUNT and _no_more(call, sizes[0])


def _no_more(call: Call, one: fx.Node) -> bool:
    """Whether the batch is used in this place alone, and nothing of the samples is."""
    leaves = [v for v in tree_leaves(list(call.given.values())) if isinstance(v, fx.Node)]
    return [v for v in leaves if call.kind(v) != APART] == [one]


def _multiply(call: Call) -> bool:
    """Matrices of samples, or samples as rows of a matrix that meets one for all of them."""
    a, b = list(call.given.values())[:2]
    if call.kind(a) == call.kind(b) == SAMPLES:
        return call.rank(a) == call.rank(b) >= 3
    if call.kind(a) == SAMPLES:
        return call.kind(b) == APART and call.rank(a) >= 2 and call.rank(b) <= 2
    return call.kind(a) == APART and call.rank(a) <= 2 and call.rank(b) >= 3


def _multiply_add(call: Call) -> bool:
    """addmm: rows of samples times one matrix, plus one row."""
    added, rows, matrix = (call.given[name] for name in ("self", "mat1", "mat2"))
    kinds = [call.kind(v) for v in (added, rows, matrix)]
    return kinds == [APART, SAMPLES, APART] and call.spreads(added)


def _attention(call: Call) -> bool:
    q, k, v = (call.given[name] for name in ("query", "key", "value"))
    alike = all(call.kind(t) == SAMPLES for t in (q, k, v))
    mask = call.given["attn_mask"]
    if not alike or len({call.rank(t) for t in (q, k, v)}) != 1 or call.rank(q) < 3:
        return False
    if call.kind(mask) == SAMPLES:
        return call.rank(mask) == call.rank(q)
    return call.spreads(mask)


def _embedding(call: Call) -> bool:
    weight, indices = call.given["weight"], call.given["indices"]
    return (call.kind(weight), call.kind(indices)) == (APART, SAMPLES)


def _product(rank: int, most: int | None) -> Rule:
    """A product of ours: x holds samples, and so may what is added to its output."""

    def rule(call: Call) -> bool:
        given = dict(call.given)
        added = given.pop("residual", None)
        if call.kind(added) == SAMPLES:
            if call.rank(added) != call.result.dim():
                return False
        elif not call.spreads(added):
            return False
        plain = Call(given, call.kinds, call.fakes, call.result)
        return _of_rank(rank, most)(plain)

    return rule


PRODUCTS: Mapping[str, Rule] = {"linear": _product(2, None), "conv2d": _product(4, 4)}
HELD: Mapping[int, Rule] = {2: _of_rank(2), 4: _of_rank(4, 4)}
"""Axes of the weight of a module in the graph -> its rule."""


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names.split()}


RULES: Mapping[str, Rule] = {
    **_named(_pointwise, "to.dtype contiguous.default alias.default hardswish.default"),
    **_named(_pointwise, "log_sigmoid.default masked_fill.Tensor where.Scalar rsub.Tensor"),
    **_named(_pointwise, "where.ScalarSelf where.ScalarOther floor_divide.default"),
    **_named(_pointwise, "zeros_like.default ones_like.default full_like.default"),
    **_named(_of_rank(2), "linear.default mm.default group_norm.default prelu.default"),
    **_named(_of_rank(3), "tril.default triu.default"),
    **_named(_of_rank(3, 3), "conv1d.default conv1d.padding conv_transpose1d.default"),
    **_named(_of_rank(3, 3), "max_pool1d.default avg_pool1d.default adaptive_avg_pool1d.default"),
    **_named(_of_rank(3, 3), "adaptive_max_pool1d.default upsample_nearest1d.vec"),
    **_named(_of_rank(4, 4), "conv2d.default conv2d.padding conv_transpose2d.input"),
    **_named(_of_rank(4, 4), "max_pool2d.default avg_pool2d.default adaptive_avg_pool2d.default"),
    **_named(_of_rank(4, 4), "adaptive_max_pool2d.default upsample_nearest2d.vec"),
    **_named(_of_rank(4, 4), "max_pool2d_with_indices.default _adaptive_avg_pool2d.default"),
    **_named(_of_rank(4, 4), "upsample_bilinear2d.vec upsample_bicubic2d.vec"),
    **_named(_of_rank(4, 4), "pixel_shuffle.default channel_shuffle.default"),
    **_named(_of_rank(5, 5), "conv3d.default conv3d.padding conv_transpose3d.input"),
    **_named(_of_rank(5, 5), "max_pool3d.default avg_pool3d.default adaptive_avg_pool3d.default"),
    **_named(_along(), "softmax.int log_softmax.int _softmax.default _log_softmax.default"),
    **_named(_along(), "mean.dim sum.dim_IntList amax.default amin.default logsumexp.default"),
    **_named(_along(), "max.dim min.dim argmax.default argmin.default any.dim all.dim any.dims"),
    **_named(_along(), "var.correction var.dim std.correction prod.dim_int norm.ScalarOpt_dim"),
    **_named(_along(), "linalg_vector_norm.default cumsum.default sort.default topk.default"),
    **_named(_along(), "glu.default slice.Tensor narrow.default index_select.default"),
    **_named(_along(), "split.Tensor split_with_sizes.default chunk.default"),
    **_named(_along(), "squeeze.dim squeeze.dims unflatten.int repeat_interleave.self_int"),
    **_named(_along("dims"), "flip.default roll.default"),
    **_named(_along("dimension"), "unfold.default"),
    **_named(_along("dim", more=1), "unsqueeze.default"),
    **_named(_flatten, "flatten.using_ints"),
    **_named(_batch_norm, "batch_norm.default"),
    **_named(_normalise, "layer_norm.default native_layer_norm.default rms_norm.default"),
    **_named(_pad, "pad.default constant_pad_nd.default"),
    **_named(_join, "cat.default stack.default"),
    **_named(_shape, "view.default reshape.default"),
    **_named(_expand, "expand.default"),
    **_named(_filled, "zeros.default ones.default full.default new_zeros.default"),
    **_named(_filled, "new_ones.default new_full.default"),
    **_named(_multiply, "matmul.default bmm.default"),
    **_named(_multiply_add, "addmm.default"),
    **_named(_attention, "scaled_dot_product_attention.default"),
    **_named(_embedding, "embedding.default"),
}
"""Operation -> whether a call of it keeps the samples apart, beside those that torch marks as
working on single elements."""
TAKE_COUNT = (_shape, _expand, _filled)
"""Rules that know what the batch, as a number, is good for; all others refuse it."""


def why_mixed(graph: fx.Graph, batched: Sequence[bool], fakes: Mapping[fx.Node, Any]) -> str | None:
    """Why the samples cannot be shown to be apart, or None: then a batch may be run in pieces.

    batched: of each input, whether its first size is the batch. fakes: what every node gives at a
    batch of TRIAL. Where they are apart, each node's meta says whether its first axis is theirs
    ("samples").
    """
    kinds: dict[fx.Node, Kind] = {}
    inputs = iter(batched)
    for node in graph.nodes:
        if node.op == "placeholder":
            kinds[node] = SAMPLES if next(inputs) else APART
        elif node.op == "output":
            leaves = tree_leaves(node.args[0])
            if not leaves or any(kinds.get(v) != SAMPLES for v in leaves):
                return "an output is not one entry for each sample"
        else:
            kind = _kind(node, kinds, fakes)
            if kind is None:
                name = "a held layer" if node.op == "call_module" else _name(node.target)
                return f"{name} may mix the samples of a batch"
            kinds[node] = kind
    for node, kind in kinds.items():
        node.meta["samples"] = kind == SAMPLES
    return None


def _kind(
    node: fx.Node, kinds: Mapping[fx.Node, Kind], fakes: Mapping[fx.Node, Any]
) -> Kind | None:
    """What a node's result is, or None if that cannot be told."""
    used = [kinds[n] for n in node.all_input_nodes]
    if set(used) <= {APART}:
        return APART
    call, name = Call(_given(node), kinds, fakes, fakes[node]), _name(node.target)
    if node.target is get_item:
        return kinds[node.args[0]]  # type: ignore[index]
    if node.target in (expect_width, expect_channels):
        return SAMPLES if call.only_first() else None
    axis: int | None = SAMPLES
    if name in MOVES or name == "aten.sym_size.int":
        own = call.kind(call.first)
        if not isinstance(own, int) or used != [own]:
            return None
        if name == "aten.sym_size.int":
            return COUNT if call.axes("dim", call.rank(call.first)) == [own] else APART
        axis = MOVES[name](call, own)
    else:
        rule = _rule(node)
        if rule is None or (COUNT in used and rule not in TAKE_COUNT) or not rule(call):
            return None
    results = tree_leaves(fakes[node])
    return axis if axis is not None and all(_has_batch(r, axis) for r in results) else None


def _has_batch(result: Any, axis: int) -> bool:
    return isinstance(result, Tensor) and result.dim() > axis and result.shape[axis] == TRIAL


def _rule(node: fx.Node) -> Rule | None:
    if node.op == "call_module":
        return HELD.get(node.meta["axes"])
    name = _name(node.target)
    own = own_parts(name)
    if own is not None:
        return PRODUCTS[own[1]]
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _pointwise
    return RULES.get(name)


def _given(node: fx.Node) -> dict[str, Any]:
    """The arguments by name, those left out with what they are then."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): a for i, a in enumerate(node.args)}
    names = [a.name for a in schema.arguments]
    usual = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {name: given.get(name, usual.get(name)) for name in names}


def _name(target: Any) -> str:
    return next((name for name, how in SIZES.items() if how is target), str(target))
