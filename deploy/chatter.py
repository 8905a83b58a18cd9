"""What libraries say that nobody asked for stays off the terminal; all else arrives, whoever says it.

Python's part is kept off by name: a converter's warnings, its records in its own loggers, its lines on ``sys.stdout``.
What C++ writes to descriptor 2 cannot be told apart while it is written, so the descriptor is taken for as long as it
must be, and given back with all that was written to it meanwhile, by whomever, but the news. LiteRT tells of each
delegate and accelerator it makes (``INFO: Created TensorFlow Lite XNNPACK delegate for CPU.``, two dozen lines for a
compiled model) and cannot be asked not to: in ai-edge-litert 2.3 the least severity is a variable of the library that
neither Python, nor an exported function, nor the environment reaches (``TF_CPP_MIN_LOG_LEVEL`` changes nothing;
tflite-runtime 2.14 alone exports a C++ function that sets it).
"""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from typing import IO, TextIO

__all__ = ["hushed", "without_news"]

#: How a line on descriptor 2 begins that is nobody's business. The second and third are of accelerators that the wheel
#: brings and this machine lacks; the last two are of the converter to LiteRT, and may stand behind a progress bar.
NEWS = re.compile(
    rb"^INFO: |^WARNING: \[npu_registry\.cc|^WARNING: \[compiler_plugin\.cc"
    rb"|WARNING: All log messages before absl::InitializeLog\(\) is called"
    rb"|I\d{4} [\d:.]+ +\d+ (?:port|flatbuffer_export|pjrt_client)\.cc:"
)
#: How LiteRT begins the further lines of a message.
_MORE = "└".encode()

#: Messages of converters' warnings: about their own code, or about names and libraries that are no concern here.
_WARNED = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # torch 2.13's exporter, of itself
    r"# The axis name: \w+ will not be used, since it shares the same shape constraints",
    r"Warning: Enabling `experimental_preserve_all_tensors`",  # ai-edge-quantizer, of its own debugging
    r"os\.fork\(\) was called",  # jax 0.10, of openvino-telemetry's process
)
#: Logger -> what it says of libraries that are not here and not needed, or of other ways to quantise.
_LOGGED = {
    "root": "Please consider",  # ONNX Runtime's quantiser recommends the preparation that it was given
    "torch.onnx._internal.exporter._registration": "torchvision is not installed",
    "torch.utils._pytree": "is an Enum subclass",
    "torchao": "Failed to load",
    "torchao.kernel.intmm": "Detected no triton",
}
#: What NNCF and litert-torch print of their progress, each time in one call, with colours or without.
_PRINTED = re.compile(r"Statistics collection|Applying Fast Bias correction|\(\d\d:\d\d\) \[(?:START|[ ]DONE)\]")
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")

_TAKEN = threading.RLock()
#: What waits beside the block: a word says that all is told; if the end comes without one, it tells what was held.
_SHELL = "/bin/sh"
_WAIT = "trap '' INT TERM HUP; read -r word || cat </proc/self/fd/1 >&2"


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Inside the block converters do not speak of their progress, or of libraries that are not needed.

    Only what is named in this file stays off, in every thread; it is not kept. Descriptors stay as they are.
    """
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        for message in _WARNED:
            warnings.filterwarnings("ignore", message=message)
        for name, mark in _LOGGED.items():
            logger, deaf = logging.getLogger(name), _Without(mark)
            logger.addFilter(deaf)
            stack.callback(logger.removeFilter, deaf)
        if sys.stdout is not None:
            stack.enter_context(contextlib.redirect_stdout(_Sieve(sys.stdout)))
        yield


class _Without(logging.Filter):
    def __init__(self, mark: str) -> None:
        super().__init__()
        self._mark = mark

    def filter(self, record: logging.LogRecord) -> bool:
        return self._mark not in record.getMessage()


class _Sieve(io.TextIOBase):
    """Lets all through to ``stream`` at once but what converters print of their progress. No terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._half: set[int] = set()  # threads whose line was kept off, but not yet its end

    def write(self, text: str) -> int:
        thread, line = threading.get_ident(), _COLOURS.sub("", text)
        if _PRINTED.match(line):
            if not line.endswith("\n"):
                self._half.add(thread)
        elif line != "\n" or thread not in self._half:
            self._stream.write(text)
        if line == "\n":
            self._half.discard(thread)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def without_news() -> Iterator[None]:
    """Inside the block nothing reaches descriptor 2; afterwards it gets every line but the :data:`NEWS`.

    One thread at a time: the descriptor is the process's. On Linux a process that dies inside the block, by whatever
    means, leaves its last words all the same. Elsewhere it takes them with it, so with ``PYTHONFAULTHANDLER`` set, as
    one sets it to hunt a crash, nothing is held back. Where there is no error stream, or nowhere to keep it, the block
    runs as it is.
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
        with _scratch() as kept, _last_words(kept, saved):
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


@contextlib.contextmanager
def _last_words(kept: IO[bytes], stream: int) -> Iterator[None]:
    """A shell waits beside the block (1 ms): it sees this process die, and writes to ``stream`` what was kept."""
    shell = None
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # none here
            shell = subprocess.Popen([_SHELL, "-c", _WAIT], stdin=subprocess.PIPE, stdout=kept, stderr=stream)
    try:
        yield
    finally:
        if shell is not None:
            shell.communicate(b"told\n")


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, broken, or None
        sys.stderr.flush()


def _but_news(text: bytes) -> bytes:
    lines, news = [], False
    for line in text.splitlines(keepends=True):
        news = bool(NEWS.search(line)) or (news and line.startswith(_MORE))
        lines += [] if news else [line]
    return b"".join(lines)


def _write(text: bytes) -> None:
    with contextlib.suppress(OSError):  # the reader of the error stream has gone
        while text:
            text = text[os.write(2, text) :]
