"""Packed modules: layers that train with nothing stored but the weights that are present.

The weight is a vector, an ordinary Parameter: its gradient, the optimizer's state, clipping,
averaging and sharding follow from that. Where its values stand is the module's `topology`. That
sparse layers are trained at the cost of their present weights is the aim of Mocanu et al. (2018)
and Evci et al. (2020).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .. import library
from ..core import Pattern, Shape
from ..errors import LayoutError, StateError
from ..topology import Topology
from ..watch import Watch
from ._places import draw_places


class PackedModule(nn.Module):
    """A layer whose weight is packed, and trains.

    weight: Parameter (nnz), the present values in the topology's order: row-major over the dense
    weight. topology: of the dense weight as the matrix (shape[0], the rest); change it by `move`.
    shape: of the dense weight. watch: keeps what the gradient of absent weights is made of, for who
    asks. A state_dict holds the places beside the values, as `starts` (int64, first weight of every
    row) and `columns` (int32); loading one replaces the topology. Replicas of a data-parallel run
    must begin with the same places, by one seed or one state_dict: `check_replicas` says if not.
    name: the layer's own in its model, once `pack` or `attach` has seen it; errors say it.
    """

    kind: ClassVar[type[Any]]
    """The dense module that it stands for."""
    weight: nn.Parameter
    bias: nn.Parameter | None
    topology: Topology
    watch: Watch
    shape: Shape
    name: str = ""

    def _begin(
        self,
        like: nn.Module,
        *,
        sparsity: float | None,
        pattern: str | Pattern,
        places: Tensor | None,
        generator: torch.Generator | None,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        """Weight, bias and topology, sized as the dense module `like` (on the meta device) is."""
        library.warn_if_missing()
        dense: Tensor = like.weight  # type: ignore[assignment]
        bias: Tensor | None = getattr(like, "bias", None)
        self.shape = tuple(dense.shape)
        if places is None:
            name = type(self).__name__
            places = draw_places(name, self.shape, sparsity, pattern, generator)
        topology = Topology.from_places(places, matrix_of(self.shape))
        made = torch.empty(topology.nnz, device=device, dtype=dtype)
        self.weight = nn.Parameter(made)
        if bias is not None:
            self.bias = nn.Parameter(torch.empty(bias.shape, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.watch = Watch(self)
        self._hold(topology if made.is_meta else topology.to(made.device))
        if not made.is_meta:
            self.reset_parameters(generator)

    @classmethod
    def from_dense(cls, module: Any, mask: Tensor | None = None) -> Self:
        """The packed copy of a dense module; its values are kept to the bit.

        mask: bool in the weight's shape, True = present; None takes the weights that are not zero.
        A weight that is all zeros counts as wholly present. Training mode, requires_grad, device
        and type are kept; gradients are not. KernelError names what no kernel computes.
        """
        weight: Tensor = module.weight.detach()
        if mask is None:
            mask = weight != 0
            mask = mask if bool(mask.any()) else torch.ones_like(mask)
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise LayoutError(
                f"a mask must be bool of shape {tuple(weight.shape)}; got {mask.dtype} of "
                f"{tuple(mask.shape)}"
            )
        places = mask.reshape(-1).nonzero().squeeze(1).to(weight.device)
        made = cls._like(module, places=places, device="meta", dtype=weight.dtype)
        made.weight = nn.Parameter(
            weight.reshape(-1)[places], requires_grad=module.weight.requires_grad
        )
        old: nn.Parameter | None = getattr(module, "bias", None)
        if old is not None:
            made.bias = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
        return made.train(module.training)

    def to_module(self) -> nn.Module:
        """The dense module with the same values, zeros where no weight is."""
        made = self._dense(device="meta", dtype=self.weight.dtype)
        with torch.no_grad():
            made.weight = nn.Parameter(self.to_dense(), requires_grad=self.weight.requires_grad)
            if self.bias is not None:
                old = self.bias
                made.bias = nn.Parameter(old.clone(), requires_grad=old.requires_grad)
        return made.train(self.training)

    @classmethod
    def _like(cls, module: Any, **options: Any) -> Self:
        """A packed module with the arguments of a dense one."""
        raise NotImplementedError

    def _dense(self, **options: Any) -> nn.Module:
        """A dense module with the arguments of this one."""
        raise NotImplementedError

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """First values: N(0, 2 / fan_in) for weights, as `attach(init="fan_in")` draws them, and
        U(-1, 1) / sqrt(fan_in) for biases, as torch has them; fan_in counts each neuron's present
        inputs (He et al. 2015; Evci et al. 2022)."""
        present = self.topology.starts.diff().cpu()
        fan_in = present.clamp(min=1)
        deviation = torch.repeat_interleave((2.0 / fan_in).sqrt(), present)
        with torch.no_grad():
            normal = torch.randn(self.nnz, generator=generator, device="cpu")
            self.weight.copy_(normal * deviation)
            if self.bias is not None:
                uniform = 2 * torch.rand(len(fan_in), generator=generator, device="cpu") - 1
                self.bias.copy_(uniform / fan_in.sqrt())

    @property
    def nnz(self) -> int:
        """Number of weights present."""
        return self.topology.nnz

    @property
    def sparsity(self) -> float:
        """Fraction of weights absent."""
        return 1.0 - self.nnz / max(1, math.prod(self.shape))

    @property
    def starts(self) -> Tensor:
        """(rows + 1) int64: the first weight of every row."""
        return self.topology.starts.clone()

    @property
    def columns(self) -> Tensor:
        """(nnz) int32: the column of every weight."""
        return self.topology.columns.to(torch.int32, copy=True)

    def to_dense(self) -> Tensor:
        """The dense weight with its zeros; a gradient goes through it."""
        flat = self.weight.new_zeros(math.prod(self.shape))
        return flat.index_put((self.topology.places(),), self.weight).view(self.shape)

    def move(self, places: Tensor, values: Tensor) -> None:
        """Put the weight's values at other places; the Parameter stays the same object.

        places: flat, int64, ascending, none twice. values: (as many). The gradient is dropped: it
        was that of other places. Who holds an optimizer moves its state too. LayoutError names what
        does not fit.
        """
        topology = Topology.from_places(places.to(self.topology.device), self.topology.shape)
        if values.shape != (topology.nnz,):
            raise LayoutError(
                f"{topology.nnz} places need as many values; got {tuple(values.shape)}"
            )
        self._replace(topology, values)

    def dense_gradient(self, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of the dense weight's gradient, by what the watch has seen.

        (end - begin, width) float32 or wider, summed over all that was seen.
        """
        total: Tensor | None = None
        for x, dy in self.watch.seen:
            part = self._dense_gradient(_wide(x), _wide(dy), begin, end)
            total = part if total is None else total.to(part.dtype).add_(part)
        if total is None:
            return torch.zeros(end - begin, self.topology.shape[1], device=self.weight.device)
        return total

    def gradient_at(self, places: Tensor) -> Tensor:
        """The same at some flat places only, none twice: time and memory go with their number."""
        ordered = places.sort()
        chosen = Topology.from_places(ordered.values, self.topology.shape)
        total = torch.zeros(len(places), device=self.weight.device)
        for x, dy in self.watch.seen:
            part = self._gradient_at(chosen, _wide(x), _wide(dy))
            total = total.to(part.dtype).add_(part)
        out = torch.empty_like(total)
        out[ordered.indices] = total
        return out

    def _dense_gradient(self, x: Tensor, dy: Tensor, begin: int, end: int) -> Tensor:
        raise NotImplementedError

    def _gradient_at(self, chosen: Topology, x: Tensor, dy: Tensor) -> Tensor:
        raise NotImplementedError

    def named(self, name: str) -> None:
        """Know the layer's name in its model."""
        self.name = name
        self.topology.owner = self.who

    @property
    def who(self) -> str:
        """The layer as errors name it."""
        if self.name:
            return f"layer {self.name!r}"
        return f"{type(self).__name__} of shape {self.shape}"

    def _hold(self, topology: Topology) -> None:
        """Make a topology this module's own: what another module has is copied."""
        own = topology.watch in (None, self.watch)
        self.topology = topology if own else copy.deepcopy(topology)
        self.topology.watch, self.topology.owner = self.watch, self.who

    def _replace(self, topology: Topology, values: Tensor) -> None:
        """Another topology, and a copy of its values in the same Parameter."""
        self.check_movable()
        self.take_over(topology, values.detach().to(self.weight, copy=True))

    def check_movable(self) -> None:
        """StateError if the weight's places cannot change."""
        if hasattr(self.weight, "device_mesh"):
            raise StateError("a weight that is sharded over processes (DTensor) cannot move")

    def take_over(self, topology: Topology, new: Tensor) -> None:
        """Another topology and its values in the same Parameter, without a gradient; no copy is
        made: they must be the module's own from now on, of its weight's type and device."""
        self.topology.retire()  # a backward that still wants it must not take the new values
        self.watch.seen.clear()
        self._hold(topology)
        self.weight.grad = None
        if new.shape != self.weight.shape:
            # As long as an old loss lives, torch keeps what accumulates the gradient, with the
            # shape that it had. It lets go where the type changes, not where the shape does.
            other = torch.float32 if new.dtype == torch.float64 else torch.float64
            self.weight.data = new.new_empty(0, dtype=other)
        self.weight.data = new

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)
        device = self.weight.device
        if device.type != "meta" and device != self.topology.device:
            self._hold(self.topology.to(device))
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "watch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy watches for itself: what passes through it is no news of the original's."""
        super().__setstate__(state)
        self.watch = Watch(self)
        self._hold(self.topology)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "starts"] = self.starts
        destination[prefix + "columns"] = self.columns

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take places and values together, so that no value ends up at another's place.

        An optimizer that was built before keeps its parameter. Its state of another size has to be
        loaded too, from the same checkpoint.
        """
        names = [prefix + name for name in ("starts", "columns")]
        values = state_dict.get(f"{prefix}weight")
        missing = [name for name in names if name not in state_dict]
        place = prefix.removesuffix(".") or type(self).__name__
        missing_keys += missing
        if missing and values is not None:  # where it was asked for less strictness, too
            error_msgs.append(
                f"{place}: values without their places; missing: {missing}. Load the state of a "
                "layer that is not packed before sw.pack"
            )
            return
        if values is not None:
            try:
                starts, columns = (state_dict[name] for name in names)
                self._replace_if_other(starts, columns, values)
            except (LayoutError, StateError) as error:
                error_msgs.append(f"{place}: {error}")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        unexpected_keys[:] = [key for key in unexpected_keys if key not in names]

    def _replace_if_other(self, starts: Tensor, columns: Tensor, values: Tensor) -> None:
        own = self.topology
        device = own.device
        found = Topology.from_starts(starts.to(device), columns.to(device), own.shape)
        if values.shape != (found.nnz,):
            raise LayoutError(f"{found.nnz} places need as many values; got {tuple(values.shape)}")
        same = torch.equal(found.starts, own.starts) and torch.equal(found.columns, own.columns)
        if not same:
            self._replace(found, values)

    def extra_repr(self) -> str:
        return f"bias={self.bias is not None}, nnz={self.nnz}, sparsity={self.sparsity:.10g}"


def matrix_of(shape: Shape) -> tuple[int, int]:
    """(outputs, the rest) of a dense weight's shape."""
    return shape[0], math.prod(shape[1:])


def _wide(tensor: Tensor) -> Tensor:
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half else tensor
