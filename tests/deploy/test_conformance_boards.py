"""The conformance suite itself on boards: tflite-runtime beside numpy 1, and one runtime alone without torch."""

import subprocess
from pathlib import Path

import pytest

from devices.tools import TOOLS, python_of
from tests.deploy.boards import board, run_suite
from tests.deploy.prepared import prepare
from tests.deploy.tools import needs
from toolkit.bundle import Bundle
from train.models.student import StreamStudent


def _says(python: Path, code: str) -> str:
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@needs("old-tflite")
def test_the_suite_passes_with_tflite_runtime_beside_numpy_1(
    student: StreamStudent, bundle: Bundle, tmp_path: Path
) -> None:
    python = python_of(TOOLS["old-tflite"])
    assert _says(python, "import numpy; print(numpy.__version__)").startswith("1.")
    assert "No module named 'ai_edge_litert'" in _says(python, "import ai_edge_litert")
    prepare(tmp_path, student, bundle)
    counts, text = run_suite(python, tmp_path, "litert", "--prepared", str(tmp_path))
    assert counts.get("passed", 0) >= 62, text
    assert "SKIPPED [1]" in text, text
    assert counts.get("skipped", 0) == 1, text  # the compiled form, which tflite-runtime does not have
    assert not counts.keys() & {"failed", "error"}, text


@pytest.mark.parametrize(("package", "adapter"), [
    ("ai-edge-litert", "litert"),
    pytest.param("onnxruntime", "onnxruntime", marks=pytest.mark.slow),
    pytest.param("openvino", "openvino", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_suite_passes_where_one_runtime_is_all_there_is(
    student: StreamStudent, bundle: Bundle, tmp_path: Path, package: str, adapter: str
) -> None:
    python = board(tmp_path, package)
    assert "No module named 'torch'" in _says(python, "import torch")
    prepare(tmp_path, student, bundle)
    counts, text = run_suite(python, tmp_path, adapter, "--prepared", str(tmp_path))
    assert counts.get("passed", 0) >= 50, text
    assert not counts.keys() & {"failed", "error"}, text
