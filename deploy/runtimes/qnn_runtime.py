"""Qualcomm Hexagon through ONNX Runtime's QNN plugin: on the chip itself, elsewhere on the x86 emulation.

Nothing may fall back to the processor, there as here. The emulation does not model fp16 and its counts are no cycles.
"""

import importlib
import platform
from pathlib import Path
from typing import Any

from deploy.runtimes.base import StepSession
from deploy.runtimes.tool_session import SimulatedRuntime
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, UnavailableDevice

__all__ = ["RUNTIME"]

_PROVIDER = "QNNExecutionProvider"


def _chip() -> tuple[Any, str, list[Any]]:
    """(onnxruntime, path of the HTP backend, its devices) on a Snapdragon.

    Raises:
        UnavailableDevice: another processor, or the plugin is not installed or finds no NPU.
    """
    if platform.machine().lower() not in {"aarch64", "arm64"}:
        raise UnavailableDevice("this machine has no Hexagon NPU (its processor is not Arm)")
    try:
        onnxruntime = importlib.import_module("onnxruntime")
        plugin = importlib.import_module("onnxruntime_qnn")
        if not any(device.ep_name == _PROVIDER for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(_PROVIDER, plugin.get_library_path())
    except (ImportError, AttributeError) as error:
        raise UnavailableDevice("onnxruntime-qnn is not installed: run  pip install onnxruntime-qnn") from error
    found = [d for d in onnxruntime.get_ep_devices() if d.ep_name == _PROVIDER]
    npus = [d for d in found if "NPU" in str(d.device.type)]
    if not npus:
        raise UnavailableDevice("QNN finds no Hexagon NPU here")
    return onnxruntime, plugin.get_qnn_htp_path(), npus


class _ChipSession(StepSession):
    def __init__(self, path: Path, artefact: Artefact, contract: Contract) -> None:
        self._states: dict[str, Array] = {}
        onnxruntime, backend, npus = _chip()
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings.add_provider_for_devices(npus, {"backend_path": backend})
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings)
        except Exception as error:
            if type(error).__module__.startswith("onnxruntime"):
                raise BundleError(f"qnn cannot read {path}: {str(error).splitlines()[0]}") from error
            raise
        super().__init__(
            contract,
            Placement(runtime="qnn", device="npu", precision=artefact.precision,
                      detail={"evidence": "measured", "target": artefact.target, "provider": _PROVIDER}),
        )  # fmt: skip
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        feed = {self.contract.input_names[0]: frame_BCHW, **self._states}
        logits, *following = self._session.run(self.contract.output_names, feed)
        self._states = {state.name: value for state, value in zip(self.contract.states, following, strict=True)}
        answer: Array = logits
        return answer

    def _forget(self) -> None:
        self._states = self.contract.zeros()

    def _free(self) -> None:
        del self._session


RUNTIME = SimulatedRuntime("qnn", "qualcomm", _chip, _ChipSession, lambda artefact: (artefact.entry, {}))
