"""Keeping a C++ library's news off the error stream, and nothing else.

LiteRT tells of each delegate and accelerator it makes (``INFO: Created TensorFlow Lite XNNPACK delegate for CPU.``, two
dozen lines for a compiled model) and cannot be asked not to: in ai-edge-litert 2.3 the least severity is a variable
of the library that neither Python, nor an exported function, nor the environment reaches (``TF_CPP_MIN_LOG_LEVEL``
changes nothing; tflite-runtime 2.14 alone exports a C++ function that sets it). So descriptor 2 is taken for the moment
of creation, and given back with all that was written to it meanwhile, by whomever, but the news.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

__all__ = ["without_news"]

#: The second and third are of accelerators that the wheel brings and this machine lacks; nobody asked for them.
NEWS = (b"INFO: ", b"WARNING: [npu_registry.cc", b"WARNING: [compiler_plugin.cc")
#: How LiteRT begins the further lines of a message.
_MORE = "└".encode()
_TAKEN = threading.RLock()


@contextlib.contextmanager
def without_news() -> Iterator[None]:
    """Inside the block nothing reaches descriptor 2; afterwards it gets every line but the :data:`NEWS`.

    One thread at a time: the descriptor is the process's. A process that is killed inside the block takes the lines
    with it, so with ``PYTHONFAULTHANDLER`` set, as one sets it to hunt a crash, nothing is held back. Where there is no
    error stream, or nowhere to keep it, the block runs as it is.
    """
    with _TAKEN, contextlib.ExitStack() as stack:
        if not os.environ.get("PYTHONFAULTHANDLER"):
            with contextlib.suppress(OSError):
                stack.enter_context(_held())
        yield


@contextlib.contextmanager
def _held() -> Iterator[None]:
    saved = os.dup(2)
    try:
        with _scratch() as kept:
            _flush()
            os.dup2(kept.fileno(), 2)
            try:
                yield
            finally:
                _flush()
                os.dup2(saved, 2)
                kept.seek(0)
                _write(_but_news(kept.read()))
    finally:
        os.close(saved)


def _scratch() -> IO[bytes]:
    """A file without a name; in memory where the system has such, since a board's disk may be read-only."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, broken, or None
        sys.stderr.flush()


def _but_news(text: bytes) -> bytes:
    lines, news = [], False
    for line in text.splitlines(keepends=True):
        news = line.startswith(NEWS) or (news and line.startswith(_MORE))
        lines += [] if news else [line]
    return b"".join(lines)


def _write(text: bytes) -> None:
    with contextlib.suppress(OSError):  # the reader of the error stream has gone
        while text:
            text = text[os.write(2, text) :]
