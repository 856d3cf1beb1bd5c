"""DeepSparse (Neural Magic; closed source, its life ended in 2025) in a Python of its own.

Its evaluation licence makes it a private yardstick: it is no dependency, and its figures are
printed but never written. It needs an older Python, so it lives in another process, which gets the
model and the input as files and times its own calls when it is told to: both sides take turns in
one run, and no pipe is on the clock.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import KernelError
from . import PEERS, Case, Peer, Ready
from . import _deepsparse_worker as worker_file

TRIES = 20  # calls that decide between two forms of a model
PATIENCE = 5.0  # seconds that a worker gets to end by itself


class Engine:
    """A worker process: called, it runs once; `seconds` runs and times it over there."""

    def __init__(self, python: str):
        self.folder = tempfile.TemporaryDirectory(prefix="sparsewright-deepsparse-")
        self.log = Path(self.folder.name) / "log"
        # Its own words go into a file; no figure leaves the machine.
        environment = {**os.environ, "NM_DISABLE_ANALYTICS": "1"}
        # -I: neither this folder nor the caller's environment is on its path
        command = [python, "-I", str(worker_file.__file__)]
        pipe = subprocess.PIPE
        try:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment
                )
        except OSError:
            self.folder.cleanup()
            raise
        atexit.register(self.close)

    def ask(self, **words: Any) -> dict[str, Any]:
        """The worker's answer; KernelError with its reason if it fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(words), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise KernelError(f"DeepSparse's process ended; it said last: {said[-1]}")
        answer = json.loads(line)
        if "error" in answer:
            raise KernelError(f"DeepSparse: {answer['error'].splitlines()[0]}")
        return answer

    def load(self, model: bytes, example: Tensor, threads: int) -> str:
        """Compile a model; returns the version of what compiled it."""
        onnx, x = (Path(self.folder.name) / name for name in ("model.onnx", "x.npy"))
        onnx.write_bytes(model)
        np.save(x, example.numpy())
        return str(self.ask(load=str(onnx), input=str(x), threads=threads)["version"])

    def __call__(self) -> None:
        self.ask(run=1)

    def seconds(self, repeats: int) -> float:
        return float(self.ask(run=repeats)["seconds"])

    def output(self) -> Tensor:
        """Of its last run."""
        path = Path(self.folder.name) / "y.npy"
        self.ask(output=str(path))
        return torch.from_numpy(np.load(path))

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it may have ended long ago
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.folder.cleanup()
        atexit.unregister(self.close)
        _engine.cache_clear()


@functools.cache
def _engine(python: str) -> Engine:
    """One process serves all cases: it takes seconds to start."""
    return Engine(python)


def _build(case: Case) -> Ready | str:
    if case.deepsparse is None:
        return "no Python that has it was named (--deepsparse-python, SPARSEWRIGHT_DEEPSPARSE)"
    try:
        engine = _engine(case.deepsparse)
        version, form = _fastest(engine, case)
    except OSError as error:
        return f"{case.deepsparse} could not be started: {error}"
    except KernelError as error:
        return str(error)
    return Ready(engine, read=engine.output, note=f"version {version}, {form}; never written")


def _fastest(engine: Engine, case: Case) -> tuple[str, str]:
    """Load the form of the model that it runs fastest; returns its version and the form's name.

    Linear layers at small batches run several times faster there as 1x1 convolutions.
    """
    forms = {"as exported": (case.old_onnx, case.example)}
    if case.filters is None:
        return engine.load(*forms["as exported"], case.threads), "as exported"
    forms["as 1x1 convolutions"] = case.filters
    times: dict[str, float] = {}
    for name, form in forms.items():
        version = engine.load(*form, case.threads)
        engine.seconds(1 + TRIES // 2)
        times[name] = engine.seconds(TRIES)
    best = min(times, key=lambda name: times[name])
    if best != name:  # the last one is still loaded
        version = engine.load(*forms[best], case.threads)
    return version, best


PEERS.register("DeepSparse")(
    Peer("DeepSparse", "closed; a private yardstick", True, _build, published=False)
)
