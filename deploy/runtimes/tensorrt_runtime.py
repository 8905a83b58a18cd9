"""TensorRT on NVIDIA GPUs: the engine is built on the device from ``source.onnx`` once, or comes ready for RTX cards.

An engine fits one TensorRT version and one GPU, so the one built here is kept in ``$VIDON_HOME`` under the hash of
source, version and GPU, with its timing cache. ``reference`` plays the integer source in ONNX Runtime on the
processor: it says that the quantised answers are right, not that a GPU gives them.
"""

import ctypes
import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes import onnxruntime_runtime
from deploy.runtimes.base import Availability, Options, StepSession, check_device, present
from deploy.runtimes.tool_session import one_stream
from deploy.targets import SOURCE
from devices.home import home
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingDependency, UnavailableDevice
from toolkit.files import sha256, write_bytes

__all__ = ["RUNTIME"]


class _Cuda:
    """The few calls of the CUDA runtime that a step needs, from whichever version is installed."""

    def __init__(self) -> None:
        for name in _cuda_libraries():
            try:
                self._library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise UnavailableDevice("the CUDA runtime (libcudart) is not installed")
        count = ctypes.c_int()
        code = self._library.cudaGetDeviceCount(ctypes.byref(count))
        if code != 0 or count.value == 0:
            raise UnavailableDevice(f"this machine has no usable NVIDIA GPU (cudaError {code})")

    def check(self, code: int, what: str) -> None:
        """Raise if a call failed."""
        if code != 0:
            raise UnavailableDevice(f"the GPU failed to {what} (cudaError {code})")

    def allocate(self, count: int) -> int:
        """Device memory of ``count`` bytes."""
        pointer = ctypes.c_void_p()
        self.check(self._library.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(count)), "allocate memory")
        return pointer.value or 0

    def put(self, pointer: int, array: Array) -> None:
        """Host to device."""
        self._copy(pointer, array.ctypes.data, array.nbytes, 1)

    def get(self, array: Array, pointer: int) -> None:
        """Device to host; waits for what was queued before."""
        self._copy(array.ctypes.data, pointer, array.nbytes, 2)

    def clear(self, pointer: int, count: int) -> None:
        """Zero device memory."""
        code = self._library.cudaMemset(ctypes.c_void_p(pointer), 0, ctypes.c_size_t(count))
        self.check(code, "clear memory")

    def free(self, pointer: int) -> None:
        """Give device memory back."""
        self._library.cudaFree(ctypes.c_void_p(pointer))

    def stream(self) -> int:
        """A stream of its own; in CUDA's default one TensorRT would wait for the device at every step.

        It waits for, and is waited for by, the copies and clearings above, which are queued in the default one.
        """
        stream = ctypes.c_void_p()
        self.check(self._library.cudaStreamCreate(ctypes.byref(stream)), "make a stream")
        return stream.value or 0

    def end(self, stream: int) -> None:
        """Give a stream back."""
        self._library.cudaStreamDestroy(ctypes.c_void_p(stream))

    def _copy(self, to: int, source: int, count: int, kind: int) -> None:
        code = self._library.cudaMemcpy(ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(count), kind)
        self.check(code, "copy")


def _cuda_libraries() -> list[str]:
    """Where libcudart may be: on the loader's path, or in NVIDIA's Python packages, which the loader does not know."""
    try:
        found = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        found = None
    roots = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    packaged = [str(file) for root in roots for file in sorted(root.glob("*/lib/libcudart.so.*"), reverse=True)]
    return ["libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", *packaged]


def _library() -> Any:
    """TensorRT, or TensorRT for RTX: the same interface.

    Raises:
        UnavailableDevice: neither is installed.
    """
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UnavailableDevice("TensorRT is not installed: run  pip install tensorrt  (on a Jetson it is part of JetPack)")


def _engine(trt: Any, folder: Path, artefact: Artefact) -> Any:
    """The engine that came with the artefact if this is TensorRT-RTX, else the one built here (and kept)."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if trt.__name__ == "tensorrt_rtx":
        engine = runtime.deserialize_cuda_engine((folder / artefact.entry).read_bytes())
        if engine is None:
            raise BundleError(f"tensorrt cannot read {folder / artefact.entry}: it is for another GPU or version")
        return engine
    import tensorrt

    source = folder / SOURCE
    key = hashlib.sha256(f"{sha256(source)} {tensorrt.__version__} {_gpu_name()}".encode()).hexdigest()[:16]
    kept = home() / "engines" / f"{key}.engine"
    if not kept.is_file():
        write_bytes(kept, _build(trt, source, kept.with_name("timing.cache")))
    engine = runtime.deserialize_cuda_engine(kept.read_bytes())
    if engine is None:
        kept.unlink()
        raise BundleError(f"tensorrt cannot read {kept}: it was deleted, open the artefact again to build it anew")
    return engine


def _build(trt: Any, source: Path, timings: Path) -> bytes:
    """Build an engine (minutes on a small board); tactic timings are kept for the next model."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse(source.read_bytes()):
        raise BundleError(f"tensorrt cannot read {source}: {parser.get_error(0)}")
    config = builder.create_builder_config()
    cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BundleError(f"tensorrt cannot build an engine from {source}")
    write_bytes(timings, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def _gpu_name(root: Path = Path("/")) -> str:
    """The model alone: the driver's file also tells the interrupt, which changes when the machine starts again."""
    for card in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        for line in card.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    tegra = root / "proc/device-tree/model"
    return tegra.read_text(errors="replace").rstrip("\0") if tegra.is_file() else "?"


class _GpuSession(StepSession):
    """State stays on the GPU: each state has two buffers, and every step the roles change."""

    def __init__(self, folder: Path, artefact: Artefact, contract: Contract) -> None:
        trt = _library()
        self._cuda = _Cuda()
        self._context = _engine(trt, folder, artefact).create_execution_context()
        if self._context is None:
            raise UnavailableDevice(f"TensorRT has no room on the GPU for {folder / artefact.entry}")
        self._stream = self._cuda.stream()
        sizes = {state.name: 4 * int(np.prod(state.shape)) for state in contract.states}
        self._frame = self._cuda.allocate(4 * int(np.prod(contract.input_shape)))
        self._logits = self._cuda.allocate(4 * contract.answer_width)
        self._now = {name: self._cuda.allocate(size) for name, size in sizes.items()}
        self._next = {name: self._cuda.allocate(size) for name, size in sizes.items()}
        self._sizes = sizes
        super().__init__(
            contract,
            Placement(runtime="tensorrt", device="gpu", precision=artefact.precision,
                      detail={"evidence": "measured", "library": f"{trt.__name__} {trt.__version__}"}),
        )  # fmt: skip
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        self._cuda.put(self._frame, frame_BCHW)
        self._context.set_tensor_address(self.contract.input_names[0], self._frame)
        self._context.set_tensor_address("logits", self._logits)
        for state in self.contract.states:
            self._context.set_tensor_address(state.name, self._now[state.name])
            self._context.set_tensor_address(state.output, self._next[state.name])
        if not self._context.execute_async_v3(self._stream):
            raise UnavailableDevice("TensorRT could not run the step")
        answer = np.empty((1, self.contract.answer_width), np.float32)
        self._cuda.get(answer, self._logits)
        self._now, self._next = self._next, self._now
        return answer

    def _forget(self) -> None:
        for name, size in self._sizes.items():
            self._cuda.clear(self._now[name], size)

    def _free(self) -> None:
        for pointer in (self._frame, self._logits, *self._now.values(), *self._next.values()):
            self._cuda.free(pointer)
        del self._context
        self._cuda.end(self._stream)


class _TensorRt:
    name = "tensorrt"
    extra = "onnxruntime"

    def available(self) -> Availability:
        referee = onnxruntime_runtime.RUNTIME.available()
        reference = ("reference",) if referee.ok else ()
        try:
            if not present("NVIDIA"):
                raise UnavailableDevice("this machine has no NVIDIA GPU")
            trt = _library()
            _Cuda()
        except UnavailableDevice as error:
            return Availability(False, str(error), None, reference)
        return Availability(True, "", str(trt.__version__), ("gpu", *reference))

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> Any:
        one_stream(self.name, options)
        state = self.available()
        if not state.devices:
            raise MissingDependency("onnxruntime", "onnxruntime")
        device = check_device("tensorrt", options.device, state.devices)
        for name in (artefact.entry, SOURCE):
            if not (folder / name).is_file():
                raise BundleError(f"tensorrt cannot read {folder / name}: the file is missing")
        if device == "gpu":
            return _GpuSession(folder, artefact, contract)
        inner = artefact.model_copy(update={"entry": SOURCE})
        session = onnxruntime_runtime.RUNTIME.open(folder, inner, contract, Options(threads=options.threads))
        played = session.placement()
        detail = {**played.detail, "evidence": "compiled", "stands for": "the integer source of the engine"}
        session._placement = played.model_copy(update={"runtime": "tensorrt", "device": "reference", "detail": detail})
        return session


RUNTIME = _TensorRt()
