"""A bundle is whole, checked and free of pickle, or it is refused by name."""

import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from toolkit.bundle import Artefact, Golden, Manifest, create_bundle, open_bundle
from toolkit.contract import Contract
from toolkit.errors import BundleError, UserError
from toolkit.preprocess import Preprocess


def _manifest() -> Manifest:
    return Manifest(
        name="door",
        labels=("open", "shut"),
        preprocess=Preprocess(size=(8, 8)),
        contract=Contract(frame=(3, 8, 8), classes=2),
        artefacts=(Artefact(runtime="onnxruntime", precision="fp32", entry="model.onnx"),),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    golden = Golden(np.zeros((2, 3, 8, 8), np.float32), np.ones((2, 2), np.float32))
    with create_bundle(tmp_path / "door.vidon", _manifest(), golden) as staging:
        folder = staging / "models/onnxruntime-fp32"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"weights")
    return tmp_path / "door.vidon"


def test_what_is_saved_is_what_is_opened(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.model_copy(update={"files": {}}) == _manifest()
    assert set(opened.manifest.files) == {"golden.npz", "models/onnxruntime-fp32/model.onnx"}
    assert opened.golden().logits.tolist() == [[1, 1], [1, 1]]


def test_a_zipped_bundle_opens_too(bundle: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "door"), "zip", bundle))
    assert open_bundle(archive).manifest == open_bundle(bundle).manifest
    (bundle / "golden.npz").unlink()
    archive = Path(shutil.make_archive(str(tmp_path / "half"), "zip", bundle))
    with pytest.raises(BundleError, match=rf"bundle {archive}: golden\.npz is missing"):
        open_bundle(archive)


def test_a_changed_byte_is_refused_by_name(bundle: Path) -> None:
    (bundle / "models/onnxruntime-fp32/model.onnx").write_bytes(b"weighty")
    with pytest.raises(BundleError, match=r"model\.onnx was changed or damaged"):
        open_bundle(bundle)


def test_a_missing_file_is_refused_by_name(bundle: Path) -> None:
    (bundle / "golden.npz").unlink()
    with pytest.raises(BundleError, match=r"golden\.npz is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}', '{"schema_version": 1, "name": 3}'])
def test_a_damaged_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        open_bundle(bundle)


def test_a_newer_schema_asks_for_an_upgrade(bundle: Path) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    raw["schema_version"] = 99
    (bundle / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"schema 99.*upgrade vidon"):
        open_bundle(bundle)


def test_a_truncated_zip_is_refused(bundle: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "door"), "zip", bundle))
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(BundleError, match="not a readable zip"):
        open_bundle(archive)


def test_a_zip_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil", "x")
    with pytest.raises(BundleError, match="points outside"):
        open_bundle(tmp_path / "evil.zip")


def test_a_manifest_cannot_name_files_outside_the_bundle(bundle: Path) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    raw["files"]["../secret"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="points outside"):
        open_bundle(bundle)


@pytest.mark.parametrize("version", [0, -1, "1x", None])
def test_a_schema_that_never_was_is_refused(bundle: Path, version: object) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    raw["schema_version"] = version
    (bundle / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        open_bundle(bundle)
    del raw["schema_version"]
    (bundle / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        open_bundle(bundle)


def test_every_file_that_a_runtime_could_open_has_a_checksum(bundle: Path) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    for entry in ("../../../outside.onnx", "other.onnx"):
        raw["artefacts"][0]["entry"] = entry
        (bundle / "manifest.json").write_text(json.dumps(raw))
        with pytest.raises(BundleError, match="onnxruntime-fp32 is of a file without a checksum"):
            open_bundle(bundle)
    raw["artefacts"][0]["entry"] = "model.onnx"
    (bundle / "manifest.json").write_text(json.dumps(raw))
    (bundle / "models/onnxruntime-fp32/.DS_Store").write_bytes(b"left by a file manager")
    open_bundle(bundle)
    (bundle / "models/onnxruntime-fp32/model.b4.onnx").write_bytes(b"slipped in")
    with pytest.raises(BundleError, match=r"model\.b4\.onnx is not of this bundle; remove it"):
        open_bundle(bundle)


def test_a_missing_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vidon export"):
        open_bundle(tmp_path / "nowhere.vidon")


def test_an_ordinary_folder_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        open_bundle(tmp_path)


def test_an_unknown_artefact_names_the_nearest(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'onnxruntime-fp32'"):
        open_bundle(bundle).artefact("onnxruntime-fp23")


def test_a_full_disk_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    golden = Golden(np.zeros((1, 3, 8, 8), np.float32), np.ones((1, 2), np.float32))
    with pytest.raises(UserError, match="no space left"), create_bundle(tmp_path / "b.vidon", _manifest(), golden):
        monkeypatch.setattr(os, "fsync", full)
    assert list(tmp_path.iterdir()) == []


def test_golden_steps_hold_no_pickle(bundle: Path) -> None:
    np.savez(bundle / "golden.npz", frames=np.array([object()], dtype=object), logits=np.zeros(1))
    opened = open_bundle(bundle, check=False)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        opened.golden()


def test_a_link_cannot_bring_in_files_without_a_checksum(bundle: Path) -> None:
    """A folder of the bundle is moved aside and linked to: what lies there beside the known file is not looked at."""
    models = bundle / "models/onnxruntime-fp32"
    models.rename(bundle / "elsewhere")
    models.symlink_to("../elsewhere", target_is_directory=True)
    (bundle / "elsewhere/model-b4.onnx").write_bytes(b"slipped in")
    with pytest.raises(BundleError, match=r"models/onnxruntime-fp32 is a link; copy the bundle again"):
        open_bundle(bundle)


def test_a_zip_that_would_fill_the_disk_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("golden.npz", bytes(2**28))
    with pytest.raises(BundleError, match=r"would unpack to 256 MiB, [0-9]+ times its size; do not use it"):
        open_bundle(tmp_path / "bomb.zip")


def test_a_disk_without_room_for_a_zip_is_told_as_such(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "door"), "zip", bundle))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match=r"cannot unpack .*door\.zip: it needs .* MiB in .*, or let TMPDIR"):
        open_bundle(archive)


def test_a_manifest_of_endless_depth_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        open_bundle(bundle)
