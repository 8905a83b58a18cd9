"""What works on this machine and what would make the rest work: every runtime and device, tried for real."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploy.runtimes import RUNTIMES, available
from devices.tools import TOOLS, Tool, python_of
from toolkit.errors import MissingTool

__all__ = ["Finding", "diagnose", "prescription"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One runtime's device: whether it works, else why not and the one command that would mend it.

    ``device`` is empty when the whole runtime is missing; ``fix`` is empty when no command helps (no such hardware).
    """

    runtime: str
    device: str
    ok: bool
    version: str | None = None
    why: str = ""
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def diagnose() -> list[Finding]:
    """Try every runtime; nothing is installed or changed."""
    found: list[Finding] = []
    for name in RUNTIMES:
        state = available(name)
        if not state.ok:
            why, _, fix = state.why.partition(": run  ")
            found.append(Finding(name, "", False, None, why, fix.strip()))
        found += [Finding(name, device, True, state.version) for device in state.devices]
        found += [Finding(name, gap.device, False, state.version, gap.why, gap.fix) for gap in state.missing]
    return [*found, *(_of_tool(tool) for tool in TOOLS.values())]


def _of_tool(tool: Tool) -> Finding:
    """A vendor's tool, which has an environment of its own."""
    try:
        python_of(tool)
    except MissingTool as error:
        why, _, fix = str(error).partition(": run  ")
        return Finding("tool", tool.name, False, tool.version, why, fix)
    return Finding("tool", tool.name, True, tool.version)


def prescription(findings: Sequence[Finding]) -> str:
    """The findings as lines for people, the working ones first."""
    lines = []
    for finding in sorted(findings, key=lambda finding: not finding.ok):
        name = f"{finding.runtime} {finding.device}".strip()
        if finding.ok:
            lines.append(f"works    {name:24s} {finding.version or ''}".rstrip())
            continue
        cure = f"; to fix it:  {finding.fix}" if finding.fix else ""
        lines.append(f"missing  {name:24s} {finding.why}{cure}")
    return "\n".join(lines)
