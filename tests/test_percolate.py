"""Inactive neurons: what percolation removes, by hand and by paths; which layers are known to feed
one another; and CHTs with it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from training import small_model, train_step
from variants import PATTERNS, check_resumed, check_run, check_storages_agree

import sparsewright as sw
from sparsewright.core import Layer
from sparsewright.methods import chts as chts_file
from sparsewright.methods._percolate import chains_of, pairs_among, percolated
from sparsewright.methods.chts import CHTs, CHTss
from sparsewright.patterns import as_pattern
from sparsewright.storage import MaskedStorage, storage_of
from sparsewright.weights import find_weights


def layer(name, shape, pattern="unstructured"):
    weight, pattern = nn.Parameter(torch.ones(shape)), as_pattern(pattern)
    return Layer(name, MaskedStorage(weight, pattern), pattern, 1, torch.Generator())


def left_of(links, chain=None, fixed=()):
    """What percolation leaves of (outputs, inputs) links of layers that feed one another."""
    layers = [layer(str(i), table.shape) for i, table in enumerate(links)]
    pairs = pairs_among(layers, chain or (tuple(str(i) for i in range(len(links))),))
    tables = {str(i): table.bool().reshape(1, -1) for i, table in enumerate(links)}
    found = percolated(pairs, tables, fixed)
    return [found[str(i)].view(table.shape).int().tolist() for i, table in enumerate(links)]


def test_one_inactive_neuron_takes_others_with_it_by_hand():
    """a2 has no inputs, so b1 <- a2 goes; then b1 has none, and c1 <- b1 goes. b2 has no outputs,
    so b2 <- a1 goes; then a1 has none, and a1 <- 1 goes. Left is the path 0 - a0 - b0 - c0."""
    a = torch.tensor([[1, 0], [0, 1], [0, 0]])
    b = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    c = torch.tensor([[1, 0, 0], [0, 1, 0]])
    assert left_of([a, b, c]) == [
        [[1, 0], [0, 0], [0, 0]],
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[1, 0, 0], [0, 0, 0]],
    ]
    # a layer that is fixed loses nothing, so its neurons stay as it has them: b2 <- a1 keeps a1
    assert left_of([a, b, c], fixed={"1"})[::2] == [
        [[1, 0], [0, 1], [0, 0]],
        [[1, 0, 0], [0, 1, 0]],
    ]
    # where no chain is known nothing is
    assert left_of([a, b, c], chain=(("0",),)) == [t.tolist() for t in (a, b, c)]


@pytest.mark.parametrize("density", [0.05, 0.1, 0.3])
def test_what_is_left_are_the_links_on_paths_from_input_to_output(density):
    generator = torch.Generator().manual_seed(0)
    shapes = [(12, 9), (8, 12), (11, 8), (10, 11), (6, 10)]
    links = [(torch.rand(shape, generator=generator) < density).int() for shape in shapes]
    ahead, behind = [torch.ones(9)], [torch.ones(6)]
    for table in links:
        ahead.append((table.float() @ ahead[-1] > 0).float())
    for table in reversed(links):
        behind.insert(0, (table.T.float() @ behind[0] > 0).float())
    expected = [
        (table * ahead[i][None, :] * behind[i + 1][:, None]).int().tolist()
        for i, table in enumerate(links)
    ]
    assert left_of(links) == expected
    told = (("1", "2"), ("3", "4"), ("0", "1"), ("2", "3"))  # in whatever order
    assert left_of(links, told) == expected


def test_a_channel_is_several_inputs_of_a_flattened_image():
    """Channel 1 has no inputs: of the six columns, three each, those of the second go."""
    conv, head = layer("conv", (2, 1, 3, 3)), layer("head", (2, 6))
    first = torch.zeros(1, 18, dtype=torch.bool)
    first[0, 4] = True
    second = torch.ones(1, 12, dtype=torch.bool)
    second[0, 2:12:3] = False
    tables = {"conv": first, "head": second}
    found = percolated([(conv, head)], tables)
    assert found["conv"].equal(first)
    assert found["head"].view(2, 6).int().tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]


def test_a_block_goes_once_all_of_its_weights_do():
    """Blocks of 2 x 2. Rows 0 and 1 have no inputs, row 2 has one, row 3 none: of the next layer's
    columns 0 and 1 the block goes, that of 2 and 3 stays."""
    a, b = layer("a", (4, 1)), layer("b", (2, 4), "block:2x2")
    first = torch.tensor([[False, False, True, False]])
    found = percolated([(a, b)], {"a": first, "b": torch.ones(1, 2, dtype=torch.bool)})
    assert found["b"].tolist() == [[False, True]]


class Shortcut(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def chains(model):
    made = []
    for weight in find_weights(model):
        storage = storage_of(weight, as_pattern("unstructured"))
        known = {"aliases": weight.aliases, "is_lookup": weight.is_lookup}
        made.append(Layer(weight.name, storage, storage.pattern, 1, torch.Generator(), **known))
    return chains_of(model, made)


def test_chains_are_what_sequentials_say():
    line, conv, norm = nn.Linear, nn.Conv2d, nn.BatchNorm2d
    assert chains(small_model()) == (("0", "2"),)
    assert chains(sw.pack(small_model())) == (("0", "2"),)
    inner = nn.Sequential(line(8, 8), nn.GELU(), nn.Dropout())
    assert chains(nn.Sequential(line(4, 8), inner, line(8, 2))) == (("0", "1.0", "2"),)
    image = nn.Sequential(
        conv(1, 4, 3), norm(4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 8, 3), nn.Flatten(), line(32, 2)
    )
    assert chains(image) == (("0", "4", "6"),)
    # what is not known: a shortcut around layers, groups, a weight used twice, other modules
    around = nn.Sequential(line(8, 8), Shortcut(line(8, 8), nn.ReLU(), line(8, 8)), line(8, 8))
    assert chains(around) == ()
    assert chains(nn.Sequential(conv(4, 4, 1), conv(4, 4, 1, groups=2), conv(4, 4, 1))) == ()
    twice = line(8, 8)
    assert chains(nn.Sequential(line(8, 8), twice, twice, line(8, 8))) == ()
    assert chains(nn.Sequential(line(8, 8), nn.Bilinear(8, 8, 8), line(8, 8))) == ()
    assert chains(nn.Sequential(nn.Embedding(8, 8), line(8, 8), line(8, 8))) == (("1", "2"),)
    assert chains(nn.ModuleList([line(8, 8), line(8, 8)])) == ()


def attached(model, method, **settings):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    asked = {"sparsity": 0.75, "allocate": "uniform_all", "steps": 16} | settings
    return optimizer, sw.attach(model, optimizer, method=method, **asked)


class Own(nn.Module):
    """Two layers in a row, which only its forward knows."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return self.b(self.a(x).relu())


def test_a_model_without_a_known_chain_says_so_and_can_be_told():
    with pytest.warns(sw.SparsityWarning, match="no nn.Sequential says which layers feed one"):
        _, sparse = attached(Own(), CHTs(every=2))
    assert sparse.method.chains == ()
    _, sparse = attached(Own(), CHTs(every=2, chains=(("a", "b"),)))
    assert sparse.method.chains == (("a", "b"),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached(Own(), CHTs(every=2, chains=()))
        attached(nn.Sequential(nn.Linear(32, 64)), CHTs(every=2))  # one layer: nothing lies between
    with pytest.raises(sw.UnknownNameError, match="no sparse layer is called 'c'"):
        attached(Own(), CHTs(every=2, chains=(("a", "c"),)))
    with pytest.raises(sw.ConfigError, match=r"got 'a' of shape \(64, 32\) before 'a'"):
        attached(Own(), CHTs(every=2, chains=(("a", "a"),)))
    with pytest.raises(sw.ConfigError, match="one behind it; got two beside 'a'"):
        attached(Own(), CHTs(every=2, chains=(("a", "b"), ("a", "b"))))


def hidden_neurons(sparse):
    """How many of the hidden neurons have inputs and outputs, and how many have but one side."""
    first, second = (y.mask for y in sparse.layers)
    inputs, outputs = first.any(dim=1), second.any(dim=0)
    return int((inputs & outputs).sum()), int((inputs ^ outputs).sum())


def test_inactive_neurons_lose_their_links_and_the_layers_none(monkeypatch):
    """At 95 % many neurons lose a side by the removal. What the growth sees has no half neuron, and
    grows as many links in the layer as it lost; without chains half neurons remain."""
    seen = {}

    def scores(links):
        seen[links.shape] = links.bool()
        return original(links)

    original = chts_file.LINKS["CH2-L3n"]
    monkeypatch.setitem(chts_file.LINKS, "CH2-L3n", scores)
    halves = {}
    for given in (None, ()):
        model = small_model()
        optimizer, sparse = attached(model, CHTs(every=2, chains=given), sparsity=0.95)
        counts = [y.present for y in sparse.layers]
        for step in range(8):
            train_step(model, [optimizer], step)
            assert [y.present for y in sparse.layers] == counts
        inputs, outputs = seen[(64, 32)].any(dim=1), seen[(32, 64)].any(dim=0)
        halves[given] = int((inputs ^ outputs).sum())
        assert any(change.grown for change in sparse.changes)
    assert halves[None] == 0
    assert halves[()] > 0


KINDS = [CHTs(every=2), CHTss(every=2)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", KINDS, ids=lambda method: type(method).__name__)
def test_counts_hold_in_every_group(method, pattern):
    sparse = check_run(method, pattern, "masked", from_end=12)
    assert sparse.method.chains == (("0", "2"),)
    assert sparse.changes


@pytest.mark.parametrize("storage", ["masked", "packed"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "fan_in"])
def test_a_resumed_run_is_bit_identical(pattern, storage):
    check_resumed(CHTss(every=2), pattern, storage)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_storages_agree(pattern):
    check_storages_agree(CHTs(every=2), pattern)


@pytest.mark.filterwarnings("ignore:frozen layers lose weights")
def test_frozen_layers_keep_their_links():
    model = small_model()
    model[0].weight.requires_grad_(False)
    optimizer, sparse = attached(model, CHTs(every=1), sparsity=0.95)
    frozen = sparse.layers[0].mask.clone()
    for step in range(6):
        train_step(model, [optimizer], step)
    assert torch.equal(sparse.layers[0].mask, frozen)
    assert any(change.layer == "2" and change.grown for change in sparse.changes)
