"""ONNX Runtime: stream state stays on the device, in two sets of tensors bound once and used in turn.

A step reads one set and writes the other, so nothing is copied but the frame in and the logits out. The file's
batch is free; it is fixed when the session is made, so the graph that runs has static shapes. Shape and type of the
states are the file's own: float (B, C, H, W), or uint8 (B, H, W, C) with the zero-points in its metadata.
"""

import contextlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes.base import Availability, Missing, Options, StepSession, check_form, choose_device, present
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingDependency, UnavailableDevice

__all__ = ["BATCH", "RUNTIME"]

#: Name of the free dimension in the file.
BATCH = "batch"
_PROVIDERS = {
    "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider", "coreml": "CoreMLExecutionProvider", "dml": "DmlExecutionProvider",
}  # fmt: skip
_KINDS = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
# Where a provider's tensors live; the others compute out of ordinary memory.
_MEMORY = {"cuda": "cuda", "tensorrt": "cuda", "dml": "dml"}


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "onnxruntime") from error
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """ONNX Runtime raises plain RuntimeErrors of its own classes."""
    try:
        yield
    except MissingDependency:
        raise
    except Exception as error:
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            raise UnavailableDevice(
                f"onnxruntime: this device cannot take every operator of {path}, and falling back was not allowed"
            ) from error
        if type(error).__module__.startswith("onnxruntime"):
            raise BundleError(f"onnxruntime cannot read {path}: {str(error).splitlines()[0]}") from error
        raise


class _Session(StepSession):
    def __init__(self, path: Path, artefact: Artefact, contract: Contract, options: Options) -> None:
        ort = _library()
        check_form("onnxruntime", options.form, ("bound",))
        device, detail = choose_device(RUNTIME, options)
        _preload(ort, device)
        providers = _providers(device, options, artefact.precision)
        with _translated(path):
            self._session = ort.InferenceSession(str(path), _settings(ort, options, device), providers=providers)
        used = self._session.get_providers()[0]
        if used != _PROVIDERS[device]:
            if not options.allow_fallback:
                raise UnavailableDevice(
                    f"onnxruntime was asked for {device} and fell back to {used}: its library is not usable"
                )
            detail |= {"asked": device, "fallback": f"{_PROVIDERS[device]} is not usable"}
            device = "cpu"
        self._ort, self._memory = ort, _MEMORY.get(device, "cpu")
        self._bind(contract, options.batch)
        super().__init__(
            contract,
            Placement(runtime="onnxruntime", device=device, precision=artefact.precision, threads=options.threads,
                      detail={"provider": used, "version": ort.__version__, **_nodes(self._session), **detail}),
            options.batch,
        )  # fmt: skip
        if device != "cpu":
            with _translated(path):  # kernels are searched at the first run: no frame shall wait for that
                self._run(np.zeros((options.batch, *contract.input_shape), np.float32))
        self._forget()

    def _bind(self, contract: Contract, batch: int) -> None:
        """Two bindings over two sets of states: one reads the first and writes the second, the other back."""
        self._zeros = _zeros(self._session, contract, batch)
        self._frame = self._value(np.zeros((batch, *contract.input_shape), np.float32))
        self._logits = np.zeros((batch, contract.answer_width), np.float32)
        out = self._ort.OrtValue.ortvalue_from_numpy(self._logits)
        self._sets = [[self._value(zero.copy()) for zero in self._zeros] for _ in range(2)]
        self._bindings = []
        for reads, writes in (self._sets, self._sets[::-1]):
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(contract.input_names[0], self._frame)
            binding.bind_ortvalue_output("logits", out)
            for state, source, target in zip(contract.states, reads, writes, strict=True):
                binding.bind_ortvalue_input(state.name, source)
                binding.bind_ortvalue_output(state.output, target)
            self._bindings.append(binding)

    def _value(self, array: Any) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, self._memory, 0)

    def _run(self, frame_BCHW: Array) -> Array:
        self._frame.update_inplace(frame_BCHW)
        self._session.run_with_iobinding(self._bindings[0])
        self._bindings.reverse()
        self._sets.reverse()
        return self._logits.copy()

    def _forget(self) -> None:
        for value, zero in zip(self._sets[0], self._zeros, strict=True):
            value.update_inplace(zero)

    def _forget_one(self, stream: int) -> None:
        for value, zero in zip(self._sets[0], self._zeros, strict=True):
            array = np.array(value.numpy())
            array[stream] = zero[stream]
            value.update_inplace(array)

    def _free(self) -> None:
        self._bindings, self._sets = [], []
        del self._session, self._frame


def _preload(ort: Any, device: str) -> None:
    """Find the CUDA libraries that came as Python packages: the loader does not look there by itself."""
    if _MEMORY.get(device) == "cuda" and hasattr(ort, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(None):  # it prints what it does not find; opening the session says it better
            ort.preload_dlls()


def _zeros(session: Any, contract: Contract, batch: int) -> list[Any]:
    """A fresh stream's states as the file holds them: an integer 0.0 is the zero-point."""
    inputs = {value.name: value for value in session.get_inputs()}
    points = json.loads(session.get_modelmeta().custom_metadata_map.get("zero_points", "{}"))
    return [
        np.full((batch, *inputs[state.name].shape[1:]), points.get(state.name, 0), _KINDS[inputs[state.name].type])
        for state in contract.states
    ]


def _settings(ort: Any, options: Options, device: str) -> Any:
    """Session options: static batch, threads, where compiled engines are kept."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.add_free_dimension_override_by_name(BATCH, options.batch)
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    if options.hint == "throughput":
        # Waiting threads sleep instead of spinning: each step is a little slower, the machine does more in all.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if device != "cpu" and not options.allow_fallback:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if device == "dml":
        settings.enable_mem_pattern = False  # DirectML demands it
    with contextlib.suppress(Exception):  # older versions cannot tell which provider took which node
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return settings


def _providers(device: str, options: Options, precision: str) -> list[Any]:
    """The provider with its options; the processor's follows only where falling back was allowed.

    CUDA would compute fp32 in TF32. TensorRT does too, and has no option against it: ``NVIDIA_TF32_OVERRIDE=0`` has.
    """
    name = _PROVIDERS[device]
    extra: dict[str, str] = {}
    if device == "cuda" and precision == "fp32":
        extra = {"use_tf32": "0"}
    elif device == "tensorrt" and options.cache is not None:
        extra = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(options.cache),
                 "trt_timing_cache_enable": "1", "trt_timing_cache_path": str(options.cache)}  # fmt: skip
    elif device == "openvino":
        extra = {"device_type": "CPU", **({"cache_dir": str(options.cache)} if options.cache is not None else {})}
    wanted = (name, extra) if extra else name
    return [wanted, _PROVIDERS["cpu"]] if options.allow_fallback and device != "cpu" else [wanted]


def _nodes(session: Any) -> dict[str, str]:
    """How many graph nodes each provider took."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception as error:  # not in older versions
        logging.getLogger(__name__).debug("no assignment: %s", error)
        return {}
    counts: Counter[str] = Counter()
    for part in parts:
        counts[part.ep_name] += len(part.get_nodes())
    return {"nodes": ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))}


def _missing(devices: tuple[str, ...]) -> tuple[Missing, ...]:
    """The providers this installation lacks, and what would bring each."""
    swap = "pip uninstall -y onnxruntime && pip install onnxruntime-"
    why = {device: f"this build has no {provider}" for device, provider in _PROVIDERS.items()}
    fix = {"cuda": f"{swap}gpu", "tensorrt": f"{swap}gpu", "openvino": f"{swap}openvino", "dml": f"{swap}directml",
           "coreml": "pip install --upgrade onnxruntime"}  # fmt: skip
    if not present("NVIDIA"):
        why |= dict.fromkeys(("cuda", "tensorrt"), "this machine has no NVIDIA GPU")
        fix |= {"cuda": "", "tensorrt": ""}
    for device, system, name in (("coreml", "darwin", "macOS"), ("dml", "win32", "Windows")):
        if sys.platform != system:
            why[device], fix[device] = f"there on {name} only", ""
    return tuple(Missing(device, why[device], fix[device]) for device in _PROVIDERS if device not in devices)


class _OnnxRuntime:
    name = "onnxruntime"
    extra = "onnxruntime"

    def available(self) -> Availability:
        try:
            ort = _library()
        except MissingDependency as error:
            return Availability(False, str(error))
        providers = ort.get_available_providers()
        devices = tuple(device for device, provider in _PROVIDERS.items() if provider in providers)
        return Availability(True, "", ort.__version__, devices, _missing(devices))

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> _Session:
        return _Session(folder / artefact.entry, artefact, contract, options)


RUNTIME = _OnnxRuntime()
