"""One process of a packed model's distributed training; test_packed_distributed starts several.

python packed_ranks.py RANK WORLD FILE OUT WAY...: trains each way with the gloo backend, the
processes meeting in FILE, and rank 0 writes losses and final weights to OUT.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sparsewright as sw
from sparsewright.nn import check_replicas

STEPS, BATCH = 4, 8


def model() -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4)).double()
    sw.prune(plain, 0.7, allocate="uniform_all")
    return sw.pack(plain)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, y = (torch.randn(BATCH, n, generator=generator, dtype=torch.float64) for n in (12, 4))
    return x, y


def train(model: nn.Module, rank: int = 0, world: int = 1) -> list[Tensor]:
    """The losses of this rank's share of every batch."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for step in range(STEPS):
        x, y = (t.chunk(world)[rank] for t in batch(step))
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def ddp(rank: int, world: int) -> dict[str, Tensor]:
    own = model()
    check_replicas(own)
    other = model()
    if rank == 1:
        other[2].move(torch.arange(other[2].nnz), other[2].weight.detach())
    with pytest.raises(sw.StateError, match="layer '2': process 1 holds the weight at other"):
        check_replicas(other)
    losses = torch.stack(train(DistributedDataParallel(own), rank, world))
    dist.all_reduce(losses)
    return {"losses": losses / world, **own.state_dict()}


def fsdp(rank: int, world: int) -> dict[str, Tensor]:
    from torch.distributed.fsdp import fully_shard

    own = model()
    for layer in (own[0], own[2], own):
        fully_shard(layer)
    losses = torch.stack(train(own, rank, world))
    dist.all_reduce(losses)
    state = own.state_dict()
    whole = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}
    with pytest.raises(sw.StateError, match="sharded"):
        own[0].move(own[0].topology.places(), whole["0.weight"])
    return {"losses": losses / world, **whole}


def main(rank: int, world: int, file: str, out: str, ways: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    results = {way: {"ddp": ddp, "fsdp": fsdp}[way](rank, world) for way in ways}
    for way, result in results.items():
        for name, tensor in result.items():
            everyones = [torch.empty_like(tensor) for _ in range(world)]
            dist.all_gather(everyones, tensor.contiguous())
            assert all(torch.equal(tensor, one) for one in everyones), f"{way}: {name} differs"
    if rank == 0:
        torch.save(results, out)
    leave()


def leave() -> NoReturn:
    """End the process where all are done: torch's gloo threads may still run when the interpreter
    ends, and then abort it ("terminate called without an active exception")."""
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="torch")
    number, size, file, out, *ways = sys.argv[1:]
    main(int(number), int(size), file, out, ways)
