"""Export a trained model to every runtime and precision asked for, check each against torch, and bundle them.

An artefact whose answers differ from the float model's does not enter a bundle. Order within a runtime matters:
OpenVINO and int8 files are made from the float ONNX file, LiteRT's int8 from its float file.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.export.litert import float_litert, int8_litert
from deploy.export.onnx import float_onnx, int8_onnx
from deploy.export.openvino import float_openvino, int8_openvino
from deploy.export.step import Feeds, feeds_of, flat_step, golden_of, hushed
from deploy.export.torch import float_torch
from deploy.runtimes import RUNTIMES, load
from deploy.verify import check_artefact
from toolkit.bundle import Artefact, Bundle, Manifest, Precision, create_bundle, open_bundle
from toolkit.contract import Array, Contract
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.progress import note, track

__all__ = ["export_bundle", "golden_of", "targets_of"]

_FILES = {"torch": "model.pt2", "onnxruntime": "model.onnx", "openvino": "model.xml", "litert": "model.tflite"}


def targets_of(runtimes: Sequence[str], precisions: Sequence[str], kind: str = "stream") -> list[tuple[str, Precision]]:
    """Every (runtime, precision) asked for that exists: torch is fp32 only, clip models are fp32 only.

    Raises:
        UserError: unknown runtime, or nothing is left.
    """
    for name in runtimes:
        load(name)
    wanted: list[tuple[str, Precision]] = []
    for name in RUNTIMES:
        if name not in runtimes:
            continue
        if "fp32" in precisions:
            wanted.append((name, "fp32"))
        if "int8" in precisions and name != "torch" and kind == "stream":
            wanted.append((name, "int8"))
    if not wanted:
        raise UserError(f"nothing to export: {', '.join(runtimes)} in {', '.join(precisions)} ({kind} model)")
    return wanted


def export_bundle(
    model: Any, *, path: Path, name: str, labels: tuple[str, ...], preprocess: Preprocess, rollouts: list[Array],
    golden_frames: Array, runtimes: Sequence[str], precisions: Sequence[str], lineage: dict[str, Any],
) -> Bundle:  # fmt: skip
    """Export, check parity on the golden steps, and write the bundle at ``path`` atomically.

    ``model`` is a stream or clip model (``contract()``, ``step`` or ``forward``). ``rollouts`` are calibration streams
    (T, 3, H, W) of the training split; ``golden_frames`` one stream (T, 3, H, W).

    Raises:
        ParityError: an artefact differs from torch; it is named, with by how much.
        MissingDependency: an exporter's library is not installed.
    """
    contract: Contract = model.contract()
    golden = golden_of(model, golden_frames)
    task = "classification" if contract.detection is None else "detection"
    manifest = Manifest(
        name=name, task=task, labels=labels, preprocess=preprocess, contract=contract, lineage=lineage
    )  # fmt: skip
    wanted = targets_of(runtimes, precisions, contract.kind)
    with (
        tempfile.TemporaryDirectory(prefix="vidon-export-") as scratch,
        create_bundle(path, manifest, golden) as staging,
    ):
        maker = _Maker(model, contract, rollouts, Path(scratch))
        artefacts = []
        for runtime, precision in track(wanted, "export"):
            entry = _FILES[runtime]
            artefact = Artefact(runtime=runtime, precision=precision, entry=entry)
            folder = staging / artefact.folder
            with hushed():
                maker.make(runtime, precision)
            shutil.copytree(maker.folder(runtime, precision), folder)
            result = check_artefact(folder, artefact, contract, golden)
            note(f"  {artefact.key}: {result.summary}")
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            metrics = {"size_bytes": float(size), **result.metrics}
            artefacts.append(artefact.model_copy(update={"metrics": metrics}))
        _put(manifest, tuple(artefacts))
    return open_bundle(path)


def _put(manifest: Manifest, artefacts: tuple[Artefact, ...]) -> None:
    """The manifest is written when the ``with`` block ends; a frozen model is filled in this one place."""
    object.__setattr__(manifest, "artefacts", artefacts)


class _Maker:
    """Makes each file once; a float file that only serves as a source lives in the scratch folder too."""

    def __init__(self, model: Any, contract: Contract, rollouts: list[Array], scratch: Path) -> None:
        self._step = flat_step(model)
        self._contract = contract
        self._rollouts = rollouts
        self._scratch = scratch
        self._feeds: Feeds | None = None

    def folder(self, runtime: str, precision: str) -> Path:
        return self._scratch / f"{runtime}-{precision}"

    def file(self, runtime: str, precision: str) -> Path:
        return self.folder(runtime, precision) / _FILES[runtime]

    def feeds(self) -> Feeds:
        if self._feeds is None:
            self._feeds = feeds_of(self._step, self._contract, self._rollouts)
        return self._feeds

    def make(self, runtime: str, precision: str) -> Path:
        """Make one file, and first the float file it comes from."""
        path = self.file(runtime, precision)
        if path.exists():
            return path
        match runtime, precision:
            case "torch", _:
                float_torch(self._step, self._contract, path)
            case "onnxruntime", "fp32":
                float_onnx(self._step, self._contract, path)
            case "onnxruntime", _:
                int8_onnx(self.make("onnxruntime", "fp32"), self.feeds(), path)
            case "openvino", "fp32":
                float_openvino(self.make("onnxruntime", "fp32"), path)
            case "openvino", _:
                int8_openvino(self.make("openvino", "fp32"), self.feeds(), path)
            case "litert", "fp32":
                float_litert(self._step, self._contract, path)
            case _:
                int8_litert(self.make("litert", "fp32"), self.feeds(), path)
        return path
