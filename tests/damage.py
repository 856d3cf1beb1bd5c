"""Damaged and forged artifacts out of valid ones, every decision read off a string of bytes.

A fuzzer that changes bytes so changes decisions, not text: most files stay near enough to a valid
one to get past the first check (structure-aware fuzzing; Pham, Boehme et al. 2019). The same bytes
always give the same file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sparsewright.operations import operations

T = TypeVar("T")
Json = dict[str, Any]

ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
        "U16": 2, "U8": 1, "BOOL": 1}  # fmt: skip
INTS = [0, 1, -1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 255, 256, 65535, 65536, 2**24, 2**31 - 1,
        2**31, -(2**31), 2**32, 2**40, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 10**9]  # fmt: skip
VALUES = [None, True, False, 0.5, -0.0, 1e308, "", "batch", "x", "\ud800", "a" * 65, [], {}, [[]],
          [0], [None], json.loads("[" * 40 + "]" * 40), {"node": "x"}, {"tensor": "x"},
          {"float": "nan"}, {"float": 10**400}, {"dtype": "int64"}, {"tuple": []},
          {"dict": [["a", None]]}]  # fmt: skip
TEXTS = ["NaN", "1e999", "-Infinity", "[" * 5000, "1" * 5000, "\x00", '"\\ud800"', ',"a":1,"a":2',
         "\ufeff", "{}", "}", "//", "0x10", "true"]  # fmt: skip
FORBIDDEN = ["aten.from_file.default", "aten.relu_.default", "aten.empty.memory_format",
             "sparsewright.best_isa.default", "builtins.eval"]  # fmt: skip


class Choices:
    """Decisions read off bytes, two for each; after the last byte, always the first choice."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def below(self, limit: int) -> int:
        """A number in [0, limit)."""
        word = self.data[self.at : self.at + 2].ljust(2, b"\0")
        self.at += 2
        wide = int.from_bytes(word, "little")
        return (wide if limit <= 2**16 else wide * (limit // 2**16)) % max(1, limit)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def integer(self) -> int:
        return self.pick([*INTS, self.below(100)])


@dataclass(frozen=True)
class Valid:
    """A whole artifact, taken apart."""

    data: bytes
    header: Json
    document: Json
    tensors: Mapping[str, bytes]

    @classmethod
    def read(cls, data: bytes) -> Valid:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        document = json.loads(header.pop("__metadata__")["sparsewright"])
        spans = {name: entry["data_offsets"] for name, entry in header.items()}
        body = data[8 + length :]
        return cls(data, header, document, {n: body[a:b] for n, (a, b) in spans.items()})


@dataclass(frozen=True)
class Damaged:
    """kind: what was done. honest: no digest was made anew, so what loads must be as it was."""

    kind: str
    data: bytes
    honest: bool


def damaged(valid: Valid, data: bytes) -> Damaged:
    """The artifact after what the bytes decide."""
    choices = Choices(data)
    kind = choices.pick([*RAW, *FORGED])
    if kind in RAW:
        return Damaged(kind, RAW[kind](choices, valid.data), honest=True)
    forgery = Forgery(valid)
    FORGED[kind](choices, forgery)
    return Damaged(kind, forgery.file(), honest=False)


# --- damage: a disk's or a network's, no digest fits it ---------------------------------------


def cut(choices: Choices, data: bytes) -> bytes:
    return data[: choices.below(len(data))]


def flip(choices: Choices, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(1 + choices.below(4)):
        out[choices.below(choices.pick([16, len(out)]))] ^= 1 << choices.below(8)
    return bytes(out)


def splice(choices: Choices, data: bytes) -> bytes:
    a, b, length = choices.below(len(data)), choices.below(len(data)), choices.below(64)
    return data[:a] + choices.pick([b"", data[b : b + length]]) + data[a + choices.below(64) :]


def claim_length(choices: Choices, data: bytes) -> bytes:
    return struct.pack("<Q", choices.integer() % 2**64) + data[8:]


# --- forgery: all digests fit, whatever the document says ------------------------------------


class Forgery:
    """A document, a header and tensors that may be changed, and digests that then are made anew."""

    def __init__(self, valid: Valid):
        self.document, self.header = copy.deepcopy((valid.document, valid.header))
        self.tensors = dict(valid.tensors)
        self.text: Callable[[str], str] = lambda text: text  # a last change, as text

    def file(self) -> bytes:
        declared = self.document.get("tensors")
        for name, held in self.tensors.items():
            entry = declared.get(name) if isinstance(declared, dict) else None
            if isinstance(entry, dict) and "sha256" in entry:
                entry["sha256"] = hashlib.sha256(held).hexdigest()
        text = self.text(json.dumps(self.document))
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        metadata = {"sparsewright": text, "sparsewright.sha256": digest}
        head = json.dumps({"__metadata__": metadata, **self.header}).encode()
        head += b" " * (-len(head) % 8)
        return struct.pack("<Q", len(head)) + head + b"".join(self.tensors.values())

    def claim(self, name: str, dtype: str, shape: list[int]) -> None:
        """Let header and document agree on a type and a shape."""
        for place in (self.header, self.document["tensors"]):
            place[name].update(dtype=dtype, shape=shape)

    def put(self, name: str, held: bytes) -> None:
        """Replace a tensor's bytes and move those behind it."""
        self.tensors[name], at = held, 0
        for other in self.tensors:
            end = at + len(self.tensors[other])
            self.header[other]["data_offsets"], at = [at, end], end


def edit(choices: Choices, forgery: Forgery) -> None:
    """One to three places of the document."""
    for _ in range(1 + choices.below(3)):
        edit_at(choices, choices.pick(list(places(forgery.document))))


def edit_graph(choices: Choices, forgery: Forgery) -> None:
    """The same in what decides most: the layers, the nodes, the output."""
    document = forgery.document
    part = choices.pick([document["graph"], document["layers"], document["graph"]["nodes"]])
    for _ in range(1 + choices.below(2)):
        found = list(places(part))
        if found:
            edit_at(choices, choices.pick(found))


def edit_at(choices: Choices, place: tuple[Any, Any]) -> None:
    parent, key = place
    kind = choices.below(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == 2 and isinstance(parent, list):
        other = choices.below(len(parent))
        parent[key], parent[other] = parent[other], parent[key]
    elif kind == 3:
        parent[key] = copy.deepcopy(choices.pick(VALUES))
    elif kind == 4 and isinstance(parent[key], int):
        parent[key] = parent[key] + choices.pick([1, -1])
    else:
        parent[key] = choices.integer()


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    if not isinstance(value, (dict, list)):
        return
    for key, child in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        yield from places(child)


def rewire(choices: Choices, forgery: Forgery) -> None:
    """A node does something else, or to something else."""
    nodes = forgery.document["graph"]["nodes"]
    node = choices.pick(nodes)
    kind = choices.below(4)
    if kind == 0:
        node["op"] = choices.pick([*(n["op"] for n in nodes), *sorted(operations()), *FORBIDDEN])
    elif kind == 1:
        node["args"] = [argument(choices, forgery) for _ in range(choices.below(7))]
    elif node["args"]:
        node["args"][choices.below(len(node["args"]))] = argument(choices, forgery)


def compute(choices: Choices, forgery: Forgery) -> None:
    """Up to three more operations, called as their schema asks, and the last is the output."""
    graph = forgery.document["graph"]
    for number in range(1 + choices.below(3)):
        name = choices.pick([n for n in sorted(operations()) if n.startswith("aten.")])
        made: Json = {"name": f"made{number}", "op": name, "args": [], "kwargs": {}}
        for wanted in operations()[name]._schema.arguments:
            if wanted.kwarg_only or (wanted.has_default_value() and choices.below(2)):
                break
            made["args"].append(typed(choices, forgery, str(wanted.type)))
        graph["nodes"].append(made)
        graph["output"] = {"node": made["name"]}


def typed(choices: Choices, forgery: Forgery, kind: str) -> Any:
    """An argument of about that type, its numbers mostly small."""
    if kind.startswith("Optional["):
        return None if choices.below(2) else typed(choices, forgery, kind[9:-1])
    if kind.startswith("List["):
        count = choices.below(4)
        return [typed(choices, forgery, kind[5:-1]) for _ in range(count)]
    small = choices.below(8) - 2 if choices.below(8) else choices.integer()
    simple = {
        "int": small,
        "bool": bool(small % 2),
        "float": {"float": choices.pick([0.5, float(small), -1.0, "nan", "inf"])},
        "number": choices.pick([small, {"float": 0.5}]),
        "str": choices.pick(["mean", "none", "sum", "x"]),
    }
    if kind in simple:
        return simple[kind]
    graph = forgery.document["graph"]
    latest = [{"node": entry["name"]} for entry in graph["nodes"][-3:]]
    return choices.pick([*latest, *latest, argument(choices, forgery)])


def argument(choices: Choices, forgery: Forgery) -> Any:
    graph = forgery.document["graph"]
    nodes = [{"node": entry["name"]} for entry in [*graph["nodes"], *graph["inputs"]]]
    tensors = [{"tensor": name} for name in forgery.tensors]
    either = [
        choices.pick(nodes),
        choices.pick(tensors),
        choices.integer(),
        [choices.integer() for _ in range(choices.below(5))],
        [choices.pick(nodes), choices.pick(tensors)],
        choices.pick(VALUES),
    ]
    return copy.deepcopy(choices.pick([either[0], *either]))


def swap(choices: Choices, forgery: Forgery) -> None:
    """Two tensors change places: their bytes, or what a layer or a node calls them."""
    a, b = (choices.pick(list(forgery.tensors)) for _ in range(2))
    if choices.below(2):
        held = forgery.tensors[a], forgery.tensors[b]
        forgery.put(a, held[1])
        forgery.put(b, held[0])
        claims = [dict(forgery.document["tensors"][name]) for name in (a, b)]
        forgery.claim(a, claims[1]["dtype"], claims[1]["shape"])
        forgery.claim(b, claims[0]["dtype"], claims[0]["shape"])
        return
    other = {a: b, b: a}
    only = choices.pick([forgery.document["layers"], forgery.document["graph"], forgery.document])
    for parent, key in list(places(only)):
        if isinstance(parent[key], str):
            parent[key] = other.get(parent[key], parent[key])


def resize(choices: Choices, forgery: Forgery) -> None:
    """A tensor of another type or shape, in header and document alike; its bytes follow or not."""
    name = choices.pick(list(forgery.tensors))
    entry = forgery.header[name]
    shape = list(entry["shape"])
    kind = choices.below(4)
    if kind == 0 and shape:
        shape[choices.below(len(shape))] = choices.integer()
    elif kind == 1 and shape:
        axis = choices.below(len(shape))
        shape[axis] = max(0, shape[axis] + choices.pick([1, -1, 16, -16]))
    elif kind == 2:
        shape = choices.pick([[], [0], [*shape, 1], [1, *shape], shape[::-1], [1] * 17])
    dtype = choices.pick([entry["dtype"], entry["dtype"], *ITEM])
    forgery.claim(name, dtype, shape)
    size = ITEM[dtype]
    for side in shape:
        size *= side
    if choices.below(4) and 0 <= size <= 2**20:
        forgery.put(name, forgery.tensors[name][:size].ljust(size, b"\0"))


def sizes(choices: Choices, forgery: Forgery) -> None:
    """A layer's size or number is another one wherever it stands: in the layer and in its call."""
    layer = choices.pick(forgery.document["layers"])
    held = [(parent, key) for parent, key in places(layer) if type(parent[key]) is int]
    parent, key = choices.pick(held)
    old, new = parent[key], choices.pick([parent[key] + 1, parent[key] - 1, choices.integer()])
    parent[key] = new
    for node in forgery.document["graph"]["nodes"]:
        if node["op"].startswith("sparsewright."):
            node["args"] = [new if type(a) is int and a == old else a for a in node["args"]]


def indices(choices: Choices, forgery: Forgery) -> None:
    """Entries of a layer's tensors: beyond the end, below zero, out of order, NaN."""
    layer = choices.pick(forgery.document["layers"])
    name = choices.pick(list(layer["tensors"].values()))
    held, item = bytearray(forgery.tensors[name]), ITEM[forgery.header[name]["dtype"]]
    count = len(held) // item
    for _ in range(1 + choices.below(3)):
        if not count:
            return
        at, other = (choices.below(count) * item for _ in range(2))
        if choices.below(3) == 0:  # two change places
            one = held[at : at + item]
            held[at : at + item] = held[other : other + item]
            held[other : other + item] = one
        else:
            number = choices.integer() % 2 ** (8 * item)
            held[at : at + item] = number.to_bytes(item, "little")
    forgery.put(name, bytes(held))
    if choices.below(2):  # a forger counts right
        layer["nnz"] += choices.pick([-1, 0, 1])


def edit_header(choices: Choices, forgery: Forgery) -> None:
    """The safetensors header alone: what the document says stays."""
    edit_at(choices, choices.pick(list(places(forgery.header))))


def edit_text(choices: Choices, forgery: Forgery) -> None:
    """The document as text, which then may be no JSON."""
    where, insert, keep = choices.below(2**16), choices.pick(TEXTS), choices.below(4)

    def change(text: str) -> str:
        at = where % len(text)
        return text[:at] + insert + text[at + keep :]

    forgery.text = change


RAW = {f.__name__: f for f in (cut, flip, splice, claim_length)}
FORGED = {
    f.__name__: f
    for f in (
        edit,
        edit_graph,
        rewire,
        compute,
        swap,
        resize,
        sizes,
        indices,
        edit_header,
        edit_text,
    )
}
