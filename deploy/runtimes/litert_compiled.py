"""LiteRT's newer API (``CompiledModel``): states live in tensor buffers that change places instead of being copied.

It runs on the processor, and is the only way the wheel offers to LiteRT's GPU accelerator (WebGPU). Layout is NHWC.
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes.base import Missing, StepSession
from devices.probe import probe
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, UnavailableDevice

__all__ = ["CompiledSession", "gpu_trouble"]


def gpu_trouble(package: str) -> Missing | None:
    """Why LiteRT cannot use a GPU here; None if it may. The accelerator itself is only tried when a model is opened."""
    if not any(device.kind == "gpu" for device in probe()):
        return Missing("gpu", "this machine has no GPU")
    if package != "ai_edge_litert" or importlib.util.find_spec("ai_edge_litert.compiled_model") is None:
        return Missing("gpu", "this LiteRT has no GPU accelerator", "pip install --upgrade ai-edge-litert")
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """LiteRT's environment writes a dozen lines to the error stream for each model."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _compile(path: Path, device: str, threads: int | None) -> Any:
    try:
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator
        from ai_edge_litert.options import CpuOptions, Options
    except ImportError as error:
        raise UnavailableDevice(
            "litert: this version has no compiled form; run  pip install --upgrade ai-edge-litert"
        ) from error
    if not path.is_file():
        raise BundleError(f"litert cannot read {path}: the file is missing")
    wanted = HardwareAccelerator.GPU if device == "gpu" else HardwareAccelerator.CPU
    options = Options(hardware_accelerators=wanted, cpu_options=CpuOptions(num_threads=threads or 0))
    try:
        with _quiet():
            return CompiledModel.from_file(str(path), options=options)
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip("└ ") if str(error) else "unknown reason"
        if device == "gpu":
            raise UnavailableDevice(f"litert cannot run {path} on the GPU: {line}") from error
        raise BundleError(f"litert cannot read {path}: {line}") from error


class CompiledSession(StepSession):
    """One compiled model; two sets of state buffers, read and written by turns."""

    def __init__(self, path: Path, contract: Contract, placement: Placement, batch: int) -> None:
        super().__init__(contract, placement, batch)
        self._model = _compile(path, placement.device, placement.threads)
        signature = self._model.get_signature_by_index(0)
        inputs, outputs = self._model.create_input_buffers(0), self._model.create_output_buffers(0)
        states = [(signature["inputs"].index(s.name), signature["outputs"].index(s.output)) for s in contract.states]
        self._frame = inputs[signature["inputs"].index(contract.input_names[0])]
        self._logits = outputs[signature["outputs"].index("logits")]
        self._turns = [(inputs, outputs), _swapped(inputs, outputs, states)] if states else [(inputs, outputs)]
        self._states = [[inputs[i] for i, _ in states], [outputs[o] for _, o in states]]
        self._order = (0, 2, 3, 1) if contract.kind == "stream" else (0, 2, 3, 4, 1)
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        self._frame.write(np.ascontiguousarray(frame_BCHW.transpose(self._order)))
        self._model.run_by_index(0, *self._turns[0])
        self._turns.reverse()
        self._states.reverse()
        answer = self._logits.read(self.batch * self.contract.classes, np.float32)
        return np.array(answer, np.float32).reshape(self.batch, self.contract.classes)

    def _forget(self) -> None:
        for state, buffer in zip(self.contract.states, self._states[0], strict=True):
            buffer.write(np.zeros(self.batch * int(np.prod(state.shape)), np.float32))

    def _forget_one(self, stream: int) -> None:
        for state, buffer in zip(self.contract.states, self._states[0], strict=True):
            size = int(np.prod(state.shape))
            kept = np.array(buffer.read(self.batch * size, np.float32)).reshape(self.batch, size)
            kept[stream] = 0
            buffer.write(kept.reshape(-1))

    def _free(self) -> None:
        self._turns, self._states = [], []
        del self._frame, self._logits
        self._model.close()


def _swapped(inputs: list[Any], outputs: list[Any], states: list[tuple[int, int]]) -> tuple[list[Any], list[Any]]:
    """The same buffers with each state's input and output exchanged."""
    reads, writes = list(inputs), list(outputs)
    for source, target in states:
        reads[source], writes[target] = outputs[target], inputs[source]
    return reads, writes
