"""A vendor's tool as a subprocess: one JSON line per request and answer, arrays in .npz files beside it.

    -> {"protocol": 1, "id": 7, "op": "step", "params": {...}, "arrays": "/scratch/7.npz" or null}
    <- {"protocol": 1, "id": 7, "ok": true, "result": {...}, "arrays": "/scratch/7-answer.npz" or null}
    <- {"protocol": 1, "id": 7, "ok": false, "error": "what is wrong"}

The first answer, to ``hello``, names the tool and its version. No pickle; nothing but the protocol goes through the
pipe, whatever the tool prints. A crash, a silence or an answer to another question ends the worker.
"""

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from toolkit.errors import ToolError

__all__ = ["PROTOCOL", "SCRIPT", "Worker"]

PROTOCOL = 1
SCRIPT = Path(__file__).with_name("worker.py")
_LONGEST = 1 << 22  # bytes of one answer line
Arrays = dict[str, npt.NDArray[Any]]


class Worker:
    """A running tool. Use as a context manager, or :meth:`close` it; ``hello`` is what it says of itself."""

    def __init__(self, tool: str, python: Path, script: Path = SCRIPT, start_s: float = 120.0) -> None:
        self.tool = tool
        self._scratch = Path(tempfile.mkdtemp(prefix="vidon-tool-"))
        self._log = (self._scratch / "log").open("wb")
        # Isolated: neither the user's packages nor a folder of this process may leak into the tool's environment.
        command = [str(python), "-I", str(script), tool]
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=self._scratch, env=env
            )
        except OSError as error:
            self._forget()
            raise ToolError(f"{tool}: {python} cannot be started ({error}): run  vidon devices setup {tool}") from error
        self._number = 0
        self._buffer = b""
        try:
            self.hello = self.call("hello", timeout_s=start_s)[0]
        except BaseException:
            self.close()
            raise

    def call(
        self, op: str, params: Mapping[str, Any] | None = None, arrays: Mapping[str, npt.NDArray[Any]] | None = None,
        timeout_s: float = 600.0,
    ) -> tuple[dict[str, Any], Arrays]:  # fmt: skip
        """Ask for ``op`` and wait for (result, arrays).

        Raises:
            ToolError: the tool refused, crashed, hung, or broke the protocol.
        """
        if self._process.poll() is not None:
            raise ToolError(f"{self.tool} has ended: open the artefact again{self._last_words()}")
        self._number += 1
        file = self._scratch / f"{self._number}.npz"
        if arrays:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        request = {"protocol": PROTOCOL, "id": self._number, "op": op, "params": dict(params or {}),
                   "arrays": str(file) if arrays else None}  # fmt: skip
        try:
            return self._exchange(request, timeout_s)
        finally:
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """End the tool and remove its scratch files; closing twice is harmless."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, request: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], Arrays]:
        assert self._process.stdin is not None
        op = request["op"]
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._broken(f"ended before {op}") from error
        line = self._line(op, timeout_s)
        try:
            answer = json.loads(line)
            ok, number, version = answer["ok"], answer["id"], answer["protocol"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._broken(f"answered {op} with something that is not of the protocol: {line[:80]!r}") from error
        if version != PROTOCOL:
            raise self._broken(f"speaks protocol {version}, this vidon speaks {PROTOCOL}; set it up again")
        if number != request["id"]:
            raise self._broken(f"answered request {number} instead of {request['id']}")
        if not ok:
            raise ToolError(f"{self.tool}: {str(answer.get('error', 'it failed')).splitlines()[0]}")
        return answer.get("result") or {}, self._arrays(op, answer.get("arrays"))

    def _line(self, op: str, timeout_s: float) -> bytes:
        """One answer line, read without ever blocking past the deadline."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise self._broken(f"did not answer {op} within {timeout_s:g} s")
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise self._broken(f"stopped during {op} ({self._ending()})")
                self._buffer += piece
                if len(self._buffer) > _LONGEST:
                    raise self._broken(f"answered {op} with an endless line")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _arrays(self, op: str, path: str | None) -> Arrays:
        if path is None:
            return {}
        try:
            with np.load(path, allow_pickle=False) as data:
                return {name: data[name] for name in data.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise self._broken(f"answered {op} with arrays that cannot be read ({error})") from error
        finally:
            Path(path).unlink(missing_ok=True)

    def _broken(self, what: str) -> ToolError:
        """The worker cannot be trusted any more: end it and tell its last words."""
        self._process.kill()
        self._process.wait()
        return ToolError(f"{self.tool} {what}{self._last_words()}")

    def _ending(self) -> str:
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        try:
            lines = (self._scratch / "log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        spoken = [line.strip() for line in lines if line.strip()]
        return f"; its last words: {spoken[-1][:200]}" if spoken else ""

    def _forget(self) -> None:
        self._log.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
