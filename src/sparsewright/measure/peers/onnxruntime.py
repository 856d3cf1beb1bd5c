"""ONNX Runtime on its CPU provider: for many users the dense way."""

from __future__ import annotations

from ..dense import onnx_session
from . import PEERS, Case, Peer, Ready


def _build(case: Case) -> Ready | str:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed (the extra 'bench' has it)"
    return Ready(onnx_session(case.onnx, case.example))


PEERS.register("ONNX Runtime")(Peer("ONNX Runtime", "its CPU provider", False, _build))
