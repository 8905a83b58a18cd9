"""A signature says who made a bundle; nothing that was changed or made by others passes."""

import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from toolkit.bundle import SIGNATURE, Bundle, Golden, Manifest, create_bundle, open_bundle, seal
from toolkit.contract import Contract
from toolkit.errors import BundleError, MissingDependency, UserError
from toolkit.preprocess import Preprocess
from toolkit.signing import check_signature, make_keys, sign_bundle

pytest.importorskip("cryptography")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    manifest = Manifest(
        name="door",
        labels=("a", "b"),
        preprocess=Preprocess(size=(8, 8)),
        contract=Contract(frame=(3, 8, 8), classes=2),
    )
    golden = Golden(np.zeros((2, 3, 8, 8), np.float32), np.ones((2, 2), np.float32))
    with create_bundle(tmp_path / "door.vidon", manifest, golden):
        pass
    return open_bundle(tmp_path / "door.vidon")


def test_what_was_signed_is_trusted(bundle: Bundle, tmp_path: Path) -> None:
    public = make_keys(tmp_path / "maker.pem")
    sign_bundle(bundle, tmp_path / "maker.pem")
    check_signature(open_bundle(bundle.root), public)
    assert stat.S_IMODE((tmp_path / "maker.pem").stat().st_mode) == 0o600


def test_an_unsigned_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not signed"):
        check_signature(bundle, make_keys(tmp_path / "maker.pem"))


def test_another_makers_key_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    make_keys(tmp_path / "maker.pem")
    sign_bundle(bundle, tmp_path / "maker.pem")
    with pytest.raises(BundleError, match="not by the owner"):
        check_signature(bundle, make_keys(tmp_path / "other.pem"))


def test_a_changed_manifest_is_refused_even_with_right_checksums(bundle: Bundle, tmp_path: Path) -> None:
    public = make_keys(tmp_path / "maker.pem")
    sign_bundle(bundle, tmp_path / "maker.pem")
    file = bundle.root / "manifest.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps({**raw, "labels": ["b", "a"]}))
    with pytest.raises(BundleError, match="changed since"):
        check_signature(open_bundle(bundle.root), public)


def test_sealing_again_takes_the_old_signature_away(bundle: Bundle, tmp_path: Path) -> None:
    make_keys(tmp_path / "maker.pem")
    sign_bundle(bundle, tmp_path / "maker.pem")
    sealed = seal(bundle.root, bundle.manifest)
    assert not (bundle.root / SIGNATURE).exists()
    assert SIGNATURE not in sealed.files


@pytest.mark.parametrize("text", ["", "{}", '{"signature": 3}', '{"signature": "no base64!"}'])
def test_a_damaged_signature_is_one_clear_line(bundle: Bundle, tmp_path: Path, text: str) -> None:
    (bundle.root / SIGNATURE).write_text(text)
    with pytest.raises(BundleError, match="not by the owner"):
        check_signature(bundle, make_keys(tmp_path / "maker.pem"))


def test_keys_are_never_overwritten_and_foreign_ones_refused(bundle: Bundle, tmp_path: Path) -> None:
    public = make_keys(tmp_path / "maker.pem")
    with pytest.raises(UserError, match="exists already"):
        make_keys(tmp_path / "maker.pem")
    with pytest.raises(UserError, match="cannot be read"):
        sign_bundle(bundle, public)
    with pytest.raises(UserError, match="cannot be read"):
        check_signature(bundle, tmp_path / "absent.pub")


def test_without_the_library_the_extra_is_named(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(MissingDependency, match=r"vidon\[sign\]"):
        sign_bundle(bundle, tmp_path / "maker.pem")
