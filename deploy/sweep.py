"""Every runtime, precision, form and number of threads that works here, measured against each other.

Memory, load time and parity are taken in a process per file and form; latency in interleaved rounds over all of them,
with a rest before each turn so that the threads of the one before have gone to sleep. The fastest whose answers agree
with the float model's is kept for this machine and bundle.
"""

import datetime
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from deploy.bench import bench
from deploy.choice import Choice, save_choice
from deploy.runtimes import Options, open_session, working
from deploy.trial import try_alone
from deploy.verify import FLOAT_TOLERANCE
from devices.machine import describe_machine
from toolkit.bundle import Bundle
from toolkit.errors import UserError
from toolkit.progress import note, track

__all__ = ["AGREEMENT", "Candidate", "candidates", "sweep", "table", "winner"]

#: An int8 winner names the float model's class at least this often over the golden steps.
AGREEMENT = 0.95


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a bundle; ``form`` None is the runtime's usual one."""

    key: str
    threads: int
    form: str | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.key}{f' {self.form}' if self.form else ''} x{self.threads}"

    @property
    def options(self) -> Options:
        """How to open it."""
        return Options(threads=self.threads, form=self.form)


def candidates(bundle: Bundle, threads: Sequence[int] | None = None) -> list[Candidate]:
    """Everything to try: working artefacts x threads (1, 2, 4 ... cores), and OpenVINO's own state as a form."""
    cores = describe_machine().cores
    counts = threads or sorted({*(2**n for n in range(cores.bit_length()) if 2**n <= cores), cores})
    stream = bundle.manifest.contract.kind == "stream"
    found = []
    for key in working(bundle)[0]:
        forms = [None, "stateful"] if key.startswith("openvino") and stream else [None]
        found += [Candidate(key, count, form) for form in forms for count in counts]
    return found


def sweep(bundle: Bundle, steps: int = 200, threads: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """One row per candidate, fastest first; those that do not work come last and say why.

    Every row: ``artefact``, ``threads``, ``form`` and either ``error`` or latency (``p50_ms`` ...), ``peak_rss_mib``,
    ``load_ms``, ``max_diff``, ``decibels``, ``agreement``.
    """
    asked = candidates(bundle, threads)
    # Memory, load time and answers do not depend on the number of threads: one process per file and form.
    firsts = {(item.key, item.form): item for item in reversed(asked)}
    alone = {pair: try_alone(bundle, item.key, item.options) for pair, item in track(list(firsts.items()), "try")}
    good = [item for item in asked if "error" not in alone[item.key, item.form]]
    with ExitStack() as opened:
        sessions = {}
        for item in good:
            sessions[item.name] = opened.enter_context(closing(open_session(bundle, item.key, options=item.options)))
        times = bench(sessions, steps)
    rows = []
    for item in asked:
        row = {"artefact": item.key, "threads": item.threads, "form": item.form, **alone[item.key, item.form]}
        rows.append({**row, **times[item.name].as_dict()} if item.name in times else row)
    return sorted(rows, key=lambda row: row.get("p50_ms", float("inf")))


def winner(bundle: Bundle, rows: Sequence[dict[str, Any]], keep: bool = True) -> Choice:
    """The fastest row that agrees with the float model; kept for this machine and bundle.

    Raises:
        UserError: none agrees.
    """
    fit = [row for row in rows if "error" not in row and _agrees(row)]
    if not fit:
        raise UserError(
            f"bundle {bundle.root}: nothing here agrees with the float model in {AGREEMENT:.0%} of the golden steps; "
            "export it again, in fp32 too"
        )
    best = min(fit, key=lambda row: float(row["p50_ms"]))
    choice = Choice(
        machine=describe_machine().title, measured=datetime.date.today().isoformat(), artefact=best["artefact"],
        threads=best["threads"], form=best["form"], p50_ms=best["p50_ms"], rows=tuple(rows),
    )  # fmt: skip
    if keep:
        note(f"kept in {save_choice(bundle, choice)}")
    return choice


def _agrees(row: dict[str, Any]) -> bool:
    """Float files must give the float model's numbers, int8 files its answers."""
    if row["artefact"].endswith("-fp32"):
        return bool(row["max_diff"] <= FLOAT_TOLERANCE)
    return bool(row["agreement"] >= AGREEMENT)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [f"{'target':32s} threads     p50     p95     p99 ms   peak MiB  load ms   agreement      dB"]
    for row in rows:
        name = f"{row['artefact']} {row['form'] or ''}".strip()
        if "error" in row:
            lines.append(f"{name:32s} {row['threads']:7d}  {row['error']}")
            continue
        lines.append(
            f"{name:32s} {row['threads']:7d} {row['p50_ms']:7.2f} {row['p95_ms']:7.2f} {row['p99_ms']:7.2f}    "
            f"{row['peak_rss_mib']:8.0f} {row['load_ms']:8.0f}   {row['agreement']:9.1%} {row['decibels']:7.1f}"
        )
    return "\n".join(lines)
