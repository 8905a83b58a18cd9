"""Export a trained model to every runtime and precision asked for, check each against torch, and bundle them.

An artefact whose answers differ from the float model's does not enter a bundle. Order within a runtime matters:
OpenVINO and int8 files are made from the float ONNX file, LiteRT's int8 from its float file.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.chatter import hushed
from deploy.export.asked import asked_of, targets_of
from deploy.export.limits import find_blockers
from deploy.export.litert import float_litert, int8_litert
from deploy.export.onnx import NEWEST, float_onnx, int8_onnx
from deploy.export.openvino import float_openvino, int8_openvino
from deploy.export.step import Feeds, feeds_of, flat_step, golden_of
from deploy.export.targeted import Sources, add_targets
from deploy.export.torch import float_torch
from deploy.runtimes.litert_runtime import batch_file
from deploy.vela_config import MemorySystem
from deploy.verify import check_artefact
from toolkit.bundle import Artefact, Bundle, Golden, Manifest, Precision, create_bundle, open_bundle
from toolkit.contract import Answer, Array, Contract
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.progress import note, track

__all__ = ["asked_of", "export_bundle", "golden_of", "targets_of"]

_SPARE = 32 * 2**20  # bytes that conversion needs beside its copies of the weights
_FILES = {"torch": "model.pt2", "onnxruntime": "model.onnx", "openvino": "model.xml", "litert": "model.tflite"}


def export_bundle(
    model: Any, *, path: Path, name: str, labels: tuple[str, ...], preprocess: Preprocess, rollouts: list[Array],
    golden_frames: Array, runtimes: Sequence[str], precisions: Sequence[str], lineage: dict[str, Any],
    batches: Sequence[int] = (), targets: Sequence[str] = (), answer: Answer = "one",
    board: MemorySystem | None = None, plain: bool = False,
) -> Bundle:  # fmt: skip
    """Export, check parity on the golden steps, and write the bundle at ``path`` atomically.

    ``model`` is a stream or clip model (``contract()``, ``step`` or ``forward``). ``rollouts`` are calibration streams
    (T, 3, H, W) of the training split; ``golden_frames`` one stream (T, 3, H, W). ``batches`` are numbers of streams
    to be stepped together for which LiteRT, whose files have a fixed batch, gets files of its own. ``targets`` are
    chips to compile for, by name (:mod:`deploy.targets`). ``answer``: whether a clip has one label or many. ``board``:
    the memory system that Vela assumes for the Ethos-U among the targets, instead of Arm's reference. ``plain`` leaves
    the int8 files of ONNX Runtime and OpenVINO as their quantisers make them: slower, for comparison.

    Raises:
        UserError: nothing that was asked for can be made from this model; op, layer and a way out are named.
        ParityError: an artefact differs from torch; it is named, with by how much.
        MissingDependency, MissingTool: an exporter's library, or a chip's compiler, is not installed.
    """
    contract: Contract = model.contract().model_copy(update={"answer": answer})
    chips, asked = asked_of(runtimes, precisions, targets, board, batches)
    wanted, left_out = _possible(model, contract, asked, rollouts)
    golden = golden_of(model, golden_frames)
    lineage = {**lineage, "left_out": left_out} if left_out else lineage
    task = "classification" if contract.detection is None else "detection"
    manifest = Manifest(
        name=name, task=task, labels=labels, preprocess=preprocess, contract=contract, lineage=lineage
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="vidon-export-") as scratch,
        create_bundle(path, manifest, golden) as staging,
    ):
        _need_room(model, Path(scratch))
        maker = _Maker(model, contract, rollouts, Path(scratch), plain)
        artefacts = [_add(maker, pair, batches, staging, golden) for pair in track(wanted, "export")]
        sources = Sources(flat_step(model), contract, maker.feeds, Path(scratch))
        artefacts += add_targets(chips, sources, staging, golden)
        _put(manifest, tuple(artefacts))
    return open_bundle(path)


def _add(
    maker: "_Maker", pair: tuple[str, Precision], batches: Sequence[int], staging: Path, golden: Golden
) -> Artefact:
    """Make one artefact's files, put them into ``staging``, and check their answers there."""
    runtime, precision = pair
    artefact = Artefact(runtime=runtime, precision=precision, entry=_FILES[runtime])
    folder = staging / artefact.folder
    with hushed():
        maker.make(runtime, precision)
        for batch in batches if runtime == "litert" else ():
            maker.make_batch(precision, batch)
    _copy(maker.folder(runtime, precision), folder)
    result = check_artefact(folder, artefact, maker.contract, golden)
    note(f"  {artefact.key}: {result.summary}")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return artefact.model_copy(update={"metrics": {"size_bytes": float(size), **result.metrics}})


def _possible(
    model: Any, contract: Contract, wanted: list[tuple[str, Precision]], rollouts: list[Array]
) -> tuple[list[tuple[str, Precision]], dict[str, str]]:
    """(targets that can be made, the others with the reason); each of the others is told now."""
    if not rollouts and any(precision == "int8" for _, precision in wanted):
        raise UserError("int8 needs calibration streams: give at least one clip of the training split")
    keys = [f"{runtime}-{precision}" for runtime, precision in wanted]
    left_out: dict[str, str] = {}
    for blocker in find_blockers(flat_step(model), contract, keys):
        left_out.setdefault(blocker.target, blocker.line)
    for line in left_out.values():
        note(f"left out: {line}")
    kept = [target for target, key in zip(wanted, keys, strict=True) if key not in left_out]
    if wanted and not kept:
        raise UserError(next(iter(left_out.values())))
    return kept, left_out


def _need_room(model: Any, scratch: Path) -> None:
    """Converters keep copies on the disk, and some end the whole process without a word when it is full.

    Raises:
        UserError: too little room.
    """
    need = _SPARE + 8 * sum(value.nbytes for value in model.state_dict().values())
    free = shutil.disk_usage(scratch).free
    if free < need:
        raise UserError(
            f"temporary folder {scratch.parent} has {free / 2**20:.0f} MiB free, converting needs about "
            f"{need / 2**20:.0f}: free some space, or let TMPDIR name another folder"
        )


def _copy(source: Path, target: Path) -> None:
    """File by file, so that an error of the disk keeps its number (shutil.copytree collects texts)."""
    for file in sorted(source.rglob("*")):
        place = target / file.relative_to(source)
        if file.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _put(manifest: Manifest, artefacts: tuple[Artefact, ...]) -> None:
    """The manifest is written when the ``with`` block ends; a frozen model is filled in this one place."""
    object.__setattr__(manifest, "artefacts", artefacts)


class _Maker:
    """Makes each file once; a float file that only serves as a source lives in the scratch folder too."""

    def __init__(
        self, model: Any, contract: Contract, rollouts: list[Array], scratch: Path, plain: bool = False
    ) -> None:
        self._step = flat_step(model)
        self.contract = contract
        self._known = None if plain or not contract.states else contract  # what int8 files are told of the states
        self._rollouts = rollouts
        self._scratch = scratch
        self._feeds: Feeds | None = None

    def folder(self, runtime: str, precision: str) -> Path:
        return self._scratch / f"{runtime}-{precision}"

    def file(self, runtime: str, precision: str) -> Path:
        return self.folder(runtime, precision) / _FILES[runtime]

    def feeds(self) -> Feeds:
        if self._feeds is None:
            self._feeds = feeds_of(self._step, self.contract, self._rollouts)
        return self._feeds

    def make(self, runtime: str, precision: str) -> Path:
        """Make one file, and first the float file it comes from."""
        path = self.file(runtime, precision)
        if path.exists():
            return path
        match runtime, precision:
            case "torch", _:
                float_torch(self._step, self.contract, path)
            case "onnxruntime", "fp32":
                float_onnx(self._step, self.contract, path, opset=NEWEST, batch=None)
            case "onnxruntime", _:
                int8_onnx(self.make("onnxruntime", "fp32"), self.feeds(), path, self._known)
            case "openvino", "fp32":
                float_openvino(self.make("onnxruntime", "fp32"), path)
            case "openvino", _:
                int8_openvino(self.make("openvino", "fp32"), self.feeds(), path, self._known)
            case "litert", "fp32":
                float_litert(self._step, self.contract, path)
            case _:
                int8_litert(self.make("litert", "fp32"), self.feeds(), path)
        return path

    def make_batch(self, precision: str, batch: int) -> None:
        """LiteRT's file for ``batch`` streams, beside the plain one."""
        source = batch_file(self._scratch / "litert-batches" / _FILES["litert"], batch)
        if not source.exists():
            float_litert(self._step, self.contract, source, batch)
        path = batch_file(self.file("litert", precision), batch)
        if precision == "fp32":
            shutil.copyfile(source, path)
        else:
            feeds = [{name: np.repeat(value, batch, axis=0) for name, value in feed.items()} for feed in self.feeds()]
            int8_litert(source, feeds, path)
