"""A session whose steps a vendor's simulator plays in another process: slow, for checking answers, never for timing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.runtimes.base import Availability, Missing, Options, StepSession, check_device
from devices.tools import Worker, python_of, tool_called
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingTool, ToolError, UnavailableDevice, UserError

__all__ = ["SimulatedRuntime", "ToolSession", "one_stream"]


def _simulators(tool: str) -> tuple[tuple[str, ...], tuple[Missing, ...]]:
    """The devices that a tool stands in for here, and those that it would if it were set up."""
    try:
        python_of(tool_called(tool))
    except MissingTool as error:
        why, _, fix = str(error).partition(": run  ")
        return (), (Missing("simulator", why, fix),)
    return ("simulator",), ()


def one_stream(runtime: str, options: Options) -> None:
    """A compiled file has a fixed batch of one.

    Raises:
        UserError: several streams were asked for.
    """
    if options.batch != 1:
        raise UserError(f"{runtime} steps one stream at a time: open {options.batch} sessions instead of batch")


def _needs_a_device(tool: str, state: Availability) -> None:
    """Where there is neither the chip nor its simulator, say how to get the simulator.

    Raises:
        MissingTool: names the command.
    """
    if not state.devices:
        raise MissingTool(tool_called(tool).title, tool)


class ToolSession(StepSession):
    """Opens ``path`` in the tool called ``tool``; the stream state stays here and travels with each step."""

    def __init__(
        self, runtime: str, tool: str, path: Path, artefact: Artefact, contract: Contract, params: Mapping[str, Any]
    ) -> None:
        self._states: dict[str, Array] = {}
        if not path.is_file():
            raise BundleError(f"{runtime} cannot read {path}: the file is missing")
        self._worker = Worker(tool, python_of(tool_called(tool)))
        try:
            self._worker.call("open", {"source": str(path.resolve()), **params})
        except ToolError as error:
            self._worker.close()
            raise BundleError(f"{runtime} cannot read {path}: {error}") from error
        super().__init__(
            contract,
            Placement(runtime=runtime, device="simulator", precision=artefact.precision,
                      detail={"evidence": "simulated", "target": artefact.target,
                              "tool": f"{self._worker.hello['package']} {self._worker.hello['version']}"}),
        )  # fmt: skip
        self._names = {"inputs": contract.input_names, "outputs": contract.output_names}
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        feed = {self.contract.input_names[0]: frame_BCHW, **self._states}
        _, found = self._worker.call("step", self._names, feed)
        self._states = {s.name: found[s.output].reshape(1, *s.shape) for s in self.contract.states}
        answer: Array = found["logits"].reshape(1, self.contract.answer_width)
        return answer

    def _forget(self) -> None:
        self._states = self.contract.zeros()

    def _free(self) -> None:
        self._worker.close()


@dataclass(frozen=True, slots=True)
class SimulatedRuntime:
    """An NPU's runtime: on the chip itself, elsewhere in the simulator of the vendor's tool.

    ``find_chip`` raises UnavailableDevice where the chip or its library is absent; ``on_chip`` opens the artefact
    there; ``simulated`` says which file of the folder the simulator plays, and with which parameters.
    """

    name: str
    tool: str
    find_chip: Callable[[], object]
    on_chip: Callable[[Path, Artefact, Contract], StepSession]
    simulated: Callable[[Artefact], tuple[str, Mapping[str, Any]]]
    extra: str = ""

    def available(self) -> Availability:
        """The chip decides whether the runtime works here; a simulator is a device that one asks for by name."""
        devices, missing = _simulators(self.tool)
        version = tool_called(self.tool).version
        try:
            self.find_chip()
        except UnavailableDevice as error:
            return Availability(False, str(error), version, devices, missing)
        return Availability(True, "", version, ("npu", *devices), missing)

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> StepSession:
        """On the chip, or in the simulator."""
        one_stream(self.name, options)
        state = self.available()
        _needs_a_device(self.tool, state)
        device = check_device(self.name, options.device, state.devices, state.missing)
        path = folder / artefact.entry
        if not path.is_file():
            raise BundleError(f"{self.name} cannot read {path}: the file is missing")
        if device == "npu":
            return self.on_chip(path, artefact, contract)
        file, params = self.simulated(artefact)
        return ToolSession(self.name, self.tool, folder / file, artefact, contract, params)
