"""Run one command in several processes: each child is the same command with its rank in the environment.

The variables are torchrun's, so on a cluster ``torchrun -m toolkit pretrain ...`` does the same over many machines.
Only the first process speaks; when one fails the others are stopped, and when this one dies they die too. Ctrl-C in a
terminal reaches all of them by itself; what a service manager sends to this one is passed on.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

import typer

__all__ = ["arguments_of", "in_processes", "spread"]

_GRACE_S, _ALIKE_S, _BY_THEMSELVES_S = 10.0, 5.0, 3.0
_USERS_FAULT, _INTERRUPTED = 2, 130  # the exit codes of a user's error and of an interrupt


def arguments_of(command: str, *positional: object, sets: Sequence[str] | None = None, **options: object) -> list[str]:
    """The command line of a command with these options; None and False are left out.

    >>> arguments_of("pretrain", "r.toml", None, sets=["run.workers=0"], out="runs/a", json=True)
    ['pretrain', 'r.toml', '--out', 'runs/a', '--json', '--set', 'run.workers=0']
    """
    words = [command, *(str(word) for word in positional if word is not None)]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    for override in sets or ():
        words += ["--set", override]
    return words


def in_processes(processes: int, command: str, *positional: object, sets: Sequence[str] | None, **options: Any) -> None:
    """With more than one process: run the same command in each, and exit as they did; otherwise go on."""
    if processes > 1:
        arguments = arguments_of(command, *positional, sets=sets, **options)
        raise typer.Exit(spread([sys.executable, "-P", "-m", "toolkit", *arguments], processes))


def spread(command: Sequence[str], processes: int) -> int:
    """Run ``command`` once per rank; the first failure's exit code, else 0."""
    with tempfile.TemporaryFile() as quiet:
        port = _free_port()
        children = [_start(command, rank, processes, port, quiet) for rank in range(processes)]
        try:
            with _told_of_sigterm():
                code = _watch(children)
        except KeyboardInterrupt as interrupt:
            if not isinstance(interrupt, _Terminated):
                _ended(children, _BY_THEMSELVES_S)
            _stop(children, signal.SIGTERM)
            return _INTERRUPTED
        if code == _USERS_FAULT:  # mostly everyone's: let the first process say it
            with suppress(subprocess.TimeoutExpired):
                children[0].wait(_ALIKE_S)
        _stop(children, signal.SIGKILL)
        silent = children[0].returncode in (0, -signal.SIGKILL)
        if code != 0 and (silent or (code == _USERS_FAULT and children[0].returncode != code)):
            quiet.seek(0)
            sys.stderr.write(quiet.read().decode(errors="replace"))
    return code


def _start(command: Sequence[str], rank: int, processes: int, port: int, quiet: IO[bytes]) -> "subprocess.Popen[bytes]":
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    env = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP warns when it looked for unused parameters and found none
        **os.environ, **{name: str(value) for name, value in ranks.items()},
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    hidden = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": quiet}
    follow = _die_with_parent if sys.platform == "linux" else None
    return subprocess.Popen(command, env=env, preexec_fn=follow, **hidden)  # type: ignore[call-overload,no-any-return]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _watch(children: "list[subprocess.Popen[bytes]]") -> int:
    """Wait until all ended well or one did not."""
    while True:
        codes = [child.poll() for child in children]
        failed = [code for code in codes if code]
        if failed:
            return failed[0] if failed[0] > 0 else 1
        if None not in codes:
            return 0
        time.sleep(0.05)


def _stop(children: "list[subprocess.Popen[bytes]]", sent: int) -> None:
    """Tell all of them first, then wait: one may be waiting for another."""
    for child in children:
        with suppress(ProcessLookupError):
            if child.poll() is None:
                child.send_signal(sent)
    _ended(children, _GRACE_S)
    for child in children:
        child.kill()
        child.wait()


def _ended(children: "list[subprocess.Popen[bytes]]", within_s: float) -> None:
    """Wait until all have ended, but no longer than that."""
    until_s = time.monotonic() + within_s
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, until_s - time.monotonic()))


class _Terminated(KeyboardInterrupt):
    """This process was told to end by SIGTERM, of which its children know nothing."""


@contextmanager
def _told_of_sigterm() -> Iterator[None]:
    """Tell SIGTERM from Ctrl-C, which a terminal sends to the children too."""

    def end(signum: int, frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _die_with_parent() -> None:
    """Ask Linux to kill this child when its parent dies, so that kill -9 leaves nothing behind."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
