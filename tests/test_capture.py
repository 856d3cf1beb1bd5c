"""Capture: moments are those of a direct computation, in the model's order, and little is held."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsewright import capture
from sparsewright.calibration import run
from sparsewright.capture import at_rest, input_squares, walk
from sparsewright.chains import find_chains
from sparsewright.moments import Moments
from sparsewright.weights import find_weights

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64 sums of a few hundred terms in another order


class Block(nn.Module):
    """An attention's projections on one input, a mixer and two layers, as transformers have them;
    it changes its input in place, and gives a tuple."""

    def __init__(self, width: int):
        super().__init__()
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, hidden: Tensor, *, shift: Tensor, scale: float = 1.0) -> tuple[Tensor, str]:
        hidden += shift
        mixed = torch.tanh(self.q(hidden) * self.k(hidden)) * scale
        return hidden + self.mlp(mixed), "more"


class Blocks(nn.Module):
    """A stem, a chain of blocks, and a head."""

    def __init__(self, depth: int, width: int = 6):
        super().__init__()
        self.head = nn.Linear(width, 3)  # first in the model's list, last to run
        self.stem = nn.Linear(4, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        shift = x.mean(dim=-1, keepdim=True)
        hidden = torch.tanh(self.stem(x))
        for block in self.blocks:
            hidden, _ = block(hidden, shift=shift, scale=scale)
        return self.head(hidden)


def batches(count: int = 3) -> list[Tensor]:
    return [torch.randn(5, 7, 4) for _ in range(count)]


def direct(model: nn.Module, data: list[Any]) -> dict[str, Tensor]:
    """X X^T of every Linear by one hook each, over whole forwards."""
    sums: dict[str, Tensor] = {}

    def hook(name: str, module: nn.Module, args: Any) -> None:
        rows = args[0].detach().reshape(-1, args[0].shape[-1]).double()
        sums[name] = sums.get(name, 0) + rows.T @ rows

    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_pre_hook(partial(hook, n)) for n, m in modules]
    for batch in data:
        run(model, batch)
    for handle in hooks:
        handle.remove()
    return sums


def change(model: nn.Module, group: dict[str, Moments]) -> None:
    with torch.no_grad():
        for name in group:
            model.get_submodule(name).weight.mul_(0.5)


@pytest.mark.parametrize("together", ["layer", "block"])
@pytest.mark.parametrize("chained", [True, False])
def test_every_layer_sees_the_model_changed_so_far(
    together: Any, chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole forwards say the same of each layer at the time when it is measured."""
    if not chained:
        monkeypatch.setattr(capture, "find_chains", lambda *args: ([], {}))
    model, data = Blocks(3), batches()
    order = []
    for group in walk(model, find_weights(model), data, together=together):
        known = direct(model, data)
        for name, moments in group.items():
            assert moments.count == 3 * 35
            assert moments.second is not None
            torch.testing.assert_close(moments.second[0], known[name], **EXACT)
        order.append(list(group))
        change(model, group)
    of_block = ["q", "k", "mlp.0", "mlp.2"]
    if chained and together == "block":
        wanted = [[f"blocks.{i}.{name}" for name in of_block] for i in range(3)]
    else:
        parts = [["q", "k"], ["mlp.0"], ["mlp.2"]]
        wanted = [[f"blocks.{i}.{n}" for n in part] for i in range(3) for part in parts]
    assert order == [["stem"], *wanted, ["head"]]


def test_layers_of_one_input_share_its_moments() -> None:
    model = Blocks(1)
    groups = list(walk(model, find_weights(model), batches()))
    assert groups[1]["blocks.0.q"] is groups[1]["blocks.0.k"]


def test_chains_are_found_one_in_another() -> None:
    model = Blocks(3)
    wanted = [weight.module for weight in find_weights(model)]
    chains, reasons = find_chains(model, partial(run, model, batches()[0]), wanted)
    assert [chain.name for chain in chains] == ["blocks", *(f"blocks.{i}.mlp" for i in range(3))]
    assert (chains[0].slot, chains[0].first) == (0, True)
    assert reasons == {}


class Strange(nn.Module):
    """Two blocks in a list, called in a way of its own."""

    def __init__(self, way: str):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        if way == "shared":
            self.blocks = nn.ModuleList([self.blocks[0], nn.Sequential(self.blocks[0])])
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.blocks
        if self.way == "apart":
            return first(x) + second(x)
        if self.way == "backwards":
            return first(second(x))
        if self.way == "twice":
            return second(first(first(x)))
        if self.way == "in place":
            return second(first(x).mul_(2))
        if self.way == "between":
            return second(first(x) * 2)
        return second(first(x))


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("apart", "do not take what the block before gave"),
        ("backwards", "not called once each, in order"),
        ("twice", "not called once each, in order"),
        ("in place", "changed in place"),
        ("between", "do not take what the block before gave"),
        ("shared", "share layers"),
    ],
)
def test_what_is_no_chain_is_measured_all_the_same(way: str, reason: str) -> None:
    model, data = Strange(way), batches()
    weights = find_weights(model)
    chains, reasons = find_chains(model, partial(run, model, data[0]), [w.module for w in weights])
    assert chains == []
    assert reason in reasons["blocks"]
    for group in walk(model, weights, data):
        known = direct(model, data)
        for name, moments in group.items():
            assert moments.second is not None
            torch.testing.assert_close(moments.second[0], known[name], **EXACT)
        change(model, group)


class Counting(nn.Module):
    """A block that remembers how often it ran: run alone it gives something else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x) + self.calls % 2 * 5


def test_a_chain_that_gives_something_else_alone_is_not_taken() -> None:
    model = nn.Sequential(Counting(), Counting())
    with at_rest(model):
        chains, _ = find_chains(model, partial(run, model, batches()[0]), [model[1].fc])
    assert len(chains) == 1
    taken = capture._Walk(
        capture._trace([partial(run, model, b) for b in batches(1)], find_weights(model)),
        "layer",
        torch.float64,
    )
    feed = partial(run, model, batches(1)[0])
    entries = capture.enter(chains[0], [feed])
    assert not taken._true(chains[0], [feed], entries, find_weights(model))


def test_a_layer_called_again_sums_over_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.fc(x)))

    model, data = Twice(), batches()
    (group,) = walk(model, find_weights(model), data)
    assert group["fc"].count == 2 * 3 * 35
    assert group["fc"].second is not None
    torch.testing.assert_close(group["fc"].second[0], direct(model, data)["fc"], **EXACT)


def test_the_forward_stops_behind_the_last_call() -> None:
    ran = []

    class Tail(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ran.append(1)
            return x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.tail = nn.Linear(4, 4), Tail()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.tail(self.fc(x) + 1)
            except Exception as error:
                raise AssertionError("the model must not see how it is stopped") from error

    model = Model()
    for _ in walk(model, find_weights(model), batches()):
        ran.clear()  # the first pass over the data, and the search for chains, ran all of it
        group = capture._trace([partial(run, model, b) for b in batches()], find_weights(model))
        ran.clear()
        feeds = [partial(run, model, batch) for batch in batches()]
        capture._Walk(group, "layer", torch.float64)._measure(feeds, find_weights(model))
        assert ran == []


def test_norms_of_all_layers_in_one_pass() -> None:
    model, data = Blocks(2), batches()
    found = input_squares(model, find_weights(model), data)
    for name, known in direct(model, data).items():
        torch.testing.assert_close(found[name][0], known.diagonal(), **EXACT)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for take in (list, next):  # to the end, and left early
        take(walk(model, find_weights(model), [torch.randn(8, 4)]))  # type: ignore[operator]
        gc.collect()
        assert [m.training for m in model] == [True, False, True, True]
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("together", ["layer", "block"])
def test_what_is_held_does_not_grow_with_depth(together: Any) -> None:
    """Outputs of blocks alive at any time: those between two blocks, not one for each block."""

    def most_alive(depth: int) -> int:
        model, alive, most = Blocks(depth), weakref.WeakSet[Tensor](), 0

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal most
            alive.add(output[0])
            most = max(most, len(alive))

        for block in model.blocks:
            block.register_forward_hook(hook)
        for group in walk(model, find_weights(model), batches(2), together=together):
            group.clear()
        return most

    assert most_alive(3) == most_alive(12) <= 4


def test_moments_of_one_group_alone_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = weakref.WeakSet[Moments](), 0

    class Watched(Moments):
        def __init__(self, *args: Any, **kwargs: Any):
            nonlocal most
            super().__init__(*args, **kwargs)
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr(capture, "Moments", Watched)
    model = Blocks(4)
    from sparsewright.solving import solve

    solve(model, 0.5, data=batches())
    assert most == 1


def test_models_of_transformers() -> None:
    """Their blocks are a chain, no cache of attention is kept, and all is as whole forwards say."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    llama = transformers.LlamaConfig(**sizes, intermediate_size=24, max_position_embeddings=16)
    opt = transformers.OPTConfig(
        **sizes, ffn_dim=24, max_position_embeddings=16, word_embed_proj_dim=16
    )
    for model in (transformers.LlamaForCausalLM(llama), transformers.OPTForCausalLM(opt)):
        model.eval()
        data = [{"input_ids": torch.randint(0, 32, (2, 8))} for _ in range(2)]
        weights = [w for w in find_weights(model) if ".layers." in w.name]
        with at_rest(model):
            chains, _ = find_chains(model, partial(run, model, data[0]), [weights[0].module])
        assert [chain.name.split(".")[-1] for chain in chains] == ["layers"]
        for group in walk(model, weights, data):
            known = direct(model, data)
            for name, moments in group.items():
                assert moments.second is not None
                torch.testing.assert_close(moments.second[0], known[name], rtol=1e-4, atol=1e-5)
            change(model, group)
        assert model.config.use_cache
