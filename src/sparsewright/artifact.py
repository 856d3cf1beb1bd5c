"""A deployed model in one safetensors file: packed weights, and its structure as JSON.

`load` trusts nothing: it runs no code from the file, follows no index that it has not checked,
and reserves no more memory than the file is long. README.md states the format.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from . import library
from .deployed import Deployed, plain_attention
from .errors import ArtifactError, KernelError
from .graph import Document, trace
from .measure.dense import relative_error
from .plan import Plan
from .program import Program, layers_and_graph, module_of, rows
from .signature import MAX_TEXT, Signature, field

FORMAT = "sparsewright"
VERSION = 1
MAX_HEADER = 100_000_000  # bytes, safetensors' own limit
TOLERANCE = 1e-5  # of the largest output, between the written graph and the model
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}


def save(
    fast: nn.Module, path: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a deployed model to `path` as safetensors; the same model gives the same bytes.

    provenance: plain values that JSON takes, kept beside the versions of sparsewright and torch.
    The file is written beside `path` and renamed, so a failure leaves an old file as it was.
    Raises ArtifactError if `fast` is not what `sw.deploy` returns, or if its structure cannot be
    written; the message has the reason.

    >>> import tempfile, sparsewright as sw
    >>> fast = sw.deploy(nn.Linear(8, 4), torch.ones(1, 8), seconds=0)
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> sw.save(fast, path)
    >>> torch.equal(sw.load(path)(torch.ones(3, 8)), fast(torch.ones(3, 8)))
    True
    """
    if not isinstance(fast, Deployed):
        raise ArtifactError(
            f"save takes a deployed model; got {type(fast).__name__}. Deploy it first: "
            "sw.save(sw.deploy(model, example), path)"
        )
    document, tensors = _describe(fast)
    document["provenance"] = {**_versions(), **dict(provenance or fast.provenance)}
    document["tensors"] = {name: _entry(t) for name, t in sorted(tensors.items())}
    _write(Path(path), _to_json(document), tensors)


def _describe(fast: Deployed) -> tuple[Document, dict[str, Tensor]]:
    """The document, without provenance, and its tensors."""
    if fast.source is not None:  # loaded from a file: say the same again
        return dict(fast.source[0]), dict(fast.source[1])
    with torch.no_grad(), plain_attention():
        graph = fast.graph or trace(fast.model, fast.example)
    document: Document = {
        "format": FORMAT,
        "version": VERSION,
        **layers_and_graph(fast.model, graph),
        "plan": fast.plan.to_dict(),
    }
    return _verified(fast, document, graph.tensors), dict(graph.tensors)


def _verified(fast: Deployed, document: Document, tensors: Mapping[str, Tensor]) -> Document:
    """The document, after its graph gave the model's outputs; without batch 1 if that fails."""
    rebuilt = module_of(document, tensors)
    _compare(fast, rebuilt, fast.example)
    batch = document["graph"]["batch"]
    if batch is None or batch["min"] > 1:
        return document
    if (batch["max"] or 3) >= 3:
        _compare(fast, rebuilt, tuple(rows(x, 3) for x in fast.example))
    try:
        _compare(fast, rebuilt, tuple(rows(x, 1) for x in fast.example))
    except (ArtifactError, RuntimeError):  # the trace assumes 2 or more, and here it matters
        batch = {**batch, "min": 2}
    return {**document, "graph": {**document["graph"], "batch": batch}}


def _compare(fast: Deployed, rebuilt: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        pairs = zip(_leaves(rebuilt(*inputs)), _leaves(fast.run_modules(*inputs)), strict=True)
        error = max((relative_error(a.float(), b.float()) for a, b in pairs), default=0.0)
    if not error <= TOLERANCE:
        raise ArtifactError(
            f"the traced graph must give the model's outputs within {TOLERANCE} of the largest; it "
            f"is off by {error:.3g}: `forward` does something that a trace does not see"
        )


def _leaves(output: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor)]


def _versions() -> dict[str, str]:
    from . import __version__

    return {"sparsewright": __version__, "torch": torch.__version__}


def _entry(tensor: Tensor) -> Document:
    if tensor.dtype not in CODES:
        raise ArtifactError(f"a file cannot hold {tensor.dtype}; it can hold {', '.join(DTYPES)}")
    digest = hashlib.sha256(_bytes(tensor)).hexdigest()
    return {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "sha256": digest}


def _bytes(tensor: Tensor) -> Any:
    """The values of a tensor in order, little endian, as a buffer."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _to_json(document: Document) -> str:
    try:
        return json.dumps(document, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"provenance takes only what JSON can hold: {error}") from error


def _write(path: Path, text: str, tensors: Mapping[str, Tensor]) -> None:
    order = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))  # keeps all aligned
    digest = hashlib.sha256(text.encode()).hexdigest()
    header: Document = {"__metadata__": {FORMAT: text, f"{FORMAT}.sha256": digest}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        entry = {"dtype": CODES[tensors[name].dtype], "shape": list(tensors[name].shape)}
        header[name] = {**entry, "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    if len(head) > MAX_HEADER:
        raise ArtifactError(f"a header has at most {MAX_HEADER} bytes; this one has {len(head)}")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            for name in order:
                file.write(_bytes(tensors[name]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def load(path: str | os.PathLike[str]) -> Deployed:
    """The deployed model that `save` wrote to `path`; the class that it was made of is not needed.

    Outputs equal those of the saved model, bit for bit on the same machine and threads. Raises
    ArtifactError, naming the rule that is broken, if the file is not a whole, valid artifact of
    version 1, and OSError if it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        return _loaded(data)
    except ArtifactError as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}") from error


def _loaded(data: bytes) -> Deployed:
    header = _read_header(data)
    document = _read_document(header)
    tensors = _read_tensors(data, header, document)
    module = module_of(document, tensors)
    try:
        plan = Plan.from_dict(field(document, "plan", dict, "the file"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"the plan is not one: {error}") from error
    provenance = field(document, "provenance", dict, "the file")
    signature = Signature.read(document["graph"])
    size = plan.pieces.size if plan.pieces else None
    if size is not None and module.meta["mixed"] is not None:
        raise ArtifactError(f"the plan runs a batch in pieces, but {module.meta['mixed']}")
    side_by_side = plan.pieces is not None and plan.pieces.side_by_side
    if side_by_side and library.why_not_compiled("beside_cost") is not None:
        size, side_by_side = None, False  # the whole batch by what there is, slowly
    try:
        program = Program(module, signature, module, size, side_by_side, plan.threads)
    except (KernelError, RuntimeError) as error:
        raise ArtifactError(f"the plan's program cannot be built: {error}") from error
    return Deployed(
        module,
        plan,
        source=(document, tensors),
        check=signature.check,
        provenance=provenance,
        program=program,
    )


def _read_header(data: bytes) -> Document:
    if len(data) < 8:
        raise ArtifactError(f"a safetensors file has at least 8 bytes; this one has {len(data)}")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(MAX_HEADER, len(data) - 8):
        raise ArtifactError(
            f"the header claims {length} bytes, of {len(data) - 8} in the file and {MAX_HEADER} "
            "allowed: the file is cut short, or is no safetensors file"
        )
    header = _parse(data[8 : 8 + length], "the safetensors header")
    if not isinstance(header, dict):
        raise ArtifactError("the safetensors header must be an object")
    return header


def _parse(text: bytes | str, place: str) -> Any:
    try:
        return json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:  # bad JSON or UTF-8; too deep
        raise ArtifactError(f"{place} is not valid JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ArtifactError("a JSON object names the same key twice")
    return entries


def _no_constant(word: str) -> Any:
    raise ArtifactError(f"JSON has no {word}")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ArtifactError(f"JSON has no number beyond float64: {number[:MAX_TEXT]}")
    return value


def _read_document(header: Document) -> Document:
    metadata = field({"__metadata__": {}} | header, "__metadata__", dict, "the safetensors header")
    if FORMAT not in metadata:
        raise ArtifactError(
            f"the file's metadata has no {FORMAT!r} entry: it is no artifact of sparsewright, "
            "perhaps a plain file of tensors"
        )
    text = field(metadata, FORMAT, str, "the metadata")
    document = _parse(text, "the artifact's document")
    if field(document, "format", str, "the document") != FORMAT:
        raise ArtifactError(f"the document's format must be {FORMAT!r}")
    version = field(document, "version", int, "the document")
    if version != VERSION:
        raise ArtifactError(
            f"the file has format version {str(version)[:20]}; this sparsewright reads {VERSION}"
        )
    claimed = field(metadata, f"{FORMAT}.sha256", str, "the metadata")
    if claimed != hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest():
        raise ArtifactError("the document does not have the SHA-256 that the file names: damaged")
    return document


def _read_tensors(data: bytes, header: Document, document: Document) -> dict[str, Tensor]:
    """The tensors, after each has the type, the shape and the digest that the document names."""
    declared = field(document, "tensors", dict, "the document")
    present = {name for name in header if name != "__metadata__"}
    if present != set(declared):
        raise ArtifactError("the tensors of the file are not those that the document declares")
    for name, entry in declared.items():
        place = f"tensor {name[:MAX_TEXT]!r}"
        dtype, shape = field(entry, "dtype", str, place), field(entry, "shape", list, place)
        if dtype not in DTYPES:
            raise ArtifactError(f"{place}: there is no dtype {dtype[:MAX_TEXT]!r}")
        if field(header[name], "dtype", str, place) != dtype or header[name].get("shape") != shape:
            raise ArtifactError(f"{place}: the header and the document disagree about it")
        if not all(type(s) is int and 0 <= s < 2**40 for s in shape) or len(shape) > 16:
            raise ArtifactError(f"{place}: its shape must be up to 16 sizes in [0, 2**40)")
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise ArtifactError(f"not a valid safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if hashlib.sha256(_bytes(tensor)).hexdigest() != declared[name].get("sha256"):
            raise ArtifactError(
                f"tensor {name[:MAX_TEXT]!r} does not have the SHA-256 that the file names: damaged"
            )
    return tensors


def sizes(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes of a model's parameters and buffers as dense float32, and of its artifact on disk.

    Tied tensors count once, tensors that are not floating-point with their own size.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "empty"
    >>> _ = file.write_bytes(b"")
    >>> sizes(nn.Linear(10, 10), file)
    {'dense_fp32': 440, 'artifact': 0}
    """
    held = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    dense = sum(t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in held)
    return {"dense_fp32": dense, "artifact": Path(path).stat().st_size}
