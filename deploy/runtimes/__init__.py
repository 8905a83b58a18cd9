"""The runtimes by name. Adding one is a file and a line here; listing them imports none."""

import importlib
from typing import cast

from deploy.runtimes.base import Availability, Options, Runtime, Streams
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


def pick(bundle: Bundle, key: str | None) -> Artefact:
    """The artefact called ``key``; None means the bundle's best, else the first whose runtime works here.

    Raises:
        UserError: no such artefact, or none that can run here.
    """
    if key is not None:
        return bundle.artefact(key)
    if not bundle.manifest.artefacts:
        raise BundleError(f"bundle {bundle.root} holds no artefact: export it again")
    best = [bundle.artefact(bundle.manifest.best)] if bundle.manifest.best else []
    reasons = []
    for artefact in [*best, *bundle.manifest.artefacts]:
        state = available(artefact.runtime)
        if state.ok:
            return artefact
        reasons.append(state.why)
    raise UserError(f"bundle {bundle.root}: none of its runtimes works here; {reasons[0]}")


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

    ``options`` says more than ``device``, ``threads`` and ``batch`` do, and replaces them.

    Raises:
        UserError, MissingDependency, UnavailableDevice, BundleError: each in one line.
    """
    artefact = pick(bundle, key)
    contract = bundle.manifest.contract
    wanted = options or Options(device=device, threads=threads, batch=batch)
    session = load(artefact.runtime).open(bundle.root / artefact.folder, artefact, contract, wanted)
    return WindowSession(session) if contract.kind == "clip" else session
