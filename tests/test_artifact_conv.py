"""Saved convolutions come back bit for bit, and a hostile file of them is an ArtifactError."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_artifact import FEW, VALUES, contents, forge, node, places, same, set_in
from torch import nn

import sparsewright as sw
from sparsewright.errors import ArtifactError, KernelError, SparsewrightError
from sparsewright.kernels import KERNELS, kernel_info
from sparsewright.nn import PrepackedConv2d

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

CSR = "csr.conv2d.reference"
CSB = "csb.conv2d.portable" if kernel_info().native else "csb.conv2d.reference"


class Net(nn.Module):
    """Convolutions with a stride, groups and a residual, one over signals, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding="same", groups=2)
        self.signal = nn.Conv1d(8, 6, 3, padding=1, dilation=1)
        self.head = nn.Linear(6, 4)
        self.norm.running_mean.uniform_(-0.1, 0.1)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.body(x) + x)
        return self.head(torch.relu(self.signal(x.flatten(2))).mean(2))


LINEAR = "csr.portable" if kernel_info().native else "csr.reference"
CASES = {
    "sparse": [CSR, LINEAR],
    "blocks": [CSB, LINEAR],
    "onednn": ["dense.conv2d.onednn", LINEAR],
    "channels last": ["dense.conv2d.channels_last", LINEAR],
    "plain": ["dense.conv2d.eager", LINEAR],
}
SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Name -> (deployed model, its file); each is made once, when it is first asked for."""
    made = {}

    def get(name):
        if any(KERNELS[k].refuses() is not None for k in CASES[name]):
            pytest.skip(f"one of {CASES[name]} cannot serve here")
        if name not in made:
            torch.manual_seed(0)
            model = Net().eval()
            sw.prune(model, 0.8, allocate="uniform_all")
            fast = sw.deploy(model, torch.randn(2, *SHAPE), kernels=CASES[name], seconds=0)
            path = tmp_path_factory.mktemp("artifact") / "file"
            sw.save(fast, path)
            made[name] = (fast, path)
        return made[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_model_equals_the_saved_one_bit_for_bit(saved, name, tmp_path):
    fast, path = saved(name)
    again = sw.load(path)
    assert fast.program is not None
    for batch in (1, 2, 5):
        x = torch.randn(batch, *SHAPE)
        assert same(again(x), fast(x)), batch
    sw.save(again, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_layers_are_declared_with_their_matrix_or_their_weight(saved):
    document = contents(saved("sparse")[1])[0]
    shapes = {entry["name"]: (entry["layout"], entry["shape"]) for entry in document["layers"]}
    assert shapes["body"] == ("csr", [8, 36])
    assert shapes["signal"] == ("csr", [6, 24])
    document = contents(saved("onednn")[1])[0]
    body = next(entry for entry in document["layers"] if entry["name"] == "body")
    assert (body["layout"], body["shape"]) == ("dense", [8, 4, 3, 3])
    assert body["meta"] == {"batch": 2, "height": 4, "width": 4}


def test_the_kernel_of_a_dense_layer_is_a_hint(saved, tmp_path):
    document, tensors = contents(saved("onednn")[1])
    held = sum(isinstance(m, PrepackedConv2d) for m in sw.load(saved("onednn")[1]).modules())
    assert held == 3
    for entry in document["layers"]:
        entry["kernel"] = "dense.of_tomorrow"
    again = sw.load(forge(tmp_path / "file", document, tensors))
    assert not any(isinstance(m, PrepackedConv2d) for m in again.modules())
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(again(x), saved("onednn")[0](x), rtol=1e-4, atol=1e-5)


def body(document):
    """The call of the packed convolution with groups."""
    return [n for n in document["graph"]["nodes"] if "conv2d" in n["op"]][1]


def conv_layer(document):
    return next(entry for entry in document["layers"] if entry["name"] == "body")


NUMBERS = ("kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w", "dilation_h",
           "dilation_w", "groups", "activation", "isa")  # fmt: skip
AT = {name: place for place, name in enumerate(NUMBERS, start=7)}

HOSTILE = {
    "no stride": ("stride_h", 0, r"stride_h must be in \[1, 4096\]; got 0"),
    "negative padding": ("padding_w", -1, "padding_w must be in"),
    "huge padding": ("padding_w", 2**40, "padding_w must be in"),
    "no dilation": ("dilation_h", 0, "dilation_h must be in"),
    "a kernel of nothing": ("kernel_h", 0, "kernel_h must be in"),
    "a kernel of text": ("kernel_h", "3", "kernel_h must be in"),
    "a kernel that is true": ("kernel_h", True, "kernel_h must be in"),
    "another kernel": ("kernel_h", 5, "do not divide the layer's fan-in"),
    "fewer groups": ("groups", 1, "cannot run on its inputs: a packed convolution takes"),
    "more groups": ("groups", 3, "do not divide the layer's fan-in"),
    "no groups": ("groups", 0, "groups must be in"),
    "too many groups": ("groups", 2**40, "groups must be in"),
    "an activation beyond": ("activation", 6, "activation must be one of"),
    "another isa": ("isa", 3, "isa 0"),
    "isa true": ("isa", False, "isa 0"),
    "a kernel beyond x": ("dilation_h", 9, "does not fit into x"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_numbers_are_refused(saved, name, tmp_path):
    place, value, message = HOSTILE[name]
    document, tensors = contents(saved("sparse")[1])
    body(document)["args"][AT[place]] = value
    with pytest.raises(ArtifactError, match=message):
        sw.load(forge(tmp_path / "file", document, tensors))


BLOCKS = {
    "another out": ("out_features", 7, "must be called with isa 0 and"),
    "another chunk": ("chunk", 8, "must be called with isa 0 and"),
    "another block": ("block", 2, "must be called with isa 0 and"),
    "a chunk that is true": ("chunk", True, "must be called with isa 0 and"),
    "groups": ("groups", 2, "cannot run on its inputs: a packed convolution takes"),
    "no stride": ("stride_w", 0, "stride_w must be in"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_hostile_numbers_of_blocks_are_refused(saved, name, tmp_path):
    key, value, message = BLOCKS[name]
    document, tensors = contents(saved("blocks")[1])
    call = next(n for n in document["graph"]["nodes"] if "csb_conv2d" in n["op"])
    names = [a.name for a in torch.ops.sparsewright.csb_conv2d.default._schema.arguments]
    call["args"][names.index(key)] = value
    with pytest.raises(ArtifactError, match=message):
        sw.load(forge(tmp_path / "file", document, tensors))


CHANGES = {
    "a fan-in of another kernel": (
        lambda d, t: set_in(conv_layer(d)["shape"], 1, 35),
        "columns must lie|do not divide",
    ),
    "a residual of another shape": (
        lambda d, t: set_in(body(d)["args"], 6, {"node": d["graph"]["inputs"][0]["name"]}),
        "cannot run on its inputs: residual must",
    ),
    "a residual of text": (lambda d, t: set_in(body(d)["args"], 6, "x"), "cannot run"),
    "a bias of another size": (
        lambda d, t: set_in(body(d)["args"], 5, {"tensor": "head.bias"}),
        "bias must be null or 8",
    ),
    "a linear layer's tensors": (
        lambda d, t: set_in(body(d)["args"], 1, node(d, "linear")["args"][1]),
        "those of no declared layer",
    ),
    "too few": (lambda d, t: body(d)["args"].pop(), "takes 17 arguments"),
    "a linear op on it": (
        lambda d, t: body(d).update(op="sparsewright.csr_linear.default"),
        "takes 18 arguments",
    ),
    "no layout has it": (
        lambda d, t: body(d).update(op="sparsewright.nm_conv2d.default"),
        "no operation",
    ),
    "a signal": (
        lambda d, t: set_in(d["graph"]["inputs"][0], "shape", ["batch", 3, 8]),
        "cannot run on its inputs",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_hostile_calls_are_refused(saved, name, tmp_path):
    change, message = CHANGES[name]
    document, tensors = contents(saved("sparse")[1])
    change(document, tensors)
    with pytest.raises(ArtifactError, match=message):
        sw.load(forge(tmp_path / "file", document, tensors))


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e["meta"].pop("width"),
        lambda e: e["meta"].update(width=0),
        lambda e: e["meta"].update(width=True),
        lambda e: e["meta"].update(rows=1),
        lambda e: e["shape"].pop(),
        lambda e: e.update(shape=[]),
    ],
)
def test_a_dense_layer_keeps_its_rules(saved, change, tmp_path):
    document, tensors = contents(saved("onednn")[1])
    change(conv_layer(document))
    with pytest.raises(ArtifactError, match="a dense layer has a weight of its shape"):
        sw.load(forge(tmp_path / "file", document, tensors))


def test_channels_are_checked_at_every_call(saved, tmp_path):
    """A forger may turn the batch into the channels that a layer's indices rely on."""
    document, tensors = contents(saved("sparse")[1])
    document["graph"]["inputs"] = [{"name": "x", "dtype": "float32", "shape": ["batch", 4, 4, 4]}]
    keep = body(document)
    keep["args"][0], keep["args"][6] = {"node": "wide"}, None
    reshape = {"name": "wide", "op": "aten.reshape.default", "kwargs": {}}
    reshape["args"] = [{"node": "x"}, [1, -1, 4, 4]]
    document["graph"]["nodes"] = [reshape, keep]
    document["graph"]["output"] = {"node": keep["name"]}
    document["plan"]["pieces"] = None  # timing may have cut the batch, which this graph mixes
    again = sw.load(forge(tmp_path / "file", document, tensors))
    assert again(torch.ones(2, 4, 4, 4)).shape == (1, 8, 4, 4)
    with pytest.raises(KernelError, match=r"takes inputs \(N, 8, H, W\); got \(1, 4, 4, 4\)"):
        again(torch.ones(1, 4, 4, 4))


@FEW
@given(data=st.data())
def test_forged_documents_are_refused_or_run_safely(saved, tmp_path_factory, data):
    document, tensors = copy.deepcopy(contents(saved(data.draw(st.sampled_from(["sparse"])))[1]))
    found = [p for p in places(document) if p and p[0] in ("layers", "graph")]
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from(found))
        parent = document
        with contextlib.suppress(KeyError, IndexError, TypeError):  # gone by the first change
            for key in where[:-1]:
                parent = parent[key]
            parent[where[-1]] = data.draw(VALUES)
    file = tmp_path_factory.getbasetemp() / "forged"
    forge(file, document, tensors)
    try:
        again = sw.load(file)
    except ArtifactError:
        return
    with contextlib.suppress(SparsewrightError, RuntimeError, IndexError):
        again(torch.randn(2, *SHAPE))
