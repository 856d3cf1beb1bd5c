"""The dense ways that a user has of running a model on a CPU: the baselines of every speed-up.

The same model may run at half of the speed or twice it by the library alone, so a sparse model
has beaten "dense" only when it has beaten the best of these.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import KernelError
from ..kernels import KERNELS
from ..kernels.dense import onednn_linear, prepack
from ..nn import PrepackedLinear
from ..registry import Table
from .chain import chain

Run = Callable[[], object]
Way = Callable[[nn.Module, Tensor], Run | str]
"""(model in eval mode, example) -> a call that runs the model on the example, or why it cannot."""

WAYS: Table[Way] = Table("dense way")
SLOW_TO_BUILD = ("torch.compile",)
TOLERANCE = 1e-4  # of the largest output: float32 sums in another order


def dense_ways(
    model: nn.Module, example: Tensor, *, compiled: bool = False
) -> dict[str, Run | str]:
    """Way -> a call without arguments that runs `model` on `example`, or why it cannot.

    Every way computes with torch's number of threads; its output has been checked against eager
    (KernelError if they differ). compiled: also build torch.compile's, which takes seconds.
    numpy's BLAS pool is set to torch's number of threads and left so. The model is not changed.

    >>> ways = dense_ways(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(1, 4))
    >>> ways["eager"]().shape
    torch.Size([1, 4])
    >>> ways["torch.compile"]
    'not asked for (compiled=True, or --compile, builds it)'
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    expected = _value(run_eager(model, example)())
    ways: dict[str, Run | str] = {}
    for name, way in WAYS.items():
        if name in SLOW_TO_BUILD and not compiled:
            ways[name] = "not asked for (compiled=True, or --compile, builds it)"
            continue
        ways[name] = run = way(model, example)
        if not isinstance(run, str):
            _check(name, _value(run()), expected)
    return ways


def _check(name: str, got: Tensor, expected: Tensor) -> None:
    error = relative_error(got, expected)
    if not error <= TOLERANCE:
        raise KernelError(
            f"the dense way {name!r} must equal eager within {TOLERANCE} of the largest output; "
            f"it is off by {error:.3g}"
        )


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest finite expected magnitude.

    Infinities and NaN are no difference where both have them, else an infinite one; so is
    another shape.

    >>> relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    0.5
    """
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.detach(), expected.detach()
    if expected.numel():
        largest, scale = float((got - expected).abs().max()), float(expected.abs().max())
        if math.isfinite(largest) and math.isfinite(scale):  # the usual case, in a few passes
            return largest / max(scale, 1e-30)
    finite = expected[torch.isfinite(expected)].abs()
    scale = max(float(finite.max()), 1e-30) if finite.numel() else 1.0
    alike = (got == expected) | (got.isnan() & expected.isnan())
    errors = (got - expected).abs()[~alike] / scale
    return float(errors.nan_to_num(nan=float("inf")).max()) if errors.numel() else 0.0


def _value(output: object) -> Tensor:
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return torch.as_tensor(output)


def run_eager(model: nn.Module, example: Tensor) -> Run:
    if type(model) is nn.Linear:  # a layer alone is not charged for its module's call
        return functools.partial(F.linear, example, model.weight, model.bias)
    return functools.partial(model, example)  # no weight requires a gradient: none is recorded


WAYS.register("eager")(run_eager)


@WAYS.register("onednn prepacked")
def _onednn(model: nn.Module, example: Tensor) -> Run | str:
    reason = KERNELS["dense.onednn"].refuses()
    if reason is not None:
        return reason
    rows = example.shape[:-1].numel() if example.dim() else 1  # oneDNN takes it as a hint
    if type(model) is nn.Linear:
        return functools.partial(onednn_linear, example, prepack(model.weight, rows), model.bias)
    packed = nn.Sequential(copy.deepcopy(model))
    linears = [name for name, m in packed.named_modules() if type(m) is nn.Linear]
    if not linears:
        return "the model has no Linear"
    for name in linears:
        linear = packed.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        if KERNELS["dense.onednn"].refuses(linear.weight) is None:
            packed.set_submodule(name, PrepackedLinear(linear.weight, linear.bias, rows))
    return run_eager(packed[0], example)


@WAYS.register("torch.compile")
def _compile(model: nn.Module, example: Tensor) -> Run | str:
    run = run_eager(torch.compile(model), example)  # type: ignore[arg-type]
    try:
        with quiet():
            run()
    except torch._inductor.exc.InductorError as error:  # no C++ compiler, mostly
        return f"torch.compile could not build it: {str(error).splitlines()[0]}"
    return run


@WAYS.register("OpenBLAS (numpy)")
def _openblas(model: nn.Module, example: Tensor) -> Run | str:
    modules = chain(model, example)
    if isinstance(modules, str):
        return modules
    refusal = set_blas_threads(torch.get_num_threads())
    if refusal:
        return refusal
    first, steps = example.flatten(1).numpy(), [_numpy_step(module) for module in modules]

    def run() -> object:
        x = first
        for step in steps:
            x = step(x)
        return x

    return run


def set_blas_threads(threads: int) -> str | None:
    """Give numpy's BLAS as many threads as torch has; why that cannot be done, or None."""
    try:
        import threadpoolctl
    except ImportError:
        return "threadpoolctl is not installed, so numpy's threads cannot be set to torch's"
    pools = threadpoolctl.ThreadpoolController().select(internal_api="openblas")
    if not pools.lib_controllers:
        return "numpy's BLAS is not OpenBLAS here"
    pools.limit(limits=threads)
    for pool in pools.lib_controllers:
        if pool.num_threads != threads:
            return f"numpy's OpenBLAS takes at most {pool.num_threads} threads, torch {threads}"
    return None


def _numpy_step(module: nn.Module) -> Callable[[Any], Any]:
    if isinstance(module, nn.Linear):
        return _numpy_linear(module)
    return lambda x: np.maximum(x, 0)


def _numpy_linear(linear: nn.Linear) -> Callable[[Any], Any]:
    weight = linear.weight.detach().numpy().T
    if linear.bias is None:
        return lambda x: x @ weight
    bias = linear.bias.detach().numpy()
    return lambda x: x @ weight + bias


@WAYS.register("ONNX Runtime")
def _onnxruntime(model: nn.Module, example: Tensor) -> Run | str:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed (the extra 'bench' has it)"
    session = onnx_session(export_onnx(model, example))
    feed = {session.get_inputs()[0].name: example.numpy()}
    return lambda: session.run(None, feed)[0]


def onnx_session(data: bytes) -> Any:
    """ONNX Runtime's session for a model in ONNX's bytes, with torch's threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def export_onnx(model: nn.Module, example: Tensor) -> bytes:
    """The model as ONNX's bytes, by torch's exporter."""
    with quiet():
        program = torch.onnx.export(model, (example,), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' progress and their warnings about torch's own code from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
