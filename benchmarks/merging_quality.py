"""Token merging (ToMe) in a ViT that learnt its task well: do the answers stay the same as tokens go?

    python benchmarks/merging_quality.py [--work runs/merging_quality] [--split test]

Task and clips: those of benchmarks/objectives.py (what moves how; real footage, times apart), here with all training
labels. The ViT (4 blocks, 128 tokens) is trained without merging, then answers with the same weights while ``merge``
tokens are joined in every block. Beside the method as it ships stand two controls: sizes left out of the attention
and of the mean (no proportional attention), and pairs drawn by chance instead of by the likeness of their keys. How
long to train was chosen on validation (--split val shows only that). What is done is kept in --work.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import save
from benchmarks.objectives import FRAMES, PREPROCESS, SEEDS, Footage, footage
from toolkit.cli.footage import LABELS
from toolkit.recipe import FinetuneConfig, TeacherConfig
from train.data.batch import Batch
from train.data.clips import Pictures, normalise
from train.loop import Plan, fit
from train.macs import measure
from train.models.attention import Block, attention
from train.models.merge import merge_tokens
from train.models.vit import TubeletViT

MERGE = (0, 4, 8, 16, 24, 28)
SMALL = TeacherConfig(dim=64, depth=4, heads=4, tubelet=(4, 4, 4), dropout=0.1)
TRAINING = {"epochs": 40, "batch": 16, "lr": 2e-3}  # of 800 clips
#: A way to merge: clips (B, C, T, H, W) and a generator of chance -> embeddings (B, D).
Way = Callable[[TubeletViT, Tensor, torch.Generator], Tensor]


def taught(seed: int, data: Footage, work: Path) -> TubeletViT:
    """A ViT after supervised training on all labelled clips, from random weights; the last weights count."""
    torch.manual_seed(seed)
    model = TubeletViT(SMALL, len(LABELS), (3, *PREPROCESS.size), FRAMES)

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        clips, labels = data.augment(batch.first, batch.labels, generator)
        return functional.cross_entropy(model(clips.transpose(1, 2)), labels, label_smoothing=0.1)

    fit(Plan(f"teacher {seed}", model, loss, FinetuneConfig(**TRAINING, seed=seed)), data.labelled["train"], work)
    return model.eval()


def merging(model: TubeletViT, count: int) -> TubeletViT:
    """The same weights, merging ``count`` tokens in every block."""
    twin = TubeletViT(model.config.model_copy(update={"merge": count}), model.classes, model.frame, model.frames)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def shipped(model: TubeletViT, clip_BCTHW: Tensor, chance: torch.Generator) -> Tensor:
    """As the encoder does it."""
    return model.embed(clip_BCTHW)


def without_sizes(model: TubeletViT, clip_BCTHW: Tensor, chance: torch.Generator) -> Tensor:
    """A merged token counts once, in the attention and in the mean."""
    return _by_hand(model, clip_BCTHW, sizes=False, chance=None)


def by_chance(model: TubeletViT, clip_BCTHW: Tensor, chance: torch.Generator) -> Tensor:
    """Sizes count, but what is merged does not depend on likeness."""
    return _by_hand(model, clip_BCTHW, sizes=True, chance=chance)


def _by_hand(model: TubeletViT, clip_BCTHW: Tensor, sizes: bool, chance: torch.Generator | None) -> Tensor:
    """The blocks one by one, so that a part can be left out."""
    x_BND = model.tokens(clip_BCTHW)
    size_BN = torch.ones(x_BND.shape[:2])
    for block in model.blocks:
        assert isinstance(block, Block)
        mixed, key = attention(
            block.qkv(block.norm1(x_BND)), block.heads, size_BN.log()[:, None, None] if sizes else None
        )
        x_BND = x_BND + block.proj(mixed)
        likeness = key.mean(1) if chance is None else torch.randn(key.mean(1).shape, generator=chance)
        x_BND, size_BN = merge_tokens(x_BND, likeness, size_BN, model.config.merge)
        x_BND = x_BND + block.mlp(block.norm2(x_BND))
    x_BND, weight_BN = model.norm(x_BND), size_BN if sizes else torch.ones_like(size_BN)
    return (x_BND * weight_BN[:, :, None]).sum(1) / weight_BN.sum(1, keepdim=True)


WAYS: dict[str, Way] = {"shipped": shipped, "without sizes": without_sizes, "by chance": by_chance}


def judged(model: TubeletViT, data: Pictures) -> list[dict[str, Any]]:
    """For every count and way: accuracy, agreement with the unmerged answers, cosine of the embeddings' deviations."""
    clips = normalise(data.pictures, PREPROCESS).transpose(1, 2)
    labels = torch.as_tensor(data.labels)
    whole = embedded(model, clips, shipped)
    sure = model.head(whole).softmax(1).max(1).values
    found: list[dict[str, Any]] = []
    for count in MERGE:
        twin = merging(model, count)
        found.append({"merge": count, "macs": measure(twin).macs, "tokens": twin.forward_features(clips[:1]).shape[1]})
        for name, way in WAYS.items():
            embedding = embedded(twin, clips, way)
            answers, before = (model.head(e).argmax(1) for e in (embedding, whole))
            cosine = functional.cosine_similarity(embedding - whole.mean(0), whole - whole.mean(0))
            same = answers == before
            found[-1][name] = {
                "accuracy": (answers == labels).float().mean().item(), "agreement": same.float().mean().item(),
                "cosine": cosine.mean().item(), "confidence_of_changed": sure[~same].tolist(),
            }  # fmt: skip
    return found


def embedded(model: TubeletViT, clips: Tensor, way: Way) -> Tensor:
    """Embeddings (N, D) of all clips."""
    chance = torch.Generator().manual_seed(0)
    return torch.cat([way(model, part, chance) for part in clips.split(40)])


def likeness(model: TubeletViT, data: Pictures) -> float:
    """Mean cosine between the last tokens of one clip: near 1, merging any of them would change nothing."""
    clips = normalise(data.pictures[:40], PREPROCESS).transpose(1, 2)
    unit_BND = functional.normalize(model.forward_features(clips), dim=-1)
    count = unit_BND.shape[1]
    total_B = unit_BND.sum(1).square().sum(-1)
    return ((total_B - count) / (count * (count - 1))).mean().item()


def main() -> None:
    """Train what is missing, judge, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--split", choices=["val", "test"], default="test", help="val: show validation only")
    parser.add_argument("--work", type=Path, default=Path("runs/merging_quality"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = footage(args.work)
    models = [taught(seed, data, args.work / f"teacher-{seed}") for seed in args.seeds]
    with torch.inference_mode():
        runs = [judged(model, data.labelled[args.split]) for model in models]
        alike = [likeness(model, data.labelled["val"]) for model in models]
    rows = [row(levels) for levels in zip(*runs, strict=True)]
    for cells in rows:
        print(*cells, sep=" | ")
    print("likeness of the last tokens", alike)
    if args.split == "test":
        report(rows, runs, alike, len(data.labelled["test"]))


def row(levels: tuple[dict[str, Any], ...]) -> list[Any]:
    """One count over all seeds."""
    first = levels[0]

    def cell(way: str, figure: str) -> str:
        values = [level[way][figure] for level in levels]
        return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")

    return [first["merge"], first["tokens"], f"{first['macs'] / 1e6:.1f}", cell("shipped", "accuracy"),
            *(cell(way, "agreement") for way in WAYS), cell("by chance", "accuracy")]  # fmt: skip


def report(rows: list[list[Any]], runs: list[list[dict[str, Any]]], alike: list[float], clips: int) -> None:
    """Save the table."""
    columns = ["`merge`", "tokens at the end", "MMACs", "accuracy", "answers as unmerged", "without sizes",
               "pairs by chance", "accuracy, pairs by chance"]  # fmt: skip
    caption = (
        f"{clips} test clips, five classes (chance 0.2), mean and spread over {len(runs)} seeds; a ViT of 4 blocks and "
        f"128 tokens, trained on 800 labelled clips for {TRAINING['epochs']} epochs without merging. Mean cosine "
        f"between the last tokens of a clip: {np.mean(alike):.2f}."
    )
    data = {"encoder": SMALL.model_dump(mode="json"), "training": TRAINING, "runs": runs, "likeness": alike}
    print(save("merging_quality", caption, columns, rows, data))


if __name__ == "__main__":
    main()
