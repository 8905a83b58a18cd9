"""Export for one named chip: check what it can take, quantise as it wants, compile, and check the answers.

Every result is labelled by its evidence: an artefact is ``simulated`` (the vendor's emulator, or for Ethos-U the int8
reference, gave its answers) or only ``compiled`` (its integer source was checked); the compiler's cycles are
``vendor-estimated``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.chatter import hushed
from deploy.estimate import Estimate
from deploy.export import qnn, rknn, tensorrt, vela
from deploy.export.feedback import feedback_litert
from deploy.export.limits import find_blockers
from deploy.export.litert import float_litert
from deploy.export.onnx import float_onnx
from deploy.export.qdq import Activations, Prepare, qdq_onnx
from deploy.export.rewrite import for_npu
from deploy.export.step import Feeds
from deploy.targets import Target
from deploy.verify import check_artefact
from devices.tools import python_of, tool_called
from toolkit.bundle import Artefact, Evidence, Golden
from toolkit.contract import Contract
from toolkit.errors import UserError
from toolkit.progress import note, track

__all__ = ["Sources", "add_targets", "need_tools"]

_OPSET = 18  # rknn-toolkit2 2.5 reads up to 19

Quantise = Callable[["Sources", Path], None]
Compile = Callable[[Path, Target, Path], Estimate | None]


@dataclass(frozen=True, slots=True)
class Sources:
    """What every target is made from: the flat float step, its calibration feeds, and room to work."""

    step: Any
    contract: Contract
    feeds: Callable[[], Feeds]
    scratch: Path

    def onnx(self) -> Path:
        """The float ONNX file for NPU compilers: opset 18, static batch of 1."""
        path = self.scratch / "npu.onnx"
        if not path.exists():
            float_onnx(self.step, self.contract, path, opset=_OPSET, batch=1)
        return path

    def litert(self) -> Path:
        """The float LiteRT file for Vela, without the operators that it would leave to the processor."""
        path = self.scratch / "npu.tflite"
        if not path.exists():
            float_litert(for_npu(self.step), self.contract, path)
        return path


def _feedback(sources: Sources, path: Path) -> None:
    feedback_litert(sources.litert(), sources.contract, sources.feeds(), path)


def _qdq(activations: Activations, prepare: Prepare | None = None) -> Quantise:
    def quantise(sources: Sources, path: Path) -> None:
        qdq_onnx(sources.onnx(), sources.contract, sources.feeds(), path, activations, prepare)

    return quantise


#: runtime -> (file that is shipped, how its answers are checked, how it is quantised, how it is compiled)
_ROADS: dict[str, tuple[str, Evidence, Quantise, Compile]] = {
    "ethosu": (vela.ENTRY, "simulated", _feedback, vela.compile_vela),
    "rknn": (rknn.ENTRY, "simulated", _qdq("s8", rknn.four_dimensions), rknn.compile_rknn),
    "qnn": (qnn.ENTRY, "simulated", _qdq("u8"), qnn.compile_qnn),
    "tensorrt": (tensorrt.ENTRY, "compiled", _qdq("s8-symmetric"), tensorrt.compile_tensorrt),
}


def need_tools(targets: Sequence[Target]) -> None:
    """What is missing is said before any work.

    Raises:
        MissingTool: a compiler has no environment yet.
    """
    for target in targets:
        python_of(tool_called(target.tool))


def add_targets(targets: Sequence[Target], sources: Sources, staging: Path, golden: Golden) -> list[Artefact]:
    """Compile for every target into ``staging`` and check the answers.

    Raises:
        UserError: a target cannot take the model; operator, layer, why and what to do instead.
        ToolError: a compiler refused the file.
        ParityError: the integer answers differ from the float model's.
    """
    if not targets:
        return []
    _refuse(targets, sources)
    return [_add(target, sources, staging, golden) for target in track(targets, "compile")]


def _refuse(targets: Sequence[Target], sources: Sources) -> None:
    """Name the first operator that a target cannot take, and how many more there are."""
    keys = [_artefact(target).key for target in targets]
    found = find_blockers(sources.step, sources.contract, keys)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(f"{found[0].line}{more}")
    if targets and not sources.feeds():
        raise UserError("int8 needs calibration streams: give at least one clip of the training split")
    if targets and sources.contract.kind == "clip":
        raise UserError(
            f"{keys[0]} cannot take a clip model: its input has 5 dimensions, the chip's compiler takes 4; distil it "
            "into a streaming student (vidon distill)"
        )


def _artefact(target: Target) -> Artefact:
    entry, evidence, _, _ = _ROADS[target.runtime]
    return Artefact(runtime=target.runtime, precision="int8", entry=entry, target=target.name, evidence=evidence)


def _add(target: Target, sources: Sources, staging: Path, golden: Golden) -> Artefact:
    _, evidence, quantise, compile_ = _ROADS[target.runtime]
    artefact = _artefact(target)
    folder, quantised = staging / artefact.folder, sources.scratch / f"{target.runtime}.quantised"
    if not quantised.exists():
        with hushed():
            quantise(sources, quantised)
    estimate = compile_(quantised, target, folder)
    result = check_artefact(folder, artefact, sources.contract, golden)
    note(f"  {artefact.key}: {result.summary} ({evidence})")
    figures = {} if estimate is None else estimate.metrics
    if estimate is not None and estimate.left_on_cpu:
        note(f"  {artefact.key}: left to the processor: {', '.join(estimate.left_on_cpu)}")
    size = float((folder / artefact.entry).stat().st_size)
    return artefact.model_copy(update={"metrics": {"size_bytes": size, **result.metrics, **figures}})
