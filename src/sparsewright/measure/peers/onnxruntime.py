"""ONNX Runtime on its CPU provider: for many users the dense way.

Input and output are bound once, which saves the microseconds that a plain call spends on them.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from ..dense import onnx_session
from . import PEERS, Case, Peer, Ready


def _build(case: Case) -> Ready | str:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed (the extra 'bench' has it)"
    session = onnx_session(case.onnx)
    values = onnxruntime.OrtValue
    x = values.ortvalue_from_numpy(case.example.numpy())
    y = values.ortvalue_from_numpy(np.zeros(tuple(case.expected.shape), np.float32))
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, x)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, y)
    run = functools.partial(session.run_with_iobinding, binding)
    return Ready(run, read=lambda: torch.from_numpy(y.numpy()))


PEERS.register("ONNX Runtime")(Peer("ONNX Runtime", "its CPU provider", False, _build))
