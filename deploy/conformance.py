"""The conformance suite for a board: what every runtime owes every bundle, checked on this very device.

``vidon devices conformance BUNDLE`` needs numpy and the bundle's runtime, nothing of the server side.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploy.rules import RULES, Broken, Inapplicable, Subject
from deploy.runtimes import Options, available, working
from deploy.runtimes.base import check_device
from deploy.verify import judge
from toolkit.bundle import Bundle
from toolkit.errors import UnavailableDevice, VidonError

__all__ = ["Conformance", "Finding", "conformance", "examine"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``passed`` None means that the rule does not apply here, and ``detail`` says why."""

    rule: str
    passed: bool | None
    detail: str

    @property
    def line(self) -> str:
        """One line for people."""
        word = {True: "passed", False: "FAILED", None: "left out"}[self.passed]
        return f"  {self.rule:34s} {word:8s}  {self.detail}".rstrip()


@dataclass(frozen=True, slots=True)
class Conformance:
    """All findings about one artefact, and where it ran."""

    artefact: str
    device: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no rule is broken and at least one holds."""
        verdicts = {finding.passed for finding in self.findings}
        return False not in verdicts and True in verdicts

    @property
    def text(self) -> str:
        """A block for people."""
        return "\n".join([f"{self.artefact} on {self.device}", *(finding.line for finding in self.findings)])

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"ok": self.ok, "device": self.device, "rules": [asdict(finding) for finding in self.findings]}


def examine(subject: Subject, rules: Sequence[str] = tuple(RULES)) -> Conformance:
    """Check the rules over one artefact; a broken one does not stop the rest; an unforeseen error breaks one."""
    findings = []
    for name in rules:
        begin = time.perf_counter()
        try:
            passed, detail = True, RULES[name](subject)
        except Inapplicable as error:
            findings.append(Finding(name, None, str(error)))
            continue
        except Broken as error:
            passed, detail = False, str(error)
        except Exception as error:  # a runtime may fail in any way, and that is what is asked here
            first = (str(error).splitlines() or [""])[0]
            passed, detail = False, first if isinstance(error, VidonError) else f"{type(error).__name__}: {first}"
        seconds = time.perf_counter() - begin
        findings.append(Finding(name, passed, f"{detail} ({seconds:.1f} s)" if seconds >= 1 else detail))
    return Conformance(subject.artefact.key, subject.options.device, tuple(findings))


def conformance(
    bundle: Bundle, keys: Sequence[str] | None = None, device: str | None = None, threads: int | None = None,
    steps: int = 10_000,
) -> list[Conformance]:  # fmt: skip
    """Examine the artefacts named, or all that run on ``device`` here (None: each runtime's usual one).

    Raises:
        UnavailableDevice: the device is not there.
    """
    found = []
    for key in _chosen(bundle, keys, device):
        artefact = bundle.artefact(key)
        options = Options(device=device or judge(artefact), threads=threads)
        found.append(examine(Subject(bundle, artefact, options, steps)))
    return found


def _chosen(bundle: Bundle, keys: Sequence[str] | None, device: str | None) -> list[str]:
    """The artefacts to examine: a device that is absent is told once, not as fifteen broken rules."""
    states = {key: available(bundle.artefact(key).runtime) for key in keys or working(bundle)[0]}
    if device is None:
        return list(states)
    if keys:
        for key, state in states.items():
            check_device(bundle.artefact(key).runtime, device, state.devices, state.missing)
        return list(states)
    fit = [key for key, state in states.items() if device in state.devices]
    if not fit:
        there = dict.fromkeys(name for state in states.values() for name in state.devices)
        raise UnavailableDevice(f"no artefact of {bundle.root} runs on {device!r} here; there is: {', '.join(there)}")
    return fit
