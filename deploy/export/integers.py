"""Stream states as plain integers between the steps of an int8 ONNX file, in the layout that its kernels compute in.

As the quantiser leaves it, each state enters as float, is quantised, joined with its neighbours and reordered, and
leaves the same way back: with ten small states a quarter of the step in ONNX Runtime. Here the operators that only
move values work on the integers themselves, the states of the graph are uint8 (B, H, W, C), and nothing but the moves
is left. What an integer 0.0 is, the zero-point, is written into the file for whoever resets the stream. A state whose
input and output have unequal parameters, or that is no feature map, stays as it is: float (B, C, H, W).
"""

import json
from collections import defaultdict
from typing import Any

from deploy.export.qdq import MOVES
from toolkit.contract import Contract

__all__ = ["integer_states"]

_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
_FIRST, _LAST = [0, 3, 1, 2], [0, 2, 3, 1]  # where the channels go


class _Graph:
    """A QDQ graph with the questions that are asked of it."""

    def __init__(self, onnx: Any, graph: Any) -> None:
        self.onnx, self.graph = onnx, graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.refresh()

    def refresh(self) -> None:
        """Look again, after a change."""
        self.maker = {name: node for node in self.graph.node for name in node.output}
        self.users: dict[str, list[Any]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.users[name].append(node)

    def parameters(self, node: Any) -> tuple[bytes, bytes]:
        """Scale and zero-point of a quantise or dequantise node, to be compared."""
        scale, zero = (self.constants[name] for name in node.input[1:3])
        array = self.onnx.numpy_helper.to_array
        return array(scale).tobytes(), array(zero).tobytes()

    def zero_point(self, node: Any) -> int:
        return int(self.onnx.numpy_helper.to_array(self.constants[node.input[2]]))

    def made_by(self, name: str) -> Any:
        """The dequantise node that makes this tensor, or None."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == _DEQUANTISE else None

    def taken_by(self, name: str) -> list[Any]:
        """The quantise nodes that take this tensor; none if anything else takes it too, or it leaves the graph."""
        users = self.users[name]
        leaves = any(output.name == name for output in self.graph.output)
        return [] if leaves or any(node.op_type != _QUANTISE for node in users) else users

    def replace(self, old: str, new: str) -> None:
        """Let all who take ``old`` take ``new``."""
        for node in self.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]


def integer_states(onnx: Any, model: Any, contract: Contract) -> list[str]:
    """Change a quantised model in place; the names of the states that are integers now."""
    graph = _Graph(onnx, model.graph)
    for node in list(model.graph.node):
        if node.op_type in MOVES:
            _move_integers(graph, node)
    points = {state.name: _open(graph, state.name, state.output) for state in contract.states}
    zeros = {name: point for name, point in points.items() if point is not None}
    _prune(model.graph)
    if zeros:
        model.metadata_props.add(key="zero_points", value=json.dumps(zeros, sort_keys=True))
    return list(zeros)


def _move_integers(graph: _Graph, node: Any) -> None:
    """Let one moving operator work on integers, if what goes in and what comes out has the same parameters."""
    values = [name for name in node.input if name and name not in graph.constants]
    sources = {name: graph.made_by(name) for name in values}
    takers = [quantise for name in node.output for quantise in graph.taken_by(name)]
    if None in sources.values() or not all(graph.taken_by(name) for name in node.output):
        return
    if len({graph.parameters(other) for other in (*sources.values(), *takers)}) != 1:
        return
    node.input[:] = [sources[name].input[0] if name in sources else name for name in node.input]
    for output in list(node.output):
        first, *others = graph.taken_by(output)
        integers = first.output[0]
        for other in others:
            graph.replace(other.output[0], integers)
        for quantise in (first, *others):
            graph.graph.node.remove(quantise)
        node.output[list(node.output).index(output)] = integers
    graph.refresh()


def _open(graph: _Graph, name: str, output: str) -> int | None:
    """Make one state uint8 (B, H, W, C) at both ends; its zero-point, or None where it must stay float."""
    takers, last = graph.taken_by(name), graph.made_by(output)
    if not takers or last is None or len({graph.parameters(node) for node in (*takers, last)}) != 1:
        return None
    ends = [value for value in (*graph.graph.input, *graph.graph.output) if value.name in (name, output)]
    if len(ends[0].type.tensor_type.shape.dim) != 4 or graph.users[output]:
        return None
    zero, nodes, make = graph.zero_point(last), graph.graph.node, graph.onnx.helper.make_node
    entry = takers[0].output[0]
    for quantise in takers:
        graph.replace(quantise.output[0], entry)
        nodes.remove(quantise)
    nodes.remove(last)
    nodes.insert(0, make("Transpose", [name], [entry], name=f"{name}_enter", perm=_FIRST))
    nodes.append(make("Transpose", [last.input[0]], [output], name=f"{output}_leave", perm=_LAST))
    for value in ends:
        _retype(graph.onnx, value.type.tensor_type)
    graph.refresh()
    return zero


def _retype(onnx: Any, tensor: Any) -> None:
    """Float (B, C, H, W) becomes uint8 (B, H, W, C)."""
    sizes = [onnx.TensorShapeProto.Dimension.FromString(size.SerializeToString()) for size in tensor.shape.dim]
    tensor.elem_type = onnx.TensorProto.UINT8
    del tensor.shape.dim[:]
    tensor.shape.dim.extend(sizes[place] for place in _LAST)


def _prune(graph: Any) -> None:
    """Take away what nothing uses any more."""
    while True:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        idle = [node for node in graph.node if not used & set(node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]  # shapes that are no longer true
