"""A saved model comes back bit for bit, and a hostile file comes back as an ArtifactError."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import sparsewright as sw
from sparsewright import artifact, library
from sparsewright.artifact import sizes
from sparsewright.errors import ArtifactError, KernelError, SparsewrightError
from sparsewright.graph import trace
from sparsewright.kernels import kernel_info
from sparsewright.operations import operations
from sparsewright.plan import Pieces

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

KIND = "portable" if kernel_info().native else "reference"


class Tied(nn.Module):
    """An MLP of which two layers share a weight, with two outputs in a dict."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        hidden = torch.relu(self.second(torch.relu(self.first(torch.relu(x.flatten(1))))))
        return {"logits": self.head(hidden), "hidden": (hidden, [x * float("inf")])}


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        self.body(torch.randn(16, 1, 8, 8) + 1)  # running statistics that are not the defaults

    def forward(self, x):
        return self.head(torch.flatten(self.body(x), 1))


class Block(nn.Module):
    """A transformer block, with attention of its own and torch's."""

    def __init__(self, width=32):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.after = nn.TransformerEncoderLayer(width, 2, 64, batch_first=True)

    def forward(self, x):
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return self.after(x + self.mlp(x))


CASES = {
    "mlp": (Tied, (1, 32), [f"csr.{KIND}"]),
    "cnn": (Cnn, (2, 1, 8, 8), [f"nm.{KIND}"]),
    "block": (Block, (3, 5, 32), [f"csr.{KIND}"]),
    "dense": (Cnn, (1, 1, 8, 8), ["dense.onednn"]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Name -> (deployed model, its file); each is made once, when it is first asked for."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            build, shape, kernels = CASES[name]
            model = build()
            sparsity = None if name == "cnn" else 0.9
            pattern = "3:32" if name == "cnn" else "unstructured"
            sw.prune(model, sparsity, pattern, allocate="uniform_all", on_misfit="skip")
            given = {"kernels": kernels, "seconds": 0, "fold": False}
            fast = sw.deploy(model, torch.randn(shape), **given)
            path = tmp_path_factory.mktemp("artifact") / f"{name}.safetensors"
            sw.save(fast, path)
            made[name] = (fast, path)
        return made[name]

    return get


def leaves(output):
    return [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def same(a, b):
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    return bool(pairs) and all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in pairs)


# --- what goes in comes out ------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_model_equals_the_saved_one_bit_for_bit(saved, name):
    fast, path = saved(name)
    again = sw.load(path)
    assert str(again.plan) == str(fast.plan)
    assert again.plan == fast.plan
    for batch in (1, 2, 7):
        x = torch.randn(batch, *CASES[name][1][1:])
        assert same(again(x), fast(x)), batch
    assert type(leaves(again(x))[0]) is torch.Tensor


def test_outputs_keep_their_structure(saved):
    output = sw.load(saved("mlp")[1])(torch.ones(2, 32))
    assert list(output) == ["logits", "hidden"]
    assert isinstance(output["hidden"], tuple)
    assert isinstance(output["hidden"][1], list)
    assert bool(torch.isinf(output["hidden"][1][0]).all())


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_model_is_saved_as_the_same_bytes(saved, name, tmp_path):
    path = saved(name)[1]
    sw.save(sw.load(path), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_same_model_gives_the_same_bytes_unless_provenance_differs(saved, tmp_path):
    fast, path = saved("cnn")
    sw.save(fast, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    sw.save(sw.load(path), tmp_path / "other", provenance={"run": "a"})
    assert (tmp_path / "other").read_bytes() != path.read_bytes()
    assert sw.load(tmp_path / "other").provenance["run"] == "a"


def test_shared_weights_are_stored_once(saved):
    fast, path = saved("mlp")
    assert fast.model.first.values.data_ptr() == fast.model.second.values.data_ptr()
    document, tensors = contents(path)
    assert [layer["name"] for layer in document["layers"]] == ["first", "second", "head"]
    assert document["layers"][0]["tensors"] == document["layers"][1]["tensors"]
    assert len(tensors) == 2 * len(("rows", "columns", "values", "bias"))


class Views(nn.Module):
    """Two buffers that are one storage, as two layers' tied biases become when they are packed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("a", torch.randn(4))
        self.register_buffer("b", self.a.detach())

    def forward(self, x):
        return x * self.a + self.b


def test_one_storage_under_two_names_is_stored_once(tmp_path):
    model = Views()
    graph = trace(model, (torch.ones(2, 4),))  # a deployed copy keeps the sharing, too
    assert list(graph.tensors) == ["a"]
    fast = deployed(model, torch.ones(2, 4))
    sw.save(fast, tmp_path / "file")
    assert len(contents(tmp_path / "file")[1]) == 1
    assert torch.equal(sw.load(tmp_path / "file")(torch.ones(1, 4)), fast(torch.ones(1, 4)))


def test_the_file_is_plain_safetensors(saved):
    from safetensors import safe_open

    fast, path = saved("mlp")
    with safe_open(path, framework="pt") as file:
        assert sorted(file.metadata()) == ["sparsewright", "sparsewright.sha256"]
        assert torch.equal(file.get_tensor("head.values"), fast.model.head.values)


def test_a_layer_without_weights_and_an_empty_one(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    model[0].weight.data.zero_()
    fast = sw.deploy(model, torch.ones(2, 8), kernels=[f"csr.{KIND}"], seconds=0)
    sw.save(fast, tmp_path / "file")
    again = sw.load(tmp_path / "file")
    assert torch.equal(again(torch.ones(3, 8)), fast(torch.ones(3, 8)))
    assert again.plan.layers[0].present == 0


class OneIsOdd(nn.Module):
    """Treats a batch of one otherwise, which no trace of two or more can see."""

    def forward(self, x):
        return x + 1 if x.shape[0] == 1 else x


def test_a_batch_of_one_is_tried_before_it_is_promised(tmp_path):
    fast = deployed(OneIsOdd(), torch.ones(4, 4))
    sw.save(fast, tmp_path / "file")
    assert contents(tmp_path / "file")[0]["graph"]["batch"] == {"min": 2, "max": None}
    again = sw.load(tmp_path / "file")
    assert torch.equal(again(torch.ones(2, 4)), torch.ones(2, 4))
    with pytest.raises(KernelError, match=r"batch must be at least 2; got \[1\]"):
        again(torch.ones(1, 4))


def test_exact_bytes(tmp_path):
    """The file as README.md has it, written out by hand."""
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[0.0, 5.0], [7.0, 0.0]])
    fast = sw.deploy(model, torch.ones(1, 2), kernels=[f"csr.{KIND}"], seconds=0)
    sw.save(fast, tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert data[8 + length :] == struct.pack("<iiiffHH", 0, 1, 2, 5.0, 7.0, 1, 0)
    assert header["rows"] == {"dtype": "I32", "shape": [3], "data_offsets": [0, 12]}
    assert header["values"] == {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}
    assert header["columns"] == {"dtype": "U16", "shape": [2], "data_offsets": [20, 24]}
    text = header["__metadata__"]["sparsewright"]
    assert (
        header["__metadata__"]["sparsewright.sha256"] == hashlib.sha256(text.encode()).hexdigest()
    )
    document = json.loads(text)
    assert (document["format"], document["version"]) == ("sparsewright", 1)
    assert document["tensors"]["rows"] == {
        "dtype": "I32", "shape": [3], "sha256": sha256(struct.pack("<iii", 0, 1, 2))
    }  # fmt: skip
    assert document["layers"] == [
        {
            "name": "", "layout": "csr", "shape": [2, 2], "nnz": 2, "pattern": "1:2",
            "kernel": f"csr.{KIND}", "meta": {},
            "tensors": {"rows": "rows", "columns": "columns", "values": "values"},
        }
    ]  # fmt: skip
    assert document["graph"] == {
        "inputs": [{"name": "input", "dtype": "float32", "shape": ["batch", 2]}],
        "batch": {"min": 1, "max": None},
        "nodes": [
            {
                "name": "csr_linear", "op": "sparsewright.csr_linear.default", "kwargs": {},
                "args": [
                    {"node": "input"}, {"tensor": "rows"}, {"tensor": "columns"},
                    {"tensor": "values"}, None, None, 0, 0,
                ],
            }
        ],
        "output": {"node": "csr_linear"},
    }  # fmt: skip


def test_sizes_count_what_is_on_disk(saved):
    path = saved("mlp")[1]
    found = sizes(Tied(), path)
    assert found["artifact"] == path.stat().st_size
    assert found["dense_fp32"] == 4 * (32 * 32 + 32 + 32 * 4 + 4)


SCRIPT = """
import sys, torch
import sparsewright as sw
torch.set_num_threads(2)
fast = sw.load(sys.argv[1])
x = torch.load(sys.argv[2], weights_only=True)
torch.save(fast(x), sys.argv[3])
"""


@pytest.mark.parametrize("native", [True, False], ids=["kernels", "reference"])
def test_a_fresh_process_needs_no_class_and_no_kernels(saved, native, tmp_path):
    fast, path = saved("cnn")
    x = torch.randn(3, 1, 8, 8)
    torch.save(x, tmp_path / "x")
    environment = {**os.environ, **({} if native else {"SPARSEWRIGHT_NO_NATIVE": "1"})}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, path, tmp_path / "x", tmp_path / "y"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=300)
    y = torch.load(tmp_path / "y", weights_only=True)
    if native:
        assert torch.equal(y, fast(x))
    else:
        torch.testing.assert_close(y, fast(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(library.LIBRARY.path is None, reason="needs the compiled kernels")
def test_what_runs_side_by_side_is_read_without_kernels(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model.eval().requires_grad_(False)
    sw.prune(model, sparsity=0.7, allocate="uniform_all")
    x = torch.randn(16, 1, 8, 8)
    fast = sw.deploy(model, x, kernels=["csb.conv2d.portable"], seconds=0, cache=False)
    plan = replace(fast.plan, pieces=Pieces(16, 16, side_by_side=True))
    fast = sw.deploy(model, x, plan=plan)
    sw.save(fast, tmp_path / "file")
    torch.save(x, tmp_path / "x")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *("file", "x", "y")]
    environment = {**os.environ, "SPARSEWRIGHT_NO_NATIVE": "1"}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=300)
    y = torch.load(tmp_path / "y", weights_only=True)
    torch.testing.assert_close(y, fast(x), rtol=1e-4, atol=1e-5)


# --- what cannot be saved --------------------------------------------------------------------


def test_a_model_that_is_not_deployed(tmp_path):
    with pytest.raises(ArtifactError, match=r"got Linear. Deploy it first: sw.save\(sw.deploy"):
        sw.save(nn.Linear(2, 2), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def deployed(model, x):
    return sw.deploy(model, x, kernels=["dense.eager"], seconds=0)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x


class Draws(nn.Module):
    def forward(self, x):
        return x + 0 * torch.rand_like(x)


class Odd(nn.Module):
    def forward(self, x):
        return slice(None), x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branches(), "torch.export failed with .*free of branches on values"),
        (Counts(), "changes 'calls' while it runs"),
        (Draws(), "cannot hold the operation 'aten.rand"),
        (Odd(), "tensors in lists, tuples and dicts|torch.export failed"),
    ],
)
def test_what_a_file_cannot_hold_is_named(model, message, tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ArtifactError, match=message):
        sw.save(deployed(model, torch.ones(2, 4)), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    fast = sw.load(saved("mlp")[1])

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        sw.save(fast, path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_provenance_that_json_cannot_hold(saved, tmp_path):
    with pytest.raises(ArtifactError, match="provenance takes only what JSON can hold"):
        sw.save(saved("mlp")[0], tmp_path / "file", provenance={"when": object()})


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(3, 8).sum(1)


def test_a_model_of_a_fixed_batch_says_so(tmp_path):
    fast = deployed(FixedBatch(), torch.ones(6, 4))
    sw.save(fast, tmp_path / "file")
    assert contents(tmp_path / "file")[0]["graph"]["batch"] is None
    again = sw.load(tmp_path / "file")
    assert torch.equal(again(torch.ones(6, 4)), torch.full((3,), 8.0))
    with pytest.raises(KernelError, match=r"input 'x' must be float32 of shape \(6, 4\); got"):
        again(torch.ones(2, 4))


def test_inputs_are_checked_against_the_file(saved):
    again = sw.load(saved("cnn")[1])
    with pytest.raises(KernelError, match=r"input 'x' must be float32 of shape \(batch, 1, 8, 8\)"):
        again(torch.ones(1, 1, 8, 9))
    with pytest.raises(KernelError, match="float32"):
        again(torch.ones(1, 1, 8, 8, dtype=torch.float64))
    with pytest.raises(KernelError, match="takes 1 input; got 2"):
        again(torch.ones(1, 1, 8, 8), torch.ones(1))


# --- hostile files ---------------------------------------------------------------------------


def contents(path):
    """The document of a file, and its tensors."""
    data = Path(path).read_bytes()
    header = artifact._read_header(data)
    document = artifact._read_document(header)
    return document, artifact._read_tensors(data, header, document)


def forge(path, document, tensors):
    """Write a file with right digests around whatever the document says."""
    document = copy.deepcopy(document)
    if isinstance(document.get("tensors"), dict):
        for name, tensor in tensors.items():
            if isinstance(document["tensors"].get(name), dict):
                document["tensors"][name] = artifact._entry(tensor)
    artifact._write(path, json.dumps(document), tensors)
    return path


def test_forging_without_a_change_loads(saved, tmp_path):
    fast, path = saved("cnn")
    x = torch.randn(2, 1, 8, 8)
    assert same(sw.load(forge(tmp_path / "file", *contents(path)))(x), fast(x))


def layer(document, number=0):
    return document["layers"][number]


def node(document, part):
    return next(n for n in document["graph"]["nodes"] if part in n["op"])


def first(document, tensors, name):
    return tensors[layer(document)["tensors"][name]]


def set_in(entry, key, value):
    entry[key] = value


def _pieces(size):
    return {"size": size, "planned": 1, "timings": [], "why_whole": None}


def mix(document):
    """Let samples meet at the end."""
    graph = document["graph"]
    last = {"node": graph["nodes"][-1]["name"]}
    end = {"name": "mixed", "op": "aten.cumsum.default", "args": [last, 0], "kwargs": {}}
    graph["nodes"].append(end)
    graph["output"] = {"node": "mixed"}


HOSTILE = {
    # the layers
    "unknown layout": (lambda d, t: set_in(layer(d), "layout", "coo"), "no layout 'coo'"),
    "layer without tensor": (
        lambda d, t: set_in(layer(d)["tensors"], "rows", "nowhere"),
        "does not hold",
    ),
    "layer too wide": (lambda d, t: set_in(layer(d)["shape"], 1, 2**40), "shape must be two sizes"),
    "layer too tall": (lambda d, t: set_in(layer(d)["shape"], 0, 33), "rows must have 34 entries"),
    "shape of text": (
        lambda d, t: set_in(layer(d), "shape", ["32", 32]),
        "shape must be two sizes",
    ),
    "negative shape": (lambda d, t: set_in(layer(d)["shape"], 0, -1), "shape must be two sizes"),
    "wrong nnz": (lambda d, t: set_in(layer(d), "nnz", 5), "nnz must be"),
    "extra meta": (lambda d, t: set_in(layer(d)["meta"], "chunk", 32), "has no meta"),
    "column out of range": (
        lambda d, t: first(d, t, "columns").view(torch.int16).fill_(32),
        "columns",
    ),
    "rows that descend": (
        lambda d, t: set_in(first(d, t, "rows"), 3, 2**30),
        "rows must not descend",
    ),
    "rows below zero": (lambda d, t: set_in(first(d, t, "rows"), 0, -1), "rows must run from 0"),
    "unknown kernel is only a hint": (lambda d, t: set_in(layer(d), "kernel", "x"), None),
    "no kernel": (lambda d, t: layer(d).pop("kernel"), "has no 'kernel'"),
    # the graph
    "forbidden operation": (
        lambda d, t: set_in(node(d, "relu"), "op", "aten.from_file.default"),
        "may not use",
    ),
    "python's own": (lambda d, t: set_in(node(d, "relu"), "op", "builtins.eval"), "may not use"),
    "in place": (lambda d, t: set_in(node(d, "relu"), "op", "aten.relu_.default"), "may not use"),
    "own but unknown": (
        lambda d, t: set_in(node(d, "csr"), "op", "sparsewright.best_isa.default"),
        "no operation",
    ),
    "missing node": (
        lambda d, t: set_in(node(d, "relu"), "args", [{"node": "later"}]),
        "no node 'later'",
    ),
    "missing tensor": (
        lambda d, t: set_in(node(d, "relu"), "args", [{"tensor": "x.y"}]),
        "there is no tensor",
    ),
    "wrong arity": (lambda d, t: set_in(node(d, "relu"), "args", []), "cannot run on its inputs"),
    "wrong type": (lambda d, t: set_in(node(d, "relu"), "args", ["x"]), "cannot run on its inputs"),
    "unknown keyword": (
        lambda d, t: set_in(node(d, "relu"), "kwargs", {"x\n": 1}),
        "cannot run on its inputs",
    ),
    "a device": (lambda d, t: set_in(node(d, "relu"), "kwargs", {"device": "meta"}), "no device"),
    "too few for own": (lambda d, t: node(d, "csr")["args"].pop(), "takes 7 arguments"),
    "another isa": (lambda d, t: set_in(node(d, "csr")["args"], 7, 3), "isa 0"),
    "mixed layers": (
        lambda d, t: set_in(node(d, "csr")["args"], 2, {"tensor": "head.columns"}),
        "those of no declared layer",
    ),
    "indices from a node": (
        lambda d, t: set_in(node(d, "csr")["args"], 2, {"node": "x"}),
        "those of no declared layer",
    ),
    "scales of a layer without": (
        lambda d, t: set_in(node(d, "csr")["args"], 4, {"tensor": "head.bias"}),
        "those of no declared layer",
    ),
    "scales that are a number": (
        lambda d, t: set_in(node(d, "csr")["args"], 4, 0),
        "must be called with isa 0 and",
    ),
    "bias of another size": (
        lambda d, t: set_in(node(d, "csr")["args"], 5, {"tensor": "head.bias"}),
        "bias must be",
    ),
    "bias of indices": (
        lambda d, t: set_in(node(d, "csr")["args"], 5, node(d, "csr")["args"][1]),
        "bias must be",
    ),
    "input too narrow": (
        lambda d, t: set_in(d["graph"]["inputs"][0], "shape", ["batch", 31]),
        "cannot run",
    ),
    "int beyond 64 bits": (lambda d, t: node(d, "relu")["args"].append(2**70), "64 bits"),
    "name taken twice": (
        lambda d, t: set_in(d["graph"]["nodes"][1], "name", d["graph"]["nodes"][0]["name"]),
        "is taken already",
    ),
    "deep lists": (
        lambda d, t: set_in(node(d, "relu"), "args", [[[[[[[[[[[0]]]]]]]]]]]),
        "at most 8 deep",
    ),
    "no output": (lambda d, t: d["graph"].pop("output"), "has no 'output'"),
    "output of nothing": (
        lambda d, t: set_in(d["graph"], "output", {"node": "no"}),
        "no node 'no'",
    ),
    "input of a huge shape": (
        lambda d, t: set_in(d["graph"]["inputs"][0], "shape", [2**30, 2**30]),
        "than 2\\*\\*47",
    ),
    "batch that is none": (
        lambda d, t: set_in(d["graph"], "batch", {"min": 5, "max": 1}),
        "min <= max",
    ),
    "no batch but a free size": (lambda d, t: set_in(d["graph"], "batch", None), "batch"),
    # the document
    "another format": (lambda d, t: set_in(d, "format", "pickle"), "format must be"),
    "a newer version": (
        lambda d, t: set_in(d, "version", 2),
        "version 2; this .* reads 1",
    ),
    "version true": (lambda d, t: set_in(d, "version", True), "must be int"),
    "no plan": (lambda d, t: d.pop("plan"), "has no 'plan'"),
    "a plan of nonsense": (lambda d, t: set_in(d["plan"], "threads", "two"), "the plan is not one"),
    **{
        f"pieces of {size}": (
            lambda d, t, size=size: d["plan"].update(pieces=_pieces(size)),
            "the plan is not one",
        )
        for size in (0, -1, 2**31, 1.5, True, "all", [1])
    },
    "pieces that are none": (lambda d, t: d["plan"].update(pieces=[]), "the plan is not one"),
    "pieces of samples that are mixed": (
        lambda d, t: (d["plan"].update(pieces=_pieces(1)), mix(d)),
        "the plan runs a batch in pieces, but aten.cumsum.default may mix",
    ),
    "a layer's plan of nonsense": (
        lambda d, t: set_in(d["plan"]["layers"][0], "candidates", {}),
        "the plan is not one",
    ),
    "undeclared tensor": (
        lambda d, t: d["tensors"].pop("head.bias"),
        "not those that the",
    ),
    "tensor of another type": (
        lambda d, t: set_in(t, "head.bias", t["head.bias"].double()),
        "bias must be",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused(saved, name, tmp_path):
    change, message = HOSTILE[name]
    document, tensors = contents(saved("mlp")[1])
    change(document, tensors)
    path = forge(tmp_path / "file", document, tensors)
    if message is None:
        sw.load(path)
        return
    with pytest.raises(ArtifactError, match=message) as caught:
        sw.load(path)
    assert str(path) in str(caught.value)


def test_nm_claims_are_checked(saved, tmp_path):
    document, tensors = contents(saved("cnn")[1])
    which = next(i for i, e in enumerate(document["layers"]) if e["layout"] == "nm")
    for key, value in (("chunk", 16), ("chunk", 2**40), ("chunk", "32"), ("chunk", 0)):
        forged = copy.deepcopy(document)
        forged["layers"][which]["meta"][key] = value
        with pytest.raises(ArtifactError, match=r"chunk must be|values must be"):
            sw.load(forge(tmp_path / "file", forged, tensors))
    forged = copy.deepcopy(document)
    node(forged, "nm_linear")["args"][5] = 2**31
    with pytest.raises(ArtifactError, match="must be called with isa 0 and"):
        sw.load(forge(tmp_path / "file", forged, tensors))


@pytest.mark.parametrize("activation", [-1, 6, True, "relu", None, 2**70])
def test_activations_are_checked(saved, tmp_path, activation):
    document, tensors = contents(saved("cnn")[1])
    node(document, "nm_linear")["args"][7] = activation
    with pytest.raises(ArtifactError, match="activation must be one of 0 none, 1 relu"):
        sw.load(forge(tmp_path / "file", document, tensors))


def small_graph(nodes, output, shape=("batch", 4)):
    return {
        "format": "sparsewright", "version": 1, "tensors": {}, "layers": [], "provenance": {},
        "plan": {"threads": 1, "batch": 1, "layers": [], "notes": []},
        "graph": {
            "inputs": [{"name": "x", "dtype": "float32", "shape": list(shape)}],
            "batch": {"min": 1, "max": None}, "nodes": nodes, "output": output,
        },
    }  # fmt: skip


def call(name, op, *args):
    return {"name": name, "op": op, "args": list(args), "kwargs": {}}


def test_a_chain_of_products_cannot_blow_up(tmp_path):
    nodes = [call("s0", "aten.sym_size.int", {"node": "x"}, 0)]
    nodes += [call(f"s{i + 1}", "size.mul", *[{"node": f"s{i}"}] * 2) for i in range(40)]
    with pytest.raises(ArtifactError, match=r"beyond 2\*\*62"):
        sw.load(forge(tmp_path / "file", small_graph(nodes, {"node": "x"}), {}))


def test_a_split_cannot_claim_a_billion_parts(tmp_path):
    nodes = [
        call("big", "aten.expand.default", {"node": "x"}, [2**30, -1, 4]),
        call("parts", "aten.unbind.int", {"node": "big"}, 0),
    ]
    with pytest.raises(ArtifactError, match="sizes of at most 65536"):
        sw.load(forge(tmp_path / "file", small_graph(nodes, {"node": "x"}), {}))


def test_a_loaded_layer_checks_its_width_at_every_call(saved, tmp_path):
    """A forger may turn the batch into the width that a layer's indices rely on."""
    document, tensors = contents(saved("mlp")[1])
    document["graph"]["inputs"] = [{"name": "x", "dtype": "float32", "shape": ["batch", 16, 2]}]
    keep = node(document, "csr")
    keep["args"][0] = {"node": "wide"}
    wide = [call("wide", "aten.reshape.default", {"node": "x"}, [2, -1])]
    document["graph"]["nodes"] = [*wide, keep]
    document["graph"]["output"] = {"node": keep["name"]}
    again = sw.load(forge(tmp_path / "file", document, tensors))
    assert again(torch.ones(2, 16, 2)).shape == (2, 32)
    with pytest.raises(KernelError, match=r"takes inputs of shape \(..., 32\); got \(\d+, 16\)"):
        again(torch.ones(1, 16, 2))


def test_every_listed_operation_is_pure():
    listed = operations()
    for word in ("rand", "empty", "backward", "from_file", "resize", "set_", "_local", "out"):
        assert not [n for n in listed if n.startswith(f"aten.{word}")], word
    for name, operation in listed.items():
        if name.startswith("aten."):
            assert not operation._schema.is_mutable, name
            draws = torch.Tag.nondeterministic_seeded in operation.tags
            assert not draws or name == "aten.scaled_dot_product_attention.default"


def test_what_depends_on_its_arguments_is_checked(saved, tmp_path):
    document, tensors = contents(saved("block")[1])
    node(document, "scaled_dot")["kwargs"]["dropout_p"] = {"float": 0.5}
    with pytest.raises(ArtifactError, match="dropout_p must be 0"):
        sw.load(forge(tmp_path / "file", document, tensors))
    document, tensors = contents(saved("cnn")[1])
    node(document, "batch_norm")["args"][5] = True
    with pytest.raises(ArtifactError, match="does not train"):
        sw.load(forge(tmp_path / "file", document, tensors))


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        sw.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        sw.load(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at least 8 bytes"),
        (b"\x80\x04\x95" + b"pickle" * 9, "cut short"),
        (struct.pack("<Q", 2**63) + b"{}", "cut short"),
        (struct.pack("<Q", 2) + b"[]", "must be an object"),
        (struct.pack("<Q", 2) + b"{}", "perhaps a plain file of tensors"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "not valid JSON"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "not valid JSON"),
        (struct.pack("<Q", 10_000) + b"1" * 10_000, "not valid JSON"),
        (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "same key twice"),
        (struct.pack("<Q", 9) + b'{"a":NaN}', "no NaN"),
        (struct.pack("<Q", 22) + b'{"__metadata__":{"a":""}}'[:22], "not valid JSON"),
        (struct.pack("<Q", 25) + b'{"__metadata__":{"a":""}} ', "perhaps a plain file of tensors"),
    ],
)
def test_other_files_are_refused(data, message, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ArtifactError, match=message):
        sw.load(tmp_path / "file")


def test_claims_of_the_safetensors_header_are_checked(saved, tmp_path):
    data = saved("mlp")[1].read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    first = next(n for n in header if n != "__metadata__")

    def altered(**entry):
        changed = {**header, first: {**header[first], **entry}}
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    begin, end = header[first]["data_offsets"]
    for entry in (
        {"shape": [2**40, 2**40]},
        {"shape": [-1]},
        {"dtype": "F4"},
        {"data_offsets": [begin, end + 4]},
        {"data_offsets": [begin, 2**62]},
        {"data_offsets": [end, begin]},
    ):
        (tmp_path / "file").write_bytes(altered(**entry))
        with pytest.raises(ArtifactError):
            sw.load(tmp_path / "file")


def test_truncated_anywhere(saved, tmp_path):
    data = saved("mlp")[1].read_bytes()
    for end in {*range(0, len(data), 97), *range(len(data) - 9, len(data))}:
        (tmp_path / "file").write_bytes(data[:end])
        with pytest.raises(ArtifactError):
            sw.load(tmp_path / "file")


FEW = settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)


@FEW
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    kind=st.sampled_from(["overwrite", "insert", "remove"]),
)
def test_random_damage_is_noticed_or_harmless(saved, tmp_path_factory, changes, kind):
    fast, path = saved("mlp")
    data = bytearray(path.read_bytes())
    for place, byte in changes:
        at = int(place * (len(data) - 1))
        data[at : at + (kind != "insert")] = b"" if kind == "remove" else bytes([byte])
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(bytes(data))
    try:
        again = sw.load(file)
    except ArtifactError:
        return
    x = torch.randn(2, 32)
    assert same(again(x), fast(x))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from(
        [
            2**31,
            2**63,
            10**400,
            {"float": 10**400},
            0.5,
            1e308,
            "",
            "batch",
            "x",
            "aten.relu.default",
        ]
    ),
    st.sampled_from([[], {}, [[]], {"node": "x"}, {"tensor": "head.bias"}, {"float": "nan"}]),
    st.text(max_size=5),
)


def places(value, path=()):
    """Every place in a JSON value, as the keys that lead there."""
    yield path
    if isinstance(value, (dict, list)):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in children:
            yield from places(child, (*path, key))


@FEW
@given(data=st.data())
def test_forged_documents_are_refused_or_run_safely(saved, tmp_path_factory, data):
    name = data.draw(st.sampled_from(["mlp", "cnn", "dense"]))
    document, tensors = contents(saved(name)[1])
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from([p for p in places(document) if p]))
        parent = document
        for key in where[:-1]:
            parent = parent[key]
        action = data.draw(st.sampled_from(["set", "set", "set", "delete", "swap"]))
        if action == "delete":
            del parent[where[-1]]
        else:
            # A copy: a later change inside it must not reach the next example.
            parent[where[-1]] = copy.deepcopy(data.draw(VALUES))
    file = tmp_path_factory.getbasetemp() / "forged"
    forge(file, document, tensors)
    try:
        again = sw.load(file)
    except ArtifactError:
        return
    # A graph may still ask torch for what it refuses; it must not crash.
    with contextlib.suppress(SparsewrightError, RuntimeError, IndexError):
        again(torch.randn(2, *CASES[name][1][1:]))
