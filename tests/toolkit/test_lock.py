"""Two processes never work in one folder, and a killed one leaves no lock behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.errors import UserError
from toolkit.lock import alone

pytest.importorskip("fcntl")


def test_the_second_is_refused_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from toolkit.lock import alone\n"
        "with alone(Path(sys.argv[1]), 'training'): print('held', flush=True); time.sleep(600)"
    )
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-P", "-c", code, str(tmp_path)], stdout=subprocess.PIPE,
                             env={**os.environ, "PYTHONPATH": str(root)})  # fmt: skip
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(UserError, match="another vidon is training in"), alone(tmp_path, "training"):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    with alone(tmp_path, "training"):
        assert (tmp_path / ".lock").exists()


def test_a_folder_that_cannot_be_written_to_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), alone(tmp_path / "file", "training"):
        pass
