"""A product with all its arguments bound but the activations: one call, two arguments.

Torch takes each argument of an op out of Python, wraps it and looks at it, at every call. For
layers of some thousand weights that took as long as the product itself.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .. import library
from ..arguments import told
from ..errors import KernelError

Call = Callable[..., Tensor]
Unbind = Callable[[int], None]


def bind(op: Callable[..., Any], rest: Sequence[Any]) -> Call:
    """op with `rest`, all that follows x: (x) -> y, or (x, residual) -> y for a convolution.

    op: one of sparsewright's; of another, or where the library is not compiled, the call is
    simply op(x, *rest), and of a residual nothing is known. It holds the tensors of `rest`
    themselves, so that what is written into them counts; but of a weight that is made code (kernels
    csb.code8 and csb.code16) the values are a copy. A weight of any layout but block is checked
    here. A call of csr, sell or window (of 32 columns or more) on one row, and one of a chain in
    one region, only looks whether the tensors hold the same memory; else every check of the op is
    made at every call. Nothing is recorded: torch's modes and autograd see an op `bound`, not the
    product.

    >>> from sparsewright.kernels import KERNELS
    >>> from sparsewright.layouts import pack
    >>> kernel = KERNELS["csr.portable"]
    >>> ready = kernel.prepare(pack("csr", 2 * torch.eye(2)), 1)
    >>> bind(kernel.op, [*ready.tensors.values(), None, *ready.numbers])(torch.ones(1, 2))
    tensor([[2., 2.]])
    """
    binder = binder_of(op)
    if binder is None:
        return functools.partial(_follow, op, tuple(rest))
    return _held(binder(*rest))


def binder_of(op: Callable[..., Any]) -> Callable[..., int] | None:
    """The op that binds the arguments of this one, or None where there is none."""
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "sparsewright":
        return None
    name = op._schema.name.partition("::")[2]
    if library.why_not_compiled(name) is not None or _unbind() is None:
        return None
    binder = getattr(torch.ops.sparsewright, f"bind_{name}", None)
    return None if binder is None else binder.default


def chain(calls: Sequence[Call]) -> Call:
    """The bound calls one after the other, each on what the one before it gave, as one call.

    calls: of `bind`, of products with matrices. A single row of activations goes through layers of
    layouts sell, window and csr in one parallel region, and there a copy of the columns of sell
    and csr (weights of up to half a million places) says where the activations lie meanwhile. A
    batch goes through layers of any layout but block in one region, transposed from the first to
    the last. The same bits, but for layouts csb and window: their last ones depend on how many rows
    of a batch they take at once.

    >>> chain([bind(torch.add, [2]), bind(torch.mul, [3])])(torch.ones(2))
    tensor([9., 9.])
    """
    if len(calls) < 2 or not all(isinstance(call, Bound) for call in calls):
        return functools.partial(_one_by_one, tuple(calls))
    numbers = [call.number for call in calls if isinstance(call, Bound)]
    return _held(torch.ops.sparsewright.bind_chain(numbers, _threads_run_at_once()))


def bind_beside(rest: Sequence[Any]) -> Bound:
    """The convolution of images side by side (csrc/beside.h), for `beside_chain`, which takes its
    number: what follows x in csb_conv2d but for residual and groups, with x's channels, height and
    width, how many images lie so and for how many threads before isa. Where weights are made code
    (library.why_no_code), that is a copy of their values."""
    return _held(torch.ops.sparsewright.bind_csb_conv2d_beside(*rest))


def bind_depthwise_beside(rest: Sequence[Any]) -> Bound:
    """The same of a depthwise convolution: a dense weight (out, 1, kernel_h, kernel_w) and the bias
    or None; kernel, stride, padding and dilation, each of two, and the number of the activation;
    then as for `bind_beside`, from the channels on. It reads the weight itself at every call, which
    must be contiguous."""
    return _held(torch.ops.sparsewright.bind_depthwise_beside(*rest))


def bind_pool_beside(rest: Sequence[Any]) -> Bound:
    """Max pooling of images side by side, (x) -> y: kernel, stride and padding, each of two;
    whether a ReLU follows; then as for `bind_beside`, from the channels on."""
    return _held(torch.ops.sparsewright.bind_max_pool2d_beside(*rest))


def transposed(call: Call) -> Call:
    """The same product of activations that lie feature by feature: x (in_features, batch) ->
    (out_features, batch), both contiguous.

    call: of `bind` or `chain`, of products with matrices. A bound one reads the columns of x where
    they lie, and writes its sums as columns; of any other, x and the output are turned.

    >>> transposed(bind(torch.add, [2]))(torch.ones(3, 2)).shape
    torch.Size([3, 2])
    """
    if not isinstance(call, Bound):
        return lambda x: call(x.t().contiguous()).t().contiguous()
    op = torch.ops.sparsewright.bound_transposed.default._op
    number = call.number
    return lambda x, held=call: op(number, x)


def into(call: Call, x: Tensor, out: Tensor, across: bool = False) -> Callable[[], None]:
    """The product from the memory of x into that of `out`, both bound: a call hands over nothing.

    call: of `bind` or `chain`, of products with matrices; across: of `transposed` activations. Both
    tensors are contiguous float32 on the CPU, need no gradient, and lie apart; `out` has the shape
    of the product, which is computed once here. Whatever x holds when it is called is multiplied,
    and `out` holds it after that. Of a bound call (`Into`) torch sees nothing, not even that `out`
    has changed, and the lock of the interpreter is let go; of any other, the output is copied.
    KernelError for tensors that break these rules, and from a call whose tensors have since been
    given another type, device, width or shape.

    >>> x, out = torch.ones(3), torch.empty(3)
    >>> run = into(bind(torch.add, [2]), x, out)
    >>> run()
    >>> out
    tensor([3., 3., 3.])
    """
    _check_memory("x", x)
    _check_memory("out", out)
    spans = [(t.data_ptr(), t.data_ptr() + 4 * t.numel()) for t in (x, out)]
    if max(start for start, _ in spans) < min(end for _, end in spans):
        raise KernelError("x and out must not share memory: one is read while the other is written")
    run: Callable[[], None]
    if isinstance(call, Bound) and hasattr(_past_torch(), "sparsewright_into"):
        run = Into(torch.ops.sparsewright.bind_into(call.number, x, out, across))
    else:
        run = functools.partial(_copy, transposed(call) if across else call, x, out)
    run()  # what is wrong with the shapes is said here, and not in somebody's loop
    return run


class Into:
    """A product with all its tensors bound, called past torch."""

    def __init__(self, number: int):
        functions: Any = _past_torch()
        self._run: Callable[[int], int] = functions.sparsewright_into
        self._why: Callable[[], bytes] = functions.sparsewright_why
        self._number = number
        self._finish = weakref.finalize(self, functions.sparsewright_unbind, number)
        self._finish.atexit = False

    def __call__(self) -> None:
        if self._run(self._number):
            raise KernelError(self._why().decode())

    def end(self, reason: str) -> None:
        """Let go of the product: whoever calls it from now on is told the reason."""
        self._why, self._number = reason.encode, 0  # no call has that number
        self._finish()

    def __reduce__(self) -> Any:
        raise TypeError("a call into memory cannot be copied: make another")


def _check_memory(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise KernelError(f"{name} must be a tensor; got {told(t)}")
    for rule, holds in (
        ("float32 on the CPU", t.dtype == torch.float32 and t.device.type == "cpu"),
        ("contiguous", t.is_contiguous()),
        ("memory that holds its numbers, no view of their negatives", not t.is_neg()),
        ("without a gradient: nothing is recorded", not t.requires_grad),
    ):
        if not holds:
            got = f"{t.dtype} of shape {tuple(t.shape)} and strides {t.stride()} on {t.device}"
            raise KernelError(f"{name} must be {rule}; got {got}")


@torch.inference_mode()
def _copy(product: Call, x: Tensor, out: Tensor) -> None:
    made = product(x)
    if not isinstance(made, Tensor) or made.shape != out.shape:
        got = tuple(made.shape) if isinstance(made, Tensor) else told(made)
        raise KernelError(f"out must have the shape of the product, {got}; got {tuple(out.shape)}")
    out.copy_(made)


@functools.cache
def _threads_run_at_once() -> bool:
    """Whether all parts of a parallel region are at work together, so that they may wait for each
    other: OpenMP's threads are, tasks in the queue of a pool need not be."""
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()


def _held(number: int) -> Bound:
    """The call of that number, let go when nobody holds it any more."""
    # Past the op's wrapper in Python, which only forwards.
    call = Bound(torch.ops.sparsewright.bound.default._op, number)
    weakref.finalize(call, cast(Unbind, _unbind()), number).atexit = False
    return call


def _unbind() -> Unbind | None:
    """What lets go of a call, past torch: garbage is collected at any time, and an op would become
    part of whatever is traced meanwhile. None where the library is older."""
    return getattr(_past_torch(), "sparsewright_unbind", None)


@functools.cache
def _past_torch() -> ctypes.CDLL | None:
    """The compiled library for its functions that are no ops, or None where there is none."""
    if library.LIBRARY.path is None:
        return None
    found = ctypes.CDLL(library.LIBRARY.path)
    types = {
        "sparsewright_unbind": ([ctypes.c_int64], None),
        "sparsewright_into": ([ctypes.c_int64], ctypes.c_int),
        "sparsewright_why": ([], ctypes.c_char_p),
    }
    for name, (arguments, result) in types.items():
        function = getattr(found, name, None)  # an older one lacks some
        if function is not None:
            function.argtypes, function.restype = arguments, result
    return found


class Bound(functools.partial[Tensor]):
    """A partial call that can be watched; nobody copies it: the number belongs to this one."""

    @property
    def number(self) -> int:
        """What stands for the call while this lives."""
        return int(self.args[0])

    def __reduce__(self) -> Any:
        raise TypeError("a bound call cannot be copied: bind it again")


def call_on(op: Callable[..., Any], x: Tensor, rest: Sequence[Any]) -> Callable[[], Tensor]:
    """op(x, *rest), again and again, as a deployed model's program calls it.

    >>> call_on(torch.add, torch.ones(2), [1])()
    tensor([2., 2.])
    """
    if binder_of(op) is None:
        return functools.partial(op, x, *rest)
    call = bind(op, rest)
    return lambda: call(x)  # a partial of a partial would keep its parts, and not the call itself


def _one_by_one(calls: tuple[Call, ...], x: Tensor) -> Tensor:
    for call in calls:
        x = call(x)
    return x


def _follow(op: Callable[..., Tensor], rest: tuple[Any, ...], x: Tensor) -> Tensor:
    return op(x, *rest)
