"""What helps when a pretrained encoder is fine-tuned on few clips: ``python benchmarks/regularise.py [FOLDER]``.

Clips, labels, encoder and pretraining are those of benchmarks/finetune.py (206 labelled clips of real footage, what
moves how), trained three times as long. Each row adds one thing to plain training of the whole encoder; steps, seeds
and learning rate are the same. Weights are chosen on validation, and only the chosen ones meet the test clips, once.
An interrupted run goes on where it stopped.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import save
from benchmarks.finetune import RATE, SEEDS, few_labels
from toolkit.cli.demo import RECIPE
from toolkit.cli.footage import build_clips
from toolkit.progress import note
from toolkit.recipe import Recipe, load_recipe
from train.data.index import index_clips
from train.evaluate import judge_split
from train.models import load_model
from train.stages import finetune, pretrain

EPOCHS = 60
PLAIN: dict[str, Any] = {"label_smoothing": 0.0}
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "mixup 0.2": {"mixup": 0.2},
    "cutmix 1": {"cutmix": 1.0},
    "RandAugment, 2 operations at 0.4": {"rand_ops": 2, "rand_strength": 0.4},
    "average of the weights (EMA 0.99)": {"ema": 0.99},
    "all of them": {"label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0, "rand_ops": 2, "rand_strength": 0.4,
                    "ema": 0.99},
}  # fmt: skip


def trained(recipe: Recipe, row: str, seed: int, init: Path, out: Path) -> Path:
    """One run; the data it is given hold no test clip."""
    changes = {"epochs": EPOCHS, "lr": RATE, "seed": seed, **PLAIN, **ROWS[row]}
    tuned = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update=changes)})
    return finetune(tuned, out / f"{list(ROWS).index(row)}-{seed}", init)


def figures(run: Path, tested: Path) -> dict[str, float]:
    """Of the chosen weights: accuracy on validation and test; and the loss that training ended with."""
    loaded = load_model(run)
    index = index_clips(tested)
    answers = {split: judge_split(loaded.model, index, split, loaded.card.preprocess) for split in ("val", "test")}
    ended = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {**{split: found["top1"] for split, found in answers.items()}, "training_loss": ended["loss"]}


def cell(values: list[float], signed: bool = False) -> str:
    """Mean and spread (standard deviation over the seeds)."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):+.3f}{spread}" if signed else f"{np.mean(values):.3f}{spread}"


def main() -> None:
    """Run what is not done yet in the folder, seed by seed, and write the table."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/regularise")
    if not (folder / "data").is_dir():
        build_clips(folder / "data")
    blind, tested = few_labels(folder / "data")
    everything = load_recipe(RECIPE, (f"data.root={folder / 'data'}",))
    recipe = load_recipe(RECIPE, (f"data.root={blind}",))
    found: dict[str, list[Path]] = {row: [] for row in ROWS}
    for seed in SEEDS:
        settings = everything.pretrain.model_copy(update={"seed": seed})
        encoder = pretrain(everything.model_copy(update={"pretrain": settings}), folder / f"pretrained-{seed}")
        for row, runs in found.items():
            runs.append(trained(recipe, row, seed, encoder, folder / "runs"))
            note(f"  {row}, seed {seed}: {json.loads((runs[-1] / 'done.json').read_text())['validation']}")
    print(write({row: [figures(run, tested) for run in runs] for row, runs in found.items()}, recipe, tested))


def write(found: dict[str, list[dict[str, float]]], recipe: Recipe, tested: Path) -> Path:
    """Save the table."""
    rows = []
    for name, runs in found.items():
        gains = [run["test"] - base["test"] for run, base in zip(runs, found["plain"], strict=True)]
        gain = "" if name == "plain" else cell(gains, signed=True)
        rows.append([name, cell([run["val"] for run in runs]), cell([run["test"] for run in runs]), gain])
    counts = {split: len(index_clips(tested).split(split)) for split in ("train", "val", "test")}
    caption = (
        f"{counts['train']} labelled clips, {counts['val']} to choose on, {counts['test']} to test on, 5 classes; the "
        f"whole pretrained encoder, {EPOCHS} epochs; mean ± standard deviation of {len(SEEDS)} seeds, gain over the "
        "same seed's plain run. Weights chosen on validation, which therefore flatters a little."
    )
    settings = recipe.model_dump(mode="json", exclude={"data": {"root"}})
    data = {"runs": found, "lr": RATE, "epochs": EPOCHS, "rows": ROWS, "plain": PLAIN, "recipe": settings}
    return save("regularise", caption, ["added", "validation accuracy", "test accuracy", "gain on test"], rows, data)


if __name__ == "__main__":
    main()
