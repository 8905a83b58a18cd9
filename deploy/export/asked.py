"""What is asked of an export, judged before anything is loaded: names, chips, vendors' tools and libraries."""

import importlib.util
from collections.abc import Iterable, Sequence

from deploy.export.targeted import need_tools
from deploy.runtimes import RUNTIMES, load
from deploy.targets import COMPILED, Target, targets_for
from deploy.vela_config import MemorySystem, on_board
from toolkit.bundle import Precision
from toolkit.errors import MissingDependency, UserError, nearest

__all__ = ["asked_of", "targets_of"]

_ONNX = (("onnx", "onnx", "export"), ("onnxscript", "onnxscript", "export"))
#: (runtime, precision) -> modules that make its file, each with its package and extra; int8 needs the float file's too.
_MAKERS: dict[tuple[str, Precision], tuple[tuple[str, str, str], ...]] = {
    ("onnxruntime", "fp32"): _ONNX,
    ("onnxruntime", "int8"): (*_ONNX, ("onnxruntime", "onnxruntime", "export")),
    ("openvino", "fp32"): (*_ONNX, ("openvino", "openvino", "export")),
    ("openvino", "int8"): (*_ONNX, ("openvino", "openvino", "export"), ("nncf", "nncf", "export")),
    ("litert", "fp32"): (("litert_torch", "litert-torch", "export-litert"),),
    ("litert", "int8"): (
        ("litert_torch", "litert-torch", "export-litert"), ("ai_edge_quantizer", "ai-edge-quantizer", "export-litert"),
    ),
}  # fmt: skip


def asked_of(
    runtimes: Sequence[str],
    precisions: Sequence[str],
    targets: Sequence[str] = (),
    board: MemorySystem | None = None,
    batches: Sequence[int] = (),
) -> tuple[list[Target], list[tuple[str, Precision]]]:
    """(chips to compile for, every (runtime, precision) to make); all that can be judged without a model is.

    Raises:
        UserError: an unknown name, a board without its chip, batches without LiteRT, or nothing is left.
        MissingDependency, MissingTool: an exporter's library, or a chip's compiler, is not installed.
    """
    chips = targets_for(runtimes, targets)
    chips = chips if board is None else on_board(chips, board)
    need_tools(chips)
    asked = targets_of([*runtimes, *(chip.runtime for chip in chips)], precisions)
    if batches and all(runtime != "litert" for runtime, _ in asked):
        raise UserError("--batch makes files of LiteRT, the others take any batch: name litert among the runtimes too")
    _need_libraries(asked)
    return chips, asked


def targets_of(runtimes: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, Precision]]:
    """Every (runtime, precision) asked for that exists: torch is fp32 only.

    Raises:
        UserError: unknown runtime or precision, or nothing is left.
    """
    for name in runtimes:
        load(name)
    known = ("fp32", "int8")
    for precision in precisions:
        if precision not in known:
            raise UserError(
                f"unknown precision {precision!r}{nearest(precision, known)}; precisions: {', '.join(known)}"
            )
    wanted: list[tuple[str, Precision]] = []
    for name in RUNTIMES:
        if name not in runtimes or name in COMPILED:
            continue
        if "fp32" in precisions:
            wanted.append((name, "fp32"))
        if "int8" in precisions and name != "torch":
            wanted.append((name, "int8"))
    if not wanted and not COMPILED.keys() & set(runtimes):
        raise UserError(f"nothing to export: {', '.join(runtimes)} in {', '.join(precisions)}")
    return wanted


def _need_libraries(asked: Iterable[tuple[str, Precision]]) -> None:
    """Look for the libraries without importing them, which takes seconds."""
    for pair in asked:
        for module, package, extra in _MAKERS.get(pair, ()):
            if importlib.util.find_spec(module) is None:
                raise MissingDependency(package, extra)
