"""One place for everything that vidon keeps on a machine, and a word about it where there is none."""

from pathlib import Path

import pytest

from deploy.choice import load_choice
from devices.home import home
from devices.tools import TOOLS, place_of
from devices.tools.environment import is_ready
from toolkit.bundle import Bundle, Manifest
from toolkit.contract import Contract
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess


def test_tools_and_choices_lie_in_the_same_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for given in ("", None):
        monkeypatch.delenv("VIDON_HOME") if given is None else monkeypatch.setenv("VIDON_HOME", given)
        assert home() == tmp_path / "vidon"
        assert place_of(TOOLS["ethos-u"]).parents[1] == home()
    monkeypatch.setenv("VIDON_HOME", str(tmp_path / "mine"))
    assert home() == tmp_path / "mine"


def test_a_user_without_a_home_folder_can_still_run_a_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(nobody))
    monkeypatch.delenv("VIDON_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match="set VIDON_HOME"):
        home()
    contract = Contract(frame=(3, 8, 8), classes=2)
    (tmp_path / "manifest.json").write_text("{}")
    manifest = Manifest(name="x", labels=("a", "b"), preprocess=Preprocess(size=(8, 8)), contract=contract)
    assert load_choice(Bundle(root=tmp_path, manifest=manifest)) is None
    assert not is_ready(TOOLS["ethos-u"])
