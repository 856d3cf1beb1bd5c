"""Growth gradients over the replicas of a data-parallel run.

Every replica must move the same weights, so the gradients that it grows by must be those of the
whole batch (Evci et al. 2020, appendix M: what it cost that some were not). Masked weights get
theirs from the wrapper, like any gradient; those of absent packed weights are made by the layer
itself, and are averaged here.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .arguments import told
from .errors import ConfigError, StateError

Group = Literal[False] | distributed.ProcessGroup | None
"""A process group of torch.distributed; None: that of the model's wrapper; False: none."""


def check_group(group: Any) -> None:
    """ConfigError unless it is one, None or False."""
    if group is not False and isinstance(group, str | int | list | tuple):  # True is an int
        raise ConfigError(
            "process_group must be one of torch.distributed, None or False; got " + told(group)
        )


class Replicas:
    """The processes that train one model together.

    A model in DistributedDataParallel names its group itself; else `group` must, where there are
    several processes.
    """

    def __init__(self, model: nn.Module, group: Group = None):
        self.is_wrapped = isinstance(model, DistributedDataParallel)
        if group is None and isinstance(model, DistributedDataParallel):
            group = model.process_group
        self._group = group

    @property
    def group(self) -> distributed.ProcessGroup | None:
        """The processes that train together, where there are several and it is known which."""
        return self._group or None if self._several() else None

    @torch.no_grad()
    def average(self, gradient: Tensor) -> Tensor:
        """The mean over all replicas, in place; StateError if nothing says which those are."""
        if not self._several():
            return gradient
        if self._group is None:
            raise StateError(
                "gradients of absent packed weights must be averaged over the "
                f"{distributed.get_world_size()} processes of this run: give attach their "
                "process_group (torch.distributed.group.WORLD for all of them), or False where "
                "every process trains a model of its own"
            )
        distributed.all_reduce(gradient, group=self._group)
        return gradient.div_(distributed.get_world_size(self._group or None))

    def check_size(self, name: str, before: int, after: int, *, training: bool) -> None:
        """StateError if a layer's packed weight changes its size where a wrapper counts on it."""
        if before == after or not (self.is_wrapped or (training and self._several())):
            return
        raise StateError(
            f"layer {name!r}: its packed weight would go from {before} to {after} values, and "
            "DistributedDataParallel counts on their number: "
            + (
                "take masked storage, or a method that keeps the number of weights, as one that "
                "ablates neurons does with ablate=False"
                if training
                else "attach first, with process_group, and wrap the model afterwards"
            )
        )

    def _several(self) -> bool:
        together = distributed.is_available() and distributed.is_initialized()
        return together and self._group is not False and distributed.get_world_size() > 1
