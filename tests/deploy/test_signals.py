"""A signal with a handler does not kill a process that has opened and closed sessions, in whatever order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.signals import kept_signal_stack
from toolkit.bundle import Bundle

CHILD = """
import signal, subprocess, sys
from deploy.runtimes import open_session
from pathlib import Path
from toolkit.bundle import open_bundle
bundle = open_bundle(Path(sys.argv[1]))
first, second = (open_session(bundle, "openvino-fp32", threads=1) for _ in range(2))
first.close(); del first
second.close(); del second
signal.signal(signal.SIGCHLD, lambda *_: print("a child has ended", flush=True))
subprocess.run([sys.executable, "-c", ""], check=True)
print("alive", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's plugin has a stack of its own")
def test_sessions_closed_in_the_order_they_were_opened_leave_signals_deliverable(bundle: Bundle) -> None:
    """Without care the child dies of a segmentation fault without a word."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-P", "-c", CHILD, str(bundle.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a child has ended", "alive"]


def test_an_error_inside_passes_through() -> None:
    with pytest.raises(ValueError, match="inside"), kept_signal_stack():
        raise ValueError("inside")
