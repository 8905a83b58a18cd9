"""Arm Ethos-U: int8 frame and states in, int8 out; the state goes round as raw integers, zero being the zero-point.

``npu`` is the device itself, under Linux (i.MX 93 and the like: kernel driver and LiteRT delegate); a Cortex-M takes
the same file through TensorFlow Lite Micro and cannot be opened from Python. ``reference`` plays the int8 file that
Vela compiled on the processor: the same integer arithmetic, to a few least-significant bits, and no word about speed.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.chatter import without_news
from deploy.runtimes import litert_runtime
from deploy.runtimes.base import Availability, Options, StepSession, check_device
from deploy.runtimes.tflite_file import check_whole
from deploy.runtimes.tool_session import one_stream
from deploy.targets import REFERENCE
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingDependency, UnavailableDevice

__all__ = ["RUNTIME"]

_NODE = Path("/dev/ethosu0")
_DELEGATE = "/usr/lib/libethosu_delegate.so"
Integers = npt.NDArray[np.int8]


def _delegate_path() -> str:
    """The delegate's library, where the kernel has an Ethos-U.

    Raises:
        UnavailableDevice: no device, no permission, or no delegate.
    """
    if not _NODE.exists():
        raise UnavailableDevice(f"this machine has no Ethos-U ({_NODE} is absent)")
    if not os.access(_NODE, os.R_OK | os.W_OK):
        raise UnavailableDevice(f"{_NODE} may not be opened by you: add yourself to its group and log in again")
    path = os.environ.get("VIDON_ETHOSU_DELEGATE", _DELEGATE)
    if not Path(path).is_file():
        raise UnavailableDevice(f"the delegate {path} is absent: install your board's, or set VIDON_ETHOSU_DELEGATE")
    return path


class _Session(StepSession):
    def __init__(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> None:
        self._states: dict[str, Integers] = {}
        device = check_device("ethosu", options.device, RUNTIME.available().devices)
        package, module = litert_runtime._library()
        path = folder / (artefact.entry if device == "npu" else REFERENCE)
        detail = {"library": package, "target": artefact.target, "evidence": "measured", "file": path.name}
        if device == "reference":
            detail |= {"evidence": "simulated", "stands for": "the int8 file that Vela compiled"}
        for file in (folder / artefact.entry, path):
            if not file.is_file():
                raise BundleError(f"ethosu cannot read {file}: the file is missing")
        check_whole(path, "ethosu")
        try:
            with without_news():
                delegates = [module.load_delegate(_delegate_path())] if device == "npu" else []
                interpreter = module.Interpreter(str(path), experimental_delegates=delegates,
                                                 num_threads=options.threads)  # fmt: skip
                self._runner = interpreter.get_signature_runner("serving_default")
        except (ValueError, RuntimeError, KeyError) as error:
            raise BundleError(f"ethosu cannot read {path}: {str(error).splitlines()[0]}") from error
        self._inputs: dict[str, Any] = self._runner.get_input_details()
        self._outputs: dict[str, Any] = self._runner.get_output_details()
        if any(row["dtype"] is not np.int8 for row in (*self._inputs.values(), *self._outputs.values())):
            raise BundleError(f"ethosu cannot read {path}: its inputs and outputs are not int8; export it again")
        super().__init__(
            contract,
            Placement(runtime="ethosu", device=device, precision=artefact.precision, threads=options.threads,
                      detail=detail),
        )  # fmt: skip
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        scale, zero = self._inputs["frame"]["quantization"]
        frame_BHWC = np.rint(frame_BCHW.transpose(0, 2, 3, 1) / np.float32(scale)) + zero
        found = self._runner(frame=np.clip(frame_BHWC, -128, 127).astype(np.int8), **self._states)
        self._states = {state.name: found[state.output] for state in self.contract.states}
        scale, zero = self._outputs["logits"]["quantization"]
        return np.asarray((found["logits"].astype(np.float32) - zero) * np.float32(scale), np.float32)

    def _forget(self) -> None:
        """A zero state is the zero-point, not the integer 0."""
        self._states = {
            state.name: np.full(self._inputs[state.name]["shape"], self._inputs[state.name]["quantization"][1], np.int8)
            for state in self.contract.states
        }

    def _free(self) -> None:
        del self._runner


class _EthosU:
    name = "ethosu"
    extra = "litert"

    def available(self) -> Availability:
        try:
            package, _ = litert_runtime._library()
        except MissingDependency as error:
            return Availability(False, str(error))
        version = getattr(importlib.import_module(package), "__version__", None)
        try:
            _delegate_path()
        except UnavailableDevice as error:
            return Availability(False, str(error), version, ("reference",))
        return Availability(True, "", version, ("npu", "reference"))

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> _Session:
        one_stream(self.name, options)
        litert_runtime._library()
        return _Session(folder, artefact, contract, options)


RUNTIME = _EthosU()
