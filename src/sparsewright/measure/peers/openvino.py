"""OpenVINO: Intel's runtime for CPUs, dense in float32 (its sparse option needs 8-bit inputs)."""

from __future__ import annotations

import torch

from . import PEERS, Case, Peer, Ready


def _build(case: Case) -> Ready | str:
    try:
        import openvino
    except ImportError:
        return "openvino is not installed (the extra 'bench' has it)"
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": case.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # pinned threads would stand in the other candidates' way
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model=case.onnx), "CPU", settings)
    request = compiled.create_infer_request()
    x = case.example.numpy()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    return Ready(request.infer, read=lambda: torch.from_numpy(request.get_output_tensor().data))


PEERS.register("OpenVINO")(Peer("OpenVINO", "Intel's runtime, dense float32", False, _build))
