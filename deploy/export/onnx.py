"""ONNX: float export at opset 18, and static int8 in QDQ form (u8 activations, s8 weights per channel)."""

from pathlib import Path
from typing import Any

from deploy.export.step import Feeds, sample_inputs
from toolkit.contract import Contract
from toolkit.errors import MissingDependency

__all__ = ["float_onnx", "int8_onnx"]

OPSET = 18


def float_onnx(step: Any, contract: Contract, path: Path) -> None:
    """Write the float graph with the contract's names and static shapes."""
    try:
        import onnx
        import torch
    except ImportError as error:
        raise MissingDependency("onnx", "export") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        step, sample_inputs(contract), dynamo=True, opset_version=OPSET, verbose=False,
        input_names=contract.input_names, output_names=contract.output_names, external_data=False,
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    # Stack traces and paths of the exporting machine would make equal models differ.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:]
    onnx.save(model, str(path))


def int8_onnx(source: Path, feeds: Feeds, path: Path) -> None:
    """Quantise a float file with min-max ranges over the rollouts' steps."""
    try:
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
        quant.quantize_static(
            str(prepared), str(path), Reader(), quant_format=quant.QuantFormat.QDQ, per_channel=True,
            activation_type=quant.QuantType.QUInt8, weight_type=quant.QuantType.QInt8,
            calibrate_method=quant.CalibrationMethod.MinMax,
        )  # fmt: skip
    finally:
        prepared.unlink(missing_ok=True)
