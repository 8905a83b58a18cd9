"""WebDataset tar shards, local or behind http(s): read by random access, so training draws clips from all of them.

``vidon data shard`` leaves an ``index.json`` that says where in which tar each clip lies. Other people's shards
(``KEY.mp4`` with ``KEY.json``, ``KEY.cls`` or ``KEY.txt``) have none: their tars are read through once to find it.
The root is a folder, a tar, a pattern ``train-{000..009}.tar``, or a URL of any of these or of an index.json.
"""

import contextlib
import http.client
import itertools
import json
import re
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.errors import UserError
from toolkit.progress import track
from toolkit.video import VIDEO_SUFFIXES
from train.data.clip import SPLITS, Box, Clip, Member, split_name
from train.data.formats.reading import Where, is_url, read_json

__all__ = ["INDEX", "expand", "found", "read", "read_member"]

INDEX = "index.json"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TIMEOUT_S = 30
_TRIES = 3
_DESCRIBED = ("label", "split", "group", "span", "meta", "boxes", "annotated")


def found(where: Where) -> bool:
    """Whether it is a URL, a tar, a pattern of tars, or a folder with tars or an index of them."""
    root = where.root
    if is_url(root) or root.suffix == ".tar":
        return True
    if root.is_file():
        return root.name == INDEX
    return root.is_dir() and ((root / INDEX).is_file() or any(root.glob("*.tar")))


def read(where: Where) -> list[Clip]:
    """Every clip of every shard.

    Raises:
        UserError: a shard or the index is absent, damaged, or holds no clip with a label.
    """
    name = where.name
    if not name.endswith(".tar"):
        index = name if name.endswith(".json") else f"{name.rstrip('/')}/{INDEX}"
        if is_url(where.root) or Path(index).is_file():
            return _from_index(index)
    tars = expand(name) if name.endswith(".tar") else [str(path) for path in sorted(where.root.glob("*.tar"))]
    if not tars:
        raise UserError(f"data {name} holds no tar shard")
    return [clip for tar in track(tars, "index shards") for clip in _from_tar(tar)]


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
        data = _fetch(member.url, member.offset, member.size)
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


def _from_index(index: str) -> list[Clip]:
    if "://" in index:
        try:
            raw = json.loads(_fetch(index))
        except ValueError as error:
            raise UserError(f"data {index} is not valid JSON") from error
    else:
        raw = read_json(Path(index))
    if not isinstance(raw, dict) or raw.get("format") != "vidon-shards" or raw.get("version") != 1:
        raise UserError(
            f"data {index} is no index of shards (format vidon-shards, version 1): make it by vidon data shard"
        )
    folder = index.rpartition("/")[0] or "."
    clips = []
    try:
        for shard in raw["shards"]:
            place = f"{folder}/{shard['name']}"
            for row in shard["clips"]:
                member = Member(str(row["name"]), int(row["offset"]), int(row["size"]), place if "://" in place else "")
                clips.append(_clip(Path(place), member, row))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"data {index} is damaged ({error}): make it again by vidon data shard") from error
    return clips


def _clip(place: Path, member: Member, row: dict[str, Any]) -> Clip:
    start_s, end_s = row.get("span") or (None, None)
    label = row.get("label", "")
    meta = tuple((str(key), str(value)) for key, value in (row.get("meta") or {}).items())
    group = str(row.get("group") or PurePosixPath(member.name).stem)
    boxes = tuple(Box(frame, str(name), (x1, y1, x2, y2)) for frame, name, (x1, y1, x2, y2) in row.get("boxes", ()))
    split, annotated = split_name(str(row.get("split") or "")), tuple(row.get("annotated", ()))
    return Clip(place, str(label), split, group, (start_s, end_s), meta, member, boxes=boxes, annotated=annotated)


def _from_tar(place: str) -> list[Clip]:
    """Find the members; ``KEY`` ends at the first dot of the file's name, as in WebDataset."""
    samples: dict[str, dict[str, Any]] = {}
    try:
        with _tar(place) as tar:
            for info in tar:
                if info.isfile():
                    _note(samples, tar, info, place)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"shard {place} is damaged or no tar ({error}): make it again") from error
    split = next((s for s in SPLITS if s in PurePosixPath(place).name), "")
    clips = []
    for key, sample in samples.items():
        if "member" in sample:
            if not (sample.get("label") or sample.get("annotated")):
                raise UserError(f"shard {place}: {key} has no label: add it in {key}.json, {key}.cls or {key}.txt")
            clips.append(_clip(Path(place), sample["member"], {"split": split, **sample}))
    return clips


def _note(samples: dict[str, dict[str, Any]], tar: tarfile.TarFile, info: tarfile.TarInfo, place: str) -> None:
    folder, _, file = info.name.rpartition("/")
    stem, _, ending = file.partition(".")
    sample = samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})
    if f".{ending.rpartition('.')[2].lower()}" in VIDEO_SUFFIXES:
        sample["member"] = Member(info.name, info.offset_data, info.size, place if "://" in place else "")
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
    if isinstance(raw.get("labels"), list):
        known["label"] = ";".join(map(str, raw["labels"]))
    return known


@contextlib.contextmanager
def _tar(place: str) -> Iterator[tarfile.TarFile]:
    if "://" not in place:
        with tarfile.open(place, "r:") as tar:
            yield tar
        return
    with _get(place) as answer, tarfile.open(fileobj=answer, mode="r|") as tar:
        yield tar


def _get(url: str, headers: dict[str, str] | None = None) -> Any:
    """Open a URL; a busy or absent server is tried again, a wrong address is not.

    Raises:
        UserError: what the server said.
    """
    for attempt in range(_TRIES):
        try:
            return urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == _TRIES - 1:
                raise UserError(f"shard {url}: the server says {error.code} {error.reason}: check the URL") from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == _TRIES - 1:
                reason = getattr(error, "reason", error)
                raise UserError(f"shard {url} cannot be reached ({reason}): check the URL and the network") from error
        time.sleep(0.2 * 2**attempt)
    raise AssertionError


def _fetch(url: str, offset: int = 0, size: int | None = None) -> bytes:
    """Bytes of a URL; a server that does not know ranges sends all, of which the part is taken."""
    headers = {} if size is None else {"Range": f"bytes={offset}-{offset + size - 1}"}
    for attempt in range(_TRIES):
        try:
            with _get(url, headers) as answer:
                if size is None:
                    return bytes(answer.read())
                skip = 0 if answer.status == 206 else offset
                while skip > 0 and (chunk := answer.read(min(skip, 1 << 20))):
                    skip -= len(chunk)
                return bytes(answer.read(size))
        except (OSError, http.client.HTTPException) as error:
            if attempt == _TRIES - 1:
                raise UserError(f"shard {url} broke off ({error}): check the network") from error
    raise AssertionError
