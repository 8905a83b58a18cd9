"""WebDataset tar shards, local or behind http(s): read by random access, so training draws clips from all of them.

``vidon data shard`` leaves an ``index.json`` that says where in which tar each clip lies. Other people's shards
(``KEY.mp4``, or frames ``KEY.000000.jpg``..., with ``KEY.json``, ``KEY.cls`` or ``KEY.txt``) have none: their tars are
read through once to find it.
The root is a folder, a tar, a pattern ``train-{000..009}.tar``, or a URL of any of these or of an index.json. Shards
that are compressed as a whole cannot be read by random access.
"""

import contextlib
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.errors import UserError
from toolkit.progress import track
from toolkit.video import VIDEO_SUFFIXES
from train.data.clip import SPLITS, Box, Clip, Member, lone_group, split_name
from train.data.formats.reading import Where, is_url, read_json
from train.data.remote import Remote, fetch

__all__ = ["INDEX", "STILL_SUFFIXES", "expand", "found", "labels", "read", "read_member", "read_members"]

INDEX = "index.json"
STILL_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_STILL = re.compile(r"^(\d+)(\.[a-z]+)$")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COMPRESSED = re.compile(r"\.(tar\.[a-z0-9]{2,4}|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
_AT_ONCE = 1 << 18
_DESCRIBED = ("label", "split", "group", "span", "meta", "boxes", "annotated")


def found(where: Where) -> bool:
    """Whether it is a URL, a tar, a pattern of tars, or a folder with tars or an index of them."""
    root = where.root
    if is_url(root) or _is_tar(root.name):
        return True
    if root.is_file():
        return root.name == INDEX
    return root.is_dir() and ((root / INDEX).is_file() or bool(_tars(root)))


def read(where: Where) -> list[Clip]:
    """Every clip of every shard.

    Raises:
        UserError: a shard or the index is absent, damaged, or holds no clip with a label.
    """
    name, index = where.name, _index(where)
    if index:
        return _from_index(index)
    tars = expand(name) if _is_tar(name) else _tars(where.root)
    for tar in tars:
        if _COMPRESSED.search(_place(tar)):
            raise UserError(f"shard {tar} is compressed, so no clip in it can be read alone: unpack it to a plain .tar "
                            "(videos hardly shrink)")  # fmt: skip
    if not tars:
        raise UserError(f"data {name} holds no tar shard")
    return [clip for tar in track(tars, "index shards") for clip in _from_tar(tar)]


def labels(where: Where) -> tuple[str, ...]:
    """All labels that the index names: a category without a box in these clips is known by it alone."""
    index = _index(where)
    return tuple(map(str, _raw(index).get("labels", ()))) if index else ()


def _index(where: Where) -> str:
    """The index that stands for the shards; "" if they have none."""
    name = where.name
    index = name if _place(name).endswith(".json") else f"{name.rstrip('/')}/{INDEX}"
    return index if not _is_tar(name) and (is_url(where.root) or Path(index).is_file()) else ""


def _place(name: str) -> str:
    """A name without the query of a URL, in which servers put a signature."""
    return name.partition("?")[0] if "://" in name else name


def _is_tar(name: str) -> bool:
    """Whether it is named like a tar, or like a compressed one."""
    return _place(name).endswith(".tar") or bool(_COMPRESSED.search(_place(name)))


def expand(pattern: str) -> list[str]:
    """``a-{000..002}.tar`` as three names."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.group(1), match.group(2)
    numbers = range(int(first), int(last) + 1)
    parts = [f"{pattern[: match.start()]}{n:0{len(first)}d}{pattern[match.end() :]}" for n in numbers]
    return list(itertools.chain.from_iterable(map(expand, parts)))


def read_member(path: Path, member: Member) -> bytes:
    """The bytes of one file in a shard.

    Raises:
        UserError: the shard is absent or shorter than the index says.
    """
    if member.url:
        data = fetch(member.url, member.offset, member.size)
    else:
        try:
            with path.open("rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except OSError as error:
            raise UserError(f"shard {path} cannot be read ({error.strerror}): check the path") from error
    if len(data) != member.size:
        raise UserError(f"shard {member.url or path} is truncated: {member.name} is cut off; make it again")
    return data


def read_members(path: Path, members: Sequence[Member]) -> list[bytes]:
    """The bytes of several files that lie near each other in a shard, in one go.

    Raises:
        UserError: as :func:`read_member`.
    """
    start = min(member.offset for member in members)
    end = max(member.offset + member.size for member in members)
    data = read_member(path, Member(members[-1].name, start, end - start, members[0].url))
    return [data[member.offset - start : member.offset - start + member.size] for member in members]


def _raw(index: str) -> dict[str, Any]:
    if "://" in index:
        try:
            raw = json.loads(fetch(index))
        except ValueError as error:
            raise UserError(f"data {index} is not valid JSON") from error
    else:
        raw = read_json(Path(index))
    if not isinstance(raw, dict) or raw.get("format") != "vidon-shards" or raw.get("version") != 1:
        raise UserError(
            f"data {index} is no index of shards (format vidon-shards, version 1): make it by vidon data shard"
        )
    return raw


def _from_index(index: str) -> list[Clip]:
    raw = _raw(index)
    folder = index.rpartition("/")[0] or "."
    clips = []
    try:
        for shard in raw["shards"]:
            place = f"{folder}/{shard['name']}"
            for row in shard["clips"]:
                url = place if "://" in place else ""
                parts = row.get("pictures") or [[row["name"], row["offset"], row["size"]]]
                members = [Member(str(name), int(offset), int(size), url) for name, offset, size in parts]
                clips.append(_clip(Path(place), members, row, bool(row.get("pictures"))))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"data {index} is damaged ({error}): make it again by vidon data shard") from error
    return clips


def _clip(place: Path, members: list[Member], row: dict[str, Any], stills: bool = False) -> Clip:
    """A video that is one member, or ``stills``, of which each is one."""
    start_s, end_s = row.get("span") or (None, None)
    label = row.get("label", "")
    meta = tuple((str(key), str(value)) for key, value in (row.get("meta") or {}).items())
    name = PurePosixPath(members[0].name)
    inside = name.with_name(name.name.partition(".")[0]) if stills else name
    group = str(row.get("group") or lone_group(place.stem, str(inside)))
    boxes = tuple(Box(frame, str(name), (x1, y1, x2, y2)) for frame, name, (x1, y1, x2, y2) in row.get("boxes", ()))
    split, annotated = split_name(str(row.get("split") or "")), tuple(row.get("annotated", ()))
    clip = Clip(place, str(label), split, group, (start_s, end_s), meta, boxes=boxes, annotated=annotated)
    return replace(clip, members=tuple(members)) if stills else replace(clip, member=members[0])


def _tars(folder: Path) -> list[str]:
    """Shards in a folder; hidden ones (as macOS and half-done copies leave them) are no data."""
    found = [path for path in folder.iterdir() if _is_tar(path.name)]
    return [str(path) for path in sorted(found) if path.is_file() and not path.name.startswith(".")]


def _from_tar(place: str) -> list[Clip]:
    """Find the members; ``KEY`` ends at the first dot of the file's name, as in WebDataset."""
    samples: dict[str, dict[str, Any]] = {}
    try:
        with _tar(place) as tar:
            for info in tar:
                if info.isfile() and not PurePosixPath(info.name).name.startswith("."):
                    _note(samples, tar, info, place)
    except FileNotFoundError as error:
        raise UserError(f"shard {place} does not exist: check the path, and the numbers of a pattern") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"shard {place} is damaged or no tar ({_packed(place) or error}): make it again") from error
    split = next((s for s in SPLITS if s in PurePosixPath(place).name), "")
    clips = []
    for key, sample in samples.items():
        del sample["names"]
        frames = [member for _, member in sorted(sample.pop("frames", {}).items())]
        if "member" in sample or frames:
            if not (sample.get("label") or sample.get("annotated")):
                raise UserError(f"shard {place}: {key} has no label: add it in {key}.json, {key}.cls or {key}.txt")
            members = [sample["member"]] if "member" in sample else frames
            clips.append(_clip(Path(place), members, {"split": split, **sample}, "member" not in sample))
    return clips


def _note(samples: dict[str, dict[str, Any]], tar: tarfile.TarFile, info: tarfile.TarInfo, place: str) -> None:
    folder, _, file = info.name.rpartition("/")
    stem, _, ending = file.partition(".")
    sample = samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})
    if info.name in sample.setdefault("names", set()):
        raise UserError(f"shard {place} holds {info.name} twice: give each clip a name of its own and pack it again")
    sample["names"].add(info.name)
    if f".{ending.rpartition('.')[2].lower()}" in VIDEO_SUFFIXES:
        sample["member"] = Member(info.name, info.offset_data, info.size, place if "://" in place else "")
    elif (match := _STILL.match(ending.lower())) and match[2] in STILL_SUFFIXES:
        member = Member(info.name, info.offset_data, info.size, place if "://" in place else "")
        sample.setdefault("frames", {})[int(match[1])] = member
    elif ending in ("json", "cls", "txt"):
        stream = tar.extractfile(info)
        text = stream.read().decode("utf-8", "replace").strip() if stream is not None else ""
        sample |= _described(text, place, info.name) if ending == "json" else {"label": text}


def _described(text: str, place: str, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise UserError(f"shard {place}: {name} is not valid JSON") from error
    raw = raw if isinstance(raw, dict) else {}
    known = {
        key: raw[key]
        for key in ("label", "split", "group", "span", "meta", "boxes", "annotated")
        if raw.get(key) is not None
    }
    if "label" in known:
        known["label"] = str(known["label"])  # 0 is a label too
    if isinstance(raw.get("labels"), list):
        known["label"] = ";".join(map(str, raw["labels"]))
    return known


def _packed(place: str) -> str:
    """What a file that is named like a tar was packed with, as its first bytes say."""
    try:
        with contextlib.nullcontext() if "://" in place else open(place, "rb") as file:
            head = fetch(place, 0, 8) if file is None else file.read(8)
    except (OSError, UserError):
        return ""
    name = next((name for magic, name in _PACKERS.items() if head.startswith(magic)), "")
    return f"it is compressed by {name}, a shard is a plain tar" if name else ""


@contextlib.contextmanager
def _tar(place: str) -> Iterator[tarfile.TarFile]:
    if "://" not in place:
        with tarfile.open(place, "r:") as tar:
            yield tar
        return
    with Remote(place) as file, tarfile.open(fileobj=file, mode="r|", bufsize=_AT_ONCE) as tar:
        yield tar
