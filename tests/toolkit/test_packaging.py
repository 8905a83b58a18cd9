"""The core needs neither torch nor a runtime, and a built wheel works beside a user's own train.py."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.deploy.conftest import bundle, student  # noqa: F401  (fixtures)
from tests.train.synthetic import write_video
from toolkit.bundle import Bundle

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "onnx", "nncf", "cv2", "matplotlib")


def _python(code: str, cwd: Path = ROOT, python: str = sys.executable, **env: str) -> subprocess.CompletedProcess[str]:
    command = [python, "-P", "-W", "ignore", "-c", code]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=250
    )


def test_importing_the_core_loads_no_heavy_library() -> None:
    code = f"import sys, toolkit, devices, deploy, toolkit.cli\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = _python(code, PYTHONPATH=str(ROOT))
    assert done.stdout.strip() == "[]", done.stderr


def test_a_users_own_train_py_is_not_picked_up(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')")
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", "distill", "--help"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout


def test_a_package_that_hides_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "toolkit", "--help"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "train.py hides vidon's own package 'train'" in done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds only the built wheel and its core dependencies; returns its python."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(folder.glob("vidon-*.whl"))
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return python


def test_the_wheel_runs_from_a_folder_with_the_users_own_train_py(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')")
    vidon = installed.with_name("vidon")
    for command in (["--version"], ["devices", "--json"], ["distill", "--help"]):
        done = subprocess.run([str(vidon), *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_the_core_alone_opens_a_bundle_and_names_the_missing_runtime(installed: Path, tmp_path: Path) -> None:
    code = f"""
import sys; sys.path[:0] = []
import numpy as np
from pathlib import Path
import toolkit, devices, deploy
from toolkit.bundle import Artefact, Golden, Manifest, create_bundle, open_bundle
from toolkit.contract import Contract
from toolkit.preprocess import Preprocess
manifest = Manifest(name="b", labels=("x", "y"), preprocess=Preprocess(size=(8, 8)),
                    contract=Contract(frame=(3, 8, 8), classes=2),
                    artefacts=(Artefact(runtime="onnxruntime", precision="fp32", entry="model.onnx"),))
path = Path({str(tmp_path)!r}) / "b.vidon"
with create_bundle(path, manifest, Golden(np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 2), np.float32))) as staging:
    (staging / "models/onnxruntime-fp32").mkdir(parents=True)
    (staging / "models/onnxruntime-fp32/model.onnx").write_bytes(b"x")
print(open_bundle(path).manifest.labels)
assert "torch" not in sys.modules
"""
    done = _python(code, cwd=tmp_path, python=str(installed), PYTHONPATH="")
    assert done.stdout.strip() == "('x', 'y')", done.stderr
    verify = subprocess.run(
        [str(installed.with_name("vidon")), "verify", str(tmp_path / "b.vidon")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verify.returncode == 2
    assert "pip install 'vidon[onnxruntime]'" in verify.stderr


@pytest.fixture(scope="module")
def board(installed: Path) -> Path:
    """The same environment with OpenCV and one runtime added, as on a board: no torch."""
    root = ["-c", str(ROOT / "constraints.txt")]
    install = [str(installed), "-m", "pip", "install", "-q", *root, "opencv-python-headless", "onnxruntime"]
    subprocess.run(install, check=True, capture_output=True)
    return installed


def test_a_board_with_one_runtime_verifies_evaluates_and_plays_the_camera(
    board: Path,
    bundle: Bundle,  # noqa: F811
    tmp_path: Path,
) -> None:
    def run(*arguments: str) -> str:
        vidon = str(board.with_name("vidon"))
        done = subprocess.run([vidon, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert _python("import torch", python=str(board)).returncode != 0
    data = tmp_path / "clips"
    video = write_video(data / "a" / "one.avi", 2, 0)
    write_video(data / "b" / "two.avi", -2, 1)
    for key in ("onnxruntime-fp32", "onnxruntime-int8"):
        assert key in run("verify", str(bundle.root), "--artefact", key)
    rows = json.loads(run("evaluate", str(bundle.root), "--data", str(data), "-a", "onnxruntime-int8", "--json"))
    assert rows["onnxruntime-int8"]["clips"] == 2
    played = run("camera", str(bundle.root), "--source", str(video), "--out", "seen.mp4", "--json")
    assert json.loads(played)["artefact"]
    assert (tmp_path / "seen.mp4").stat().st_size > 0
