"""The fuzz target of the artifact loader: a file ends in a correct load or in an ArtifactError.

`make fuzz` runs it over random decisions (damage.py), `fuzz_guided.py` over those that coverage
leads to, and test_fuzz.py over the same few hundred each time. The file that breaks the rule, or
crashes the process, or hangs it, is build/fuzz/last.safetensors.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import random
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path

import torch
from damage import Damaged, Valid, damaged
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

import sparsewright as sw
from sparsewright.errors import ArtifactError, KernelError, SparsewrightError, SparsityWarning
from sparsewright.kernels import KERNELS, Kernel, depthwise

NARROW = ("int8", "bf16")
PATTERNS = ("3:32", "block:4x4", "unstructured")
DECISIONS = 192  # bytes: more than any kind of damage reads
LARGE = 2**22  # elements: a graph may ask torch for any tensor, and then it is not run
PATIENCE = 60  # seconds for one file


class Small(nn.Module):
    """A little of everything that a graph may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU())
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.register_buffer("scale", torch.rand(32))

    def forward(self, x: Tensor) -> dict[str, object]:
        parts = torch.chunk(torch.flatten(self.body(x), 1), 2, dim=1)
        hidden = torch.relu(self.first(torch.cat([parts[1], parts[0]], dim=1))) * self.scale
        return {"out": self.second(hidden), "more": (hidden.view(x.shape[0], -1, 8), [parts[0]])}


EXAMPLE = (2, 1, 4, 4)


def serving() -> list[Kernel]:
    """Kernels that a file can name and that run here."""
    return [k for _, k in KERNELS.items() if k.refuses() is None and k.reserve is None]


def layouts() -> list[str]:
    """Layouts that files may have here, and "dense"; each packed one with some type of values."""
    found = sorted({k.layout for k in serving()})
    packed = [name for name in found if name != "dense"]
    return [*found, *(f"{name} {NARROW[i % 2]}" for i, name in enumerate(packed))]


@cache
def valid(kind: str) -> Valid:
    """A valid artifact whose Linear layers are in the layout, with a depthwise convolution."""
    layout, _, values = kind.partition(" ")
    torch.manual_seed(0)
    kernel = [k.name for k in serving() if k.layout == layout][-1]  # not dense.eager, the first
    kernels = [kernel, *(k.name for k in serving() if k.name in depthwise.NAMES)]
    for pattern in PATTERNS:
        model = Small().eval()
        sw.prune(model, None if ":" in pattern and "b" not in pattern else 0.8, pattern,
                 allocate="uniform_all", on_misfit="skip")  # fmt: skip
        try:
            given = {"kernels": kernels, "seconds": 0, "values": values or "fp32"}
            fast = sw.deploy(model, torch.randn(EXAMPLE), **given)  # type: ignore[arg-type]
        except KernelError:  # the layout refuses the pattern
            continue
        with tempfile.TemporaryDirectory() as folder:
            sw.save(fast, Path(folder) / "valid")
            return Valid.read((Path(folder) / "valid").read_bytes())
    raise AssertionError(f"no pattern of {PATTERNS} fits layout {kind}")


def check(case: Damaged, original: Valid, path: Path) -> str:
    """refused, loaded (too large to run), failed (to run) or ran; any other error is a finding."""
    path.write_bytes(case.data)
    try:
        again = sw.load(path)
    except ArtifactError:
        return "refused"
    assert str(again.plan)
    held = Valid.read(case.data).document
    beside = path.with_name(f"{path.name}.again")
    sw.save(again, beside)
    kept = Valid.read(beside.read_bytes()).document
    assert {**kept, "provenance": held["provenance"]} == held, "is saved as another file"
    shapes = _shapes(again)
    if held["graph"] != original.document["graph"] and _is_large(again, shapes):
        return "loaded"
    inputs = [torch.rand(shape).mul(3).to(dtype) for shape, dtype in shapes]
    with torch.no_grad():
        if case.honest:
            assert _same(again(*inputs), _whole(original)(*inputs)), "loads, but is another model"
            return "ran"
        try:
            again(*inputs)
        except (SparsewrightError, RuntimeError, IndexError):  # torch refuses what values decide
            return "failed"
    return "ran"


def _whole(original: Valid) -> sw.Deployed:
    """The model of the undamaged file."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "valid").write_bytes(original.data)
        return sw.load(Path(folder) / "valid")


class TooLarge(Exception):
    """A result is larger than a test wants to compute."""


class _Sizes(fx.Interpreter):
    """Runs a graph on tensors without memory, to see how large its results are."""

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if any(t.numel() > LARGE for t in tree_leaves(result) if isinstance(t, Tensor)):
            raise TooLarge
        return result


def _shapes(fast: sw.Deployed) -> list[tuple[list[int], torch.dtype]]:
    """Shape and type of each input that the file declares, with a batch of about 2."""
    assert fast.program is not None
    signature = fast.program.signature
    least, most = signature.batch or (0, None)
    batch = max(least, 2 if most is None else min(2, most))
    return [
        ([batch if isinstance(size, str) else size for size in shape], dtype)
        for _, dtype, shape in signature.inputs
    ]


def _is_large(fast: sw.Deployed, shapes: list[tuple[list[int], torch.dtype]]) -> bool:
    """Whether an input or a result is larger than LARGE, told without computing any."""
    assert fast.program is not None
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            fakes = [torch.empty(shape, dtype=dtype) for shape, dtype in shapes]
            if any(fake.numel() > LARGE for fake in fakes):
                return True
            _Sizes(fast.program.module).run(*fakes)
    except TooLarge:
        return True
    except (SparsewrightError, RuntimeError, IndexError):  # this batch is not the one that was
        return False  # tried when it was loaded; the real run will say so too
    return False


def _same(a: object, b: object) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def one(decisions: bytes, layout: str, path: Path) -> tuple[str, str]:
    """The kind of damage that was done, and what `check` says."""
    case = damaged(valid(layout), decisions)
    return case.kind, check(case, valid(layout), path)


def decisions_of(seed: int) -> bytes:
    return random.Random(seed).randbytes(DECISIONS)


def evidence() -> Path:
    """Where the file at hand lies: still there if it takes the process down."""
    folder = Path(__file__).resolve().parents[1] / "build" / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "last.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    args = parser.parse_args()
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", SparsityWarning)  # without compiled kernels
    torch.set_num_threads(1)
    path = evidence()
    kinds = layouts()
    for layout in kinds:
        valid(layout)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    end, seed = time.monotonic() + args.seconds, args.seed
    while time.monotonic() < end:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        try:
            counts[one(decisions_of(seed), kinds[seed % len(kinds)], path)] += 1
        except BaseException:
            print(f"seed {seed}, layout {kinds[seed % len(kinds)]}: {path} breaks the rule")
            raise
        seed += 1
    faulthandler.cancel_dump_traceback_later()
    print(f"{seed - args.seed} files, seeds {args.seed} to {seed - 1}: all refused or right")
    for (kind, outcome), count in sorted(counts.items()):
        print(f"  {kind:14} {outcome:8} {count}")


if __name__ == "__main__":
    main()
