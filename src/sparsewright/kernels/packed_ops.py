"""The products of training on packed weights as torch's operations, with their gradients.

An operation names its topology by a number (topology.of), so a compiled graph serves whatever
places the weight has when it runs. Values in float32 and float64 are computed in their own type;
in float16 and bfloat16 in float32, and rounded once. Under autocast all is float32, as torch has it
for operations that need the range (torch.amp.custom_fwd(cast_inputs=torch.float32)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import topology
from ..errors import KernelError
from ..topology import Topology
from . import packed
from .operation import Conv2d
from .reference import conv_shape

HALF = (torch.float16, torch.bfloat16)
_kept: list[torch.library.Library] = []  # ops live as long as their Library object


@dataclass(frozen=True)
class Product:
    """One product: what it computes, by a topology and the operation's own numbers.

    numbers: how the schema declares them. shape: of the output, (x's shape, out, numbers). outputs:
    the dimension of dy that runs over output neurons. misfit: why x does not fit, or None.
    takes_ids: x holds numbers of rows, not activations; it has no gradient.
    """

    name: str
    numbers: str
    shape: Callable[..., Sequence[int]]
    outputs: int
    misfit: Callable[..., str | None]
    takes_ids: bool = field(default=False, kw_only=True)
    forward: Callable[..., Tensor]
    input_gradient: Callable[..., Tensor] | None
    weight_gradient: Callable[..., Tensor]


def define(product: Product) -> Any:
    """The op `name(x, values, bias, topology, out, *numbers)`; `name_grads` are its gradients."""
    takes = f"Tensor values, {{}}Tensor topology{product.numbers}"
    grads_name = f"{product.name}_grads"
    library = torch.library.Library("sparsewright", "FRAGMENT")
    _kept.append(library)
    bias = takes.format("Tensor? bias, ").replace("topology", "topology, SymInt out")
    library.define(f"{product.name}(Tensor x, {bias}) -> Tensor")
    needs = "bool needs_x, bool needs_w"
    library.define(
        f"{grads_name}(Tensor dy, Tensor x, {takes.format('')}, {needs}) -> (Tensor, Tensor)"
    )

    def forward(
        x: Tensor, values: Tensor, bias: Tensor | None, number: Tensor, out: int, *numbers: Any
    ) -> Tensor:
        found = topology.of(number)
        _check(product, found, x, values, bias, numbers)
        wide = [None if t is None else _wide(t) for t in (x, values, bias)]
        return _plain(product.forward(found, *wide, *numbers), values)

    def forward_fake(
        x: Tensor, values: Tensor, bias: Tensor | None, number: Tensor, out: int, *numbers: Any
    ) -> Tensor:
        return values.new_empty(product.shape(x, out, *numbers))

    def grads(dy: Tensor, x: Tensor, values: Tensor, number: Tensor, *rest: Any) -> Any:
        *numbers, needs_x, needs_w = rest
        found = topology.of(number)
        wide_dy, wide_x, wide_values = _wide(dy), _wide(x), _wide(values)
        dx, dw = x.new_empty(0), values.new_empty(0)
        if not dy.numel():  # some of torch's own refuse an empty batch
            dx, dw = x.new_zeros(x.shape if needs_x else 0), torch.zeros_like(values)
            return dx, dw if needs_w else values.new_empty(0)
        if needs_x and product.input_gradient is not None:
            own = product.input_gradient(found, wide_dy, wide_values, x.shape, *numbers)
            dx = _plain(own, x)
        if needs_w:
            dw = _plain(product.weight_gradient(found, wide_dy, wide_x, *numbers), values)
            if found.watch is not None:
                found.watch.see(x, dy)
        return dx, dw

    def grads_fake(dy: Tensor, x: Tensor, values: Tensor, number: Tensor, *rest: Any) -> Any:
        *_, needs_x, needs_w = rest
        dx = x.new_empty(x.shape if needs_x else 0)
        return dx, values.new_empty(values.shape if needs_w else 0)

    for name, op, fake in (
        (product.name, forward, forward_fake),
        (grads_name, grads, grads_fake),
    ):
        library.impl(name, op, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sparsewright::{name}")(fake)
    grads_op = getattr(torch.ops.sparsewright, grads_name).default
    _differentiate(product, grads_op)
    _refuse_second(grads_name)
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(
            f"sparsewright::{product.name}", device, torch.float32, lib=library
        )
    return getattr(torch.ops.sparsewright, product.name).default


def _differentiate(product: Product, grads_op: Any) -> None:
    """The backward formula of a product, which a compiled graph traces."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, bias, number, _, *numbers = inputs
        ctx.save_for_backward(x, values, number)
        ctx.numbers = numbers
        ctx.has_bias = bias is not None

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, values, number = ctx.saved_tensors
        needs_x, needs_w, needs_bias = ctx.needs_input_grad[:3]
        dx = dw = None
        if needs_x or needs_w:
            dx, dw = grads_op(dy, x, values, number, *ctx.numbers, needs_x, needs_w)
        bias = None
        if ctx.has_bias and needs_bias:
            others = [d for d in range(dy.dim()) if d != product.outputs % dy.dim()]
            bias = dy.sum(others) if others else dy
        none = [None] * (2 + len(ctx.numbers))
        return dx if needs_x else None, dw if needs_w else None, bias, *none

    name = f"sparsewright::{product.name}"
    torch.library.register_autograd(name, backward, setup_context=setup, lib=_kept[-1])


def _refuse_second(name: str) -> None:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[3])

    def backward(ctx: Any, *gradients: Tensor) -> Any:
        who = topology.of(ctx.saved_tensors[0]).owner or name
        raise KernelError(
            f"{who}: packed weights have first gradients only, and a gradient of a gradient went "
            "through it; unpack the model (sw.unpack) for it"
        )

    torch.library.register_autograd(
        f"sparsewright::{name}", backward, setup_context=setup, lib=_kept[-1]
    )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor


def _plain(tensor: Tensor, like: Tensor) -> Tensor:
    """In the type of `like`, and contiguous, as compiled graphs expect it."""
    return tensor.to(like.dtype).contiguous()


def _check(
    product: Product,
    found: Topology,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    numbers: Sequence[Any],
) -> None:
    """KernelError unless all fit together: kernels follow the topology's places into x."""
    who = found.owner or product.name
    reason = product.misfit(found, x, *numbers)
    if reason is not None:
        raise KernelError(f"{who}: {reason}")
    if values.shape != (found.nnz,):
        raise KernelError(
            f"{who}: needs {found.nnz} values, as many as places; got a weight of shape "
            f"{tuple(values.shape)}"
        )
    if bias is not None and bias.shape != (found.shape[0],):
        raise KernelError(
            f"{who}: needs a bias of shape ({found.shape[0]},); got {tuple(bias.shape)}"
        )
    kind = values.dtype if product.takes_ids else x.dtype
    for name, tensor in (("values", values), ("bias", bias)):
        if tensor is not None and (tensor.dtype, tensor.device) != (kind, x.device):
            raise KernelError(
                f"{who}: x is {x.dtype} on {x.device}, but {name} {tensor.dtype} on "
                f"{tensor.device}: they must be the same"
            )
    if found.device != x.device:
        raise KernelError(f"{who}: x is on {x.device}, the places on {found.device}")


def _linear_misfit(found: Topology, x: Tensor) -> str | None:
    if x.dim() >= 1 and x.shape[-1] == found.shape[1]:
        return None
    return f"needs x (..., {found.shape[1]}); got {tuple(x.shape)}"


def _conv_misfit(found: Topology, x: Tensor, numbers: Sequence[int]) -> str | None:
    conv = Conv2d.from_numbers(numbers)
    channels = found.shape[1] // conv.places * conv.groups
    if x.dim() == 4 and x.shape[1] == channels:
        return None
    return f"needs x (N, {channels}, H, W); got {tuple(x.shape)}"


linear = define(
    Product(
        name="packed_linear",
        numbers="",
        shape=lambda x, out: (*x.shape[:-1], out),
        outputs=-1,
        misfit=_linear_misfit,
        forward=packed.linear,
        input_gradient=lambda found, dy, values, shape: packed.linear_input_gradient(
            found, dy, values
        ),
        weight_gradient=packed.linear_weight_gradient,
    )
)
"""packed_linear(x (..., in), values (nnz), bias (out) or None, topology, out) -> (..., out)."""

conv2d = define(
    Product(
        name="packed_conv2d",
        numbers=", int[] numbers",
        shape=lambda x, out, numbers: conv_shape(x, out, None, numbers),
        outputs=1,
        misfit=_conv_misfit,
        forward=lambda found, x, values, bias, numbers: packed.conv2d(
            found, x, values, bias, Conv2d.from_numbers(numbers)
        ),
        input_gradient=lambda found, dy, values, shape, numbers: packed.conv2d_input_gradient(
            found, dy, values, Conv2d.from_numbers(numbers), shape
        ),
        weight_gradient=lambda found, dy, x, numbers: packed.conv2d_weight_gradient(
            found, dy, x, Conv2d.from_numbers(numbers)
        ),
    )
)
"""packed_conv2d(x (N, C, H, W), values, bias, topology, out, numbers) -> (N, out, H', W')."""
