"""LiteRT (.tflite) through litert-torch, NHWC inside, and static int8 with min-max ranges.

The quantiser's default calibrator averages ranges with a 0.95 moving average, so that sample order matters and
early zero states bias them; ours keeps the widest.
"""

from pathlib import Path
from typing import Any

import numpy as np

from deploy.chatter import without_news
from deploy.export.step import Feeds, sample_inputs
from toolkit.contract import Contract
from toolkit.errors import MissingDependency

__all__ = ["SIGNATURE", "calibrated", "float_litert", "int8_litert", "quantised"]

#: The one signature of a file that litert-torch writes.
SIGNATURE = "serving_default"

# Position of the channels: first in torch, last in LiteRT. By number of dimensions, batch included.
_LAST = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
_FIRST = {4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}


def float_litert(step: Any, contract: Contract, path: Path, batch: int = 1) -> None:
    """Convert the step with named NHWC inputs and outputs for a fixed batch."""
    try:
        import torch

        with without_news():
            import litert_torch
    except ImportError as error:
        raise MissingDependency("litert-torch", "export-litert") from error
    first, *others = contract.input_names

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = step

        def forward(self, **inputs: Any) -> dict[str, Any]:
            values = [inputs[name].permute(_FIRST[inputs[name].ndim]) for name in (first, *others)]
            outputs = self.step(*values)
            named = zip(contract.output_names, outputs, strict=True)
            return {name: value.permute(_LAST[value.ndim]) if value.ndim in _LAST else value for name, value in named}

    samples = {
        name: value.permute(_LAST[value.ndim]).contiguous()
        for name, value in zip(contract.input_names, sample_inputs(contract, batch), strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with without_news():
        litert_torch.convert(Named().eval(), sample_kwargs=samples).export(str(path))


def int8_litert(source: Path, feeds: Feeds, path: Path) -> None:
    """Static int8 weights and activations; inputs and outputs stay float."""
    tool, ranges = calibrated(source, feeds, float_ends=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(quantised(tool, ranges))


def calibrated(source: Path, feeds: Feeds, float_ends: bool) -> tuple[Any, dict[str, Any]]:
    """A quantiser for a float file, and the widest range of every tensor over the feeds (tensor -> {min, max}).

    With ``float_ends`` the file's inputs and outputs are left float.
    """
    try:
        from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe
    except ImportError as error:
        raise MissingDependency("ai-edge-quantizer", "export-litert") from error
    tool = quantizer.Quantizer(str(source))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT) if float_ends else ():
        tool.update_quantization_recipe(
            regex=".*", operation_name=end, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
        )
    samples = [{n: np.ascontiguousarray(v.transpose(_LAST[v.ndim])) for n, v in feed.items()} for feed in feeds]
    meter = calibrator.Calibrator(source.read_bytes(), num_threads=2, qsv_update_func=_widest)
    meter._get_total_operations = lambda dataset: 0  # below a hundred it shows no bar, which 0.10 has no option for
    meter.calibrate({SIGNATURE: samples}, tool._recipe_manager)  # 0.10 has no public way to pass a calibrator
    return tool, meter.get_model_qsvs()


def quantised(tool: Any, ranges: dict[str, Any]) -> bytes:
    """The int8 file, without a word about it."""
    made = tool.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(made.quantized_model)


def _widest(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    if not known:
        return new
    return {"min": np.minimum(known["min"], new["min"]), "max": np.maximum(known["max"], new["max"])}
