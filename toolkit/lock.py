"""One process at a time in a folder: the lock goes with the process that holds it, kill -9 included."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import UserError
from toolkit.files import writing

__all__ = ["alone"]

_NAME = ".lock"


@contextlib.contextmanager
def alone(folder: Path, work: str) -> Iterator[None]:
    """Hold ``folder`` for the length of the block. ``work`` says what is done there, for whoever comes second.

    Where the system or the file system knows no such locks (Windows, some network disks) nothing is held.

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    file = folder / _NAME
    with writing(file):
        handle = file.open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(f"another vidon is {work} in {folder}: wait for it") from error
        yield
