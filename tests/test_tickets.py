"""Lottery tickets against a plain loop, the published curve, and masks that go to other runs."""

from __future__ import annotations

import copy
import json
import math

import pytest
import safetensors.torch
import torch
from torch import nn
from training import assert_masked, batch, small_model, through_a_file, train_step

import sparsewright as sw
from sparsewright.masks import load_masks, save_masks
from sparsewright.tickets import Tickets


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def train(ticket, model, steps=4):
    optimizer = sgd(model)
    sparse = ticket.attach(optimizer)
    for step in range(ticket.start, ticket.start + steps):
        train_step(model, [optimizer], step)
    assert_masked(sparse)
    return optimizer


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# the search


def test_the_published_curve_of_lenet_300_100():
    """Weights left: 51.3, 21.1, 13.5 and 3.6 % after 3, 7, 9 and 15 rounds (Frankle, Carbin)."""
    model = nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10))
    left = [100 * (1 - ticket.sparsity) for ticket in Tickets(model, rounds=15)]
    assert len(left) == 16
    for n, percent in enumerate(left):
        wanted = 100 * (265_200 * 0.8**n + 1_000 * 0.9**n) / 266_200
        assert percent == pytest.approx(wanted, abs=100 * 1.5 / 266_200)  # rounding in 3 layers
    assert [round(left[n], 1) for n in (3, 7, 9, 15)] == [51.3, 21.1, 13.5, 3.6]


@pytest.mark.parametrize("rewind", ["init", "lr", 2])
def test_a_search_is_the_plain_loop(rewind):
    model = small_model()
    plain = copy.deepcopy(model)
    start = state(plain)
    masks = {name: torch.ones_like(plain.get_parameter(name)) for name in ("0.weight", "2.weight")}
    first, ends = (rewind if isinstance(rewind, int) else 0), []
    for number in range(3):
        optimizer = sgd(plain)
        with torch.no_grad():
            for name, mask in masks.items():
                plain.get_parameter(name).mul_(mask)
        begin = first if number else 0
        for step in range(begin, begin + 4):
            optimizer.zero_grad()
            x, y = batch(step)
            ((plain(x) - y) ** 2).mean().backward()
            for name, mask in masks.items():
                plain.get_parameter(name).grad.mul_(mask)
            optimizer.step()
            if number == 0 and step + 1 == rewind:
                start = state(plain)
        ends.append(state(plain))
        for name, fraction in (("0.weight", 0.5), ("2.weight", 0.25)):
            size = plain.get_parameter(name).detach().abs()
            keep = round(size.numel() * (1 - fraction) ** (number + 1))
            masks[name] = (size >= size.reshape(-1).sort().values[-keep]).float()
        if rewind != "lr":
            plain.load_state_dict(start)
    seen = []
    for ticket in Tickets(model, rounds=2, fraction=0.5, rewind=rewind):
        seen.append(ticket.round)
        assert ticket.start == (first if ticket.round else 0)
        train(ticket, model)
        for name, value in model.state_dict().items():
            assert torch.equal(value, ends[ticket.round][name]), (ticket.round, name)
    assert seen == [0, 1, 2]


def test_every_parameter_and_buffer_is_rewound():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 32))
    start = state(model)
    for ticket in Tickets(model, rounds=1):
        for name, value in model.state_dict().items():
            mask = ticket.masks.get(name.removesuffix(".weight"), torch.ones((), dtype=torch.bool))
            assert torch.equal(value, start[name] * mask), name
        train(ticket, model)
        assert not torch.equal(model[1].running_mean, start["1.running_mean"])


def test_rounds_are_nested_and_the_last_layer_goes_half_as_fast():
    model = small_model()
    before = None
    for ticket in Tickets(model, rounds=3, fraction=0.4):
        train(ticket, model)
        counts = {name: int(mask.sum()) for name, mask in ticket.masks.items()}
        wanted = {"0": 2048 * 0.6**ticket.round, "2": 2048 * 0.8**ticket.round}
        assert counts == {name: math.floor(n + 0.5) for name, n in wanted.items()}
        for name, mask in ticket.masks.items():
            assert before is None or not (mask & ~before[name]).any(), "nothing comes back"
        before = ticket.masks


def test_layers_may_have_fractions_of_their_own():
    tickets = Tickets(small_model(), rounds=1, fraction=0.5, fractions={"0": 0.25}, output=0.0)
    *_, last = tickets
    assert {name: int(mask.sum()) for name, mask in last.masks.items()} == {"0": 1536, "2": 2048}
    with pytest.raises(sw.UnknownNameError, match="no layer to give a fraction is called 'fc'"):
        Tickets(small_model(), rounds=1, fractions={"fc": 0.5})


def test_one_threshold_over_all_layers():
    model = small_model()
    with torch.no_grad():
        model[2].weight.mul_(1.2)
    sizes = [model[0].weight.detach().abs(), model[2].weight.detach().abs()]
    for ticket in Tickets(model, rounds=3, fraction=0.5, output=1.0, scope="global"):
        keep = 4096 // 2**ticket.round
        least = torch.cat([size.reshape(-1) for size in sizes]).sort().values[-keep]
        for size, mask in zip(sizes, ticket.masks.values(), strict=True):
            assert torch.equal(mask, size >= least)


def test_one_threshold_over_all_but_the_last_layer():
    """OpenLTH's way: a fifth of all weights together, and none of the last layer's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 8))
    with torch.no_grad():
        model[2].weight.mul_(3.0)
    sizes = [model[0].weight.detach().abs(), model[2].weight.detach().abs()]
    for ticket in Tickets(model, rounds=2, output=0.0, scope="global"):
        first, second, last = ticket.masks.values()
        assert last.all()
        keep = 2 * round(2048 * 0.8**ticket.round)
        least = torch.cat([size.reshape(-1) for size in sizes]).sort().values[-keep]
        assert torch.equal(first, sizes[0] >= least)
        assert torch.equal(second, sizes[1] >= least)
    assert first.sum() < 0.8 * second.sum()


@pytest.mark.parametrize("pattern", ["channel", "block:4x4", "fan_in"])
def test_tickets_of_other_patterns(pattern):
    model = small_model()
    for ticket in Tickets(model, rounds=2, fraction=0.5, output=1.0, pattern=pattern):
        train(ticket, model)
        for mask in ticket.masks.values():
            assert int(mask.sum()) == 2048 // 2**ticket.round


def test_a_search_that_was_stopped_ends_as_one_that_was_not():
    def search(stop):
        model = small_model()
        tickets = Tickets(model, rounds=3, fraction=0.5, rewind=1, score="random")
        for ticket in tickets:
            if ticket.round == stop:
                break
            train(ticket, model)
        if stop is None:
            return ticket.masks, state(model)
        kept = through_a_file(tickets.state_dict())
        model = small_model(seed=5)
        tickets = Tickets(model, rounds=3, fraction=0.5, rewind=1, score="random", seed=7)
        tickets.load_state_dict(kept)
        for ticket in tickets:
            assert ticket.round >= stop
            train(ticket, model)
        return ticket.masks, state(model)

    whole, stopped = search(None), search(2)
    for a, b in zip(whole, stopped, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_loop_that_was_left_goes_on_with_its_round():
    model = small_model()
    tickets = Tickets(model, rounds=2, fraction=0.5)
    start = state(model)
    for ticket in tickets:
        train(ticket, model)
        if ticket.round == 1:
            break
    again = next(iter(tickets))
    assert again.round == 1
    assert torch.equal(model[0].weight, start["0.weight"] * again.masks["0"])


def test_what_goes_wrong_in_a_round_is_told():
    model = small_model()
    tickets = iter(Tickets(model, rounds=2))
    first = next(tickets)
    optimizer = train(first, model)
    second = next(tickets)
    with pytest.raises(sw.StateError, match="the ticket is of round 0, and the tickets are at 1"):
        first.attach(sgd(model))
    with pytest.raises(sw.StateError, match="round 1: the optimizer has state of an earlier round"):
        second.attach(optimizer)
    train_step(model, [sgd(model)], 0)
    with pytest.raises(sw.StateError, match="round 1: absent weights of layer '0' have moved"):
        next(tickets)
    model = small_model()
    tickets = iter(Tickets(model, rounds=1, rewind=9))
    train(next(tickets), model)
    with pytest.raises(sw.StateError, match=r"round 0, .* take the 9 steps that later rounds"):
        next(tickets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": -1}, "Tickets: rounds must be 0 or more; got -1"),
        ({"fraction": 1.0}, r"Tickets: fraction .* must be in \[0, 1\); got 1.0"),
        ({"output": 2.0}, r"Tickets: output .* must be in \[0, 1\]; got 2.0"),
        ({"rewind": "start"}, "Tickets: rewind must be 'init', 'lr' or a step; got 'start'"),
        ({"rewind": -1}, "Tickets: rewind must be 'init', 'lr' or a step; got -1"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(sw.ConfigError, match=message):
        Tickets(small_model(), **{"rounds": 1, **options})


def test_tickets_need_masked_weights_and_many_sparsities():
    with pytest.raises(sw.SparsewrightError, match=r"2:4 fixes the sparsity of every layer"):
        Tickets(small_model(), rounds=1, pattern="2:4")
    with pytest.raises(sw.ConfigError, match=r"tickets need masked weights .* got PackedStorage"):
        Tickets(sw.pack(small_model()), rounds=1)


# masks that are given


def halves(model):
    generator = torch.Generator().manual_seed(4)
    return {
        name: torch.rand(model.get_submodule(name).weight.shape, generator=generator) < 0.5
        for name in ("0", "2")
    }


def test_a_twin_with_other_first_values_takes_a_tickets_masks():
    model = small_model()
    *_, ticket = Tickets(model, rounds=2)
    twin = small_model(seed=1)
    first = twin[0].weight.detach().clone()
    optimizer = sgd(twin)
    sparse = sw.attach(twin, optimizer, method="static", masks=ticket.masks)
    assert torch.equal(twin[0].weight, first * ticket.masks["0"])
    for step in range(3):
        train_step(twin, [optimizer], step)
        assert_masked(sparse)
    assert all(torch.equal(layer.mask, ticket.masks[layer.name]) for layer in sparse.layers)


@pytest.mark.parametrize("method", ["static", "rigl", "gradual", "soft_l1", "iht", "acdc"])
def test_masks_are_the_first_ones_and_the_budget_of_any_method(method):
    model = small_model()
    masks = halves(model)
    optimizer = sgd(model)
    sparse = sw.attach(model, optimizer, method=method, masks=masks, steps=20)
    for layer in sparse.layers:
        assert torch.equal(layer.mask, masks[layer.name])
        assert layer.keep == int(masks[layer.name].sum())
    for step in range(20):
        train_step(model, [optimizer], step)
        assert_masked(sparse)
    whole = sum(int(mask.sum()) for mask in masks.values())
    assert sparse.report().present == whole


def test_layers_without_a_mask_share_what_is_asked_or_stay_dense():
    masks = {"0": halves(small_model())["0"]}
    model = small_model()
    sparse = sw.attach(model, sgd(model), method="static", masks=masks)
    assert [layer.name for layer in sparse.layers] == ["0"]
    assert [left.reason for left in sparse.report().left_dense] == ["no mask was given"]
    model = small_model()
    sparse = sw.attach(model, sgd(model), method="static", masks=masks, sparsity=0.9)
    assert [layer.keep for layer in sparse.layers] == [int(masks["0"].sum()), 205]
    model = small_model()
    kinds = {"overrides": {"2": {"sparsity": 0.75}}}
    sparse = sw.attach(model, sgd(model), method="static", masks=masks, **kinds)
    assert [layer.keep for layer in sparse.layers] == [int(masks["0"].sum()), 512]


def test_masks_that_do_not_fit_are_refused():
    model = small_model()
    optimizer, masks = sgd(model), halves(model)
    before = state(model)

    def attached(given, **options):
        return sw.attach(model, optimizer, method="static", masks=given, **options)

    with pytest.raises(sw.UnknownNameError, match="no sparse layer to mask is called '1'"):
        attached({"1": masks["0"]})
    with pytest.raises(sw.UnknownNameError, match="no sparse layer to mask is called '0'"):
        attached(masks, skip=["0"])
    with pytest.raises(sw.MisfitError, match=r"layer '0': its mask must have .* \(64, 32\); got"):
        attached({"0": masks["0"].T})
    with pytest.raises(sw.ConfigError, match=r"a mask must be a bool tensor; got torch\.f"):
        attached({"0": masks["0"].float()})
    with pytest.raises(sw.ConfigError, match="layer '0': its mask fixes its sparsity; leave out"):
        attached(masks, overrides={"0": {"sparsity": 0.5}})
    with pytest.raises(sw.BudgetError, match=r"sparsity 0.5 is asked of no layer, as all have"):
        attached(masks, sparsity=0.5)
    with pytest.raises(sw.MisfitError, match=r"fan_in: every group keeps as many units; .* from"):
        attached(masks, pattern="fan_in")
    with pytest.raises(sw.MisfitError, match=r"channel: of some units it has a part"):
        attached(masks, pattern="channel")
    one = torch.zeros(64, 32, dtype=torch.bool)
    one[:, ::4] = True
    with pytest.raises(sw.MisfitError, match=r"2:4: a group keeps 2 of 4 units; this has 1"):
        attached({"0": one}, pattern="2:4")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    one[:, 1::4] = True
    assert attached({"0": one}, pattern="2:4").layers[0].keep == 2


def test_packed_weights_hold_the_masks_that_they_were_packed_with():
    model = small_model()
    masks = halves(model)
    packed = sw.pack(model, masks=masks)
    sparse = sw.attach(packed, sgd(packed), method="static", masks=masks)
    assert all(torch.equal(layer.mask, masks[layer.name]) for layer in sparse.layers)
    sparse.detach()
    with pytest.raises(sw.StateError, match="layer '0' is packed with other weights than its mask"):
        sw.attach(packed, sgd(packed), method="static", masks={"0": ~masks["0"]})


# files of masks


def test_masks_come_back_from_a_file(tmp_path):
    masks = {"a": torch.rand(3, 5, 2) < 0.5, "b.c": torch.ones(8, 8, dtype=torch.bool)}
    masks["none"] = torch.zeros(0, 4, dtype=torch.bool)
    path = tmp_path / "masks.safetensors"
    save_masks(masks, path)
    again = load_masks(path)
    assert again.keys() == masks.keys()
    assert all(torch.equal(again[name], mask) and again[name].shape == mask.shape
               for name, mask in masks.items())  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["masks.safetensors"]
    bits = safetensors.torch.load_file(path)
    assert {name: len(one) for name, one in bits.items()} == {"a": 4, "b.c": 8, "none": 0}


def test_masks_of_another_model_are_refused(tmp_path):
    path, masks = tmp_path / "masks", halves(small_model())
    save_masks(masks, path)
    assert load_masks(path, small_model()).keys() == {"0", "2"}
    with pytest.raises(
        sw.UnknownNameError, match=r"no weight to mask is called '2'\. There are: 0"
    ):
        load_masks(path, nn.Sequential(nn.Linear(32, 64)))
    other = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    with pytest.raises(sw.MisfitError, match=r"layer '2': its mask must have .* \(16, 64\)"):
        load_masks(path, other)


def test_damaged_files_of_masks_are_refused(tmp_path):
    path = tmp_path / "masks"
    about = {"sparsewright.masks": json.dumps({"version": 1, "shapes": {"a": [3]}})}

    def written(tensors, metadata=about):
        path.write_bytes(safetensors.torch.save(tensors, metadata))
        return path

    byte = torch.tensor([0b10100000], dtype=torch.uint8)
    assert load_masks(written({"a": byte}))["a"].tolist() == [True, False, True]
    for tensors, metadata, message in (
        ({"a": byte + 1}, about, "bits after the last of mask 'a' must be 0"),
        ({"a": byte.repeat(2)}, about, r"mask 'a' of shape \[3\] takes 1 bytes"),
        ({"a": byte.int()}, about, "takes 1 bytes; got torch.int32"),
        ({"b": byte}, about, r"holds \['b'\], and tells of \['a'\]"),
        ({"a": byte}, {}, "holds no masks"),
        ({"a": byte}, {"sparsewright.masks": "{"}, "are damaged"),
        ({"a": byte}, {"sparsewright.masks": '{"version": 1, "shapes": {"a": 3}}'}, "are damaged"),
        ({"a": byte}, {"sparsewright.masks": '{"version": 2, "shapes": {}}'}, "of version 1"),
        ({"a": byte}, {"sparsewright.masks": '{"version": 1, "shapes": {"a": [-3]}}'}, "version 1"),
    ):
        with pytest.raises(sw.ArtifactError, match=message):
            load_masks(written(tensors, metadata))
    path.write_bytes(b"nothing")
    with pytest.raises(sw.ArtifactError, match="no safetensors file"):
        load_masks(path)
    with pytest.raises(sw.ArtifactError, match="cannot be read"):
        load_masks(tmp_path / "absent")
    with pytest.raises(sw.ConfigError, match="layer 'a': a mask must be a bool tensor"):
        save_masks({"a": torch.ones(3)}, path)
