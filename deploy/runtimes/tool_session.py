"""A session whose steps a vendor's simulator plays in another process: slow, for checking answers, never for timing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.runtimes.base import Availability, Missing, Options, StepSession
from devices.tools import Worker, python_of, tool_called
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingTool, ToolError, UserError

__all__ = ["ToolSession", "needs_a_device", "one_stream", "simulators"]


def simulators(tool: str) -> tuple[tuple[str, ...], tuple[Missing, ...]]:
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


def needs_a_device(tool: str, state: Availability) -> None:
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
