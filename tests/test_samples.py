"""Samples are shown to be apart where they are, and nowhere else."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsewright.graph import trace
from sparsewright.program import layers_and_graph, module_of

TABLE = torch.linspace(0, 1, 36).reshape(6, 6)


class Calls(nn.Module):
    """Functions with some tensors at hand; what each gives, by its name."""

    def __init__(self, functions):
        super().__init__()
        self.functions = functions
        self.register_buffer("table", TABLE.clone())
        self.register_buffer("row", torch.randn(1, 1, 6))
        self.register_buffer("firsts", torch.tensor([0, 0]))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x, y):
        both = {"one batch": x * y}
        return both | {name: function(self, x, y) for name, function in self.functions.items()}


@functools.cache
def traced(table):
    """The document of all functions of a table, traced at once, and its tensors."""
    torch.manual_seed(0)
    model = Calls(TABLES[table]).eval().requires_grad_(False)
    graph = trace(model, (torch.randn(4, 6), torch.randn(4, 6)))
    return layers_and_graph(model, graph), graph.tensors


def rebuilt(table, name):
    """The module of one function, from the document of all."""
    document, tensors = traced(table)
    graph = document["graph"]
    (output,) = (value for key, value in graph["output"]["dict"] if key == name)
    needed, nodes = names(output), []
    for node in reversed(graph["nodes"]):
        if node["name"] in needed:
            needed |= names(node["args"]) | names(node["kwargs"])
            nodes.insert(0, node)
    return module_of({**document, "graph": {**graph, "nodes": nodes, "output": output}}, tensors)


def names(value):
    """Of all nodes in a JSON value."""
    if isinstance(value, dict):
        own = {value["node"]} if list(value) == ["node"] else set()
        return own.union(*map(names, value.values()))
    return set().union(*map(names, value)) if isinstance(value, list) else set()


def expand_row(m, x, y):
    return torch.cat([m.row.expand(x.shape[0], -1, -1), x.unsqueeze(1)], dim=1)


def attend(m, x, y):
    q = x.reshape(x.shape[0], 1, 3, 2)
    return F.scaled_dot_product_attention(q, q + 1, q * 2).flatten(1)


def heads(m, x, y):
    """As attention takes queries, keys and values apart."""
    parts = x.reshape(x.shape[0], 1, 3, 1, 2).permute(2, 0, 3, 1, 4)
    q, k, v = parts.unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)


APART = {
    "heads": heads,
    "moved": lambda m, x, y: x.view(-1, 2, 3).transpose(0, 2).select(1, 1).permute(1, 0),
    "linear": lambda m, x, y: F.linear(x, m.table),
    "matmul": lambda m, x, y: x @ m.table,
    "matrix by samples": lambda m, x, y: m.table @ x.unsqueeze(-1),
    "samples by samples": lambda m, x, y: x.unsqueeze(1) @ x.unsqueeze(2),
    "row": lambda m, x, y: x + m.table[0],
    "broadcast": lambda m, x, y: x.unsqueeze(1) * m.table,
    "softmax": lambda m, x, y: x.softmax(-1),
    "mean": lambda m, x, y: x.mean(1, keepdim=True) + x.std(-1, correction=0, keepdim=True),
    "sort": lambda m, x, y: x.sort(dim=1).values.cumsum(1),
    "max": lambda m, x, y: x.max(dim=1).values,
    "layer norm": lambda m, x, y: F.layer_norm(x, (6,)),
    "batch norm": lambda m, x, y: m.norm(x),
    "view": lambda m, x, y: x.view(x.shape[0], 2, 3).transpose(1, 2).reshape(x.shape[0], -1),
    "view from behind": lambda m, x, y: x.view(-1, 2, 3).permute(0, 2, 1).flatten(1),
    "images": lambda m, x, y: F.avg_pool2d(F.pad(x.reshape(-1, 1, 2, 3), (1, 0, 1, 1)), 2),
    "convolution": lambda m, x, y: F.conv2d(x.view(-1, 1, 2, 3), m.row.view(1, 1, 2, 3)),
    "expand": expand_row,
    "attention": attend,
    "split": lambda m, x, y: torch.cat(x.split(2, dim=1)[::-1], dim=-1),
    "zeros": lambda m, x, y: torch.cat([x, torch.zeros(x.shape[0], 2)], 1),
    "two outputs": lambda m, x, y: (x + 1, [x * 2, {"third": x.sum(1)}]),
    "the input": lambda m, x, y: x,
    "two inputs": lambda m, x, y: x * y,
    "where": lambda m, x, y: torch.where(x > 0, x, m.table[1]),
}


@pytest.mark.parametrize("name", APART)
def test_samples_that_are_apart(name):
    inputs = [torch.randn(4, 6) for _ in range(2)]
    module = rebuilt("apart", name)
    assert module.meta["mixed"] is None
    whole = torch.utils._pytree.tree_leaves(module(*inputs))
    for i in range(4):  # what the proof says is so
        alone = torch.utils._pytree.tree_leaves(module(*[x[i : i + 1] for x in inputs]))
        for a, b in zip(whole, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b)


MIXED = {
    "moved and left there": lambda m, x, y: x.transpose(0, 1),
    "moved and mixed": lambda m, x, y: x.transpose(0, 1).softmax(1).transpose(0, 1),
    "moved and added": lambda m, x, y: x[:, :, None] + y.transpose(0, 1)[:, :, None].sum(1),
    "moved and picked": lambda m, x, y: x + x.transpose(0, 1).select(-1, 0),
    "moved and counted": lambda m, x, y: x * x.transpose(0, 1).contiguous().size(1),
    "moved and multiplied": lambda m, x, y: x @ y.transpose(0, 1),
    "mean": lambda m, x, y: x - x.mean(0),
    "mean of all": lambda m, x, y: x - x.mean(),
    "cumsum": lambda m, x, y: x.cumsum(0),
    "cumsum from behind": lambda m, x, y: x.cumsum(-2),
    "softmax": lambda m, x, y: x.softmax(dim=0),
    "softmax from behind": lambda m, x, y: x.softmax(dim=-2),
    "own products": lambda m, x, y: x @ x.t(),
    "own products, other way": lambda m, x, y: x.t() @ x,
    "flip": lambda m, x, y: x.flip(0),
    "flip of both": lambda m, x, y: x.flip((1, -2)),
    "roll": lambda m, x, y: x.roll(1, dims=0),
    "roll of all": lambda m, x, y: x.roll(1),
    "sort": lambda m, x, y: x.sort(dim=0).values,
    "max": lambda m, x, y: x.max(dim=0, keepdim=True).values + x,
    "neighbours": lambda m, x, y: x[1:] - x[:-1],
    "the first": lambda m, x, y: x - x[0],
    "view": lambda m, x, y: x.view(2, -1, 6).softmax(1).view(-1, 6),
    "flatten": lambda m, x, y: x.flatten().softmax(0).view(-1, 6),
    "transposed view": lambda m, x, y: x.view(6, -1).view(-1, 6) + x.t().reshape(-1, 6),
    "the batch as a number": lambda m, x, y: x / x.shape[0],
    "the batch from behind": lambda m, x, y: x * x.size(-2),
    "the batch in arithmetic": lambda m, x, y: x + (x.shape[0] + 1) % 3,
    "numbers of samples": lambda m, x, y: x + torch.arange(x.shape[0]).unsqueeze(1),
    "filled with the batch": lambda m, x, y: x + torch.full((x.shape[0], 1), x.shape[0]),
    "unbatched convolution": lambda m, x, y: F.conv1d(y.t()[None], x[:, :, None])[0],
    "samples as tokens": lambda m, x, y: F.scaled_dot_product_attention(x, x, x),
    "samples as sequence": lambda m, x, y: F.scaled_dot_product_attention(
        x[None], x[None], x[None]
    )[0],
    "no batch in the output": lambda m, x, y: (x, x.sum()),
    "a constant output": lambda m, x, y: (x, m.table),
    "a number as output": lambda m, x, y: (x, x.shape[0]),
    "side by side": lambda m, x, y: torch.cat([x, x]),
    "stacked": lambda m, x, y: torch.stack([x, x]),
    "picked": lambda m, x, y: x[m.firsts],
    "moved and taken": lambda m, x, y: (
        x.view(-1, 3, 2).transpose(0, 1).select(1, 0).transpose(0, 1)
    ),
    "shifted": lambda m, x, y: F.pad(x, (0, 0, 1, -1)),
    "padded": lambda m, x, y: F.pad(x, (0, 0, 0, 1)),
    "repeated": lambda m, x, y: x.repeat(2, 1),
    "norm": lambda m, x, y: F.normalize(x, dim=0),
}


TABLES = {"apart": APART, "mixed": MIXED}


@pytest.mark.parametrize("name", MIXED)
def test_samples_that_are_not_shown_to_be_apart(name):
    reason = rebuilt("mixed", name).meta["mixed"]
    assert reason.endswith(("may mix the samples of a batch", "is not one entry for each sample"))


FIXED = {
    "a constant of the batch": lambda x, y: x + torch.ones(4, 6),
    "ranks that differ": lambda x, y: x[:, :, None] + y.sum(1),
    "a branch": lambda x, y: x + 1 if x.shape[0] == 4 else x,
}


@pytest.mark.parametrize("name", FIXED)
def test_what_fixes_the_batch_is_not_split(name):
    class Model(nn.Module):
        def forward(self, x, y):
            return FIXED[name](x, y)

    graph = trace(Model(), (torch.randn(4, 6), torch.randn(4, 6)))
    module = module_of(layers_and_graph(Model(), graph), graph.tensors)
    assert module.meta["mixed"] == "the trace is of one batch alone"


def test_an_input_without_a_batch_is_the_same_for_all_samples():
    """As a file may have it."""
    document, tensors = traced("apart")
    graph = document["graph"]
    (output,) = (value for key, value in graph["output"]["dict"] if key == "two inputs")
    nodes = [n for n in graph["nodes"] if n["name"] == output["node"]]
    for shape, mixed in (([6], False), ([1, 6], False), ([2, 6], True)):
        inputs = [graph["inputs"][0], {**graph["inputs"][1], "shape": shape}]
        small = {**graph, "inputs": inputs, "nodes": nodes, "output": output}
        reason = module_of({**document, "graph": small}, tensors).meta["mixed"]
        assert (reason is not None) == mixed


@pytest.mark.parametrize("moved", [False, True])
def test_the_batch_is_known_however_it_is_asked_for(moved):
    """A file may name an axis as the tracer does not."""
    document, tensors = traced("apart")
    graph = document["graph"]
    x = {"node": graph["inputs"][0]["name"]}
    nodes = [("aten.transpose.int", [x, 0, 1])] if moved else []
    axis = 1 if moved else -2
    nodes += [("aten.sym_size.int", [{"node": "n0"} if moved else x, axis])]
    nodes += [("aten.mul.Tensor", [x, {"node": f"n{len(nodes) - 1}"}])]
    named = [
        {"name": f"n{i}", "op": op, "args": args, "kwargs": {}}
        for i, (op, args) in enumerate(nodes)
    ]
    small = {**graph, "nodes": named, "output": {"node": named[-1]["name"]}}
    reason = module_of({**document, "graph": small}, tensors).meta["mixed"]
    assert reason == "aten.mul.Tensor may mix the samples of a batch"
