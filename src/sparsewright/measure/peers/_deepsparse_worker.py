"""The other side of peers/deepsparse.py: run by an older Python that has DeepSparse, not by ours.

It reads one JSON object per line and answers with one:
{"load": model.onnx, "input": x.npy, "threads": n} -> {"version": ...}
{"run": repeats} -> {"seconds": s}     {"output": y.npy} -> {}     anything that fails -> {"error"}
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

Answer = dict[str, Any]


class Worker:
    """One loaded engine and its input."""

    engine: Any = None
    inputs: Any = None
    outputs: Any = None

    def load(self, ask: Answer) -> Answer:
        # By name: neither package is a dependency of the project that this file ships with.
        deepsparse, np = (importlib.import_module(name) for name in ("deepsparse", "numpy"))
        self.engine = None  # frees the last one first
        self.inputs = [np.load(ask["input"])]
        self.engine = deepsparse.Engine(
            model=ask["load"],
            batch_size=len(self.inputs[0]),
            num_cores=ask["threads"],
            scheduler=deepsparse.Scheduler.single_stream,
        )
        return {"version": importlib.import_module("importlib.metadata").version("deepsparse")}

    def run(self, ask: Answer) -> Answer:
        engine, inputs = self.engine, self.inputs
        start = time.perf_counter()
        for _ in range(ask["run"]):
            self.outputs = engine.run(inputs, val_inp=False)
        return {"seconds": time.perf_counter() - start}

    def output(self, ask: Answer) -> Answer:
        importlib.import_module("numpy").save(ask["output"], self.outputs[0])
        return {}

    def answer(self, ask: Answer) -> Answer:
        work = next(getattr(self, key) for key in ("load", "run", "output") if key in ask)
        try:
            return work(ask)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine's own words must not get between the answers
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
