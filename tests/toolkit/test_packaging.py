"""The core needs neither torch nor a runtime, and a built wheel works beside a user's own train.py."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("vidon-*.whl"))


def _environment(folder: Path, *requirements: str, constrained: bool = True) -> Path:
    """A new environment with the requirements; returns its python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pins = ["-c", str(ROOT / "constraints.txt")] if constrained else []
    subprocess.run([str(python), "-m", "pip", "install", "-q", *pins, *requirements], check=True, capture_output=True)
    return python


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Only the built wheel and its core dependencies."""
    return _environment(wheel.parent / "core", str(wheel))


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


def _assert_works_on_a_board(
    python: Path, bundle: Bundle, keys: tuple[str, ...], folder: Path
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Verify, examine, evaluate and play the camera with one runtime and without torch.

    Returns what was verified, what was examined (artefact -> rule -> detail), and which artefact was played.
    """

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(python.with_name("vidon")), *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert _python("import torch", python=str(python)).returncode != 0
    data = folder / "clips"
    video = write_video(data / "a" / "one.avi", 2, 0)
    write_video(data / "b" / "two.avi", -2, 1)
    checked = json.loads(run("verify", str(bundle.root), "--json"))
    assert [key for key, row in checked.items() if "not_checked" not in row] == list(keys)
    assert "pip install 'vidon[torch]'" in checked["torch-fp32"]["not_checked"]
    rows = json.loads(run("evaluate", str(bundle.root), "--data", str(data), "--all", "--json"))
    assert {key: row["clips"] for key, row in rows.items()} == dict.fromkeys(keys, 2)
    examined = json.loads(run("devices", "conformance", str(bundle.root), "--steps", "400", "--json"))
    assert {key: row["ok"] for key, row in examined.items()} == dict.fromkeys(keys, True)
    played = run("camera", str(bundle.root), "--source", str(video), "--out", "seen.mp4", "--json")
    assert json.loads(played)["artefact"] in keys
    assert (folder / "seen.mp4").stat().st_size > 0
    details = {key: {rule["rule"]: rule["detail"] for rule in row["rules"]} for key, row in examined.items()}
    return checked, details, json.loads(played)["artefact"]


def test_a_board_with_one_runtime_verifies_evaluates_and_plays(wheel: Path, bundle: Bundle, tmp_path: Path) -> None:
    python = _environment(wheel.parent / "board", f"{wheel}[headless,onnxruntime]")
    _assert_works_on_a_board(python, bundle, ("onnxruntime-fp32", "onnxruntime-int8"), tmp_path)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime ended with Python 3.11")
def test_an_old_board_plays_through_tflite_runtime(wheel: Path, bundle: Bundle, tmp_path: Path) -> None:
    old = ("opencv-python-headless<4.11",)  # the last that takes numpy 1
    python = _environment(wheel.parent / "old", f"{wheel}[tflite]", *old, constrained=False)
    checked, details, default = _assert_works_on_a_board(python, bundle, ("litert-fp32", "litert-int8"), tmp_path)
    assert default == "litert-fp32"  # its int8 kernels are slow
    fp32, int8 = checked["litert-fp32"], checked["litert-int8"]
    assert fp32["max_diff"] < 1e-4
    assert (int8["decibels"] > 15, int8["agreement"] >= 0.9) == (True, True)
    for row in details.values():
        assert "library tflite_runtime" in row["it ran where it was asked to"]
        for rule in ("reset makes a session forget", "a batch equals single streams", "no drift"):
            assert row[rule].startswith("difference 0.0e+00"), row[rule]
