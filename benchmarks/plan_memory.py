"""The memory that ``vidon train plan`` says against the real peak of a training on this CPU.

    python benchmarks/plan_memory.py

Each case is a process of its own that builds the model, notes its resident memory, trains three steps and reports by
how much its peak rose (weights are there before: they are added). Every larger block of memory is given back to the
system when it is freed (MALLOC_MMAP_THRESHOLD_), else the peak would be that of the allocator's fragments. The estimate
leaves out buffers of the libraries.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, save
from toolkit.recipe import Recipe
from train.models.store import build
from train.outlook import outlook
from train.stages.common import card_of

CASES: dict[str, dict[str, Any]] = {
    "ViT-S 8x112, batch 4": {"teacher": {"encoder": "vit-s"}, "side": 112, "frames": 8, "batch": 4},
    "ViT-S 8x112, batch 16": {"teacher": {"encoder": "vit-s"}, "side": 112, "frames": 8, "batch": 16},
    "ViT-S 8x112, batch 16, recomputed": {
        "teacher": {"encoder": "vit-s"}, "side": 112, "frames": 8, "batch": 16, "checkpointing": True,
    },
    "ViT-B 16x112, batch 2": {"teacher": {"encoder": "vit-b"}, "side": 112, "frames": 16, "batch": 2},
    "C3D 16x112, batch 2": {"teacher": {"encoder": "c3d"}, "side": 112, "frames": 16, "batch": 2},
}  # fmt: skip
LABELS = ("a", "b")


def recipe_of(case: dict[str, Any]) -> Recipe:
    """The case as a recipe."""
    return Recipe.model_validate({
        "data": {"frames": case["frames"]}, "preprocess": {"size": (case["side"], case["side"])},
        "teacher": case["teacher"], "finetune": {"batch": case["batch"]},
        "run": {"device": "cpu", "checkpointing": case.get("checkpointing", False)},
    })  # fmt: skip


def peak_mib(case: dict[str, Any]) -> float:
    """Train three steps in this process; weights plus what the peak rose by."""
    import tempfile

    import numpy as np

    from train.data.clips import Pictures, normalise
    from train.loop import Plan, fit

    torch.set_num_threads(1)
    recipe = recipe_of(case)
    model = build(card_of(recipe, "teacher", LABELS))
    weights = sum(parameter.numel() * 4 for parameter in model.parameters()) / 2**20
    shape = (3 * case["batch"], case["frames"], case["side"], case["side"], 3)
    source = Pictures(np.zeros(shape, np.uint8), np.zeros(shape[0], np.int64), ("",) * shape[0])

    def loss(batch: Any, _: Any) -> torch.Tensor:
        clips = normalise(batch.first, recipe.preprocess).transpose(1, 2)
        return torch.nn.functional.cross_entropy(model(clips), batch.labels)

    optim = recipe.finetune.model_copy(update={"epochs": 1})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    highest = [0.0]

    def note(_: int) -> None:  # before the checkpoint at the end
        highest[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    with tempfile.TemporaryDirectory() as folder:
        fit(Plan("memory", model, loss, optim, run=recipe.run, after_step=note), source, Path(folder))
    return weights + highest[0] - before


def main() -> None:
    """Measure every case and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="measure one case in this process")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(peak_mib(CASES[args.case])))
        return
    rows, data = [], {}
    for name, case in CASES.items():
        said = outlook(recipe_of(case), "finetune", LABELS, None)
        command = [sys.executable, "-P", "-m", "benchmarks.plan_memory", "--case", name]
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=env)
        real = float(done.stdout.splitlines()[-1])
        rows.append([name, f"{said.memory_mib:,.0f}", f"{real:,.0f}", f"{said.memory_mib / real:.2f}"])
        data[name] = {"estimate": said.as_dict(), "peak_mib": real}
        print(*rows[-1], sep=" | ")
    caption = (
        "Estimated memory of a training process and the measured rise of its resident peak, fp32, AdamW, on a CPU."
    )
    print(save("plan_memory", caption, ["case", "estimated MiB", "measured MiB", "ratio"], rows, data))


if __name__ == "__main__":
    main()
