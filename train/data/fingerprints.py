"""What a check has seen of each clip, on disk: a check of hours can be interrupted, and its memory stays small.

One SQLite file; a row is written whole or not at all, whatever kills the process. Its key is a hash of the clip's place
and part of the file, of the file's size and time of change, and of all that decides what is seen, so a changed file is
decoded again. What is wrong with a broken clip is not kept: it may be mended. Without a folder the file is a temporary
one that the system removes. Traces, eight kilobytes a second of video before they are compressed, are read when needed.
"""

import contextlib
import dataclasses
import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from toolkit.errors import UserError
from toolkit.files import writable_dir
from train.data.clip import Clip
from train.data.examine import Seen
from train.data.likeness import Look
from train.data.trace import SIDE, Trace

__all__ = ["Fingerprints", "fingerprint_key"]

_FILE = "fingerprints.sqlite"
#: Of what is kept, and of how looks and traces are made.
_VERSION = 1
_TABLE = "create table if not exists seen (key text primary key, facts text, look blob, trace blob)"
_COMMIT_EVERY_S = 0.5
_WAIT_S = 60.0


def fingerprint_key(clip: Clip, fps: float, looks: bool) -> str:
    """What decides what is seen of a clip, as a hash."""
    files = clip.images or ((clip.path,) if not _url(clip) else ())
    stats = [(str(path.absolute()), *_stat(path)) for path in files]
    parts = [dataclasses.astuple(member) for member in (clip.member, *clip.members) if member is not None]
    text = json.dumps([_VERSION, av.__version__, fps, looks, stats, parts, clip.span])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _url(clip: Clip) -> bool:
    return any(member.url for member in (clip.member, *clip.members) if member is not None)


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


class Fingerprints:
    """An open file of them: :meth:`open`."""

    def __init__(self, base: sqlite3.Connection, kept: bool) -> None:
        self._base, self._saved_s = base, time.monotonic()
        self.kept = kept

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path | None) -> Iterator["Fingerprints"]:
        """The file in a folder, or a temporary one; what was put is kept even if the block is left by an error.

        Raises:
            UserError: it cannot be written, or is no such file.
        """
        place = "" if folder is None else str(writable_dir(folder) / _FILE)
        with _translated(place):
            base = sqlite3.connect(place, timeout=_WAIT_S)
            try:
                base.execute(
                    "create table if not exists seen (key text primary key, facts text, look blob, trace blob)"
                )
                yield cls(base, bool(place))
            finally:
                base.commit()
                base.close()

    def get(self, key: str) -> Seen | None:
        """What was seen, without the trace; None if nothing is known."""
        row = self._base.execute("select facts, look from seen where key = ?", (key,)).fetchone()
        if row is None:
            return None
        return Seen(**json.loads(row[0]), look=_look(row[1]) if row[1] is not None else None)

    def put(self, key: str, seen: Seen) -> Seen:
        """Keep it, unless it is broken; what comes back is without the trace."""
        if not seen.wrong:
            facts = {"frames": seen.frames, "pictures": seen.pictures, "file": seen.file, "content": seen.content}
            look = None if seen.look is None else _packed_look(seen.look)
            trace = None if seen.trace is None else _packed_trace(seen.trace)
            self._base.execute("insert or replace into seen values (?, ?, ?, ?)", (key, json.dumps(facts), look, trace))
            if time.monotonic() - self._saved_s > _COMMIT_EVERY_S:
                self._base.commit()
                self._saved_s = time.monotonic()
        return dataclasses.replace(seen, trace=None)

    def traces(self, keys: Sequence[str]) -> Sequence[Trace | None]:
        """The traces of these clips, each read when it is asked for."""
        return _Traces(self._base, keys)


class _Traces(Sequence[Trace | None]):
    def __init__(self, base: sqlite3.Connection, keys: Sequence[str]) -> None:
        self._base, self._keys = base, keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, place: Any) -> Any:
        key = self._keys[place]
        (blob,) = self._base.execute("select trace from seen where key = ?", (key,)).fetchone()
        return None if blob is None else _trace(blob)


def _packed_look(look: Look) -> bytes:
    return look.still.tobytes() + look.motion.tobytes() + look.mirrored.tobytes()


def _look(blob: bytes) -> Look:
    stills = SIDE * SIDE // 4 * 2  # float16, half the side
    motion, mirrored = np.split(np.frombuffer(blob[stills:], np.int8), 2)
    return Look(np.frombuffer(blob[:stills], np.float16), motion, mirrored)


def _packed_trace(trace: Trace) -> bytes:
    numbers = np.asarray([trace.scale, *trace.borders], np.float64)
    return numbers.tobytes() + trace.still.tobytes() + zlib.compress(trace.moving.tobytes(), 1)


def _trace(blob: bytes) -> Trace:
    numbers, after = np.frombuffer(blob[:40], np.float64).tolist(), 40 + SIDE * SIDE * 4
    still = np.frombuffer(blob[40:after], np.float32).reshape(SIDE, SIDE)
    moving = np.frombuffer(zlib.decompress(blob[after:]), np.int8).reshape(-1, SIDE, SIDE)
    return Trace(still, moving, numbers[0], (numbers[1], numbers[2], numbers[3], numbers[4]))


@contextlib.contextmanager
def _translated(place: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        what = f"the cache {place}" if place else "the temporary file of fingerprints"
        cure = "remove it, or choose another --cache" if place else "choose a folder with --cache"
        raise UserError(f"{what} cannot be used ({error}): {cure}") from error
