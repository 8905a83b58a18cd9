"""Probing device nodes in a made-up file tree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices.probe import probe


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def test_a_bare_machine_has_its_processor_and_nothing_else(tmp_path: Path) -> None:
    assert [device.kind for device in probe(tmp_path)] == ["cpu"]


def test_accelerator_nodes_are_found_and_numbered(tmp_path: Path) -> None:
    _touch(tmp_path, "dev/accel/accel0", "dev/rknpu", "dev/dri/renderD128", "dev/dri/card0")
    (tmp_path / "sys/class/drm/renderD128/device").mkdir(parents=True)
    (tmp_path / "sys/class/drm/renderD128/device/vendor").write_text("0x8086\n")
    found = {device.name: device.title for device in probe(tmp_path)}
    assert found.keys() == {"cpu", "gpu0", "npu0", "npu1"}
    assert found["gpu0"] == "Intel GPU"
    assert found["npu1"] == "Rockchip NPU"


def test_a_camera_is_listed_once_by_the_index_to_type(tmp_path: Path) -> None:
    for number, index in ((0, "0"), (1, "1"), (10, "0")):
        folder = tmp_path / f"sys/class/video4linux/video{number}"
        folder.mkdir(parents=True)
        (folder / "index").write_text(f"{index}\n")
        (folder / "name").write_text("HD Webcam\n")
        _touch(tmp_path, f"dev/video{number}")
    cameras = [device for device in probe(tmp_path) if device.kind == "camera"]
    assert [(camera.name, camera.title) for camera in cameras] == [("0", "HD Webcam"), ("10", "HD Webcam")]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may open every file")
def test_a_device_without_permission_is_listed_with_the_cure(tmp_path: Path) -> None:
    _touch(tmp_path, "dev/rknpu")
    (tmp_path / "dev/rknpu").chmod(0)
    device = probe(tmp_path)[1]
    assert not device.usable
    assert "group" in device.hint


def test_a_vanished_node_is_listed_as_unusable(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/video4linux/video0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("Unplugged")
    camera = probe(tmp_path)[1]
    assert not camera.usable
    assert "permission" in camera.hint


def test_probing_imports_no_runtime_and_no_torch() -> None:
    code = (
        "import sys, devices; devices.probe(); devices.profile_names();"
        "print([m for m in ('torch', 'onnxruntime', 'openvino', 'ai_edge_litert', 'cv2') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(root)},
    )
    assert result.stdout.strip() == "[]"
