"""OpenVINO: one infer request; outputs of a step become the inputs of the next by swapping two sets of tensors."""

from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes.base import Availability, Options, StepSession, check_device
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingDependency

__all__ = ["RUNTIME"]


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency("openvino", "openvino") from error
    return openvino


class _Session(StepSession):
    def __init__(self, path: Path, artefact: Artefact, contract: Contract, options: Options) -> None:
        ov = _library()
        device = check_device("openvino", options.device, RUNTIME.available().devices)
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        if artefact.precision == "fp32" and device == "cpu":
            # Some processors would silently compute in bfloat16 otherwise.
            config["INFERENCE_PRECISION_HINT"] = "f32"
        if options.threads is not None:
            config["INFERENCE_NUM_THREADS"] = options.threads
        try:
            model = ov.Core().read_model(path)
            compiled = ov.Core().compile_model(model, device.upper(), config)
        except RuntimeError as error:
            raise BundleError(f"openvino cannot read {path}: {_reason(error)}") from error
        self._ov = ov
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._held: list[Any] = []
        self._free_tensors: list[Any] = []
        self._states = [(state.name, state.output) for state in contract.states]
        placed = compiled.get_property("EXECUTION_DEVICES")
        super().__init__(
            contract,
            Placement(runtime="openvino", device=device, precision=artefact.precision, threads=options.threads,
                      detail={"execution_devices": ",".join(placed), "version": ov.__version__}),
        )  # fmt: skip
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        request, held, free = self._request, self._held, self._free_tensors
        # The tensor borrows the array's memory: it must live until infer() returns, which it does.
        request.set_tensor(self.contract.input_names[0], self._ov.Tensor(frame_BCHW, shared_memory=True))
        for index, (source, target) in enumerate(self._states):
            request.set_tensor(source, held[index])
            request.set_tensor(target, free[index])
        request.infer()
        self._held, self._free_tensors = free, held
        return np.array(request.get_tensor("logits").data, np.float32)

    def _forget(self) -> None:
        zeros = list(self.contract.zeros().values())
        self._held = [self._ov.Tensor(zero.copy()) for zero in zeros]
        self._free_tensors = [self._ov.Tensor(zero.copy()) for zero in zeros]

    def _free(self) -> None:
        del self._request, self._compiled
        self._held, self._free_tensors = [], []


def _reason(error: RuntimeError) -> str:
    """The telling line of OpenVINO's many-line messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[0] if lines else "unknown reason"


class _OpenVino:
    name = "openvino"
    extra = "openvino"

    def available(self) -> Availability:
        try:
            ov = _library()
        except MissingDependency as error:
            return Availability(False, str(error))
        devices = tuple(name.lower() for name in ov.Core().available_devices)
        return Availability(True, "", ov.__version__.split("-")[0], devices)

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> _Session:
        return _Session(folder / artefact.entry, artefact, contract, options)


RUNTIME = _OpenVino()
