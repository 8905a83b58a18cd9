"""How much of a pretrained encoder to train when labels are few: ``python benchmarks/finetune.py [FOLDER]``.

Real footage (the demo's clips: what moves how). The encoder is pretrained on all training clips without labels; then
a quarter of them, whole scenes, is labelled. Every mode has the same steps, seeds and learning rate; weights are
chosen on validation, and only the chosen ones meet the test clips. Their embeddings are judged too: the labelled
clips are the gallery, the test clips ask. About 20 minutes of one core; the table is written after every mode, and an
interrupted run goes on where it stopped.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import save
from toolkit.cli.demo import RECIPE
from toolkit.cli.footage import build_clips
from toolkit.progress import note
from toolkit.recipe import Recipe, load_recipe
from train.data.index import index_clips
from train.evaluate import judge_split
from train.features import extract
from train.models import build, load_model, save_model
from train.stages import finetune, pretrain
from train.stages.common import card_of
from train.tasks.retrieval import Retrieval

SEEDS = (0, 1, 2)
RATE = 2e-3
EPOCHS = 20
KEEP = {"train": 4, "val": 2, "test": 1}  # one scene in so many is labelled
CLIPS_OF_A_SCENE = 9
MODES: dict[str, dict[str, Any]] = {
    "full, from random weights": {},
    "linear probe": {"linear_probe": True},
    "freeze the first 2 of 4 blocks": {"freeze": 2},
    "layer decay 0.65": {"layer_decay": 0.65},
    "full": {},
    "full, mixup 0.2, cutmix 1": {"mixup": 0.2, "cutmix": 1.0},
    "full, RandAugment 2 operations": {"rand_ops": 2, "rand_strength": 0.4},
}
FIGURES = ("accuracy", "knn", "recall@1", "map")


def few_labels(folder: Path) -> tuple[Path, Path]:
    """Lists of the labelled clips, without and with those of test."""
    rows = []
    for split in ("train", "val", "test"):
        for path in sorted((folder / split).rglob("*.avi")):
            scene = int(path.stem.split("-")[-1]) // CLIPS_OF_A_SCENE
            if scene % KEEP[split] == 0:
                rows.append((path.relative_to(folder).as_posix(), path.parent.name, split, path.stem))
    lists = folder / "few.csv", folder / "few_and_test.csv"
    for file, splits in zip(lists, ({"train", "val"}, {"train", "val", "test"}), strict=True):
        with file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("path", "label", "split", "group"))
            writer.writerows(row for row in rows if row[2] in splits)
    return lists


def trained(recipe: Recipe, mode: str, seed: int, init: Path | None, out: Path) -> Path:
    """One run; the data it is given hold no test clip."""
    changes = {"epochs": EPOCHS, "lr": RATE, "seed": seed, **MODES[mode]}
    tuned = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update=changes)})
    return finetune(tuned, out / f"{mode.replace(' ', '_').replace(',', '')}-{seed}", init)


def judged(folder: Path, data: Path) -> dict[str, float]:
    """Test accuracy, and how good the embedding's neighbours are: labelled clips are the gallery."""
    loaded = load_model(folder)
    found = judge_split(loaded.model, index_clips(data), "test", loaded.card.preprocess)
    features = extract(folder, data, folder / "features.safetensors")
    gallery, queries = features.take("train"), features.take("test")
    task = Retrieval(features.label_names)
    near = task.against(gallery.features, gallery.labels, queries.features, queries.labels)
    return {"accuracy": found["top1"], **{key: near[key] for key in FIGURES[1:]}}


def random_encoder(recipe: Recipe, labels: tuple[str, ...], seed: int, out: Path) -> Path:
    """A model folder with fresh weights."""
    torch.manual_seed(seed)
    card = card_of(recipe, "teacher", labels)
    save_model(out, build(card), card)
    return out


def row(name: str, runs: list[dict[str, float]], head: bool = True) -> list[str]:
    """Mean and spread (standard deviation over the seeds) of each figure."""
    cells = [name]
    for key in FIGURES:
        values = [run[key] for run in runs]
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.3f}{spread}" if head or key != "accuracy" else "")
    return cells


def main() -> None:
    """Run what is not done yet in the folder, and write the table."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/finetune_benchmark")
    if not (folder / "data").is_dir():
        build_clips(folder / "data")
    blind, tested = few_labels(folder / "data")
    everything = load_recipe(RECIPE, (f"data.root={folder / 'data'}",))
    recipe = load_recipe(RECIPE, (f"data.root={blind}",))
    labels = index_clips(blind).labels
    found: dict[str, list[dict[str, float]]] = {}
    encoders = []
    for seed in SEEDS:
        settings = everything.pretrain.model_copy(update={"seed": seed})
        encoders.append(pretrain(everything.model_copy(update={"pretrain": settings}), folder / f"pretrained-{seed}"))
        untrained = random_encoder(recipe, labels, seed, folder / f"random-{seed}")
        found.setdefault("random weights, untrained", []).append(judged(untrained, tested))
        found.setdefault("pretrained, no labels used", []).append(judged(encoders[-1], tested))
    for mode in MODES:
        inits = [None if "random" in mode else encoder for encoder in encoders]
        for seed, init in zip(SEEDS, inits, strict=True):
            figures = judged(trained(recipe, mode, seed, init, folder / "runs"), tested)
            note(f"  {mode}, seed {seed}: {figures}")
            found.setdefault(mode, []).append(figures)
        print(write(found, recipe, tested))


def write(found: dict[str, list[dict[str, float]]], recipe: Recipe, tested: Path) -> Path:
    """Save the table of the modes that are complete."""
    rows = [row(name, runs, head="untrained" not in name and "no labels" not in name) for name, runs in found.items()]
    columns = ["mode", "test accuracy", "k-NN accuracy (k = 5)", "recall@1", "retrieval mAP"]
    counts = {split: len(index_clips(tested).split(split)) for split in ("train", "val", "test")}
    caption = (
        f"{counts['train']} labelled clips, {counts['val']} to choose on, {counts['test']} to test on, 5 classes; "
        f"{EPOCHS} epochs, mean ± standard deviation of {len(SEEDS)} seeds, each with its own pretraining; weights "
        "chosen on validation. k-NN, recall@1 and mAP need no head: test clips ask the labelled ones by the encoder's "
        "pooled features."
    )
    settings = recipe.model_dump(mode="json", exclude={"data": {"root"}})
    data = {"runs": found, "lr": RATE, "epochs": EPOCHS, "modes": MODES, "recipe": settings}
    return save("finetune", caption, columns, rows, data)


if __name__ == "__main__":
    main()
