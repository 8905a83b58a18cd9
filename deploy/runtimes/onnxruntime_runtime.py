"""ONNX Runtime: one session per artefact; stream state stays in OrtValues that are fed back without a copy."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.runtimes.base import Availability, Options, StepSession, check_device
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingDependency, UnavailableDevice

__all__ = ["RUNTIME"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider",
              "coreml": "CoreMLExecutionProvider", "dml": "DmlExecutionProvider"}  # fmt: skip


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
        if type(error).__module__.startswith("onnxruntime"):
            raise BundleError(f"onnxruntime cannot read {path}: {str(error).splitlines()[0]}") from error
        raise


class _Session(StepSession):
    def __init__(self, path: Path, artefact: Artefact, contract: Contract, options: Options) -> None:
        ort = _library()
        device = check_device("onnxruntime", options.device, RUNTIME.available().devices)
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        with _translated(path):
            self._session = ort.InferenceSession(str(path), settings, providers=[_PROVIDERS[device]])
        used = self._session.get_providers()[0]
        if used != _PROVIDERS[device]:
            raise UnavailableDevice(
                f"onnxruntime was asked for {device} and fell back to {used}: its library is not usable"
            )
        self._ort = ort
        self._outputs = contract.output_names
        self._first = contract.input_names[0]
        super().__init__(
            contract,
            Placement(runtime="onnxruntime", device=device, precision=artefact.precision, threads=options.threads,
                      detail={"provider": used, "version": ort.__version__}),
        )  # fmt: skip
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        self._feed[self._first] = self._ort.OrtValue.ortvalue_from_numpy(frame_BCHW)
        logits, *following = self._session.run_with_ort_values(self._outputs, self._feed)
        for state, value in zip(self.contract.states, following, strict=True):
            self._feed[state.name] = value
        answer: Array = logits.numpy()
        return answer

    def _forget(self) -> None:
        make = self._ort.OrtValue.ortvalue_from_numpy
        self._feed: dict[str, Any] = {name: make(zero) for name, zero in self.contract.zeros().items()}

    def _free(self) -> None:
        del self._session
        self._feed = {}


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
        return Availability(True, "", ort.__version__, devices)

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> _Session:
        return _Session(folder / artefact.entry, artefact, contract, options)


RUNTIME = _OnnxRuntime()
