"""What README and docs say is so: tables are those of the committed results, commands and options exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from toolkit.cli import app

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_COMMAND = re.compile(r"(?:^|`|&& |run {1,2})vidon ([a-z][^`\n#]*)", re.MULTILINE)


def test_no_table_is_stale() -> None:
    command = [sys.executable, "-P", str(ROOT / "docs" / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _unknown(text: str) -> str | None:
    """What ``vidon`` does not know in a command line, or None."""
    line = re.split(r" {2}| && | > | \| ", text.strip())[0]
    words = shlex.split(line.replace("...", ""))
    command: Any = get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return words[0]
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = [word.partition("=")[0].rstrip(".,;:)") for word in words if word.startswith("-")]
    return next((option for option in given if option not in {*known, "--help"}), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_on_a_page_exists(page: Path) -> None:
    commands = _COMMAND.findall(page.read_text())
    assert [command for command in commands if _unknown(command)] == []


def test_a_command_or_option_that_does_not_exist_would_be_noticed() -> None:
    assert _unknown("camera door.vidon --source 0 --headless") is None
    assert _unknown("camera door.vidon --sauce 0") == "--sauce"
    assert _unknown("devices dctor") == "dctor"
    assert sum(len(_COMMAND.findall(page.read_text())) for page in PAGES) > 50
