"""LiteRT's newer API (``CompiledModel``): states live in tensor buffers that change places instead of being copied.

It runs on the processor, and is the only way the wheel offers to LiteRT's GPU accelerator (WebGPU). Layout is NHWC.
"""

import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploy.chatter import without_news
from deploy.runtimes.base import Missing, StepSession
from devices.probe import probe
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, UnavailableDevice, UserError

__all__ = ["CompiledSession", "gpu_trouble"]


def gpu_trouble(package: str) -> Missing | None:
    """Why LiteRT cannot use a GPU here; None if it may. The accelerator itself is only tried when a model is opened."""
    if not any(device.kind == "gpu" for device in probe()):
        return Missing("gpu", "this machine has no GPU")
    if package != "ai_edge_litert" or importlib.util.find_spec("ai_edge_litert.compiled_model") is None:
        return Missing("gpu", "this LiteRT has no GPU accelerator", "pip install --upgrade ai-edge-litert")
    return None


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
        with without_news():
            return _made(lambda: CompiledModel.from_file(str(path), options=options))
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip("└ ") if str(error) else "unknown reason"
        if device == "gpu":
            raise UnavailableDevice(f"litert cannot run {path} on the GPU: {line}") from error
        raise BundleError(f"litert cannot read {path}: {line}") from error


def _made(make: Callable[[], Any]) -> Any:
    """What ``make`` returns. If it fails, the half it had made goes at once and not with the error, later and aloud."""
    try:
        return make()
    except RuntimeError as error:
        traceback.clear_frames(error.__traceback__)
        raise


def _tensors(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of the file's input and output tensors by name (the compiled model cannot tell them for all files)."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    signature = Interpreter(model_path=str(path), experimental_op_resolver_type=plain)._get_full_signature_list()
    found = signature["serving_default"]
    return found["inputs"], found["outputs"]


class CompiledSession(StepSession):
    """One compiled model. What a step writes the next one reads; buffers no longer needed go back to a pool.

    An output that is an input as it stands (the last frame, remembered) is one tensor to LiteRT and must be given one
    buffer: that buffer is handed on, and another takes its place.
    """

    def __init__(self, path: Path, contract: Contract, placement: Placement, batch: int) -> None:
        super().__init__(contract, placement, batch)
        self._pool: dict[int, list[Any]] = {}
        self._inputs: list[Any] = []
        self._answer: Any = None
        self._model = _compile(path, placement.device, placement.threads)
        signature = self._model.get_signature_by_index(0)
        reads, writes = signature["inputs"], signature["outputs"]
        shapes = {state.name: state.shape for state in contract.states}
        shapes |= {state.output: state.shape for state in contract.states}
        shapes |= {contract.input_names[0]: contract.input_shape, "logits": (contract.answer_width,)}
        strange = [name for name in (*reads, *writes) if name not in shapes]
        if strange or set(reads) != set(contract.input_names):
            # ai-edge-litert 2.3 does not find the names of statically quantised files.
            self.close()
            wrong = (*strange, *reads)[0]
            raise UserError(f"litert: {path} has no compiled form (a tensor is {wrong}): use the form interpreter")
        self._read_sizes = [batch * int(np.prod(shapes[name])) for name in reads]
        self._write_sizes = [batch * int(np.prod(shapes[name])) for name in writes]
        ins, outs = _tensors(path)
        places = {ins[name]: place for place, name in enumerate(reads)}
        self._same = [places.get(outs[name]) for name in writes]
        self._next = [(writes.index(state.output), reads.index(state.name)) for state in contract.states]
        self._frame, self._logits = reads.index(contract.input_names[0]), writes.index("logits")
        with without_news():
            self._inputs = self._model.create_input_buffers(0)
            spare = zip(self._read_sizes, self._model.create_input_buffers(0), strict=True)
            made = zip(self._write_sizes, self._model.create_output_buffers(0), strict=True)
            # The process's first write makes a second environment; at the exit of the process it says so once more.
            self._inputs[self._frame].write(np.zeros(self._read_sizes[self._frame], np.float32))
        for size, buffer in (*spare, *made):
            self._pool.setdefault(size, []).append(buffer)
        self._answer = self._pool[self._write_sizes[self._logits]].pop()
        self._order = (0, 2, 3, 1) if contract.kind == "stream" else (0, 2, 3, 4, 1)
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        inputs = self._inputs
        inputs[self._frame].write(np.ascontiguousarray(frame_BCHW.transpose(self._order)))
        outputs = [self._output(place) for place in range(len(self._same))]
        self._model.run_by_index(0, inputs, outputs)
        following = list(inputs)
        for source, target in self._next:
            following[target] = outputs[source]
            if outputs[source] is inputs[self._frame]:
                following[self._frame] = self._pool[self._read_sizes[self._frame]].pop()
        for size, buffer in zip(self._read_sizes, inputs, strict=True):
            if not any(buffer is kept for kept in following):
                self._pool[size].append(buffer)
        self._inputs = following
        answer = self._answer.read(self.batch * self.contract.answer_width, np.float32)
        return np.array(answer, np.float32).reshape(self.batch, self.contract.answer_width)

    def _output(self, place: int) -> Any:
        """A buffer for one output."""
        if place == self._logits:
            return self._answer
        same = self._same[place]
        return self._inputs[same] if same is not None else self._pool[self._write_sizes[place]].pop()

    def _forget(self) -> None:
        for _, target in self._next:
            self._inputs[target].write(np.zeros(self._read_sizes[target], np.float32))

    def _forget_one(self, stream: int) -> None:
        for _, target in self._next:
            kept = np.array(self._inputs[target].read(self._read_sizes[target], np.float32)).reshape(self.batch, -1)
            kept[stream] = 0
            self._inputs[target].write(kept.reshape(-1))

    def _free(self) -> None:
        with without_news():
            self._pool, self._inputs, self._answer = {}, [], None
            self._model.close()
            del self._model
