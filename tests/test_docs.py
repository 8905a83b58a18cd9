"""Tables in README and docs are those of the committed benchmark results."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_table_is_stale() -> None:
    command = [sys.executable, "-P", str(ROOT / "docs" / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guides_commands_exist() -> None:
    from typer.main import get_command

    from toolkit.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    for file in (ROOT / "README.md", ROOT / "docs" / "guide.md"):
        for line in file.read_text().splitlines():
            if line.startswith("vidon "):
                assert line.split()[1] in known, line
