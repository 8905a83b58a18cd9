"""Several real processes do what one does; a killed run with decoding workers leaves no trace of the kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.runner import Decoding, plan_of
from tests.train.synthetic import write_data
from toolkit.cli.launch import spread
from toolkit.recipe import FinetuneConfig, RunConfig, load_recipe
from train.loop import fit
from train.stages import finetune

ROOT = Path(__file__).parents[2]
RUNNER = [sys.executable, "-P", "-m", "tests.train.runner"]
OPTIM = FinetuneConfig(epochs=1, batch=8, lr=0.01)


def _steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "lr" in line]


def _worst(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max((one[name] - two[name]).abs().max().item() for name in one if one[name].numel())


def _run(kind: str, out: Path, optim: FinetuneConfig = OPTIM, **run: Any) -> dict[str, torch.Tensor]:
    """The same run in this process; returns its final weights."""
    plan = plan_of(kind, optim, RunConfig(device="cpu", workers=0, **run))
    fit(plan, Decoding(), out)
    return plan.model.state_dict()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three steps each in two gloo processes: DDP, DDP with random masks, FSDP2 with an average, and so on."""
    out = tmp_path_factory.mktemp("two")
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        kinds = "labels,masked,sharded,contrastive,queue,queue-sharded,retrieval"
        assert spread([*RUNNER, str(out), f"kinds={kinds}", "ema=0.9"], 2) == 0
    finally:
        os.environ.clear()
        os.environ.update(before)
    return out


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Sums in another order would differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


AVERAGED = OPTIM.model_copy(update={"ema": 0.9})


@pytest.mark.parametrize(("kind", "accumulate"), [("labels", 1), ("labels", 2), ("masked", 2), ("sharded", 1)], ids=str)
def test_two_processes_do_what_one_does_with_the_same_batch(
    kind: str, accumulate: int, two: Path, tmp_path: Path
) -> None:
    """With random draws in the loss one process must cut the batch as the two did: ``accumulate = 2``."""
    alone = _run(kind, tmp_path, AVERAGED, accumulate=accumulate)
    together = load_file(two / kind / "final.safetensors")
    assert max((alone[name] - together[name]).abs().max().item() for name in alone) < 1e-5
    assert len(_steps(tmp_path)) == 3
    for one, both in zip(_steps(tmp_path), _steps(two / kind), strict=True):
        assert one == pytest.approx(both, abs=1e-5)


@pytest.mark.parametrize("kind", ["contrastive", "queue", "queue-sharded", "retrieval"])
def test_clips_of_two_processes_are_compared_as_those_of_one(kind: str, two: Path, tmp_path: Path) -> None:
    """Negatives of all processes with their gradients: plain descent's steps are the gradients, half as large."""
    alone, together = _run(kind, tmp_path), load_file(two / kind / "final.safetensors")
    start = plan_of(kind, OPTIM, RunConfig(device="cpu")).model.state_dict()
    assert _worst(alone, start) > 1e-3, "it has learnt"
    assert _worst(alone, together) < 1e-5
    assert len(_steps(tmp_path)) == 3
    for one, both in zip(_steps(tmp_path), _steps(two / kind), strict=True):
        assert one == pytest.approx(both, abs=1e-5)


@pytest.mark.parametrize("kind", ["queue", "queue-sharded"])
def test_the_queue_and_the_momentum_weights_are_the_same_in_all_processes(kind: str, two: Path) -> None:
    first, second = (load_file(two / kind / f"{name}.safetensors") for name in ("final", "final-1"))
    assert {"objectives.contrastive.queue", "objectives.contrastive.follower.1.0.weight"} <= first.keys()
    assert first["objectives.contrastive.cursor"] == 3 * 2 * 7 % 20, "every clip of every step went in"
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_sharded_run_leaves_a_checkpoint_that_one_process_loads(two: Path, tmp_path: Path) -> None:
    _run("sharded", tmp_path, AVERAGED)
    one, shards = (load_file(folder / "checkpoint.safetensors") for folder in (tmp_path, two / "sharded"))
    assert one.keys() == shards.keys()
    assert {name.split(".")[0] for name in shards} == {"model", "average", "best", "optim"}
    assert max((one[name] - shards[name]).abs().max().item() for name in one) < 1e-5
    plan = plan_of("sharded", AVERAGED, RunConfig(device="cpu"))
    fit(plan, Decoding(), two / "sharded")  # already at its end: loads the checkpoint and finishes
    final = load_file(two / "sharded" / "final.safetensors")
    assert all(torch.equal(tensor, final[name]) for name, tensor in plan.model.state_dict().items())


def _vidon(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "toolkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_data(tmp_path / "data", train=4, val=1)
    text = """
    data = { root = "data", frames = 4, source = "files" }
    preprocess = { size = [32, 32] }
    run = { device = "cpu", workers = 1 }
    teacher = { dim = 16, depth = 1, heads = 2, tubelet = [2, 8, 8] }
    finetune = { epochs = 2, batch = 4 }
    """
    (tmp_path / "my.toml").write_text(text)
    return tmp_path / "my.toml"


def test_the_command_line_trains_in_two_processes_and_answers_once(recipe: Path, tmp_path: Path) -> None:
    """Clips decoded on demand by a worker of each process; one process with two parts gets the same model."""
    done = _vidon("finetune", recipe, "--processes", "2", "--out", tmp_path / "two", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stage"] == "finetune"
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert not (tmp_path / "two" / "checkpoint.safetensors").exists()
    finetune(load_recipe(recipe, ("run.accumulate=2", "run.workers=0")), tmp_path / "one")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


@pytest.mark.slow
def test_an_error_in_every_process_is_said_once(recipe: Path, tmp_path: Path) -> None:
    done = _vidon("finetune", recipe, "--processes", "2", "--out", tmp_path / "two", "--set", "finetune.batch=1")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        "error: a batch of 1 videos cannot be split into 2 parts: "
        "raise batch, or lower run.accumulate or the number of processes"
    ]


def test_a_run_killed_twice_has_the_same_loss_curve_to_the_last_bit(tmp_path: Path) -> None:
    """Real kills at moments that nobody chose, with two decoding workers; every step is there, once."""
    optim = OPTIM.model_copy(update={"epochs": 20, "ema": 0.9})  # long enough that a slow machine kills it midway too
    whole = _run("masked", tmp_path / "whole", optim)
    options = ["kinds=masked", "epochs=20", "ema=0.9", "workers=2", "save_every_s=0.2", "pause_s=0.05"]
    kills = 0
    for delay_s in (0.15, 0.4):
        child = subprocess.Popen([*RUNNER, str(tmp_path / "cut"), *options], stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        checkpoint = tmp_path / "cut" / "masked" / "checkpoint.safetensors"
        before = _mtime(checkpoint)
        while _mtime(checkpoint) == before and child.poll() is None:
            time.sleep(0.01)
        time.sleep(delay_s)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.communicate(timeout=60)  # ends with the last process that holds the pipe: no worker outlives the kill
    assert kills == 2
    done = len(_steps(tmp_path / "cut" / "masked"))
    assert 0 < done < 60
    resumed = plan_of("masked", optim, RunConfig(device="cpu", workers=2), every_s=60)
    fit(resumed, Decoding(), tmp_path / "cut" / "masked")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.model.state_dict().items())
    steps = _steps(tmp_path / "cut" / "masked")
    assert [step["step"] for step in steps] == list(range(1, 61))
    assert steps == _steps(tmp_path / "whole")


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def test_sigterm_to_the_parent_reaches_every_process_at_once_and_the_checkpoint_stays(
    recipe: Path, tmp_path: Path
) -> None:
    """Untold, the processes would train on until they were killed, without a word."""
    out = tmp_path / "two"
    command = [sys.executable, "-P", "-m", "toolkit", "finetune", str(recipe), "--processes", "2", "--out", str(out),
               "--set", "finetune.epochs=5000", "--set", "data.source=memory"]  # fmt: skip
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})  # fmt: skip
    try:
        while child.poll() is None and not (out / "checkpoint.safetensors").exists():
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, errors
    assert errors.count("interrupted: run the same command again to go on") == 1
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / "model.safetensors").exists()
