"""Fixtures shared by every folder: one tiny student, exported once to every runtime and precision."""

from pathlib import Path

import pytest

from deploy.export import export_bundle
from devices.home import home as vidon_home
from tests.deploy.conftest import PRECISIONS, RUNTIME_NAMES, SIDE, lively_student, streams
from toolkit.bundle import Bundle
from toolkit.preprocess import Preprocess
from train.models.student import StreamStudent


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
def student() -> StreamStudent:
    return lively_student()


@pytest.fixture(scope="session")
def bundle(student: StreamStudent, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every runtime and precision of the tiny student."""
    path: Path = tmp_path_factory.mktemp("bundle") / "tiny.vidon"
    return export_bundle(
        student, path=path, name="tiny", labels=("a", "b", "c", "d"), preprocess=Preprocess(size=(SIDE, SIDE)),
        rollouts=streams(6), golden_frames=streams(7)[6], runtimes=RUNTIME_NAMES, precisions=PRECISIONS, lineage={},
    )  # fmt: skip
