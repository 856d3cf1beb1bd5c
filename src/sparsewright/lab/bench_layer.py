"""`sparsewright bench layer`: single layers beside every other way to run them on this CPU.

Linear layers have no bias, so that no library pays for a second pass. Convolutions go through
`deploy`, as in a model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..deploy import deploy
from ..deployed import Deployed
from ..errors import ConfigError
from ..kernels import KERNELS
from ..kernels.bound import Call, bind, into, transposed
from ..kernels.choose import LINEAR, is_dense, kernels_of
from ..layouts import FP32, LAYOUTS, pack
from ..measure.chain import chain
from ..measure.peers import FEATURE_MAJOR, SAME_MEMORY, Case, Ready
from ..patterns import as_pattern
from ..prune import prune
from ..weights import find_weights
from .bench_cell import OURS, Candidate
from .bench_rounded import deployed_output, loss, rounded_output
from .bench_table import INTO, TRANSPOSED

SHAPES = ("512x512", "768x3072", "4096x4096", "128x128x3@28", "512x256x1@14")
BATCHES = {nn.Linear: (1, 16, 64, 256), nn.Conv2d: (1, 16)}
SHAPE = re.compile(r"(\d+)x(\d+)(?:x(\d+)@(\d+))?")


@dataclass(frozen=True)
class Shape:
    """A Linear (out, inputs), or a convolution with square filters over square images.

    >>> str(Shape.parse("128x64x3@28"))
    'conv 3x3 64->128 at 28x28'
    """

    out: int
    inputs: int
    filter: int = 0
    image: int = 0

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From OUTxIN, or OUTxINxFILTER@IMAGE; ConfigError if it is neither."""
        match = SHAPE.fullmatch(text)
        numbers = [int(n) for n in match.groups() if n] if match else [0]
        if min(numbers) < 1:
            raise ConfigError(f"a shape must be OUTxIN or OUTxINxFILTER@IMAGE; got {text!r}")
        return cls(*numbers)

    def __str__(self) -> str:
        if not self.filter:
            return f"linear {self.out}x{self.inputs}"
        k, size = self.filter, self.image
        return f"conv {k}x{k} {self.inputs}->{self.out} at {size}x{size}"

    def layer(self) -> nn.Linear | nn.Conv2d:
        if not self.filter:
            return nn.Linear(self.inputs, self.out, bias=False)
        return nn.Conv2d(self.inputs, self.out, self.filter, padding=self.filter // 2)

    def example(self, batch: int) -> torch.Tensor:
        size = (self.image, self.image) if self.filter else ()
        return torch.randn(batch, self.inputs, *size)


@dataclass(frozen=True)
class LayerCell:
    """What is measured: a layer, its zeros, a batch, how its present values are stored."""

    shape: Shape
    pattern: str
    sparsity: float
    batch: int
    values: str = FP32
    unit: ClassVar[str] = "rows"

    @property
    def name(self) -> str:
        return str(self.shape)

    def misfit(self) -> str | None:
        with torch.device("meta"):
            return misfit(self.shape.layer(), self.pattern)

    def make(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer with random weights, the zeros at random places, and an example."""
        torch.manual_seed(0)
        layer = self.shape.layer().eval()
        prune(layer, self.sparsity, self.pattern, score="random", allocate="uniform_all")
        return layer, self.shape.example(self.batch)


def misfit(
    model: nn.Module, pattern: str, dense: Callable[[nn.Module], bool] = lambda module: False
) -> str | None:
    """Why a weight of the model that is to be sparse cannot hold the pattern, or None.

    >>> misfit(nn.Linear(9, 8), "2:4")
    'weight: pattern 2:4 needs in_features divisible by 4; got 9'
    """
    held = as_pattern(pattern)
    for weight in find_weights(model):
        reason = held.misfit(tuple(weight.parameter.shape))
        if reason is not None and not dense(weight.module):
            return f"{weight.name}: pattern {held} {reason}"
    return None


def layer_cells(
    shapes: Sequence[str] = SHAPES,
    patterns: Sequence[str] = ("unstructured",),
    sparsities: Sequence[float] = (0.9,),
    batches: Sequence[int] | None = None,
    values: Sequence[str] = (FP32,),
) -> Iterator[LayerCell]:
    """All cells asked for; patterns that fix their own sparsity come once."""
    for shape in [Shape.parse(text) for text in shapes]:
        for pattern in patterns:
            own = as_pattern(pattern).sparsity
            for sparsity in sparsities if own is None else (own,):
                for batch in batches or BATCHES[type(shape.layer())]:
                    for kept in values:
                        yield LayerCell(shape, pattern, sparsity, batch, kept)


Write = Callable[[Tensor, Tensor], Callable[[], None]]
"""(x, out) -> a call from the memory of x into that of `out`."""


@dataclass(frozen=True)
class How:
    """How a call of ours is timed. turned: its activations lie feature by feature. told: it writes
    where it is told."""

    turned: bool = False
    told: bool = False

    @property
    def suffix(self) -> str:
        return self.turned * TRANSPOSED + self.told * INTO

    def ready(
        self, case: Case, run: Call, write: Write, note: str, expected: Tensor | None
    ) -> Ready:
        """A call on the case's example, turned where that is asked; write: of the same
        product."""
        x = case.example.t().contiguous() if self.turned else case.example
        notes = (self.turned * FEATURE_MAJOR, self.told * SAME_MEMORY, note)
        found = Ready(lambda: run(x), note="; ".join(filter(None, notes)), expected=expected)
        if not self.told:
            return replace(found, read=lambda: run(x).t()) if self.turned else found
        out = torch.empty_like(run(x))
        return replace(found, run=write(x, out), read=lambda: out.t() if self.turned else out)


def ways(case: Case) -> list[How]:
    """How calls of products with matrices are timed: with rows and with columns of activations, of
    which a single row is both; and as numerical libraries are called, whose activations are columns
    and whose outputs lie where they are told."""
    if len(case.example) == 1:
        return [How(), How(told=True)]
    return [How(), How(turned=True), How(turned=True, told=True)]


def candidates(case: Case, seconds: float) -> list[Candidate]:
    """Sparsewright's: every sparse kernel for a Linear, what `deploy` makes of other layers."""
    if not isinstance(case.model, nn.Linear):
        return deploys(case, seconds)
    near = functools.cache(functools.partial(rounded_output, case, [""]))
    names = [name for name in kernels_of(LINEAR) if not is_dense(name)]
    return [
        Candidate(
            f"sparsewright {name}{how.suffix}", OURS, functools.partial(_kernel, name, near, how)
        )
        for how in ways(case)
        for name in names
    ]


def _kernel(name: str, near: Callable[[], Tensor | None], how: How, case: Case) -> Ready | str:
    """One kernel of the table, called as a deployed layer is; near: what it must give."""
    assert isinstance(case.model, nn.Linear)
    kernel, weight = KERNELS[name], case.model.weight.detach()
    layout = LAYOUTS[kernel.layout]
    reason = kernel.refuses(weight) or kernel.reserve or kernel.refuses_values(case.values)
    rows = case.example.shape[:-1].numel()
    reason = reason or kernel.refuses_batch(rows) or layout.refuses(weight)
    if reason is not None:
        return reason
    prepared = kernel.prepare(pack(layout.name, weight, case.values), rows)
    rest = (*prepared.tensors.values(), case.model.bias, *prepared.numbers)
    expected = near()
    call = bind(kernel.op, rest)
    run = transposed(call) if how.turned else call
    write = functools.partial(into, call, across=how.turned)
    return how.ready(case, run, write, loss(case, expected), expected)


def deploys(case: Case, seconds: float) -> list[Candidate]:
    """What `deploy` makes of the case's model, called with rows; and, of a chain of layers that a
    csr library can run, with activations feature by feature."""

    @functools.cache
    def fast() -> Deployed:
        model, x = nn.Sequential(case.model), case.example
        return deploy(model, x, seconds=seconds, cache=False, values=case.values)

    is_chain = case.example.dim() == 2 and not isinstance(chain(case.model, case.example), str)
    return [
        Candidate(f"sparsewright deploy{how.suffix}", OURS, functools.partial(deployed, fast, how))
        for how in (ways(case) if is_chain else [How()])
    ]


def deployed(fast: Callable[[], Deployed], how: How, case: Case) -> Ready | str:
    """The case's model through `deploy`, planned on its example; the note says what serves."""
    model = fast()
    if how.told and not (model.program and model.program.is_product):
        return "a layer that is no sparse product: its output would be copied"
    served: dict[str, int] = {}
    for row in model.plan.layers:
        served[row.kernel] = served.get(row.kernel, 0) + 1
    note = ", ".join(f"{kernel} x{n}" if n > 1 else kernel for kernel, n in sorted(served.items()))
    expected = deployed_output(case, model)
    notes = "; ".join(text for text in (note, loss(case, expected)) if text)
    run = model.transposed if how.turned else model
    write = functools.partial(model.into, transposed=how.turned)
    return how.ready(case, run, write, notes, expected)
