"""ONNX with quantise/dequantise pairs for NPU compilers: static int8, stream states with equal parameters.

Unlike the file for ONNX Runtime's own processor kernels, every activation keeps its own pair (``keep removable``: a
compiler that folds a ReLU into the layer before it would otherwise lose its range, RKNN by a factor of ten), and
the sign of the activations is what the target wants.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploy.export.ranges import Range, groups_of, shared_ranges
from deploy.export.step import Feeds
from toolkit.contract import Contract
from toolkit.errors import MissingDependency

__all__ = ["MOVES", "Activations", "Prepare", "equal_ranges", "qdq_onnx"]

Prepare = Callable[[Any], None]
Activations = Literal["u8", "s8", "s8-symmetric"]
#: Operators that move values without changing them.
MOVES = {"Concat", "Slice", "Transpose", "Reshape", "Identity", "Pad", "Split", "Squeeze", "Unsqueeze", "Flatten"}


def qdq_onnx(
    source: Path, contract: Contract, feeds: Feeds, path: Path, activations: Activations, prepare: Prepare | None = None
) -> None:
    """Quantise a float ONNX file; weights are s8, symmetric and per channel. ``prepare`` may change the float graph.

    QNN wants ``u8`` (symmetric activations there silently lose the ReLU of Clip(0, 6)), RKNN ``s8``, TensorRT
    ``s8-symmetric`` with float biases.
    """
    try:
        import onnx
        from onnxruntime import quantization as quant
    except ImportError as error:
        raise MissingDependency("onnxruntime", "export") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    model = onnx.load(str(source))
    if prepare is not None:
        prepare(model.graph)
    _set_outputs_apart(onnx, model.graph)
    prepared = path.with_name(f"{path.name}.float.onnx")
    symmetric, kinds = activations == "s8-symmetric", {node.op_type for node in model.graph.node}

    class Reader(quant.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    try:
        onnx.save(model, str(prepared))
        fixed = equal_ranges(model.graph, prepared, contract, feeds)
        quant.quantize_static(
            str(prepared), str(path), Reader(), quant_format=quant.QuantFormat.QDQ, per_channel=True,
            activation_type=quant.QuantType.QUInt8 if activations == "u8" else quant.QuantType.QInt8,
            weight_type=quant.QuantType.QInt8, calibrate_method=quant.CalibrationMethod.MinMax,
            # By default ONNX Runtime leaves Sub, Abs and others in float; an integer NPU then cannot take them.
            # TensorRT computes them in float, and refuses the quantised constants that they would bring.
            op_types_to_quantize=sorted(kinds - {"Sub", "Mul"} if symmetric else kinds),
            extra_options={
                "QDQKeepRemovableActivations": True, "WeightSymmetric": True, "TensorQuantOverrides": fixed,
                "ActivationSymmetric": symmetric, "QuantizeBias": not symmetric,
            },
        )  # fmt: skip
    finally:
        prepared.unlink(missing_ok=True)


def _set_outputs_apart(onnx: Any, graph: Any) -> None:
    """Give each output that the graph itself goes on using a copy of its own.

    rknn-toolkit2 2.5 ends with ``KeyError: 'state_00_next_dup'`` on a tensor that is both.
    """
    used = {name for node in graph.node for name in node.input}
    for output in graph.output:
        if output.name not in used:
            continue
        kept = f"{output.name}_kept"
        for node in graph.node:
            node.input[:] = [kept if name == output.name else name for name in node.input]
            node.output[:] = [kept if name == output.name else name for name in node.output]
        graph.node.append(onnx.helper.make_node("Identity", [kept], [output.name], name=f"{output.name}_copy"))


def equal_ranges(graph: Any, source: Path, contract: Contract, feeds: Feeds) -> dict[str, Any]:
    """ONNX Runtime's overrides for all that carries a stream state: one range along each state's way."""
    constants = {tensor.name for tensor in graph.initializer}
    moves = [
        [name for name in (*node.input, *node.output) if name and name not in constants]
        for node in graph.node
        if node.op_type in MOVES
    ]
    groups = groups_of(moves, [(state.output, state.name) for state in contract.states])
    ranges = _measure(source, {name for group in groups for name in group}, feeds)
    return {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
        for name, (low, high) in shared_ranges(groups, ranges).items()
    }


def _measure(source: Path, names: set[str], feeds: Feeds) -> dict[str, Range]:
    """Least and greatest value of the named tensors over the rollouts."""
    import onnx
    import onnxruntime

    model = onnx.load(str(source))
    inputs = {value.name for value in model.graph.input}
    known = {value.name for value in model.graph.output}
    inner = sorted(names - inputs - known)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = [*inner, *sorted(names & known)]
    found: dict[str, Range] = {}
    for feed in feeds:
        values = dict(zip(wanted, session.run(wanted, feed), strict=True)) | {n: feed[n] for n in names & inputs}
        for name, value in values.items():
            low, high = found.get(name, (np.inf, -np.inf))
            found[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return found
