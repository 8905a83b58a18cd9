"""Rockchip: the QDQ ONNX file through rknn-toolkit2; the source stays beside it, for the simulator.

The simulator runs only what was built in the same process, so it builds ``source.onnx`` again (about a second).
"""

import shutil
from pathlib import Path
from typing import Any

from deploy.estimate import FILE, Estimate, estimate_of_rknn
from deploy.targets import SOURCE, Target
from devices.tools import Worker, python_of, tool_called

__all__ = ["ENTRY", "compile_rknn", "four_dimensions"]

ENTRY = "model.rknn"


def compile_rknn(source: Path, target: Target, folder: Path) -> Estimate:
    """Build for one chip into ``folder``.

    Raises:
        MissingTool: rknn-toolkit2 has no environment yet.
        ToolError: it refused the file.
    """
    tool = tool_called("rockchip")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / SOURCE)
    with Worker(tool.name, python_of(tool)) as worker:
        request = {"source": str(folder / SOURCE), "out": str(folder / ENTRY), **target.settings}
        result, _ = worker.call("compile", request)
        estimate = estimate_of_rknn(target.name, str(worker.hello["version"]), result["layers"])
    (folder / FILE).write_text(estimate.model_dump_json(indent=2) + "\n")
    return estimate


def four_dimensions(graph: Any) -> None:
    """Turn the linear layers over pooled maps into 1x1 convolutions, so that all stays 4-D: logits (1, K, 1, 1).

    rknn-toolkit2 2.5 puts the Reshape of a linear layer's answer on the processor, and crashes (signal 4 or 11) where
    two linear layers are added. A graph with any other linear layer is left as it is.
    """
    makers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type == "Gemm"]
    if not layers or not all(_over_a_pooled_map(layer, makers, weights) for layer in layers):
        return
    for layer in layers:
        _to_convolution(layer, makers, weights)
    used = {name for node in graph.node for name in node.input}
    for node in [n for n in graph.node if n.op_type in _FLATTENING and not used & set(n.output)]:
        graph.node.remove(node)
    (logits,) = [output for output in graph.output if output.name == "logits"]
    for size in (1, 1):
        logits.type.tensor_type.shape.dim.add().dim_value = size
    del graph.value_info[:]  # the old shapes


_FLATTENING = {"Flatten", "Reshape"}


def _over_a_pooled_map(layer: Any, makers: dict[str, Any], weights: dict[str, Any]) -> bool:
    """Whether it is plain ``x W^T + b`` over a mean, or over the flattened answer of a pooling to one pixel."""
    from onnx import helper

    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in layer.attribute}
    plain = options.get("transB", 0) == 1 and options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
    before = makers.get(layer.input[0])
    if not plain or layer.input[1] not in weights or before is None:
        return False
    if before.op_type == "ReduceMean":
        return True
    inner = makers.get(before.input[0])
    return before.op_type in _FLATTENING and inner is not None and "Pool" in inner.op_type


def _to_convolution(layer: Any, makers: dict[str, Any], weights: dict[str, Any]) -> None:
    from onnx import numpy_helper

    before, weight = makers[layer.input[0]], weights[layer.input[1]]
    if before.op_type == "ReduceMean":
        for attribute in before.attribute:
            if attribute.name == "keepdims":
                attribute.i = 1
    else:
        layer.input[0] = before.input[0]
    flat = numpy_helper.to_array(weight)
    if flat.ndim == 2:
        weight.CopyFrom(numpy_helper.from_array(flat[:, :, None, None].copy(), weight.name))
    layer.op_type = "Conv"
    del layer.attribute[:]
