"""OpenVINO IR from the ONNX file (it keeps names and shapes), and int8 by NNCF with min-max ranges.

For a stream step the signed activations, which are what its 1x1 convolutions expand, are symmetric: only then does
oneDNN (3.x, in OpenVINO 2026.4) run them with its fast int8 kernels, which know no zero-point. NNCF quantises the same
map anew for each of its users; they are made to share one quantiser, which OpenVINO fuses into the convolution.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.export.step import Feeds
from deploy.signals import kept_signal_stack
from toolkit.contract import Contract
from toolkit.errors import MissingDependency

__all__ = ["float_openvino", "int8_openvino"]


def float_openvino(source: Path, path: Path) -> None:
    """Convert a float ONNX file; weights stay fp32."""
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency("openvino", "export") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with _others_heard():
        model = openvino.convert_model(str(source))
    _save(openvino, model, path)


@contextlib.contextmanager
def _others_heard() -> Iterator[None]:
    """OpenVINO 2026.4's convert_model sets the root logger to ERROR for its time, and so silences the whole program."""
    root = logging.getLogger()
    root.setLevel = lambda level: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del root.setLevel


def int8_openvino(source: Path, feeds: Feeds, path: Path, contract: Contract | None = None) -> None:
    """Post-training quantisation; NNCF's default ranges lose 9 dB on stream models, min-max does not.

    Without a contract, or states in it, activations are quantised one by one and may have zero-points.
    """
    try:
        import nncf
        import openvino
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError as error:
        raise MissingDependency("nncf", "export") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    widest = RangeEstimatorParametersSet.MINMAX
    stream = contract is not None and bool(contract.states)
    with kept_signal_stack():
        model = nncf.quantize(
            openvino.Core().read_model(str(source)),
            nncf.Dataset(feeds),
            preset=nncf.QuantizationPreset.PERFORMANCE if stream else nncf.QuantizationPreset.MIXED,
            subset_size=len(feeds),
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=widest, weights_range_estimator_params=widest
            ),
        )
    if stream:
        _share_quantisers(model)
    _save(openvino, model, path)


def _share_quantisers(model: Any) -> None:
    """Let slices of a map, and the sums that it goes into, use one quantiser of the map.

    A sum's other term, the convolution just before it, then needs none: it is added before it is rounded.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Slice":
            source = node.input(0).get_source_output()
            for quantiser in _quantisers(source)[:1]:
                node.input(0).replace_source_output(quantiser.output(0))
                for other in _quantisers(node.output(0)):
                    if _range(other) == _range(quantiser):
                        _bypass(other, node.output(0))
        elif node.get_type_name() == "Add":
            terms = [node.input(index).get_source_output() for index in range(2)]
            if all(term.get_node().get_type_name() == "FakeQuantize" for term in terms):
                lone = [term for term in terms if len(_users(term.get_node().input(0).get_source_output())) == 1]
                for term in lone[:1]:
                    _bypass(term.get_node(), term.get_node().input(0).get_source_output())
    model.validate_nodes_and_infer_types()


def _users(output: Any) -> list[Any]:
    return [target.get_node() for target in output.get_target_inputs()]


def _quantisers(output: Any) -> list[Any]:
    """The quantisers of an activation, of one range each."""
    return [node for node in _users(output) if node.get_type_name() == "FakeQuantize" and _range(node)]


def _range(quantiser: Any) -> tuple[float, ...]:
    """Its four limits; nothing where they differ by channel or are computed."""
    limits = [quantiser.input(index).get_source_output().get_node() for index in range(1, 5)]
    if any(limit.get_type_name() != "Constant" or limit.data.size != 1 for limit in limits):
        return ()
    return tuple(float(limit.data.ravel()[0]) for limit in limits)


def _bypass(quantiser: Any, source: Any) -> None:
    for target in list(quantiser.output(0).get_target_inputs()):
        target.replace_source_output(source)


def _save(openvino: Any, model: Any, path: Path) -> None:
    """Save with the weights as they are; layers named by a counter of the process are numbered in order instead."""
    for index, layer in enumerate(model.get_ordered_ops()):
        if re.search(r"_\d+$", layer.get_friendly_name()) and layer.get_type_name() not in ("Parameter", "Result"):
            layer.set_friendly_name(f"{layer.get_type_name()}_{index}")
    openvino.save_model(model, str(path), compress_to_fp16=False)
