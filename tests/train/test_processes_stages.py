"""Detection, distillation and pruning in two real processes, through the command line.

A student holds batch norms, which see one part of a batch. So one process is asked to cut its batches into the same
two parts (``run.accumulate = 2``): then all that is learnt must agree. The running statistics cannot: one process
takes in both parts of every step, each of two processes its own, and the first one's are kept.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.boxes import write_boxes
from tests.train.synthetic import write_data
from toolkit.bundle import open_bundle
from toolkit.recipe import load_recipe
from train.models.store import load_model
from train.stages import distill, finetune, prune

ROOT = Path(__file__).parents[2]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
BOTH = pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
# Under FSDP2 weights lie in another order in memory, and dropout draws in that order.
ONE = ("run.accumulate=2", "student.dropout=0")

BOXES = """
task = "detection"
data = { root = "data/boxes.json", frames = 4 }
preprocess = { size = [48, 80], fps = 10.0 }
run = { device = "cpu", workers = 0 }
teacher = { dim = 32, depth = 2, heads = 2, tubelet = [2, 8, 8] }
student = { width = 0.25, blocks = 5, look_back = true, boxes = { channels = 32 } }
detection = { epochs = 3, batch = 4, lr = 0.01, optimizer = "sgd" }
prune = { epochs = 3, batch = 4, lr = 0.01, optimizer = "sgd" }
"""
# Batch norms over maps of one pixel make large differences of rounding ones: small steps.
CLASSES = """
data = { root = "data", frames = 4, flips = { left = "right", right = "left" } }
preprocess = { size = [32, 32], fps = 10.0 }
run = { device = "cpu", workers = 0 }
student = { width = 0.25, depth = 0.4, look_back = true }
distill = { epochs = 1, batch = 8, lr = 1e-4, optimizer = "sgd" }
prune = { epochs = 1, batch = 8, lr = 1e-4, optimizer = "sgd", ratio = 0.4, importance = "taylor" }
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _recipe(folder: Path, text: str) -> Path:
    write_boxes(folder / "data") if text is BOXES else write_data(folder / "data", train=12, val=1)
    (folder / "my.toml").write_text(text)
    return folder / "my.toml"


def _two(*arguments: str | Path) -> str:
    """One command in two processes, and what it answers."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [*map(str, arguments), "--set", "student.dropout=0", "--processes", "2"]
    command = [sys.executable, "-P", "-m", "toolkit", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _apart(one: Path, two: Path) -> tuple[float, float]:
    """The largest difference of what was learnt, and of the batch norms' statistics."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert a.keys() == b.keys()
    found = [0.0, 0.0]
    for name in a:
        kind = int(name.endswith(STATISTICS))
        found[kind] = max(found[kind], (a[name] - b[name]).abs().max().item())
    return found[0], found[1]


def _moved(start: Path, end: Path) -> float:
    return _apart(start, end)[0]


@BOTH
def test_a_detector_learns_in_two_processes_what_it_learns_in_one(strategy: str, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, BOXES)
    _two("distill", recipe, "--out", tmp_path / "two", "--set", f"run.strategy={strategy}")
    one = distill(load_recipe(recipe, ONE), tmp_path / "one")
    learnt, statistics = _apart(one, tmp_path / "two")
    assert learnt < 1e-5
    assert statistics > 0
    still = distill(load_recipe(recipe, (*ONE, "detection.lr=1e-12")), tmp_path / "still")
    assert _moved(one, still) > 1e-3, "three steps have changed the weights"


@BOTH
def test_a_student_is_pruned_and_recovers_in_two_processes_as_in_one(strategy: str, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, CLASSES)
    student = distill(load_recipe(recipe), tmp_path / "student")
    _two("prune", student, recipe, "--out", tmp_path / "two", "--set", f"run.strategy={strategy}")
    one = prune(load_recipe(recipe, ONE), tmp_path / "one", student)
    assert _apart(one, tmp_path / "two")[0] < 1e-5
    count = [sum(p.numel() for p in load_model(folder).model.parameters()) for folder in (tmp_path / "two", student)]
    assert count[0] < 0.8 * count[1]


def test_compress_trains_in_two_processes_and_exports_and_answers_once(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, CLASSES + 'quantize = { runtimes = ["onnxruntime"], precisions = ["fp32"] }\n')
    done = json.loads(_two("compress", recipe, "--out", tmp_path / "two", "--json"))
    assert done == {"bundle": str(tmp_path / "two" / "student.vidon"), "artefacts": ["onnxruntime-fp32"]}
    for stage in ("student", "pruned"):
        assert json.loads((tmp_path / "two" / stage / "run.json").read_text())["processes"] == 2
    assert open_bundle(Path(done["bundle"])).manifest.labels == ("left", "right")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_student_distils_in_two_processes_what_it_does_in_one(strategy: str, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, CLASSES)
    _two("distill", recipe, "--out", tmp_path / "two", "--set", f"run.strategy={strategy}")
    one = distill(load_recipe(recipe, ONE), tmp_path / "one")
    assert _apart(one, tmp_path / "two")[0] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_detector_on_an_encoder_and_a_pruned_one_do_in_two_processes_what_they_do_in_one(
    strategy: str, tmp_path: Path
) -> None:
    recipe, way = _recipe(tmp_path, BOXES), f"run.strategy={strategy}"
    _two("finetune", recipe, "--out", tmp_path / "two", "--set", way)
    assert _apart(finetune(load_recipe(recipe, ONE), tmp_path / "one"), tmp_path / "two")[0] < 1e-5
    student = distill(load_recipe(recipe), tmp_path / "student")
    _two("prune", student, recipe, "--out", tmp_path / "pruned-two", "--set", way)
    assert _apart(prune(load_recipe(recipe, ONE), tmp_path / "pruned-one", student), tmp_path / "pruned-two")[0] < 1e-5
