"""Does each self-supervised objective teach an encoder something? Probe and fine-tune against random weights.

    python benchmarks/objectives.py [--encoders vit r2plus1d] [--work runs/objectives] [--split test]
    python benchmarks/objectives.py --budgets [--rows "random weights" masked]

Footage: the real videos in toolkit/assets/footage (from ../shared/data/intel_sample_videos), train, val and test at
disjoint times. Pretraining sees 12-frame windows of the train videos, turned and played backwards at random, without
labels. Task: what moves how (five classes; single frames say nothing). Labels: a small share of the labelled train
clips, drawn anew by each seed, the same for every row. Every row: the same encoder, the same steps of pretraining and
of fine-tuning, at a rate that suits random weights. Settings were chosen on validation (--split val shows only
that; --budgets how far random weights get in more time). What is done is kept in --work: a run that was cut goes on.
"""

import argparse
import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.common import save
from toolkit.cli.footage import FLIPS, FOOTAGE, LABELS, build_clips
from toolkit.files import write_json
from toolkit.preprocess import Preprocess
from toolkit.recipe import FinetuneConfig, PretrainConfig, TeacherConfig
from toolkit.video import read_frames
from train.data.batch import Batch
from train.data.clips import Augment, Pictures, load_pictures, normalise
from train.data.index import index_clips
from train.loop import Plan, fit
from train.models.registry import make_encoder
from train.objectives import Mixture, resolve
from train.objectives.features import pooled
from train.probe import STRENGTHS, fit_probe
from train.stages.pretrain import view_clips

PREPROCESS = Preprocess(size=(32, 32), fps=10)
FRAMES, LONG = 8, 12
CLIP = (3, FRAMES, 32, 32)
SEEDS = (0, 1, 2)
RANDOM = "random weights"
HOWS = ("probe", "finetune")
PRETRAIN = {  # of 800 clips, 50 steps an epoch
    "vit": {"epochs": 20, "batch": 16, "lr": 2e-3},
    "r2plus1d": {"epochs": 10, "batch": 16, "lr": 2e-3},
}
# Of 120 clips, 7 steps an epoch.
FINETUNE = {"vit": {"epochs": 80, "batch": 16}, "r2plus1d": {"epochs": 60, "batch": 16}}
BUDGETS = (80, 160)  # epochs of fine-tuning that --budgets compares, on validation only
#: Of fine-tuning, what suits random weights on validation; of several each row takes its best.
RATES = {"vit": (3e-3,), "r2plus1d": (1e-2,)}
SHARE = 0.15
ENCODERS = {
    "vit": TeacherConfig(dim=64, depth=2, heads=4, tubelet=(4, 8, 8), dropout=0.1),
    "r2plus1d": TeacherConfig(encoder="r2plus1d", width=0.0625, dropout=0.1),
}


@dataclass(frozen=True, slots=True)
class Row:
    """How a row of the table is pretrained; its settings were chosen on the validation clips."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


_PIXELS = {"change": 4.0, "coarse": 2, "since": "before", "floor": 1e-3}
#: A place of the CNN's last map stands for 8x16x16 pixels, of whose changes from frame to frame it can hold little.
_AROUND = _PIXELS | {"since": "mean", "floor": 0.01}
_CRITIC = {"critic_width": 8, "fool": 0.02, "match": 0.1}
ROWS = {
    "vit": {
        "masked": Row("masked", {"mask_ratio": 0.5, "change": 8.0, "coarse": 4, "floor": 0.2}),
        "contrastive": Row("contrastive"),
        "autoencoder": Row("autoencoder", _PIXELS),
        "adversarial": Row("adversarial", _PIXELS | _CRITIC),
        "attributes": Row("attributes", {"asks": ["direction", "magnitude"]}),
    },
    "r2plus1d": {  # tubes can only be hidden from an encoder of tokens
        "contrastive": Row("contrastive"),
        "autoencoder": Row("autoencoder", _AROUND),
        "adversarial": Row("adversarial", _AROUND | _CRITIC),
        "attributes": Row("attributes", {"asks": ["direction", "magnitude"]}),
    },
}


@dataclass(frozen=True, slots=True)
class Windows:
    """Unlabelled windows uint8 (N, LONG, H, W, 3); each view is a cut of FRAMES at its own time."""

    pictures: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        """Cuts drawn by the seed."""
        starts = np.random.default_rng(seed).integers(0, LONG - FRAMES + 1, (len(indices), views))
        cuts = [[self.pictures[i, s : s + FRAMES] for s in row] for i, row in zip(indices, starts, strict=True)]
        chosen = torch.as_tensor(np.asarray(indices))
        return Batch(torch.from_numpy(np.array(cuts)), torch.zeros(len(indices), dtype=torch.int64), chosen)


def unlabelled(count: int, seed: int = 0) -> Windows:
    """Windows of the train videos in which people and cars were once found, of any kind, turned at random."""
    rows = [row for row in json.loads((FOOTAGE / "windows.json").read_text())["windows"] if row[1] == "train"]
    videos = {name: np.stack([f for _, f in read_frames(FOOTAGE / name)]) for name in {row[0] for row in rows}}
    rng = np.random.default_rng(seed)
    found = []
    for index in rng.permutation(len(rows))[:count]:
        name, _, _, start, top, left, size = rows[index]
        first = int(np.clip(start - 2, 0, len(videos[name]) - LONG))
        clip = videos[name][first : first + LONG, top : top + size, left : left + size]
        small = np.stack([PREPROCESS.picture(frame) for frame in clip])
        turned = np.rot90(small, int(rng.integers(4)), (1, 2))
        found.append(turned[::-1] if rng.integers(2) else turned)
    return Windows(np.stack(found))


@dataclass(frozen=True, slots=True)
class Footage:
    """All clips of the benchmark, and the mild augmentation of training."""

    labelled: dict[str, Pictures]
    windows: Windows
    augment: Augment


def footage(work: Path) -> Footage:
    """Cut the clips once, decode them once."""
    if not (work / "clips").is_dir():
        build_clips(work / "clips")
    index = index_clips(work / "clips")
    labelled = {s: load_pictures(index, s, PREPROCESS, FRAMES, work / "cache") for s in ("train", "val", "test")}
    return Footage(labelled, unlabelled(800), Augment(PREPROCESS, LABELS, True, FLIPS))


def few(data: Pictures, seed: int) -> Pictures:
    """The same share of every class."""
    rng = np.random.default_rng([seed, 7])
    places = [np.flatnonzero(data.labels == label) for label in range(len(LABELS))]
    chosen = np.sort(np.concatenate([rng.choice(p, round(SHARE * len(p)), replace=False) for p in places]))
    return Pictures(data.pictures[chosen], data.labels[chosen], tuple(data.names[i] for i in chosen))


def fresh(kind: str, seed: int) -> nn.Module:
    """A small encoder with the weights of its seed, laid out as its convolutions are fastest on a CPU."""
    torch.manual_seed(seed)
    encoder = make_encoder(ENCODERS[kind], len(LABELS), PREPROCESS, FRAMES)
    return encoder if kind == "vit" else encoder.to(memory_format=torch.channels_last_3d)


def pretrained(kind: str, row: str, seed: int, data: Windows, augment: Augment, work: Path) -> nn.Module:
    """The encoder after pretraining with a row's objectives (or as it was born)."""
    encoder = fresh(kind, seed)
    if row == RANDOM:
        return encoder
    spec = ROWS[kind][row]
    weights = {spec.name: 1.0}
    model = Mixture(encoder, weights, resolve(weights, {spec.name: spec.settings}), CLIP)

    def loss(batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return model(view_clips(batch, augment, generator), generator, batch)

    config = PretrainConfig(**PRETRAIN[kind], seed=seed)
    plan = Plan(f"{kind} {row} {seed}", model, loss, config, views=model.views, after_step=model.after_step)
    fit(plan, data, work)
    return encoder


def key(*decided: object) -> str:
    """Changes with whatever decides a result, so that results of other settings are not taken for it."""
    return hashlib.sha256(repr(decided).encode()).hexdigest()[:8]


def features(encoder: nn.Module, data: Pictures) -> np.ndarray:
    """Frozen features (N, 1, D)."""
    encoder.eval()
    with torch.no_grad():
        parts = [pooled(encoder, normalise(data.pictures[i : i + 40], PREPROCESS).transpose(1, 2))
                 for i in range(0, len(data), 40)]  # fmt: skip
    return torch.cat(parts).double().numpy()[:, None]


def probe(encoder: nn.Module, splits: dict[str, Pictures]) -> dict[str, float]:
    """Accuracy of logistic regression on frozen features; its strength is chosen on validation."""
    feats = {name: features(encoder, data) for name, data in splits.items()}

    def score(strength: float, split: str) -> float:
        fitted = fit_probe(feats["train"], splits["train"].labels, len(LABELS), strength)
        return float((fitted(feats[split]).argmax(1) == splits[split].labels).mean())

    strength = max(STRENGTHS, key=lambda s: score(s, "val"))
    return {split: score(strength, split) for split in splits if split != "train"}


def finetuned(
    encoder: nn.Module, splits: dict[str, Pictures], augment: Augment, config: FinetuneConfig, work: Path
) -> dict[str, float]:
    """Accuracy after supervised training of the whole encoder; the last weights count."""

    def loss(batch: Batch, generator: torch.Generator) -> torch.Tensor:
        clips, labels = augment(batch.first, batch.labels, generator)
        return functional.cross_entropy(encoder(clips.transpose(1, 2)), labels, label_smoothing=0.1)

    fit(Plan("fine-tune", encoder, loss, config), splits["train"], work)
    encoder.eval()
    found = {}
    for split in ("val", "test"):
        data = splits[split]
        with torch.no_grad():
            parts = [encoder(normalise(data.pictures[i : i + 40], PREPROCESS).transpose(1, 2)).argmax(1)
                     for i in range(0, len(data), 40)]  # fmt: skip
        found[split] = float((torch.cat(parts).numpy() == data.labels).mean())
    return found


def run(
    kind: str, row: str, seed: int, data: Footage, work: Path, longer: dict[str, int] | None = None
) -> dict[str, Any]:
    """One encoder: pretrained, probed, fine-tuned at each rate; what is there already is not done again."""
    budget = FINETUNE[kind] | (longer or {})
    decided = key(ENCODERS[kind], ROWS[kind].get(row), PRETRAIN[kind], CLIP)
    folder = work / f"{kind}-{row.replace(' ', '-')}-{seed}-{decided}"
    done = folder / f"{key(budget, RATES[kind], SHARE)}.json"
    if not done.is_file():
        splits = data.labelled | {"train": few(data.labelled["train"], seed)}
        encoder = pretrained(kind, row, seed, data.windows, data.augment, folder / "pretrain")
        found: dict[str, Any] = {"probe": probe(encoder, splits), "finetune": {}}
        for rate in RATES[kind]:
            place = folder / f"finetune-{rate}-{key(budget, SHARE)}"
            config = FinetuneConfig(**budget, lr=rate, seed=seed)
            found["finetune"][str(rate)] = finetuned(copy.deepcopy(encoder), splits, data.augment, config, place)
        write_json(done, found)
    return dict(json.loads(done.read_text()))


def chosen(kind: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The rate that is best on validation over the seeds, and each seed's accuracies with it."""
    rate = max(RATES[kind], key=lambda rate: np.mean([run["finetune"][str(rate)]["val"] for run in runs]))
    return {"rate": rate, "probe": [run["probe"] for run in runs], "finetune": [r["finetune"][str(rate)] for r in runs]}


def main() -> None:
    """Run what is missing, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--rows", nargs="+", default=[RANDOM, *ROWS["vit"]])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--split", choices=["val", "test"], default="test", help="val: show validation only")
    parser.add_argument("--budgets", action="store_true", help="longer and shorter fine-tuning, on validation only")
    parser.add_argument("--work", type=Path, default=Path("runs/objectives"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = footage(args.work)
    if args.budgets:
        return budgets(args.rows, args.seeds, data, args.work)
    results: dict[str, dict[str, Any]] = {kind: {} for kind in args.encoders}
    for kind in args.encoders:
        for row in args.rows:
            if row != RANDOM and row not in ROWS[kind]:
                continue
            results[kind][row] = chosen(kind, [run(kind, row, seed, data, args.work) for seed in args.seeds])
            means = (f"{how} {np.mean([r[args.split] for r in results[kind][row][how]]):.3f}" for how in HOWS)
            print(kind, row, *means, f"rate {results[kind][row]['rate']}", flush=True)
    if args.split == "test" and RANDOM in args.rows:
        report(results)


def budgets(rows: list[str], seeds: list[int], data: Footage, work: Path) -> None:
    """Save how far fine-tuning gets in less and in more time, on validation: is the gain one of the end or of speed?"""
    table, samples = [], {}
    for row in rows:
        samples[row] = [[run("vit", row, seed, data, work, {"epochs": epochs}) for seed in seeds] for epochs in BUDGETS]
        values = [[one["finetune"][str(chosen("vit", runs)["rate"])]["val"] for one in runs] for runs in samples[row]]
        table.append([row, *(f"{np.mean(one):.3f} ± {np.std(one, ddof=1):.3f}" for one in values)])
        print(*table[-1], flush=True)
    columns = ["pretraining", *(f"{epochs} epochs" for epochs in BUDGETS)]
    caption = f"Validation accuracy of the ViT after fine-tuning, mean and spread over {len(seeds)} seeds."
    print(save("finetuning_budgets", caption, columns, table, {"samples": samples}))


def report(results: dict[str, dict[str, Any]]) -> None:
    """Save the table: mean and spread over seeds on the test clips."""
    table = []
    for kind, rows in results.items():
        for row, found in rows.items():
            cells = []
            for how in HOWS:
                values = [one["test"] for one in found[how]]
                gains = [v - base["test"] for v, base in zip(values, rows[RANDOM][how], strict=True)]
                cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
                cells.append("" if row == RANDOM else f"{np.mean(gains):+.3f} ({min(gains):+.3f} .. {max(gains):+.3f})")
            table.append([kind, row, *cells])
    columns = ["encoder", "pretraining", "linear probe", "gain", "fine-tuned", "gain"]
    caption = (
        f"Test accuracy, five classes (chance 0.2), mean and spread over {len(SEEDS)} seeds; gain over the same seed's "
        "random weights: mean (least .. most)."
    )
    settings = {"pretrain": PRETRAIN, "finetune": FINETUNE, "rates": RATES, "share": SHARE, "clip": CLIP,
                "rows": {kind: {name: row.settings for name, row in rows.items()} for kind, rows in ROWS.items()},
                "encoders": {name: config.model_dump(mode="json") for name, config in ENCODERS.items()}}  # fmt: skip
    print(save("objectives", caption, columns, table, {"settings": settings, "results": results}))


if __name__ == "__main__":
    main()
