"""Rockchip NPUs: on a board through rknn-toolkit-lite2, elsewhere in rknn-toolkit2's simulator.

The simulator checks quantisation and answers alike for every chip; it says nothing about time.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes.base import StepSession
from deploy.runtimes.tool_session import SimulatedRuntime
from deploy.targets import SOURCE, target_called
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, UnavailableDevice

__all__ = ["RUNTIME"]

_NODES = ("dev/rknpu", "dev/dri/by-path/platform-fdab0000.npu-render", "sys/kernel/debug/rknpu", "sys/class/misc/rknpu")


def _board_library(root: Path = Path("/")) -> Any:
    """rknn-toolkit-lite2 on a Rockchip board.

    Raises:
        UnavailableDevice: no such NPU, or the library is not installed.
    """
    compatible = root / "proc/device-tree/compatible"
    named = compatible.is_file() and b"rockchip" in compatible.read_bytes()
    if not named and not any((root / node).exists() for node in _NODES):
        raise UnavailableDevice("this machine is no Rockchip board")
    try:
        return importlib.import_module("rknnlite.api").RKNNLite
    except ImportError as error:
        raise UnavailableDevice("rknn-toolkit-lite2 is not installed: run  pip install rknn-toolkit-lite2") from error


class _BoardSession(StepSession):
    def __init__(self, path: Path, artefact: Artefact, contract: Contract) -> None:
        self._states: list[Array] = []
        self._rknn = _board_library()()
        if self._rknn.load_rknn(str(path)) != 0:
            raise BundleError(f"rknn cannot read {path}: it is damaged or of another rknn-toolkit2 version")
        if self._rknn.init_runtime() != 0:
            raise UnavailableDevice(
                f"the NPU refused {path} (built for {artefact.target}): is it this board's chip, and is librknnrt here?"
            )
        super().__init__(
            contract,
            Placement(runtime="rknn", device="npu", precision=artefact.precision,
                      detail={"evidence": "measured", "target": artefact.target}),
        )  # fmt: skip
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        # rknn-toolkit-lite2 takes NHWC; the graph was built from NCHW and converts inside.
        inputs = [np.ascontiguousarray(v.transpose(0, 2, 3, 1)) for v in (frame_BCHW, *self._states)]
        logits, *following = self._rknn.inference(inputs=inputs, data_format=["nhwc"] * len(inputs))
        self._states = [v.reshape(1, *s.shape) for s, v in zip(self.contract.states, following, strict=True)]
        return np.array(logits, np.float32).reshape(1, self.contract.answer_width)

    def _forget(self) -> None:
        self._states = list(self.contract.zeros().values())

    def _free(self) -> None:
        self._rknn.release()


def _simulated(artefact: Artefact) -> tuple[str, Mapping[str, Any]]:
    """The simulator only takes what was built in its own process, so it builds again from the source."""
    return SOURCE, target_called(artefact.target).settings


RUNTIME = SimulatedRuntime("rknn", "rockchip", _board_library, _BoardSession, _simulated)
