"""Environments that have no torch, as boards do: packages of this one are lent to another interpreter by links."""

import os
import re
import subprocess
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["CORE", "board", "lend", "run_suite"]

ROOT = Path(__file__).parents[2]
#: What vidon itself needs on a board.
CORE = ("numpy", "pydantic", "typer", "rich", "opencv-python-headless")
_TESTING = ("pytest", "pytest-timeout")


def lend(folder: Path, *names: str) -> Path:
    """``folder`` with links to these distributions and to all that they need, and to nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _closure(names):
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(str(distribution(name).locate_file(top)))
    return folder


def _closure(names: tuple[str, ...]) -> set[str]:
    """The distributions and what they require here."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(re.sub(r"[-_.]+", "-", requirement.name).lower())
    return found


#: What every runtime must do, and what one alone owes.
_SUITE = ("tests/deploy/test_conformance.py", "tests/deploy/test_adapters.py")


def board(folder: Path, *names: str) -> Path:
    """The python of a fresh environment with the core and these distributions, and no torch."""
    venv.create(folder / "env", with_pip=False)
    packages = next((folder / "env" / "lib").glob("python3*")) / "site-packages"
    try:
        lend(packages, *CORE, *names)
    except PackageNotFoundError:
        # The other OpenCV, for machines with a screen.
        lend(packages, *(name.replace("-headless", "") for name in CORE), *names)
    return folder / "env" / "bin" / "python"


def run_suite(python: Path, folder: Path, adapter: str, *arguments: str) -> tuple[dict[str, int], str]:
    """Run the conformance suite of one adapter in another environment: (outcome -> how many, what it printed)."""
    lent = lend(folder / "testing", *_TESTING)
    command = [str(python), "-P", "-m", "pytest", *_SUITE, "--adapters", adapter, *arguments]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{lent}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-rs"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    summary = next((line for line in reversed(lines) if re.search(r"\d+ (passed|failed|error)", line)), "")
    words = re.findall(r"(\d+) (passed|failed|skipped|deselected|error)", summary)
    return {word: int(count) for count, word in words}, done.stdout + done.stderr
