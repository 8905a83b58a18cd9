"""What ``vidon data check`` and ``vidon devices`` tell."""

from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.progress import track
from toolkit.video import read_frames

__all__ = ["check_data", "list_devices"]


def check_data(root: Path) -> dict[str, Any]:
    """Index and decode everything: counts by split and label, broken videos, groups in two splits."""
    from train.data.index import index_clips

    data = index_clips(root)
    broken, frames = [], 0
    for clip in track(data.clips, "decode"):
        try:
            frames += sum(1 for _ in read_frames(clip.path))
        except UserError as error:
            broken.append(str(error))
    places: dict[str, set[str]] = {}
    for clip in data.clips:
        places.setdefault(clip.group, set()).add(clip.split)
    leaks = sorted(group for group, splits in places.items() if len(splits) > 1)
    counts = data.counts()
    lines = [f"{root}: {len(data.clips)} clips, {frames} frames, {len(data.labels)} classes"]
    lines += [f"  {split}: " + ", ".join(f"{label} {n}" for label, n in row.items()) for split, row in counts.items()]
    lines += [f"  broken: {line}" for line in broken]
    lines += [f"  leak: group {group} is in several splits" for group in leaks]
    return {"clips": len(data.clips), "frames": frames, "counts": counts, "broken": broken, "leaks": leaks,
            "text": "\n".join(lines)}  # fmt: skip


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
