"""A chain of Linear and ReLU written as ONNX by hand, and torch's older exporter for the rest."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..chain import chain

OPSET = 13  # of 2021: every library here reads it
OLD_OPSET = 14
NO_WORDS: dict[str, Any] = {}


def chain_onnx(model: nn.Module, example: Tensor, *, filters: bool = False) -> bytes | str:
    """The chain as ONNX's bytes, or why the model is none (or takes no matrix).

    filters: write the Linear layers as 1x1 convolutions of (batch, features, 1, 1) instead, which
    some libraries serve faster.
    """
    if example.dim() != 2:
        return f"takes a matrix; got an example of shape {tuple(example.shape)}"
    steps = chain(model, example)
    if isinstance(steps, str):
        return steps
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "x"
    width = example.shape[1]
    ones = (1, 1) if filters else ()
    for number, step in enumerate(steps):
        made = f"y{number}"
        if isinstance(step, nn.Linear):
            tensors = {"w": step.weight.detach().reshape(*step.weight.shape, *ones)}
            if step.bias is not None:
                tensors["b"] = step.bias.detach()
            inputs = [f"{key}{number}" for key in tensors]
            named = zip(inputs, tensors.values(), strict=True)
            weights += [numpy_helper.from_array(t.numpy(), name) for name, t in named]
            op, how = ("Conv", NO_WORDS) if filters else ("Gemm", {"transB": 1})
            nodes.append(helper.make_node(op, [last, *inputs], [made], **how))
            width = step.out_features
        else:
            nodes.append(helper.make_node("Relu", [last], [made]))
        last = made
    shapes = {"x": (*example.shape, *ones), last: (example.shape[0], width, *ones)}
    x, y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items())
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    proto.ir_version = 8
    return proto.SerializeToString()


def old_onnx(model: nn.Module, example: Tensor) -> bytes:
    """The model through the exporter that traces, at opset 14."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own age
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (example,), path, dynamo=False, opset_version=OLD_OPSET)
        return path.read_bytes()
