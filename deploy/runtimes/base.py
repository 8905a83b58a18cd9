"""What a runtime is to vidon: something that can say whether it works here, and open an artefact as a session.

Adapters import their library only inside functions; listing runtimes imports nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement, Session
from toolkit.errors import UnavailableDevice, UserError, nearest

__all__ = ["Availability", "Missing", "Options", "Runtime", "StepSession", "check_device"]


@dataclass(frozen=True, slots=True)
class Missing:
    """A device of a runtime that cannot be used here: why, and the one command that would mend it (or nothing)."""

    device: str
    why: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a runtime works here; ``why`` says why not, with the command that would mend it."""

    ok: bool
    why: str
    version: str | None = None
    devices: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """How to open an artefact. ``threads`` None leaves the choice to the runtime."""

    device: str = "cpu"
    threads: int | None = None


class Runtime(Protocol):
    """One adapter file implements this."""

    name: str
    extra: str

    def available(self) -> Availability:
        """Try the real thing and say why not."""
        ...

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> Session:
        """Open the artefact in ``folder``.

        Raises:
            MissingDependency: the runtime's library is not installed.
            UnavailableDevice: the device is not there; nothing falls back silently.
            BundleError: the runtime cannot read the file.
        """
        ...


class StepSession:
    """The part every adapter shares: checks, closing, placement. Subclasses run one step and forget."""

    def __init__(self, contract: Contract, placement: Placement) -> None:
        self.contract = contract
        self._placement = placement
        self._open = True

    def step(self, frame_BCHW: Array) -> Array:
        """Advance by one frame (1, 3, H, W) -> logits (1, K); a clip model takes (1, 3, T, H, W)."""
        if not self._open:
            raise UserError("this session is closed: open the artefact again")
        return self._run(self.contract.check_input(frame_BCHW))

    def reset(self) -> None:
        """Zero the stream state."""
        if not self._open:
            raise UserError("this session is closed: open the artefact again")
        self._forget()

    def close(self) -> None:
        """Free the runtime's resources; closing twice is harmless."""
        if self._open:
            self._open = False
            self._free()

    def placement(self) -> Placement:
        """What ran where, in the runtime's own words."""
        return self._placement

    def _run(self, frame_BCHW: Array) -> Array:
        raise NotImplementedError

    def _forget(self) -> None:
        raise NotImplementedError

    def _free(self) -> None:
        raise NotImplementedError


def check_device(runtime: str, device: str, devices: tuple[str, ...]) -> str:
    """Return the device if the runtime has it here.

    Raises:
        UnavailableDevice: names those there are.
    """
    if device not in devices:
        raise UnavailableDevice(
            f"{runtime} has no device {device!r} here{nearest(device, devices)}; it has: {', '.join(devices)}"
        )
    return device
