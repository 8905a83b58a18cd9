"""The runtimes by name. Adding one is a file and a line here; listing them imports none."""

import importlib
import os
from dataclasses import replace
from typing import cast

from deploy.choice import load_choice
from deploy.runtimes.base import Availability, Options, Runtime, Streams
from deploy.runtimes.lanes import LaneSession, lanes_of
from deploy.runtimes.window import WindowSession
from toolkit.bundle import Artefact, Bundle
from toolkit.errors import BundleError, UserError, nearest

__all__ = [
    "RUNTIMES",
    "Availability",
    "Options",
    "Runtime",
    "Streams",
    "available",
    "load",
    "open_session",
    "pick",
    "working",
]

#: name -> module; each module has a ``RUNTIME``.
RUNTIMES = {
    "torch": "deploy.runtimes.torch_runtime",
    "onnxruntime": "deploy.runtimes.onnxruntime_runtime",
    "openvino": "deploy.runtimes.openvino_runtime",
    "litert": "deploy.runtimes.litert_runtime",
    "tensorrt": "deploy.runtimes.tensorrt_runtime",
    "ethosu": "deploy.runtimes.ethosu_runtime",
    "rknn": "deploy.runtimes.rknn_runtime",
    "qnn": "deploy.runtimes.qnn_runtime",
}


def load(name: str) -> Runtime:
    """Import one adapter (not its library).

    Raises:
        UserError: unknown name; the nearest is named.
    """
    if name not in RUNTIMES:
        raise UserError(f"unknown runtime {name!r}{nearest(name, RUNTIMES)}; runtimes: {', '.join(RUNTIMES)}")
    return cast(Runtime, importlib.import_module(RUNTIMES[name]).RUNTIME)


def available(name: str) -> Availability:
    """Whether the runtime works here, and why not."""
    return load(name).available()


def pick(bundle: Bundle, key: str | None, device: str = "cpu") -> Artefact:
    """The artefact called ``key``; None means the one measured fastest here, else the bundle's best, else the first.

    Without either, torch comes last: its eager steps are many times slower than any other runtime's.
    Only artefacts whose runtime works here count; of these first those that run on ``device``, and not badly.

    Raises:
        UserError: no such artefact, or none that can run here.
    """
    if key is not None:
        return bundle.artefact(key)
    if not bundle.manifest.artefacts:
        raise BundleError(f"bundle {bundle.root} holds no artefact: export it again")
    choice = load_choice(bundle) if device == "cpu" else None  # where it was measured
    if choice is not None and available(bundle.artefact(choice.artefact).runtime).ok:
        return bundle.artefact(choice.artefact)
    best = [bundle.artefact(bundle.manifest.best)] if bundle.manifest.best else []
    others = sorted(bundle.manifest.artefacts, key=lambda artefact: artefact.runtime == "torch")
    states = [(artefact, available(artefact.runtime)) for artefact in [*best, *others]]
    usable = [(artefact, state) for artefact, state in states if state.ok]
    if not usable:
        raise UserError(f"bundle {bundle.root}: none of its runtimes works here; {states[0][1].why}")
    usable = [(artefact, state) for artefact, state in usable if device in state.devices] or usable
    return next((a for a, state in usable if a.precision not in state.slow), usable[0][0])


def working(bundle: Bundle) -> tuple[list[str], dict[str, str]]:
    """Keys of the artefacts whose runtime works here, and of the others with why not.

    Raises:
        UserError, BundleError: none works here.
    """
    pick(bundle, None)
    states = {artefact.key: available(artefact.runtime) for artefact in bundle.manifest.artefacts}
    return [key for key, state in states.items() if state.ok], {k: s.why for k, s in states.items() if not s.ok}


def open_session(
    bundle: Bundle, key: str | None = None, *, device: str = "cpu", threads: int | None = None, batch: int = 1,
    options: Options | None = None,
) -> Streams:  # fmt: skip
    """Open one artefact of a bundle as a session; a clip model comes with its sliding window.

    Without a key, what ``vidon bench BUNDLE --all`` measured fastest on this machine is opened as it was measured.
    ``options`` says more than ``device``, ``threads`` and ``batch`` do, and replaces them. Several streams on the
    processor may be shared among its threads (``options.lanes``).

    Raises:
        UserError, MissingDependency, UnavailableDevice, BundleError: each in one line.
    """
    contract = bundle.manifest.contract
    wanted = options or Options(device=device, threads=threads, batch=batch)
    artefact = pick(bundle, key, wanted.device)
    choice = load_choice(bundle) if key is None and options is None and device == "cpu" else None
    if choice is not None and choice.artefact == artefact.key:
        wanted = replace(wanted, threads=threads or choice.threads, form=choice.form)

    def open_one(chosen: Options) -> Streams:
        return load(artefact.runtime).open(bundle.root / artefact.folder, artefact, contract, chosen)

    lanes = lanes_of(wanted, artefact.runtime, os.cpu_count() or 1) if wanted.device == "cpu" else [wanted]
    session = LaneSession(open_one, lanes) if len(lanes) > 1 else open_one(wanted)
    return WindowSession(session) if contract.kind == "clip" else session
