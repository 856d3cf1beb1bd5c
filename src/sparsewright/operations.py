"""Which operations the graph of an artifact may use: a fixed list, so that a file runs no code.

A name in a file is looked up in this list and nowhere else. The list holds torch's core
operations ("Core ATen IR" in torch's documentation) that are pure functions of their inputs, the
composite ones that torch.export keeps, arithmetic on sizes, and sparsewright's own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .errors import KernelError
from .layouts import LAYOUTS
from .library import refuse_gradient

Operation = Callable[..., Any]

SIZE_LIMIT = 2**62
OWN = "sparsewright."
DENSE = "dense"
PRODUCTS = ("linear", "conv2d")
"""What sparsewright's own operations compute, each on a layout: csr_linear, csr_conv2d, ...; on
"dense" there is conv2d, where every output reads one channel."""

# Core, but not for files: they read memory that nothing has written, draw random numbers, look
# at storage, make complex numbers or sizes that depend on data, or trust sizes that they are told.
EXCLUDED = frozenset(
    [
        "_cdist_forward",
        "_embedding_bag",
        "_fft_c2r",
        "_fft_r2c",
        "_local_scalar_dense",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_pdist_forward",
        "as_strided",
        "col2im",
        "copy",
        "empty",
        "empty_strided",
        "masked_scatter",
        "native_dropout",
        "native_group_norm",
        "nonzero",
        "sym_is_contiguous",
        "sym_numel",
        "sym_storage_offset",
        "sym_stride",
    ]
)

COMPOSITE = [
    "linear.default",
    "matmul.default",
    "addmm.default",
    "baddbmm.default",
    "einsum.default",
    "conv1d.default",
    "conv1d.padding",
    "conv2d.default",
    "conv2d.padding",
    "conv3d.default",
    "conv3d.padding",
    "conv_transpose1d.default",
    "conv_transpose2d.input",
    "conv_transpose3d.input",
    "batch_norm.default",
    "layer_norm.default",
    "group_norm.default",
    "rms_norm.default",
    "max_pool1d.default",
    "max_pool2d.default",
    "max_pool3d.default",
    "avg_pool1d.default",
    "avg_pool2d.default",
    "avg_pool3d.default",
    "adaptive_avg_pool1d.default",
    "adaptive_avg_pool2d.default",
    "adaptive_avg_pool3d.default",
    "adaptive_max_pool1d.default",
    "adaptive_max_pool2d.default",
    "scaled_dot_product_attention.default",
    "softmax.int",
    "log_softmax.int",
    "logsumexp.default",
    "silu.default",
    "mish.default",
    "hardswish.default",
    "hardsigmoid.default",
    "relu6.default",
    "selu.default",
    "celu.default",
    "glu.default",
    "softplus.default",
    "log_sigmoid.default",
    "prelu.default",
    "threshold.default",
    "softsign.default",
    "hardshrink.default",
    "softshrink.default",
    "logit.default",
    "flatten.using_ints",
    "unflatten.int",
    "reshape.default",
    "transpose.int",
    "t.default",
    "movedim.int",
    "squeeze.default",
    "contiguous.default",
    "to.dtype",
    "type_as.default",
    "view_as.default",
    "expand_as.default",
    "narrow.default",
    "unfold.default",
    "roll.default",
    "tril.default",
    "triu.default",
    "chunk.default",
    "split.Tensor",
    "split_with_sizes.default",
    "unbind.int",
    "stack.default",
    "repeat_interleave.self_int",
    "pad.default",
    "pixel_shuffle.default",
    "channel_shuffle.default",
    "upsample_nearest1d.vec",
    "upsample_nearest2d.vec",
    "upsample_bilinear2d.vec",
    "upsample_bicubic2d.vec",
    "masked_fill.Scalar",
    "masked_fill.Tensor",
    "where.Scalar",
    "where.ScalarSelf",
    "where.ScalarOther",
    "rsub.Scalar",
    "rsub.Tensor",
    "square.default",
    "clamp_min.default",
    "clamp_max.default",
    "true_divide.Tensor",
    "floor_divide.default",
    "sum.default",
    "mean.default",
    "max.default",
    "min.default",
    "max.other",
    "min.other",
    "all.default",
    "all.dim",
    "norm.ScalarOpt_dim",
    "linalg_vector_norm.default",
    "std.correction",
    "isfinite.default",
    "lift_fresh_copy.default",
    "sin.default",
    "cos.default",
    "one_hot.default",
    "arange.default",
    "arange.start",
    "zeros.default",
    "ones.default",
    "zeros_like.default",
    "ones_like.default",
    "new_zeros.default",
    "new_ones.default",
    "new_full.default",
]


@cache
def operations() -> Mapping[str, Operation]:
    """Name as written in a file -> what is called, sparsewright's own operations aside."""
    names = [*SIZES, "getitem", *(f"aten.{name}" for name in _core() + COMPOSITE)]
    return {name: found for name in names if (found := operation_of(name)) is not None}


@cache
def operation_of(name: str) -> Operation | None:
    """What is called under one name of a file, sparsewright's own operations aside, or None: the
    whole list takes a while to find.

    >>> operation_of("aten.relu.default"), operation_of("aten.relu_.default")
    (<OpOverload(op='aten.relu', overload='default')>, None)
    """
    if name in SIZES:
        return SIZES[name]
    if name == "getitem":
        return get_item
    space, _, own = name.partition(".")
    if space != "aten" or (own not in COMPOSITE and not _is_core(own)):
        return None
    return _overload(torch.ops.aten, own)


def own_parts(name: str) -> tuple[str, str] | None:
    """The layout and the product of a sparsewright operation, or None if there is none.

    >>> own_parts("sparsewright.csr_conv2d.default")
    ('csr', 'conv2d')
    """
    layout, _, product = name.removeprefix(OWN).removesuffix(".default").rpartition("_")
    known = layout in LAYOUTS or layout == DENSE
    if name != f"{OWN}{layout}_{product}.default" or not known:
        return None
    return (layout, product) if product in PRODUCTS else None


def own_operation(name: str) -> Operation | None:
    """The sparsewright operation of that name in a file, where it is a product of a layout."""
    parts = own_parts(name)
    return (
        None if parts is None else _overload(torch.ops.sparsewright, "_".join(parts) + ".default")
    )


def name_of(target: object) -> str | None:
    """The name to write for the target of a traced node, or None if a file cannot hold it."""
    if target in ARITHMETIC:
        return ARITHMETIC[target]
    if target is operator.getitem:
        return "getitem"
    name = str(target)
    if operation_of(name) is not None or own_operation(name) is not None:
        return name
    return None


def _core() -> list[str]:
    names = (q.removeprefix("aten::") for q in _registered("aten::"))
    return [name for name in names if _is_core(name)]


def _is_core(name: str) -> bool:
    """Whether torch counts an operation among its core ones, and it is one for files."""
    if name.partition(".")[0] in EXCLUDED or "backward" in name:
        return False
    overload: Any = _overload(torch.ops.aten, name)
    if overload is None or torch.Tag.core not in overload.tags:
        return False
    return torch.Tag.nondeterministic_seeded not in overload.tags


def _registered(prefix: str) -> list[str]:
    """Qualified names, with their overload, of all operations that torch knows with a prefix."""
    names = (q for q in torch._C._dispatch_get_all_op_names() if q.startswith(prefix))
    return sorted(q if "." in q else f"{q}.default" for q in names)


def _overload(namespace: Any, name: str) -> Operation | None:
    """An overload without side effects, or None where this torch has none of that name."""
    packet, _, overload = name.partition(".")
    found = getattr(getattr(namespace, packet, None), overload, None)
    if found is None or found._schema.is_mutable:
        return None
    return found


def get_item(values: Any, index: int) -> Any:
    """One of the results of an operation that has several."""
    if not isinstance(values, (tuple, list)) or type(index) is not int:
        raise TypeError("getitem takes one result, by number, of an operation that has several")
    return values[index]


def expect_width(x: Tensor, width: int) -> Tensor:
    """x, after making sure that its last dimension is `width`: a kernel's indices rely on it.

    KernelError if it is not, or if x wants a gradient, as LayoutLinear has it.
    """
    refuse_gradient(x)
    if not x.dim() or x.shape[-1] != width:
        raise KernelError(
            f"a packed layer takes inputs of shape (..., {width}); got {tuple(x.shape)}"
        )
    return x


def expect_channels(x: Tensor, channels: int) -> Tensor:
    """x (N, channels, H, W), after making sure of that: a kernel's indices rely on it.

    KernelError if it is not, or if x wants a gradient, as LayoutConv2d has it.
    """
    refuse_gradient(x)
    if x.dim() != 4 or x.shape[1] != channels:
        raise KernelError(
            f"a packed convolution takes inputs (N, {channels}, H, W); got {tuple(x.shape)}"
        )
    return x


def _checked(operation: Callable[[int, int], int]) -> Operation:
    """Arithmetic on sizes that a file cannot blow up: a chain of products doubles its digits."""

    def arithmetic(a: int, b: int) -> int:
        if type(a) is not int or type(b) is not int:
            raise TypeError(f"arithmetic on sizes takes ints; got {type(a)} and {type(b)}")
        result = operation(a, b)
        if abs(result) > SIZE_LIMIT:
            raise ValueError(f"a size of {result} is beyond 2**62")
        return result

    arithmetic.__name__ = arithmetic.__qualname__ = f"{operation.__name__}_sizes"
    return arithmetic


ARITHMETIC: dict[object, str] = {
    operator.add: "size.add",
    operator.sub: "size.sub",
    operator.mul: "size.mul",
    operator.floordiv: "size.floordiv",
    operator.mod: "size.mod",
}
SIZES: dict[str, Operation] = {name: _checked(how) for how, name in ARITHMETIC.items()}  # type: ignore[arg-type]
