"""LiteRT int8 from end to end: int8 frame and states in, int8 logits and states out, states fed back as raw integers.

The quantiser gives each tensor the range it saw, so a state would leave with another scale than it enters with, and
a requantising operator would stand before every concat. The calibrated ranges are therefore made equal along each
state's way (:mod:`deploy.export.ranges`) before quantising, and the file is refused if its states still differ.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.chatter import without_news
from deploy.export.litert import SIGNATURE, calibrated, quantised
from deploy.export.ranges import groups_of, shared_ranges, unequal_states
from deploy.export.step import Feeds
from toolkit.contract import Contract

__all__ = ["equal_states", "feedback_litert", "state_quantisation"]

#: Operators that move values without changing them.
MOVES = {"CONCATENATION", "SLICE", "STRIDED_SLICE", "TRANSPOSE", "RESHAPE", "PAD", "SPLIT", "SQUEEZE", "EXPAND_DIMS"}


def feedback_litert(source: Path, contract: Contract, feeds: Feeds, path: Path) -> None:
    """Quantise a float LiteRT file over rollouts.

    Raises:
        ParityError: a state has other parameters at its output than at its input.
    """
    tool, ranges = calibrated(source, feeds, float_ends=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(quantised(tool, equal_states(source, contract, ranges)))
    unequal_states(state_quantisation(path, contract))


def equal_states(source: Path, contract: Contract, measured: Mapping[str, Any]) -> dict[str, Any]:
    """``measured`` (tensor -> {min, max}) with one range for all that carries the same stream state."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

    model = flatbuffer.read_model(str(source))
    graph = model.subgraphs[0]
    names = [tensor.name.decode() for tensor in graph.tensors]
    kinds = flatbuffer.TFL_OP_CODE_TO_NAME
    moves = []
    for operator in graph.operators:
        kind = kinds.get(model.operatorCodes[operator.opcodeIndex].builtinCode)
        if kind is not None and kind.value in MOVES:
            moves.append([names[index] for index in (*operator.inputs, *operator.outputs) if names[index] in measured])
    inputs, outputs = _signature(model, names)
    links = [(outputs[state.output], inputs[state.name]) for state in contract.states]
    ranges = {name: (float(np.min(row["min"])), float(np.max(row["max"]))) for name, row in measured.items() if row}
    result = dict(measured)
    for name, (low, high) in shared_ranges(groups_of(moves, links), ranges).items():
        shape = np.shape(measured[name]["min"])
        result[name] = {"min": np.full(shape, low, np.float32), "max": np.full(shape, high, np.float32)}
    return result


def state_quantisation(path: Path, contract: Contract) -> dict[str, tuple[tuple[float, int], tuple[float, int]]]:
    """(scale, zero-point) of each state at the input and at the output of an int8 file."""
    from ai_edge_litert.interpreter import Interpreter

    with without_news():
        runner = Interpreter(model_path=str(path)).get_signature_runner(SIGNATURE)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    return {
        state.name: (tuple(inputs[state.name]["quantization"]), tuple(outputs[state.output]["quantization"]))
        for state in contract.states
    }


def _signature(model: Any, names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Contract name -> tensor name, of the inputs and of the outputs."""
    signature = model.signatureDefs[0]
    inputs = {entry.name.decode(): names[entry.tensorIndex] for entry in signature.inputs}
    return inputs, {entry.name.decode(): names[entry.tensorIndex] for entry in signature.outputs}
