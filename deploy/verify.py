"""Replay the golden steps through an artefact and compare: a wrong answer is refused by name.

fp32 answers must agree to 1e-4 of their magnitude; those of fewer bits are judged by the signal-to-quantisation-noise
ratio of the logits and by how often the strongest class agrees, or of a detector by the boxes both find.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.detect import agreement
from deploy.runtimes import Options, available, load
from deploy.runtimes.window import WindowSession
from toolkit.bundle import Artefact, Bundle, Golden
from toolkit.contract import Answer, Array, Contract, Session
from toolkit.errors import ParityError

__all__ = ["VerifyResult", "check_artefact", "compare", "judge", "objection", "replay", "verify"]

FLOAT_TOLERANCE = 1e-4
INT8_DECIBELS = 6.0
INT8_AGREEMENT = 0.75


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """max_diff: worst difference over max(1, largest logit); decibels: signal to noise.

    agreement: of the strongest class, or of a detector's boxes.
    """

    key: str
    steps: int
    max_diff: float
    decibels: float
    agreement: float

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that go into the manifest."""
        return {"max_diff": self.max_diff, "decibels": self.decibels, "agreement": self.agreement}

    @property
    def summary(self) -> str:
        """One line for people."""
        figures = f"difference {self.max_diff:.1e}, {self.decibels:.1f} dB, agreement {self.agreement:.0%}"
        return f"{figures} over {self.steps} steps"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def replay(session: Session, frames: Array) -> Array:
    """Reset, run the stream (T, 3, H, W) and return its logits (T, K)."""
    session.reset()
    return np.concatenate([session.step(frame[None]) for frame in frames])


def compare(key: str, got: Array, want: Array, contract: Contract | None = None) -> VerifyResult:
    """Measure how far the answers (T, N) are from the float model's; ``contract`` says whether they are boxes."""
    difference = np.abs(got.astype(np.float64) - want)
    noise = float(np.square(difference).sum())
    signal = float(np.square(want.astype(np.float64)).sum())
    decibels = 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))
    if contract is not None and contract.detection is not None:
        same = agreement(got, want, contract)
    else:
        same = _same(got, want, "one" if contract is None else contract.answer)
    worst = float(difference.max()) / max(1.0, float(np.abs(want).max()))
    return VerifyResult(key, len(want), worst, float(decibels), same)


def _same(got: Array, want: Array, answer: Answer) -> float:
    """Share of the steps with the same answer; with many labels, share of the labels that are named alike."""
    return float((got.argmax(1) == want.argmax(1)).mean() if answer == "one" else ((got > 0) == (want > 0)).mean())


def check_artefact(folder: Path, artefact: Artefact, contract: Contract, golden: Golden) -> VerifyResult:
    """Open the artefact in ``folder`` and replay the golden steps.

    Raises:
        ParityError: names the artefact and the difference.
    """
    inner = load(artefact.runtime).open(folder, artefact, contract, Options(device=judge(artefact)))
    session: Session = WindowSession(inner) if contract.kind == "clip" else inner
    try:
        got = replay(session, golden.frames)
    finally:
        session.close()
    result = compare(artefact.key, got, golden.logits, contract)
    if not np.isfinite(got).all():
        raise ParityError(f"{artefact.key}: the answers are not finite; export again, in fp32 if it is int8")
    complaint = objection(artefact, result)
    if complaint is not None:
        raise ParityError(f"{artefact.key}: {complaint}")
    return result


def objection(artefact: Artefact, result: VerifyResult) -> str | None:
    """What is wrong with answers that are too far from the float model's, or None."""
    if artefact.precision == "fp32" and result.max_diff > FLOAT_TOLERANCE:
        return f"differs from the float model by {result.max_diff:.1e} (allowed {FLOAT_TOLERANCE:.0e})"
    if artefact.precision != "fp32" and (result.decibels < INT8_DECIBELS or result.agreement < INT8_AGREEMENT):
        return (
            f"{artefact.precision} differs too much from the float model ({result.decibels:.1f} dB, agreement "
            f"{result.agreement:.0%}; wanted {INT8_DECIBELS:.0f} dB, {INT8_AGREEMENT:.0%}): calibrate on more rollouts"
        )
    return None


def judge(artefact: Artefact) -> str:
    """The device that answers: the processor, else the NPU itself, else what stands in for it here."""
    devices = available(artefact.runtime).devices
    return "cpu" if "cpu" in devices or not devices else devices[0]


def verify(bundle: Bundle, keys: Sequence[str] | None = None) -> list[VerifyResult]:
    """Replay the golden steps through each artefact (or those named).

    Raises:
        ParityError, BundleError, MissingDependency, UserError: the first failure, by name.
    """
    manifest = bundle.manifest
    chosen = [bundle.artefact(key) for key in keys] if keys else list(manifest.artefacts)
    golden = bundle.golden()
    return [check_artefact(bundle.root / a.folder, a, manifest.contract, golden) for a in chosen]
