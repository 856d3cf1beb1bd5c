"""A deployed model: called like the original, for inference."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from .arguments import told
from .errors import KernelError, StateError
from .graph import Graph
from .kernels.bound import into
from .pieces import MISS
from .plan import Plan
from .program import Program
from .switches import FUSED_ENCODER


class _Loads:
    """A hook on a part of a deployed model: it drops the program, which holds the old weights. It
    keeps nobody alive, and a copy of it hears for nobody."""

    def __init__(self, deployed: Deployed | None = None):
        self.deployed = weakref.ref(deployed) if deployed is not None else None

    def __call__(self, *_: Any) -> None:
        deployed = self.deployed() if self.deployed is not None else None
        if deployed is not None:
            deployed.drop_program()

    def __reduce__(self) -> Any:
        return _Loads, ()


class Deployed(nn.Module):
    """A model as `deploy` made it, or `load` read it: called like the original, for inference.

    plan: which kernel serves which layer. example: the inputs that it was planned on. source:
    document and tensors of the file that it was loaded from; check: raises KernelError on
    inputs that the file does not serve. provenance: what that file says about where it is from.
    program: the model's trace as one function, which serves the inputs that it can; the modules
    serve the others. graph: that trace. Who replaces a tensor or a module inside `model`, or
    writes into one (the program may have a copy of it), calls `drop_program` then;
    `load_state_dict`, of a part of it as well, and what goes through this object (`to`) do so
    themselves.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        example: tuple[Tensor, ...] = (),
        source: tuple[Mapping[str, Any], Mapping[str, Tensor]] | None = None,
        check: Callable[[tuple[Any, ...]], None] | None = None,
        provenance: Mapping[str, Any] | None = None,
        program: Program | None = None,
        graph: Graph | None = None,
    ):
        super().__init__()
        self.model = model
        self.plan = plan
        self.example = example
        self.source = source
        self.check = check
        self.provenance = dict(provenance or {})
        self.program = program
        self.graph = graph
        self._has_attention = any(_fuses_attention(m) for m in model.modules())
        self._hear_loads()
        self.eval()

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """The outputs; where nobody listens to this module, without what a module's call costs."""
        program = None if torch.compiler.is_compiling() else self.program
        heard = self._forward_hooks or self._forward_pre_hooks
        if program is not None and not heard and not kwargs:
            output = program.run(*inputs)
            if output is not MISS:
                return output
        return super().__call__(*inputs, **kwargs)

    def forward(self, *inputs: Any) -> Any:
        if self.program is not None and not torch.compiler.is_compiling():
            output = self.program.run(*inputs)
            if output is not MISS:
                return output
        return self.run_modules(*inputs)

    def transposed(self, x: Tensor) -> Tensor:
        """self(x.t()).t() without the transposes: activations feature by feature, as numerical
        libraries lay them for products with a sparse matrix on the left.

        x: (in_features, batch); returns (out_features, batch), contiguous. A chain of sparse
        Linear layers, with at most an activation after each, reads and writes its columns where
        they lie, and each number is what the model gives but for the order of its sums. Any other
        model is called on x.t(). KernelError if x is no tensor of two dimensions.

        >>> import sparsewright as sw
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> _ = sw.prune(model, sparsity=0.9)
        >>> fast = sw.deploy(model, torch.randn(16, 64), seconds=0)
        >>> fast.transposed(torch.randn(64, 16)).shape
        torch.Size([10, 16])
        """
        if not isinstance(x, Tensor) or x.dim() != 2:
            raise KernelError(f"transposed takes x of shape (in_features, batch); got {told(x)}")
        program = None if torch.compiler.is_compiling() else self.program
        if program is not None and not (self._forward_hooks or self._forward_pre_hooks):
            output = program.run_transposed(x)
            if output is not MISS:
                return cast(Tensor, output)
        try:
            given = self(x.t().contiguous())
        except KernelError as error:
            turned = f"turned to {tuple(x.t().shape)}" if x.shape[0] != x.shape[1] else "turned"
            raise KernelError(f"x of shape {tuple(x.shape)} was {turned}: {error}") from error
        if not isinstance(given, Tensor) or given.dim() != 2:
            raise KernelError(
                "transposed serves models that give one tensor of shape (batch, out_features); "
                f"this one gives {told(given)}"
            )
        return given.t().contiguous()

    def into(self, x: Tensor, out: Tensor, *, transposed: bool = False) -> Callable[[], None]:
        """A call from x's memory into that of `out`, for a loop that answers again and again.

        x, out: contiguous float32 on the CPU, without gradients, apart in memory; `out` has the
        shape of the output. transposed: both lie feature by feature, as `transposed` takes and
        gives them. Returns run() -> None: it reads what x holds by then, and `out` holds the output
        after it. A chain of sparse Linear layers, with at most an activation after each, allocates
        no output and is called past torch, which takes some microseconds to find an op; of any
        other model the output is copied. Hooks that are registered later are not called; once the
        model has changed (`load_state_dict`, `to`), the call raises KernelError. `out` is written
        once here, and torch is not told when: nothing that autograd keeps may lie there. One thread
        may call it at a time. KernelError if x or out is not so.

        >>> import sparsewright as sw
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> _ = sw.prune(model, sparsity=0.9)
        >>> fast = sw.deploy(model, torch.randn(1, 64), seconds=0)
        >>> x, out = torch.zeros(1, 64), torch.empty(1, 10)
        >>> run = fast.into(x, out)
        >>> _ = x.copy_(torch.randn(1, 64))  # a new sample
        >>> run()
        >>> torch.allclose(out, fast(x), atol=1e-5)
        True
        """
        if self.program is not None and not (self._forward_hooks or self._forward_pre_hooks):
            run = self.program.into(x, out, transposed)
            if run is not None:
                return run
        return into(self.transposed if transposed else self, x, out)

    def run_modules(self, *inputs: Any) -> Any:
        """The outputs by the modules of `model`, one after the other."""
        if self.check is not None:
            self.check(inputs)
        for i, (x, _) in enumerate(zip(inputs, self.example, strict=False)):
            if not isinstance(x, Tensor):
                raise KernelError(f"input {i} must be a tensor; got {told(x)}")
        if not self._has_attention:
            return self.model(*inputs)
        with plain_attention():
            return self.model(*inputs)

    def drop_program(self) -> None:
        """Run the modules alone from now on: they have changed since they were traced."""
        if self.program is not None:
            self.program.end("the deployed model has changed: deploy it again")
        self.program = self.graph = None

    def requires_grad_(self, requires_grad: bool = True) -> Deployed:
        self.drop_program()
        super().requires_grad_(requires_grad)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Deployed:
        before = self._tensors()
        super()._apply(*args, **kwargs)
        if self._tensors() != before:  # not by `to("cpu")` of what is there
            self.drop_program()
        return self

    def _tensors(self) -> list[tuple[Any, ...]]:
        """Where and what the model's tensors are, and how often they were written."""
        both = [*self.model.parameters(), *self.model.buffers()]
        return [
            (t.data_ptr(), t.dtype, t.device, t.shape, t.stride(), t.is_inference() or t._version)
            for t in both
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> Deployed:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__dict__, memo))
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a deployed model is not pickled: sw.save writes its file, sw.load reads it"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._hear_loads()

    def _hear_loads(self) -> None:
        """Drop the program whenever a state is loaded into `model` or a part of it."""
        for module in self.model.modules():
            hooks = module._load_state_dict_post_hooks
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Loads)]:
                del hooks[key]  # of the model that this is a copy of
            module.register_load_state_dict_post_hook(_Loads(self))

    def train(self, mode: bool = True) -> Deployed:
        """Stay in eval mode; asking for training raises StateError."""
        if mode:
            raise StateError("a deployed model is for inference: train what it was made of")
        super().train(False)
        return self


def _fuses_attention(module: nn.Module) -> bool:
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    return isinstance(module, kinds)


def plain_attention() -> contextlib.AbstractContextManager[None]:
    """Switch torch's fused encoder off: it reads the weights of layers that are packed now.

    A trace never takes it, so this also keeps a loaded model equal to the one that was saved. The
    switch is the process's: it is off until the last of several threads has left.
    """
    return FUSED_ENCODER.off()
