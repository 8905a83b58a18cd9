"""What ``vidon data check`` and ``vidon devices`` tell."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.recipe import DataConfig

if TYPE_CHECKING:
    from train.data.check import Problem

__all__ = ["check_data", "list_devices"]


def check_data(
    config: DataConfig, *, frames: int = 2, fps: float = 10.0, workers: int | None = None,
    distance: float | None = None, mirrored: bool = False, cache: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Index and decode everything: counts by split and label, and every problem with what to do about it.

    ``distance``, ``mirrored`` and ``cache`` as in ``train.data.check.check``.
    """
    from toolkit.coco import read_coco
    from train.data.check import ADVICE, check
    from train.data.index import index_data
    from train.data.likeness import DISTANCE

    data = index_data(config)
    if config.root.suffix == ".json" and any(clip.annotated for clip in data.clips):
        read_coco(config.root)  # what a detector's training would refuse
    report = check(data, fps, frames, workers, DISTANCE if distance is None else distance, mirrored, cache)
    counts = data.counts()
    lines = [f"{config.root}: {len(data.clips)} clips, {report.frames} frames, {len(data.labels)} classes"]
    lines += [f"  {split}: " + ", ".join(f"{label} {n}" for label, n in row.items()) for split, row in counts.items()]
    lines += [f"  {problem.kind}: {problem.text}" for problem in report.problems]
    found = {kind: len(report.of(kind)) for kind in ADVICE}
    if report.problems:
        lines += ["", f"  {'problem':14s} {'found':>5s}  what to do"]
        lines += [f"  {kind:14s} {found[kind]:5d}  {ADVICE[kind]}" for kind in ADVICE if found[kind]]
    rows = {kind: [problem.text for problem in report.of(kind)] for kind in ADVICE}
    return {"ok": report.good, "clips": len(data.clips), "frames": report.frames, "counts": counts,
            "broken": rows["broken"], "short": rows["short"], "duplicates": rows["duplicate"],
            "near_duplicates": rows["near-duplicate"], "relations": _relations(report.problems),
            "same_names": rows["same-name"], "labels": rows["label"], "leaks": rows["leak"],
            "text": "\n".join(lines)}  # fmt: skip


def _relations(problems: "tuple[Problem, ...]") -> list[dict[str, Any]]:
    """How near copies are made of each other: the clips' names, and the fields of ``train.data.relations.Relation``."""
    from dataclasses import asdict

    return [
        asdict(problem.relation) | {"first": problem.clips[0], "second": problem.clips[1]}
        for problem in problems if problem.relation
    ]  # fmt: skip


def list_devices() -> dict[str, Any]:
    """This machine, its devices, and every runtime with what it can use here or why not."""
    from deploy.runtimes import RUNTIMES, available
    from devices import describe_machine, matching_profile, probe

    machine = describe_machine()
    profile = matching_profile(machine)
    runtimes = {}
    for name in RUNTIMES:
        state = available(name)
        runtimes[name] = {"ok": state.ok, "version": state.version, "devices": list(state.devices), "why": state.why}
    found = [device.model_dump() if hasattr(device, "model_dump") else str(device) for device in probe()]
    lines = [machine.title]
    for name, row in runtimes.items():
        state_text = f"{row['version'] or ''} on {', '.join(row['devices'])}" if row["ok"] else row["why"]  # type: ignore[arg-type]
        lines.append(f"  {name:12s} {state_text}")
    return {"machine": machine.model_dump(), "profile": profile.name if profile else None, "devices": found,
            "runtimes": runtimes, "text": "\n".join(lines)}  # fmt: skip
