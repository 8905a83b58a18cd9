"""Bytes of a URL, though the connection may break: reading goes on where it stopped, with a pause before each try.

A try that brought at least one byte starts the count anew, so a long shard over a bad line is read; so many tries in a
row that brought none are an error that says what happened. What a server says for good (404, 403...) is not tried
again. A file that changes on the server in the middle is an error, never a mixture.
"""

import contextlib
import http.client
import io
import random
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Self

from toolkit.errors import UserError

__all__ = ["Remote", "fetch"]

_TIMEOUT_S = 30
_TRIES = 5
#: Before the second try; doubled each time, and a little by chance, so that many readers do not come back at once.
_WAIT_S = 0.2
_LONGEST_WAIT_S = 60.0
_CHUNK = 1 << 20
#: Beside 5xx: too slow, too many.
_BUSY = frozenset({408, 425, 429})


def fetch(url: str, offset: int = 0, size: int | None = None) -> bytes:
    """All bytes of a URL, or ``size`` of them from ``offset`` on; fewer if it ends before.

    Raises:
        UserError: as :class:`Remote`.
    """
    with Remote(url, offset, size) as file:
        if size is None:
            return b"".join(iter(lambda: file.read(_CHUNK), b""))
        data, got = bytearray(size), 0
        while got < size and (count := file.readinto(memoryview(data)[got:])):
            got += count
        return bytes(memoryview(data)[:got])


class Remote(io.RawIOBase):
    """A URL, or a part of it, as a file that is read from its start to its end.

    Raises:
        UserError: in reading: the server cannot be reached, says no, breaks off too often, or the file has changed.
    """

    def __init__(self, url: str, offset: int = 0, size: int | None = None) -> None:
        self._url, self._at = url, offset
        self._end = None if size is None else offset + size
        self._answer: Any = None
        self._mark: str | None = None  # which state of the file it is
        self._tries, self._brought = 0, False  # how many tries in a row brought nothing; whether this one did

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes, as many as come at once."""
        wanted = len(buffer) if self._end is None else min(len(buffer), self._end - self._at)
        while wanted > 0:
            try:
                if self._answer is None and not self._open():
                    return 0
                if count := int(self._answer.readinto(memoryview(buffer)[: min(wanted, _CHUNK)])):
                    self._at, self._tries, self._brought = self._at + count, 0, True
                    return count
                if self._end is None or self._at >= self._end:
                    return 0
                raise http.client.IncompleteRead(b"", self._end - self._at)
            except (OSError, http.client.HTTPException) as error:
                self._failed(error)
        return 0

    def close(self) -> None:
        """Let the connection go."""
        self._drop()
        super().close()

    def __enter__(self) -> Self:
        return self

    def _drop(self) -> None:
        if self._answer is not None:
            with contextlib.suppress(OSError):
                self._answer.close()
        self._answer = None

    def _open(self) -> bool:
        """Ask for what is still to come; whether there is any. A server that knows no ranges sends all of it again."""
        whole = self._at == 0 and self._end is None
        headers = {} if whole else {"Range": f"bytes={self._at}-{'' if self._end is None else self._end - 1}"}
        place = urllib.parse.quote(self._url, safe=":/?#[]@!$&'()*+,;=%~")
        try:
            answer = urllib.request.urlopen(urllib.request.Request(place, headers=headers), timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing lies so far behind: the file is shorter
                return False
            raise
        mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if self._mark and mark and mark != self._mark:
            answer.close()
            raise UserError(f"shard {self._url} has changed on the server while it was read: run again")
        self._answer, self._mark = answer, self._mark or mark
        begin = self._at if answer.status == 206 else 0
        total = answer.headers.get("Content-Length")
        if total is not None and total.isdigit():  # where it ends in truth
            last = begin + int(total)
            self._end = last if self._end is None else min(self._end, last)
        skip = self._at - begin
        while skip > 0 and (chunk := answer.read(min(skip, _CHUNK))):
            skip -= len(chunk)
        return True

    def _failed(self, error: Exception) -> None:
        """Wait before the next try, or give up."""
        opened = self._answer is not None
        self._drop()
        self._tries += not self._brought
        self._brought = False
        code = error.code if isinstance(error, urllib.error.HTTPError) else 0
        busy = code >= 500 or code in _BUSY
        if code and not busy:
            raise UserError(f"shard {self._url}: the server says {code} {_words(error)}: check the URL") from error
        reason = getattr(error, "reason", error)
        if self._tries >= _TRIES or isinstance(reason, ssl.SSLCertVerificationError | http.client.InvalidURL):
            raise UserError(f"shard {self._url} {self._trouble(code, reason, opened)}") from error
        wait_s = max(_asked_s(error), _WAIT_S * 2 ** max(0, self._tries - 1) * random.uniform(1, 1.25))
        time.sleep(min(_LONGEST_WAIT_S, wait_s))

    def _trouble(self, code: int, reason: object, opened: bool) -> str:
        tried = f"after {self._tries} tries" if self._tries > 1 else "at all"
        if code:
            return f"cannot be had {tried} (the server says {code} {reason}): try later, or check the server"
        if opened:
            whole = "" if self._end is None else f" of {self._end}"
            return f"broke off at byte {self._at}{whole}, {tried} ({reason}): check the network"
        return f"cannot be reached {tried} ({reason}): check the URL and the network"


def _words(error: Exception) -> str:
    return str(getattr(error, "reason", "")).replace("\n", " ").strip()


def _asked_s(error: Exception) -> float:
    """How long a busy server asks to wait."""
    text = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) and error.headers else ""
    return float(text) if text.isdigit() else 0.0
