"""OpenVINO IR from the ONNX file (it keeps names and shapes), and int8 by NNCF with min-max ranges."""

import re
from pathlib import Path
from typing import Any

from deploy.export.step import Feeds
from deploy.signals import kept_signal_stack
from toolkit.errors import MissingDependency

__all__ = ["float_openvino", "int8_openvino"]


def float_openvino(source: Path, path: Path) -> None:
    """Convert a float ONNX file; weights stay fp32."""
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency("openvino", "export") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(openvino, openvino.convert_model(str(source)), path)


def int8_openvino(source: Path, feeds: Feeds, path: Path) -> None:
    """Post-training quantisation; NNCF's default ranges lose 9 dB on stream models, min-max does not."""
    try:
        import nncf
        import openvino
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError as error:
        raise MissingDependency("nncf", "export") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    widest = RangeEstimatorParametersSet.MINMAX
    with kept_signal_stack():
        model = nncf.quantize(
            openvino.Core().read_model(str(source)),
            nncf.Dataset(feeds),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(feeds),
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=widest, weights_range_estimator_params=widest
            ),
        )
    _save(openvino, model, path)


def _save(openvino: Any, model: Any, path: Path) -> None:
    """Save with the weights as they are; layers named by a counter of the process are numbered in order instead."""
    for index, layer in enumerate(model.get_ordered_ops()):
        if re.search(r"_\d+$", layer.get_friendly_name()) and layer.get_type_name() not in ("Parameter", "Result"):
            layer.set_friendly_name(f"{layer.get_type_name()}_{index}")
    openvino.save_model(model, str(path), compress_to_fp16=False)
