"""What a runtime is to vidon: something that can say whether it works here, and open an artefact as a session.

Adapters import their library only inside functions; listing runtimes imports nothing. A session belongs to one
thread at a time; any number of sessions may run in threads of their own.

Shapes: B streams stepped together, H, W picture, T frames of a clip, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from devices.probe import probe
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement, Session
from toolkit.errors import UnavailableDevice, UserError, nearest

__all__ = ["Availability", "Missing", "Options", "Runtime", "StepSession", "Streams", "check_device", "check_form",
           "choose_device", "present"]  # fmt: skip

Hint = Literal["latency", "throughput"]


@dataclass(frozen=True, slots=True)
class Missing:
    """A device of a runtime that cannot be used here: why, and the one command that would mend it (or nothing)."""

    device: str
    why: str
    fix: str = ""

    @property
    def reason(self) -> str:
        """Why, and what to do."""
        return f"{self.why}; to fix it:  {self.fix}" if self.fix else self.why


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a runtime works here; ``why`` says why not, with the command that would mend it.

    ``slow`` are precisions that this version runs badly: they are chosen only if asked for or measured best.
    """

    ok: bool
    why: str
    version: str | None = None
    devices: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    slow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """How to open an artefact.

    ``threads`` None leaves the choice to the runtime. ``batch`` streams are stepped together, each with its own
    state. ``form`` is one of the runtime's own (torch: eager, compiled, graphs; openvino: explicit, stateful;
    litert: interpreter, compiled), None its usual one. ``cache`` is a folder for compiled models. With
    ``allow_fallback`` a device that is not there gives way to the processor, and the placement says so.
    ``delegate`` is the library of an external LiteRT delegate, with its own options as (name, value). ``lanes`` shares
    the streams among that many threads, each with a session of its own (:mod:`deploy.runtimes.lanes`); None does so
    where it was measured to help: LiteRT with the hint ``throughput``.

    Raises:
        UserError: a value that makes no sense.
    """

    device: str = "cpu"
    threads: int | None = None
    batch: int = 1
    hint: Hint = "latency"
    form: str | None = None
    cache: Path | None = None
    allow_fallback: bool = False
    delegate: Path | None = None
    delegate_options: tuple[tuple[str, str], ...] = ()
    lanes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no runtime could do."""
        if self.batch < 1 or (self.threads is not None and self.threads < 1):
            raise UserError(f"batch {self.batch}, threads {self.threads}: both are whole numbers of at least 1")
        if self.lanes is not None and self.lanes < 1:
            raise UserError(f"lanes {self.lanes}: a whole number of at least 1")
        if self.hint not in ("latency", "throughput"):
            raise UserError(f"unknown hint {self.hint!r}; hints: latency, throughput")


class Streams(Session, Protocol):
    """A session of B streams: ``step`` takes (B, 3, H, W); one stream can be forgotten alone."""

    batch: int

    def reset(self, stream: int | None = None) -> None:
        """Forget one stream, or all."""
        ...


class Runtime(Protocol):
    """One adapter file implements this."""

    name: str
    extra: str

    def available(self) -> Availability:
        """Try the real thing and say why not."""
        ...

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> Streams:
        """Open the artefact in ``folder``.

        Raises:
            MissingDependency: the runtime's library is not installed.
            UnavailableDevice: the device is not there; nothing falls back silently.
            BundleError: the runtime cannot read the file.
        """
        ...


class StepSession(ABC):
    """The part every adapter shares: checks, closing, placement. An adapter says how to run, to forget and to free."""

    def __init__(self, contract: Contract, placement: Placement, batch: int = 1) -> None:
        self.contract = contract
        self.batch = batch
        self._placement = placement
        self._open = True

    def step(self, frame_BCHW: Array) -> Array:
        """Advance by one frame (B, 3, H, W) -> logits (B, K); a clip model takes (B, 3, T, H, W)."""
        self._check_open()
        return self._run(self.contract.check_input(frame_BCHW, self.batch))

    def reset(self, stream: int | None = None) -> None:
        """Zero the stream state of all streams, or of stream number ``stream`` alone.

        Raises:
            UserError: closed, or there is no such stream.
        """
        self._check_open()
        if stream is None:
            self._forget()
        elif 0 <= stream < self.batch:
            self._forget_one(stream)
        else:
            raise UserError(f"there is no stream {stream}: this session has streams 0 to {self.batch - 1}")

    def close(self) -> None:
        """Free the runtime's resources; closing twice is harmless."""
        if self._open:
            self._open = False
            self._free()

    def placement(self) -> Placement:
        """What ran where, in the runtime's own words."""
        return self._placement

    def _check_open(self) -> None:
        if not self._open:
            raise UserError("this session is closed: open the artefact again")

    @abstractmethod
    def _run(self, frame_BCHW: Array) -> Array:
        """One step of a checked frame -> logits (B, K), which no later step changes."""

    @abstractmethod
    def _forget(self) -> None:
        """Zero the state of all streams."""

    def _forget_one(self, stream: int) -> None:
        """Zero the state of one stream; here as adapters do that hold a single one."""
        assert self.batch == 1, "an adapter that takes several streams says how one of them is forgotten"
        self._forget()

    @abstractmethod
    def _free(self) -> None:
        """Give back what the runtime holds; called once."""


def check_device(runtime: str, device: str, devices: tuple[str, ...], missing: Sequence[Missing] = ()) -> str:
    """Return the device if the runtime has it here.

    Raises:
        UnavailableDevice: names those there are, and why this one is not.
    """
    if device not in devices:
        why = next((f" ({gap.reason})" for gap in missing if gap.device == device), "")
        raise UnavailableDevice(
            f"{runtime} has no device {device!r} here{nearest(device, devices)}; it has: {', '.join(devices)}{why}"
        )
    return device


def choose_device(runtime: Runtime, options: Options) -> tuple[str, dict[str, str]]:
    """(device to use, what the placement should add): the device asked for, or the processor if that is allowed.

    Raises:
        UnavailableDevice: it is not there and falling back was not allowed.
    """
    state = runtime.available()
    try:
        return check_device(runtime.name, options.device, state.devices, state.missing), {}
    except UnavailableDevice as error:
        if not options.allow_fallback or "cpu" not in state.devices:
            raise
        return "cpu", {"asked": options.device, "fallback": str(error)}


def check_form(runtime: str, form: str | None, forms: tuple[str, ...]) -> str:
    """The form asked for, or the first.

    Raises:
        UserError: the runtime has no such form.
    """
    if form is not None and form not in forms:
        raise UserError(f"{runtime} has no form {form!r}{nearest(form, forms)}; it has: {', '.join(forms)}")
    return form or forms[0]


def present(word: str) -> bool:
    """Whether this machine has hardware with ``word`` in its title, for example NVIDIA."""
    return any(word in device.title for device in probe())
