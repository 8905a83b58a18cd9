"""What a target cannot take, told before any conversion starts: operator, layer, why, what to do instead.

The model is traced once and its operators are held against a table of what was tried and failed with the converters'
present versions (litert-torch 0.10, ai-edge-quantizer 0.10); without the table the converter fails minutes later
with a message about its own insides.
"""

import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from deploy.export.step import sample_inputs
from toolkit.contract import Contract

__all__ = ["Blocker", "find_blockers"]


@dataclass(frozen=True, slots=True)
class Blocker:
    """One operator that one target (``<runtime>-<precision>``) cannot take."""

    target: str
    operator: str
    layer: str
    why: str
    instead: str

    @property
    def line(self) -> str:
        """One line for people."""
        return f"{self.target} cannot take {self.operator} (layer {self.layer}): {self.why}; {self.instead}"


@dataclass(frozen=True, slots=True)
class _Rule:
    """``operator``, where ``applies``, stops every target whose key matches ``targets``."""

    targets: str
    operator: str
    applies: Callable[[Any], bool]
    why: str
    instead: str


def _always(_: Any) -> bool:
    return True


def _grouped(node: Any) -> bool:
    """conv3d(input, weight, bias, stride, padding, dilation, groups)."""
    return len(node.args) > 6 and node.args[6] != 1


def _not_one(node: Any) -> bool:
    """adaptive_avg_pool3d(input, size): a mean over everything is no pooling to LiteRT."""
    return any(size != 1 for size in node.args[1])


_POOL = "use fp32 there, OpenVINO or ONNX Runtime in int8, or a strided convolution instead of the pooling"
_FLAT = 'distil it into a streaming student (vidon distill; student.temporal = "shift" or "conv")'
_NPUS = "(ethosu|rknn|qnn)-.*"
_RULES = (
    _Rule("litert-.*", "conv3d", _grouped, "LiteRT's CONV_3D has no groups",
          "use OpenVINO or ONNX Runtime, or an ordinary Conv3d"),
    _Rule("litert-int8", "max_pool3d", _always, "the quantiser finds no range for the MAXIMUM it becomes", _POOL),
    _Rule("litert-int8", "avg_pool3d", _always, "the quantiser finds no range for the sum it becomes", _POOL),
    _Rule("litert-int8", "adaptive_avg_pool3d", _not_one, "the quantiser finds no range for the sum it becomes", _POOL),
    _Rule(_NPUS, "conv3d", _always, "it works on 5-D tensors, the chip's compiler on 4-D", _FLAT),
    _Rule(_NPUS, "max_pool3d", _always, "it works on 5-D tensors, the chip's compiler on 4-D", _FLAT),
    _Rule(_NPUS, "avg_pool3d", _always, "it works on 5-D tensors, the chip's compiler on 4-D", _FLAT),
)  # fmt: skip


def find_blockers(step: Any, contract: Contract, targets: Iterable[str]) -> list[Blocker]:
    """Every operator of the step that one of ``targets`` cannot take, in order of the graph."""
    asked = [(target, rule) for target in targets for rule in _RULES if re.fullmatch(rule.targets, target)]
    if not asked:
        return []
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.export.export(step, sample_inputs(contract)).graph
    found = []
    for node in graph.nodes:
        name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
        for target, rule in asked:
            if name == rule.operator and rule.applies(node):
                found.append(Blocker(target, name, _layer(node), rule.why, rule.instead))
    return found


def _layer(node: Any) -> str:
    """The path of the module the operator came from, below the model."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else node.name
    return path.removeprefix("model.") or node.name
