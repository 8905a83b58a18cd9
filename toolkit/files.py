"""Crash-safe files: a reader sees the old content or the new one, never a half-written mixture.

Everything vidon writes goes to a temporary name beside the target, is flushed to the disk and then
renamed, which POSIX and Windows make atomic. Errors of the disk (full, read-only, forbidden) become one
clear line.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import UserError

__all__ = [
    "fresh_dir", "prove_writable", "replacing", "sha256", "writable_dir", "writable_file", "write_bytes",
    "write_json", "write_text", "writing",
]  # fmt: skip

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FRESH_S = 60.0
#: What folders that only live while another is written end in: nobody else's may be taken for one of them.
_PART = ".part"
_DISK_TROUBLE = {
    errno.ENOSPC: "no space left on the disk: free some space and run again",
    errno.EDQUOT: "the disk quota is used up: free some space and run again",
    errno.EROFS: "the file system is read-only: choose another output folder",
    errno.EACCES: "permission denied: choose a folder that you may write to",
    errno.EPERM: "permission denied: choose a folder that you may write to",
    errno.ENOTDIR: "a parent of this path is a file, not a folder: choose another output folder",
    errno.EISDIR: "this path is a folder, a file is expected: choose another name",
    errno.ENOENT: "the system does not let this folder be made: choose another output folder",
    errno.EFBIG: "the file is larger than this system allows: raise the limit (ulimit -f), or choose another disk",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EIO: "the disk reports an error: check it, or choose another output folder",
    errno.EEXIST: "this path is a file, a folder is expected: choose another name",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate the disk's errors while writing ``path``.

    Raises:
        UserError: full, read-only or forbidden disk, naming the path and the cure.
    """
    try:
        yield
    except OSError as error:
        trouble = _DISK_TROUBLE.get(error.errno or 0)
        if trouble is None:
            raise
        raise UserError(f"cannot write {path}: {trouble}") from error


def writable_dir(path: Path) -> Path:
    """Create ``path`` if needed and prove that a file can be written in it, before any long work.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path


def prove_writable(path: Path) -> Path:
    """Prove that a folder can be made at ``path`` and a file written in it, and leave nothing there that was not.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        return writable_dir(path)
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # not made, or another process has begun to use it
                folder.rmdir()


def writable_file(path: Path) -> Path:
    """Prove that a file can be written at ``path``, before any long work, and leave nothing there.

    Raises:
        UserError: it is a folder, or the folder around it cannot be made or written to.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    prove_writable(path.parent)
    return path


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> Path:
    """Replace ``path`` by ``data`` atomically and return it; at no time does it have more rights than ``mode``."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that takes the place of ``path`` only if the block succeeds."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            yield Path(name)
            with open(name, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def write_text(path: Path, text: str) -> Path:
    """Replace ``path`` by UTF-8 ``text`` atomically and return it."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> Path:
    """Replace ``path`` by indented, key-sorted JSON atomically and return it."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def fresh_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``path`` only if the block succeeds.

    An older ``path`` stays untouched until the very end; on any error nothing is left behind. What a killed process
    left beside ``path`` is cleared by the next one.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        staging = Path(tempfile.mkdtemp(_PART, f".{path.name}.", path.parent))
        staging.chmod(0o755)
        with _held(staging):
            try:
                yield staging
                _sync_tree(staging)
                _swap(staging, path)
            finally:
                shutil.rmtree(staging, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the file at ``path``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(root: Path) -> None:
    for file in root.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder if no other process has it; the lock goes with the process. False where that cannot be known."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _clear(path: Path) -> None:
    """Bring back a folder that a kill caught between the two renames; remove half-made ones that nobody holds."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.(old\.)?[a-z0-9_]{{8}}{re.escape(_PART)}")
    for beside in list(path.parent.iterdir()):
        if not (ours.fullmatch(beside.name) and beside.is_dir() and not beside.is_symlink()):
            continue
        if (beside / "old").is_dir() and not path.exists():
            os.replace(beside / "old", path)
        # A folder that was made this very moment is not locked yet.
        if time.time() - beside.stat().st_mtime > _FRESH_S:
            with _held(beside) as free:
                if free:
                    shutil.rmtree(beside, ignore_errors=True)


def _swap(staging: Path, path: Path) -> None:
    """Move ``staging`` to ``path``; an older folder is set aside first and deleted last."""
    if not path.exists():
        os.replace(staging, path)
        return
    aside = Path(tempfile.mkdtemp(_PART, f".{path.name}.old.", path.parent))
    os.replace(path, aside / "old")
    try:
        os.replace(staging, path)
    except BaseException:
        os.replace(aside / "old", path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
