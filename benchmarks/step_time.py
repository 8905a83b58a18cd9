"""Where a training step's time goes on a CPU: data, forward, backward, optimiser; clips decoded while training runs.

    python benchmarks/step_time.py [--data ../shared/data/intel_sample_videos] [--workers 1] [--steps 60]

The loop itself measures (the epoch lines of metrics.jsonl): masked pretraining of a small ViT on one thread, while the
workers decode real footage into clips of 16 pictures of 112x112. The first epoch, in which the workers start, does not
count. ``data`` is what a step spends on getting its batch: without a worker the decoding itself, with one the waiting.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, save
from toolkit.preprocess import Preprocess
from toolkit.recipe import PretrainConfig, RunConfig, TeacherConfig
from train.data.batch import Batch, Source
from train.data.clips import normalise
from train.data.index import Clip, Dataset
from train.loop import Plan, fit
from train.models.vit import TubeletViT
from train.objectives.masked import MaskedAutoencoder, tube_mask

FRAMES, SIDE, BATCH = 16, 112, 8
KINDS = ("data", "forward", "backward", "optimizer", "other")


def footage(root: Path, preprocess: Preprocess) -> Source:
    """Every video under ``root``, a hundred times: each time another window is cut from it."""
    from train.data.videos import VideoSource

    videos = sorted(path for path in root.rglob("*.mp4"))
    clips = tuple(Clip(video, "any", "train", video.stem) for video in videos for _ in range(100))
    return VideoSource(Dataset(root, ("any",), clips), "train", preprocess, FRAMES)


@dataclass(frozen=True)
class First:
    """The first ``count`` clips of a source, decoded by workers."""

    source: Source
    count: int
    workers: bool = True

    def __len__(self) -> int:
        return min(len(self.source), self.count)

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        """As the source gives it."""
        return self.source.batch(indices, seed, views)


def autoencoder() -> MaskedAutoencoder:
    """What is trained."""
    torch.manual_seed(0)
    vit = TubeletViT(TeacherConfig(dim=192, depth=6, heads=3), 2, (3, SIDE, SIDE), FRAMES)
    return MaskedAutoencoder(vit, 96, 2)


def run(source: Source, workers: int, steps: int, preprocess: Preprocess) -> list[dict[str, Any]]:
    """Epoch lines of one run of ``steps`` steps an epoch and three epochs."""
    model = autoencoder()

    def loss(batch: Batch, generator: torch.Generator) -> torch.Tensor:
        clips = normalise(batch.first, preprocess).transpose(1, 2)
        value: torch.Tensor = model(clips, tube_mask(len(clips), model.encoder.grid, 0.9, generator))
        return value

    optim = PretrainConfig(epochs=3, batch=BATCH, lr=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan("step time", model, loss, optim, run=RunConfig(device="cpu", workers=workers))
        fit(plan, First(source, steps * BATCH), Path(folder))
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "lr" not in line]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "intel_sample_videos")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    preprocess = Preprocess(size=(SIDE, SIDE), fps=10)
    rows, data = [], {}
    for workers in args.workers:
        first, *lines = run(footage(args.data, preprocess), workers, args.steps, preprocess)
        seconds = {kind: sum(line["seconds"].get(kind, 0.0) for line in lines) for kind in KINDS}
        steps, total = lines[-1]["step"] - first["step"], sum(seconds.values())
        shares = [f"{100 * seconds[kind] / total:.1f} %" for kind in KINDS]
        rows.append([workers, f"{1000 * total / steps:.0f}", *shares])
        data[str(workers)] = lines
    millions = sum(parameter.numel() for parameter in autoencoder().parameters()) / 1e6
    caption = (
        f"Masked pretraining of {millions:.1f} million parameters, clips {FRAMES}x{SIDE}x{SIDE} of real footage, "
        f"batch {BATCH}, one training thread; share of each step's time. "
        f"Load of the machine meanwhile: {os.getloadavg()[1]:.0f} processes on {os.cpu_count()} cores."
    )
    path = save("step_time", caption, ["decoding workers", "ms a step", *KINDS], rows, data)
    print(*rows, sep="\n")
    print(path)


if __name__ == "__main__":
    main()
