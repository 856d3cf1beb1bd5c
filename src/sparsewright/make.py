"""The layers of a model get their kernels, for the whole batch of an example or for a piece of it,
whichever is faster; what can be cached is not timed again."""

from __future__ import annotations

import copy
import functools
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import kept_trace, plan_cache
from .as_code import Together, loops_for_code
from .errors import ArtifactError, KernelError
from .graph import Graph
from .kept_trace import PROGRAM
from .measure.dense import relative_error
from .nn import Prepacked
from .pieces import CLOSE, MISS, Way, in_turn, sizes, time_runs
from .plan import LayerPlan, Pieces, Plan
from .program import Program, hooks_of, program_of, rows, same_outputs
from .serve import Seen, Wishes, dense_row, record, repeat, serve
from .traced import Trace, traced
from .weights import find_weights

TOLERANCE = 1e-3
"""Of the model's largest output, between the deployed model and the original, and between a batch
in pieces and the whole: float32 sums in another order, through all layers. Values in fewer bytes do
not loosen it: then the original is taken with its weights rounded, as every layer alone was allowed
what its type of values rounds."""
LONGER = 5
"""How much longer than one kernel of a layer the ways through the whole model are timed."""
OTHER_OUTPUTS = "the model's trace does not give the outputs of its modules"
FEW = 4
"""Images whose patches lie side by side, in a larger batch."""
Served = tuple[list[LayerPlan], dict[nn.Module, nn.Module]]
"""The rows of the plan, and what replaces which module."""


class Traced:
    """The trace of a model, made when it is first asked for; None if there is none, and why.

    cache: whether one that was kept on disk will do, and a new one is kept. right: what was made of
    it and gave the model's outputs (kept_trace.RIGHT), of this code, with these weights or others.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], cache: bool):
        self.model, self.inputs, self.cache = model, inputs, cache
        self.why_not: ArtifactError | None = None
        self.was_kept = False
        self.right = frozenset[str]()

    @functools.cached_property
    def trace(self) -> Trace | None:
        return self._new() if self._known is None else self._known

    @functools.cached_property
    def _known(self) -> Trace | None:
        kept = kept_trace.read(self.key, self.model) if self.key else None
        if kept is None:
            return None
        self.was_kept = True
        found, self.right = kept
        return found

    def was_right(self, *what: str) -> bool:
        """Whether a trace was kept of which these were right. Nothing is traced to tell."""
        return self._known is not None and self.right.issuperset(what)

    @functools.cached_property
    def key(self) -> dict[str, Any] | None:
        """Under which it is kept on disk; None where it is not."""
        return kept_trace.circumstances(self.model, self.inputs) if self.cache else None

    def renew(self) -> None:
        """Trace anew: the one that was kept does not do what the model does."""
        self.was_kept, self.right = False, frozenset()
        self.trace = self._new()

    def is_right(self, what: str) -> None:
        """Say that this was made of it and gave the model's outputs."""
        if what not in self.right:
            self.right |= {what}
            self._keep(self.trace)

    def _new(self) -> Trace | None:
        try:
            found = traced(self.model, self.inputs)
        except ArtifactError as error:
            self.why_not = error
            return None
        self._keep(found)
        return found

    def _keep(self, found: Trace | None) -> None:
        if self.key and found is not None:
            kept_trace.write(self.key, found, self.model, self.right)


@dataclass(frozen=True)
class Made:
    """A model whose layers have kernels that were chosen for so many samples (`planned`).

    rows: of its plan. served: what replaced which module. program, graph: its trace as a
    function, and as a document. why_no_program: where that is None. note: for the plan.
    """

    planned: int
    rows: tuple[LayerPlan, ...]
    served: Mapping[nn.Module, nn.Module]
    model: nn.Module
    program: Program | None
    graph: Graph | None
    why_no_program: str | None = None
    note: str | None = None

    def cut(self, pieces: Pieces, threads: int | None = None, ready: Program | None = None) -> Made:
        """The same, so many samples at a time, or images side by side for so many threads. ready:
        a program that was made for these threads, taken if it is the one."""
        if self.program is None or pieces.size is None:
            return self
        how = pieces.size, pieces.side_by_side
        if ready is not None and (ready.size, ready.side_by_side) == how:
            return replace(self, program=ready)
        program = self.program.cut(pieces.size, pieces.side_by_side, threads)
        return replace(self, program=program)


class Maker:
    """What `deploy` makes of one model in eval mode, on one example. seen: what it did on that."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        found: Traced,
        wishes: Wishes,
        seen: Seen,
    ):
        self.model, self.inputs, self.found, self.wishes = model, inputs, found, wishes
        self.seen = seen
        self.batch = inputs[0].shape[0] if inputs[0].dim() else 1

    def make(self, planned: int, plan: Plan | None = None) -> Made:
        """Kernels for so many samples; those of a plan if one is given."""
        inputs, seen = self.inputs, self.seen
        if planned != self.batch:
            inputs = tuple(rows(x, planned) for x in inputs)
            seen = record(self.model, inputs)
        if plan:
            return self._made(planned, inputs, self._repeat(seen, plan))
        return self._or_by_loops(planned, inputs, seen, self._serve(seen))

    def _or_by_loops(
        self, planned: int, inputs: tuple[Tensor, ...], seen: Seen, own: Served
    ) -> Made:
        """What is served so, or with loops in place of weights that are run as code, whichever is
        faster as a whole (as_code.py)."""
        loops = loops_for_code(own[0])
        if loops is None:
            return self._made(planned, inputs, own)

        def by_loops() -> Made:
            plan = Plan(torch.get_num_threads(), planned, loops)
            return self._made(planned, inputs, self._repeat(seen, plan))

        key = self._circumstances()
        if key:
            kernels = [[a.kernel, b.kernel] for a, b in zip(own[0], loops, strict=True)]
            key |= {"together": planned, "kernels as code and by loops": kernels}
        together = plan_cache.read_together(key, self.wishes.seconds) if key else None
        if together is not None and together.note is not None:
            return replace(by_loops(), note=together.note)
        made = self._made(planned, inputs, own)
        program = made.program
        if together is not None or program is None or program.run(*inputs) is MISS:
            return made
        other = by_loops()
        last = other.program.run if other.program else other.model  # all dense: no program
        runs = [functools.partial(run, *inputs) for run in (program.run, last)]
        samples = in_turn(dict(enumerate(runs)), seconds=LONGER * self.wishes.seconds)
        together = Together(*(1e3 * statistics.median(samples[i]) for i in range(2)))
        if key:
            plan_cache.write_together(key, self.wishes.seconds, together)
        return made if together.note is None else replace(other, note=together.note)

    def _made(self, planned: int, inputs: tuple[Tensor, ...], by: Served) -> Made:
        own, served = by
        model = copied(self.model, served)
        program, graph, why = None, None, None
        # Tracing takes longer than a dense model gains, and a trace has no place for hooks.
        has_ops = any(isinstance(m, Prepacked) and m.is_op for m in model.modules())
        if not (has_ops or any(row.is_sparse for row in own)):
            why = "no layer is served sparse"
        elif any(hooks_of(model)):
            why = "modules of the model have forward hooks"
        else:
            program, graph = self._program(model, inputs)
            if program is None:
                why = "the model has no trace" if graph is None else OTHER_OUTPUTS
        return Made(planned, tuple(own), served, model, program, graph, why)

    def _program(
        self, model: nn.Module, inputs: tuple[Tensor, ...]
    ) -> tuple[Program | None, Graph | None]:
        found = self.found
        program, graph = program_of(model, inputs, found.trace, at_example=PROGRAM in found.right)
        if program is None and found.was_kept:
            found.renew()
            program, graph = program_of(model, inputs, found.trace)
        if program is not None:
            found.is_right(PROGRAM)
        return program, graph

    @functools.cached_property
    def plain(self) -> dict[str, LayerPlan]:
        """The rows of the weights as they are."""
        return {weight.name: dense_row(weight) for weight in find_weights(self.model)}

    def _serve(self, seen: Seen) -> Served:
        found: Served = [], {}
        for weight in find_weights(self.model):
            row, modules = serve(weight, self.plain[weight.name], seen, self.wishes)
            found[0].append(row)
            found[1].update(modules)
        return found

    def _repeat(self, seen: Seen, plan: Plan) -> Served:
        """The kernels of a plan; KernelError names every layer that they cannot serve."""
        pinned = {row.layer: row for row in plan.layers}
        found: Served = [], {}
        wrong = []
        for weight in find_weights(self.model):
            plain = self.plain[weight.name]
            made = repeat(weight, plain, seen, pinned.pop(weight.name, None))
            if isinstance(made, str):
                wrong.append(f"layer {weight.name!r}: {made}")
            else:
                found[0].append(made[0])
                found[1].update(made[1])
        wrong += [f"layer {name!r}: the model has none of that name" for name in pinned]
        if wrong:
            raise KernelError(f"the plan cannot be repeated. {'; '.join(wrong)}")
        return found

    def repeat(self, plan: Plan) -> tuple[Made, Pieces | None]:
        """The kernels of a plan, and its pieces; KernelError where they cannot serve."""
        if plan.pieces is None or plan.pieces.size is None:
            return self.make(self.batch, plan), plan.pieces
        made = self.make(plan.pieces.planned, plan)
        why = "the model has no trace" if made.program is None else made.program.mixed
        if why is not None:
            raise KernelError(
                f"the plan cannot be repeated. It runs the batch in pieces, but {why}"
            )
        return made.cut(plan.pieces, plan.threads), plan.pieces

    def fastest(self) -> tuple[Made, Pieces | None]:
        """The kernels that are fastest: for the whole batch, or for pieces of it."""
        whole = self.make(self.batch) if self.batch < 2 else None
        beside = whole.program.beside(self.batch) if whole and whole.program else None
        if whole is not None and beside is None:
            return whole, None
        key = self._circumstances()
        known = plan_cache.read_pieces(key, self.wishes.seconds) if key else None
        if known is not None:
            pieces = Pieces.fastest(known, self.batch)
            made = whole or self.make(pieces.planned)
            if pieces.size is None or self._why_whole(made) is None:
                return made.cut(pieces, ready=beside), pieces
        whole = whole or self.make(self.batch)
        why = self._why_whole(whole)
        if why is not None:
            return whole, Pieces(None, self.batch, why_whole=why)
        made, pieces = self._timed(whole)
        if key:
            plan_cache.write_pieces(key, self.wishes.seconds, pieces.timings)
        return made.cut(pieces), pieces

    def _why_whole(self, made: Made) -> str | None:
        """Why a batch cannot be run in pieces, or None."""
        if made.program is None:
            return made.why_no_program
        if made.program.mixed is None and made.program.run(*self.inputs) is MISS:
            return "the trace does not serve the example"
        return made.program.mixed

    def _timed(self, whole: Made) -> tuple[Made, Pieces]:
        """The fastest of the whole batch and of pieces; those that come close get own kernels."""
        own = (self.batch, self.batch, False)
        at_once = {own: self._run(whole, None)} | self._beside(whole)
        cut = {(self.batch, size, False): self._run(whole, size) for size in sizes(self.batch)}
        first = {t.way: t.low_ms for t in time_runs(at_once | cut, rounds=2)}
        close = [way for way in cut if first[way] <= CLOSE * first[own]]
        ways = at_once | ({way: cut[way] for way in close} or cut)
        expected = {self.batch: self._run(whole, None)()}
        small = None
        if close:
            small = self.make(min(size for _, size, _ in close))
            if self._why_whole(small) is None:
                expected[small.planned] = self._run(small, None)()  # its values may round others
                ways |= {(small.planned, way[1], False): self._run(small, way[1]) for way in close}
                ways |= self._beside(small)
        wrong = [w for w, run in ways.items() if not same_outputs(run(), expected[w[0]], _close)]
        if wrong:
            raise KernelError(
                f"a batch in pieces of {wrong[0][1]} samples must give the outputs of the whole "
                f"within {TOLERANCE} of the largest; it does not. Either the model turns small "
                "differences into large ones, or its samples were wrongly taken to be apart"
            )
        timings = time_runs(ways, seconds=LONGER * self.wishes.seconds)
        pieces = Pieces.fastest(timings, self.batch)
        return (small if small and pieces.planned == small.planned else whole), pieces

    def _run(self, made: Made, size: int | None) -> Callable[[], Any]:
        assert made.program is not None
        return functools.partial(made.program.cut(size).run, *self.inputs)

    def _beside(self, made: Made) -> dict[Way, Callable[[], Any]]:
        """The ways with images side by side: all that fill vectors, or patches of a few at a time,
        whose activations stay nearer; none where that is not for this model and batch."""
        assert made.program is not None
        ways: dict[Way, Callable[[], Any]] = {}
        for images in [self.batch, FEW] if self.batch > 2 * FEW else [self.batch]:
            program = made.program.beside(images)
            if program is not None and program.size is not None:
                way = (made.planned, program.size, True)
                ways[way] = functools.partial(program.run, *self.inputs)
        return ways

    def _circumstances(self) -> dict[str, Any] | None:
        """All that the pieces' times depend on; None where they are not to be kept."""
        has_zeros = any(row.sparsity > 0 for row in self.plain.values())
        if not self.wishes.cache or not has_zeros or any(hooks_of(self.model)):
            return None
        trace = self.found.trace
        if trace is None:
            return None
        wishes = self.wishes
        own = plan_cache.of_model(
            trace, list(self.plain.values()), self.inputs, wishes.kernels, wishes.values
        )
        # The trace is of the model before its norms were folded, or were not.
        kinds = Counter(type(module).__name__ for module in self.model.modules())
        return {**own, "modules": dict(kinds)}


def _close(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype) and (
        relative_error(a.float(), b.float()) <= TOLERANCE
    )


def copied(model: nn.Module, modules: Mapping[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A copy of the model that shares its tensors, with each of these modules replaced wherever it
    occurs."""
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    new = {id(old): new for old, new in (modules or {}).items()}
    return copy.deepcopy(model, {**shared, **new})
