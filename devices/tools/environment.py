"""Environments of their own for vendors' tools, made on request in ``$VIDON_HOME`` or ``~/.cache/vidon``.

An environment counts only once its ``ready.json`` stands, which is written last, after the tool has really been
imported in it; an interrupted setup goes on at the step where it stopped, and a half-made one is never used.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

from devices.home import home
from devices.tools.client import SCRIPT, Worker
from devices.tools.spec import Tool
from toolkit.errors import MissingTool, ToolError, UserError
from toolkit.files import writable_dir, write_json
from toolkit.lock import alone
from toolkit.progress import bar

__all__ = ["is_ready", "place_of", "python_of", "setup"]

_FULL = 64 * 2**20  # bytes: with fewer than these no package can be unpacked


def place_of(tool: Tool) -> Path:
    """The folder of the tool's environment, made or not."""
    return home() / "tools" / f"{tool.name}-{tool.version}"


def is_ready(tool: Tool) -> bool:
    """Whether the environment is whole and of this very recipe."""
    try:
        return _says(place_of(tool) / "ready.json", _digest(tool)) and _python(tool).exists()
    except UserError:  # there is nowhere to look
        return False


def python_of(tool: Tool) -> Path:
    """The interpreter that has the tool: its own environment's, or this one for a tool that may share it.

    Raises:
        MissingTool: names the command that makes the environment.
    """
    if is_ready(tool):
        return _python(tool)
    if tool.shareable and _importable(tool.module):
        return Path(sys.executable)
    raise MissingTool(tool.title, tool.name)


def setup(tool: Tool, again: bool = False) -> Path:
    """Make the environment (or go on making it) and return its interpreter; ``again`` starts from nothing.

    Raises:
        UserError: this Python is too old or too new for it, the disk refuses, or another setup is running.
        ToolError: pip failed, or the tool cannot be imported; its last words are given.
    """
    low, high = tool.pythons
    if not low <= sys.version_info.minor <= high:
        raise UserError(
            f"{tool.title} {tool.version} has packages for Python 3.{low} to 3.{high}, this is 3."
            f"{sys.version_info.minor}: run vidon with one of those to set it up"
        )
    root = writable_dir(place_of(tool))
    with alone(root, f"setting up {tool.name}"):
        if again:
            _forget(root)
        if not is_ready(tool):
            _make(tool, root)
    return _python(tool)


def _make(tool: Tool, root: Path) -> None:
    """Virtual environment, then each group of packages, then a real start of the tool; each step is ticked off."""
    digest, steps = _digest(tool), root / "steps.json"
    if not _says(steps, digest):
        _forget(root)
    done = json.loads(steps.read_bytes())["done"] if steps.exists() else 0
    venv = [sys.executable, "-m", "venv", "--clear", str(root / "env")]
    pip = [str(_python(tool)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    commands = [venv, *([*pip, *packages] for packages in tool.installs)]
    with bar(f"set up {tool.name}", len(commands) + 1) as progress, (root / "setup.log").open("ab") as log:
        progress.advance(done)
        for index, command in enumerate(commands[done:], start=done + 1):
            _run(tool, command, log, root / "setup.log")
            write_json(steps, {"digest": digest, "done": index})
            progress.advance(news=" ".join(command[-1:]))
        with Worker(tool.name, _python(tool), SCRIPT) as worker:
            write_json(root / "ready.json", {"digest": digest, "tool": tool.name, **worker.hello})
        progress.advance(news="works")


def _run(tool: Tool, command: list[str], log: IO[bytes], path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, check=False)
    if done.returncode == 0:
        return
    words = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in words if line.startswith("ERROR")] or words or ["it said nothing"]
    free = shutil.disk_usage(path.parent).free
    errors += [f"the disk is full, {free / 2**20:.0f} MiB are left"] if free < _FULL else []
    raise ToolError(
        f"{tool.title} cannot be installed ({errors[-1].strip()}); the log is {path}; when it is mended, run  "
        f"vidon devices setup {tool.name}  again: it goes on where it stopped"
    )


def _forget(root: Path) -> None:
    """What was made before does not count; the first step makes the environment afresh."""
    (root / "ready.json").unlink(missing_ok=True)
    (root / "steps.json").unlink(missing_ok=True)


def _python(tool: Tool) -> Path:
    folder = place_of(tool) / "env"
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def _digest(tool: Tool) -> str:
    """Of the recipe and the Python it was made with: another one is another environment."""
    text = json.dumps([tool.version, tool.installs, sys.version_info[:2]])
    return hashlib.sha256(text.encode()).hexdigest()


def _says(file: Path, digest: str) -> bool:
    try:
        return bool(json.loads(file.read_bytes())["digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
