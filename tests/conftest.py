"""Fixtures shared by every folder: one tiny student, exported once to every runtime and precision.

On a board without torch the bundle comes from a folder prepared elsewhere (tests.deploy.prepared).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devices.home import home as vidon_home
from tests.deploy.conftest import lively_student
from tests.deploy.prepared import Rollouts, open_prepared, tiny_bundle
from toolkit.bundle import Bundle

if TYPE_CHECKING:
    from train.models.student import StreamStudent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for running the conformance suite on a board."""
    parser.addoption("--prepared", type=Path, help="Folder of  python -P -m tests.deploy.prepared FOLDER: no torch.")
    parser.addoption("--adapters", help="Comma-separated runtimes: only their cases of the conformance suite.")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests neither see nor change what vidon has learned about this machine; vendors' tools they may use."""
    folder = tmp_path_factory.mktemp("home")
    tools = vidon_home() / "tools"
    if tools.is_dir():
        (folder / "tools").symlink_to(tools.resolve(), target_is_directory=True)
    monkeypatch.setenv("VIDON_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def prepared(request: pytest.FixtureRequest) -> Path | None:
    """The folder given with ``--prepared``."""
    folder: Path | None = request.config.getoption("--prepared")
    return folder


@pytest.fixture(scope="session")
def student() -> "StreamStudent":
    return lively_student()


@pytest.fixture(scope="session")
def bundle(prepared: Path | None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every runtime and precision of the tiny student."""
    if prepared is not None:
        return open_prepared(prepared)[0]
    return tiny_bundle(request.getfixturevalue("student"), tmp_path_factory.mktemp("bundle") / "tiny.vidon")


@pytest.fixture(scope="session")
def rollouts(prepared: Path | None, request: pytest.FixtureRequest) -> Rollouts:
    """What torch answers."""
    return open_prepared(prepared)[1] if prepared is not None else Rollouts.of(request.getfixturevalue("student"))
