"""Pack clips into WebDataset tar shards: large files in a row instead of many small ones.

Each sample is ``KEY.mp4`` (the video's own bytes) and ``KEY.json`` (label, split, group, span, metadata), so any
WebDataset reader can use them; ``index.json`` says where each lies, for random access. A shard takes its name only when
it is whole, and a shard that is there is not made again, so an interrupted run goes on.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.files import sha256, writable_dir, write_json, writing
from toolkit.lock import alone
from toolkit.progress import Bar, bar, note
from train.data.clip import SPLITS, Clip
from train.data.formats.shards import INDEX, read_member
from train.data.index import Dataset

__all__ = ["Packed", "write_shards"]

_BLOCK = 512
_PARTS = ".parts"


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written; ``missing`` are videos that do not exist, ``kept`` shards an earlier run had finished."""

    index: Path
    shards: int
    clips: int
    bytes: int
    missing: tuple[str, ...]
    kept: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """One shard: its name, its clips with their sizes, and a hash of what decides its content."""

    name: str
    clips: tuple[tuple[str, Clip, int], ...]
    key: str


def write_shards(data: Dataset, out: Path, size: int, workers: int = 2, broken_share: float = 0.2) -> Packed:
    """Write every clip into shards of about ``size`` bytes, each of one split.

    Raises:
        UserError: frames as picture files, shards of other data in ``out``, too many missing videos, or the disk.
    """
    if any(clip.images for clip in data.clips):
        raise UserError(f"data {data.root}: clips of picture files are not packed; encode each as a video first")
    missing = tuple(clip.name for clip in data.clips if clip.member is None and not clip.path.is_file())
    if len(missing) > broken_share * len(data.clips):
        raise UserError(
            f"data {data.root}: {len(missing)} of {len(data.clips)} videos do not exist; the first: {missing[0]}"
        )
    with alone(writable_dir(out), "packing shards"):
        return _write_all(data, out, _plans(data, size), workers, missing)


def _write_all(data: Dataset, out: Path, plans: list[_Plan], workers: int, missing: tuple[str, ...]) -> Packed:
    parts = writable_dir(out / _PARTS)
    _refuse_others(out, parts, plans)
    done = [plan for plan in plans if _made(out, parts, plan)]
    todo = [plan for plan in plans if plan not in done]
    with bar("pack clips", sum(len(plan.clips) for plan in plans)) as progress, ThreadPoolExecutor(workers) as pool:
        progress.advance(sum(len(plan.clips) for plan in done))
        for _ in pool.map(lambda plan: _pack(out, parts, plan, progress), todo):
            pass
    shards = [json.loads((parts / f"{plan.name}.json").read_bytes()) for plan in plans]
    index = {"format": "vidon-shards", "version": 1, "labels": data.labels, "shards": shards}
    write_json(out / INDEX, index)
    if missing:
        note(f"left out {len(missing)} videos that do not exist: " + "; ".join(missing[:5]))
    return Packed(out / INDEX, len(plans), sum(len(plan.clips) for plan in plans),
                  sum(shard["bytes"] for shard in shards), missing, len(done))  # fmt: skip


def _plans(data: Dataset, size: int) -> list[_Plan]:
    plans = []
    for split in SPLITS:
        rows: list[tuple[str, Clip, int]] = []
        filled, number = 0, 0
        for index, clip in enumerate(data.clips):
            length = clip.member.size if clip.member else clip.path.stat().st_size if clip.path.is_file() else -1
            if clip.split != split or length < 0:
                continue
            if rows and filled + length > size:
                plans.append(_plan(split, number, rows))
                rows, filled, number = [], 0, number + 1
            rows.append((f"{index:08d}", clip, length))
            filled += length
        if rows:
            plans.append(_plan(split, number, rows))
    return plans


def _plan(split: str, number: int, rows: Sequence[tuple[str, Clip, int]]) -> _Plan:
    stamps = [clip.path.stat().st_mtime_ns if clip.member is None else 0 for _, clip, _ in rows]
    text = json.dumps([[key, clip.path.name, _row(clip), length] for key, clip, length in rows] + [stamps])
    return _Plan(f"{split}-{number:06d}.tar", tuple(rows), hashlib.sha256(text.encode()).hexdigest())


def _row(clip: Clip) -> dict[str, Any]:
    """What is known of a clip beside its bytes."""
    row: dict[str, Any] = {"label": clip.label, "split": clip.split, "group": clip.group}
    if clip.span != (None, None):
        row["span"] = list(clip.span)
    if clip.meta:
        row["meta"] = dict(clip.meta)
    if clip.annotated:
        row["annotated"] = list(clip.annotated)
        row["boxes"] = [[box.frame, box.label, list(box.corners)] for box in clip.boxes]
    return row


def _made(out: Path, parts: Path, plan: _Plan) -> bool:
    try:
        part = json.loads((parts / f"{plan.name}.json").read_bytes())
        return bool(part["key"] == plan.key and (out / plan.name).stat().st_size == part["bytes"])
    except (OSError, ValueError, KeyError):
        return False


def _refuse_others(out: Path, parts: Path, plans: Sequence[_Plan]) -> None:
    """Shards of other data or of another size would mix with the new ones."""
    ours = {plan.name: plan.key for plan in plans}
    for path in sorted(out.glob("*.tar")):
        try:
            key = json.loads((parts / f"{path.name}.json").read_bytes())["key"]
        except (OSError, ValueError, KeyError):
            key = None
        if key is None or ours.get(path.name) != key:
            raise UserError(f"{path} is a shard of other data or of another --size: remove it, or choose another --out")


def _pack(out: Path, parts: Path, plan: _Plan, progress: Bar) -> None:
    place, staging = out / plan.name, out / f".{plan.name}.part"
    with writing(place):
        with tarfile.open(staging, "w", format=tarfile.USTAR_FORMAT) as tar:
            rows = [row for clip in plan.clips for row in _add(tar, *clip, progress)]
        size, digest = staging.stat().st_size, sha256(staging)
        with staging.open("rb+") as file:
            os.fsync(file.fileno())
        part = {"name": plan.name, "bytes": size, "sha256": digest, "key": plan.key, "clips": rows}
        write_json(parts / f"{plan.name}.json", part)
        os.replace(staging, place)


def _add(tar: tarfile.TarFile, key: str, clip: Clip, length: int, progress: Bar) -> Iterator[dict[str, Any]]:
    """Add the video and its description; yields the clip's line of the index."""
    suffix = Path(clip.member.name).suffix if clip.member else clip.path.suffix
    row = _row(clip)
    _write(tar, f"{key}.json", json.dumps(row).encode())
    video = read_member(clip.path, clip.member) if clip.member else clip.path.read_bytes()
    if len(video) != length:
        raise UserError(f"video {clip.name} has changed while it was packed: run again")
    offset = _write(tar, f"{key}{suffix.lower()}", video)
    progress.advance()
    yield {"name": f"{key}{suffix.lower()}", "offset": offset, "size": length, **row}


def _write(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file that is the same whenever it is written; returns where its bytes begin."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - -(-len(data) // _BLOCK) * _BLOCK
