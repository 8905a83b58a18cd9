"""ONNX with quantise/dequantise pairs for NPU compilers: static int8, stream states with equal parameters.

Unlike the file for ONNX Runtime's own processor kernels, every activation keeps its own pair (``keep removable``: a
compiler that folds a ReLU into the layer before it would otherwise lose its range, RKNN by a factor of ten), and
the sign of the activations is what the target wants.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploy.export.ranges import Range, groups_of, shared_ranges
from deploy.export.step import Feeds
from toolkit.contract import Contract
from toolkit.errors import MissingDependency

__all__ = ["MOVES", "qdq_onnx"]

#: Operators that move values without changing them.
MOVES = {"Concat", "Slice", "Transpose", "Reshape", "Identity", "Pad", "Split", "Squeeze", "Unsqueeze", "Flatten"}


def qdq_onnx(source: Path, contract: Contract, feeds: Feeds, path: Path, activations: Literal["u8", "s8"]) -> None:
    """Quantise a float ONNX file: weights s8 per channel and symmetric, activations asymmetric ``u8`` or ``s8``."""
    try:
        import onnx
        from onnxruntime import quantization as quant
    except ImportError as error:
        raise MissingDependency("onnxruntime", "export") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = onnx.load(str(source)).graph
    constants = {tensor.name for tensor in graph.initializer}
    moves = [
        [name for name in (*node.input, *node.output) if name and name not in constants]
        for node in graph.node
        if node.op_type in MOVES
    ]
    groups = groups_of(moves, [(state.output, state.name) for state in contract.states])
    ranges = _measure(source, {name for group in groups for name in group}, feeds)
    fixed = {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
        for name, (low, high) in shared_ranges(groups, ranges).items()
    }

    class Reader(quant.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    quant.quantize_static(
        str(source), str(path), Reader(), quant_format=quant.QuantFormat.QDQ, per_channel=True,
        activation_type=quant.QuantType.QUInt8 if activations == "u8" else quant.QuantType.QInt8,
        weight_type=quant.QuantType.QInt8, calibrate_method=quant.CalibrationMethod.MinMax,
        # By default ONNX Runtime leaves Sub, Abs and others in float; an integer NPU then cannot take them.
        op_types_to_quantize=sorted({node.op_type for node in graph.node}),
        extra_options={"QDQKeepRemovableActivations": True, "WeightSymmetric": True, "TensorQuantOverrides": fixed},
    )  # fmt: skip


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
