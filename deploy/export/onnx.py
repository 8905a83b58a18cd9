"""ONNX: float export, and static int8 in QDQ form (u8 activations, s8 weights per channel).

The batch is static, or the free dimension ``batch`` that a runtime fixes when it opens the file. Large weights go to
a file beside it whose name follows from the model's.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from deploy.export.integers import integer_states
from deploy.export.qdq import equal_ranges
from deploy.export.step import Feeds, free_batch, sample_inputs
from toolkit.contract import Contract
from toolkit.errors import MissingDependency, UserError

__all__ = ["NEWEST", "OPSET", "float_onnx", "int8_onnx"]

#: What NPU compilers read (they want 17 or 18), and the newest that ONNX Runtime 1.20 reads.
OPSET, NEWEST = 18, 21
OPSETS = range(17, 24)
_LOWEST = 18  # torch's exporter writes nothing older: the older exporter does
_LARGE = 1_500_000_000  # a protobuf ends at 2 GB


def float_onnx(
    step: Any, contract: Contract, path: Path, *, opset: int = OPSET, batch: int | None = 1, external: bool = False
) -> None:
    """Write the float graph with the contract's names. ``batch`` None leaves the batch free.

    With ``external`` (always above 1.5 GB) the weights go to ``<name>.data`` beside the file.

    Raises:
        UserError: an opset that this exporter does not write.
    """
    if opset not in OPSETS:
        raise UserError(f"ONNX opset {opset} cannot be written: choose {OPSETS.start} to {OPSETS.stop - 1}")
    try:
        import onnx
        import torch
    except ImportError as error:
        raise MissingDependency("onnx", "export") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    model = _graph(torch, onnx, step, contract, opset, batch)
    # Stack traces and paths of the exporting machine would make equal models differ.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:]
    beside = external or model.ByteSize() > _LARGE
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # onnx would append to an old one
    onnx.save(model, str(path), save_as_external_data=beside, location=f"{path.name}.data", size_threshold=1024)


def _graph(torch: Any, onnx: Any, step: Any, contract: Contract, opset: int, batch: int | None) -> Any:
    """The model as torch's exporter gives it; below opset 18 only the older exporter can."""
    samples, shapes = free_batch(contract) if batch is None else (sample_inputs(contract, batch), None)
    names = {"input_names": contract.input_names, "output_names": contract.output_names}
    if opset >= _LOWEST:
        program = torch.onnx.export(step, samples, dynamo=True, opset_version=opset, verbose=False,
                                    dynamic_shapes=shapes, external_data=False, **names)  # fmt: skip
        return program.model_proto
    axes = {name: {0: "batch"} for name in (*contract.input_names, *contract.output_names)} if batch is None else None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "model.onnx"
        torch.onnx.export(step, samples, str(file), dynamo=False, opset_version=opset, dynamic_axes=axes, **names)
        return onnx.load(str(file))


def int8_onnx(source: Path, feeds: Feeds, path: Path, contract: Contract | None = None) -> None:
    """Quantise a float file with min-max ranges over the rollouts' steps; without a contract states stay float."""
    try:
        import onnx
        from onnxruntime import quantization as quant
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingDependency("onnxruntime", "export") from error
    path.parent.mkdir(parents=True, exist_ok=True)

    class Reader(quant.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    prepared = path.with_name("prepared.onnx")
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        fixed = {} if contract is None else equal_ranges(onnx.load(str(prepared)).graph, prepared, contract, feeds)
        quant.quantize_static(
            str(prepared), str(path), Reader(), quant_format=quant.QuantFormat.QDQ, per_channel=True,
            activation_type=quant.QuantType.QUInt8, weight_type=quant.QuantType.QInt8,
            calibrate_method=quant.CalibrationMethod.MinMax, extra_options={"TensorQuantOverrides": fixed},
        )  # fmt: skip
    finally:
        prepared.unlink(missing_ok=True)
    if contract is not None:
        model = onnx.load(str(path))
        integer_states(onnx, model, contract)
        onnx.save(model, str(path))
