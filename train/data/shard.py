"""Pack clips into WebDataset tar shards: large files in a row instead of many small ones.

Each sample is ``KEY.mp4`` (the video's own bytes), or its frames ``KEY.000000.jpg``... if they are picture files, and
``KEY.json`` (label, split, group, span, metadata, boxes), so any WebDataset reader can use them; ``index.json`` says
where each lies, for random access. A shard takes its name only when
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
from train.data.formats.shards import INDEX, STILL_SUFFIXES, read_member
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
        UserError: shards of other data in ``out``, a picture of a kind unknown, too many missing videos, or the disk.
    """
    _refuse_pictures(data)
    missing = tuple(clip.name for clip in data.clips if _length(clip) < 0)
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
            length = _length(clip)
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


def _length(clip: Clip) -> int:
    """Bytes of a clip; -1 if a file of it is absent."""
    members = [clip.member] if clip.member is not None else clip.members
    if members:
        return sum(member.size for member in members)
    files = clip.images or (clip.path,)
    return sum(path.stat().st_size for path in files) if all(path.is_file() for path in files) else -1


def _refuse_pictures(data: Dataset) -> None:
    """The names of frames must say what they are, for other readers."""
    for clip in data.clips:
        for path in clip.images:
            if path.suffix.lower() not in STILL_SUFFIXES:
                known = " ".join(sorted(STILL_SUFFIXES))
                raise UserError(f"data {data.root}: {path} is not packed: pictures are {known}")


def _plan(split: str, number: int, rows: Sequence[tuple[str, Clip, int]]) -> _Plan:
    stamps = [
        0 if clip.member or clip.members else max(path.stat().st_mtime_ns for path in clip.images or (clip.path,))
        for _, clip, _ in rows
    ]
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
    """Add the video, or its frames, and the description; yields the clip's line of the index."""
    row = _row(clip)
    _write(tar, f"{key}.json", json.dumps(row).encode())
    parts: list[tuple[str, int, int]] = []
    total = 0
    for suffix, data in _files(clip):
        name, total = f"{key}.{len(parts):06d}{suffix}" if clip.pictures else f"{key}{suffix}", total + len(data)
        parts.append((name, _write(tar, name, data), len(data)))
    if total != length:
        raise UserError(f"video {clip.name} has changed while it was packed: run again")
    progress.advance()
    if clip.pictures:
        yield {"pictures": parts, **row}
    else:
        yield {**dict(zip(("name", "offset", "size"), parts[0], strict=True)), **row}


def _files(clip: Clip) -> Iterator[tuple[str, bytes]]:
    """Suffix and bytes of everything a clip is made of."""
    members = [clip.member] if clip.member is not None else clip.members
    for member in members:
        yield Path(member.name).suffix.lower(), read_member(clip.path, member)
    for path in () if members else clip.images or (clip.path,):
        yield path.suffix.lower(), path.read_bytes()


def _write(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file that is the same whenever it is written; returns where its bytes begin."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - -(-len(data) // _BLOCK) * _BLOCK
