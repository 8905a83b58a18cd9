"""The GPU benchmark runs from end to end where there is no GPU, and claims nothing there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def _benchmark(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "benchmarks.gpu_training", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_a_smoke_run_goes_through_every_contender_and_the_loop() -> None:
    done = _benchmark("--smoke")
    assert done.returncode == 0, done.stderr
    rows = [tuple(cell.strip() for cell in line.split("|")[:2]) for line in done.stdout.splitlines() if "|" in line][1:]
    names = ("vidon", "transformers", "vidon, whole loop")
    assert rows == [(task, name) for task in ("pretrain", "finetune") for name in names]
    assert "these figures say nothing about a GPU" in done.stdout


@pytest.mark.slow
def test_a_part_that_fails_is_named_and_takes_no_other_along() -> None:
    """Of batches without a clip nothing can be measured; the child that met them is replaced by a fresh one."""
    done = _benchmark("--smoke", "--pretrain", "0")
    assert done.returncode == 0, done.stderr
    rows = [tuple(cell.strip() for cell in line.split("|")[:2]) for line in done.stdout.splitlines() if "|" in line][1:]
    assert rows == [("finetune", name) for name in ("vidon", "transformers", "vidon, whole loop")]
    failed = [line.split(":")[:4] for line in done.stdout.splitlines() if line.startswith("not measured")]
    assert ["not measured", " pretrain", "0", "plain"] in failed
    assert ["not measured", " pretrain", "0", "loop"] in failed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_claimed() -> None:
    done = _benchmark()
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("nothing was measured: torch sees no GPU here")
