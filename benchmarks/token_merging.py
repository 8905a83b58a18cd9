"""Token merging (ToMe): speed of a ViT-S, and agreement of a small trained ViT, against the same model unmerged.

    python benchmarks/token_merging.py [--rounds 3] [--steps 160]

Speed: ViT-S at 16x224x224 (1568 tokens), fresh weights, one clip, one thread, interleaved rounds, processor time.
Agreement: small ViTs of 256 tokens learn here from the real footage that comes with vidon, one to say which of three
scenes it sees and which way up (12 classes), one to fill in hidden tubelets; both answer windows of other times with
and without merging the same share of tokens.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import cpu_seconds, save
from toolkit.cli.footage import FOOTAGE
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from toolkit.video import read_pictures
from train.data.clips import normalise
from train.macs import measure
from train.models.registry import make_encoder
from train.models.vit import TubeletViT
from train.objectives.masked import MaskedAutoencoder, tube_mask

#: Share of the tokens that is merged away by the end.
SHARES = (0.0, 0.25, 0.5, 0.75)
SCENES = ("bottle", "car", "one")
FRAMES, PICTURES = 8, Preprocess(size=(64, 64))
SMALL = TeacherConfig(dim=96, depth=6, heads=3, tubelet=(2, 8, 8))


def merging(model: TubeletViT, share: float) -> TubeletViT:
    """The same weights, merging so many tokens in every block that ``share`` of them is gone at the end."""
    tokens = model.grid[0] * model.grid[1] * model.grid[2]
    config = model.config.model_copy(update={"merge": round(share * tokens / model.config.depth)})
    twin = TubeletViT(config, model.classes, model.frame, model.frames).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def speed(rounds: int) -> list[dict[str, Any]]:
    """Processor time of ViT-S for every share."""
    model = make_encoder(TeacherConfig(encoder="vit-s"), 400, Preprocess(size=(224, 224)), 16).eval()
    assert isinstance(model, TubeletViT)
    clip = torch.randn(1, 3, 16, 224, 224)
    twins = {str(share): merging(model, share) for share in SHARES}
    calls: dict[str, Callable[[], object]] = {
        share: torch.inference_mode()(lambda twin=twin: twin(clip)) for share, twin in twins.items()
    }
    times = cpu_seconds(calls, rounds)
    return [
        {"share": float(share), "merge": twin.config.merge, "macs": measure(twin).macs, "cpu_s": times[share]}
        for share, twin in twins.items()
    ]


def windows(split: str) -> tuple[Tensor, Tensor]:
    """Normalised clips (N, 3, T, H, W) of every scene in all four turns, and their classes (N,)."""
    clips, classes = [], []
    for scene, name in enumerate(SCENES):
        for path in sorted(FOOTAGE.glob(f"{split}-{name}-*.mp4")):
            pictures = read_pictures(path, PICTURES)
            for start in range(0, len(pictures) - FRAMES + 1, FRAMES // 2):
                for turn in range(4):
                    clips.append(np.rot90(pictures[start : start + FRAMES], turn, axes=(1, 2)))
                    classes.append(4 * scene + turn)
    return normalise(np.stack(clips), PICTURES).transpose(1, 2), torch.tensor(classes)


def trained(loss: Callable[[Tensor, Tensor], Tensor], model: nn.Module, steps: int) -> None:
    """Train on so many batches of 16 training windows; ``loss`` takes clips and classes."""
    clips, classes = windows("train")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(clips), (16,))
        value = loss(clips[chosen], classes[chosen])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        rates.step()
    model.eval()


def classifier(steps: int) -> TubeletViT:
    """Learns the scene and the turn."""
    model = TubeletViT(SMALL, 4 * len(SCENES), (3, *PICTURES.size), FRAMES)
    trained(lambda clips, classes: functional.cross_entropy(model(clips), classes), model, steps)
    return model


def masked(steps: int) -> TubeletViT:
    """Learns to fill in hidden tubelets: its tokens cannot become alike."""
    model = MaskedAutoencoder(TubeletViT(SMALL, 4 * len(SCENES), (3, *PICTURES.size), FRAMES), 48, 1)
    draws, grid = torch.Generator().manual_seed(0), model.encoder.grid
    trained(lambda clips, _: model(clips, tube_mask(len(clips), grid, 0.75, draws)), model, steps)
    return model.encoder


def agreement(model: TubeletViT) -> list[dict[str, Any]]:
    """Accuracy, agreement and cosine for every share, on windows of the validation times."""
    clips, classes = windows("val")
    whole, centre = None, torch.zeros(())
    found = []
    for share in SHARES:
        twin = merging(model, share)
        with torch.inference_mode():
            embedding = torch.cat([twin.embed(part) for part in clips.split(32)])
            answers = twin.head(embedding).argmax(1)
        if whole is None:
            whole, centre = (embedding, answers), embedding.mean(0)
        cosine = functional.cosine_similarity(embedding - centre, whole[0] - centre)
        found.append({
            "share": share, "merge": twin.config.merge, "clips": len(clips),
            "accuracy": (answers == classes).float().mean().item(),
            "agreement": (answers == whole[1]).float().mean().item(),
            "cosine": cosine.mean().item(), "worst_cosine": cosine.min().item(),
        })  # fmt: skip
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=160)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fast, same, alike = speed(args.rounds), agreement(classifier(args.steps)), agreement(masked(args.steps))
    rows: list[list[Any]] = []
    for f, s, m in zip(fast, same, alike, strict=True):
        ratios = [whole / own for whole, own in zip(fast[0]["cpu_s"], f["cpu_s"], strict=True)]
        rows.append([
            f"{f['share']:.0%}", f["merge"], f"{f['macs'] / 1e9:.1f}", f"{np.median(f['cpu_s']):.2f}",
            f"{np.median(ratios):.2f}x", f"{s['accuracy']:.3f}", f"{s['agreement']:.3f}", f"{s['cosine']:.4f}",
            f"{m['cosine']:.4f} ({m['worst_cosine']:.3f})",
        ])  # fmt: skip
    columns = ["tokens gone at the end", "`merge` of ViT-S", "GMACs", "CPU s a clip", "speed", "accuracy, classifier",
               "answers as unmerged", "cosine, classifier", "cosine (worst), masked-pretrained"]  # fmt: skip
    caption = (
        "Speed: ViT-S at 16x224x224, fresh weights, one thread, medians, in turn with the unmerged model. The rest: "
        f"6-block ViTs of 256 tokens after {args.steps} steps on real footage, {same[0]['clips']} windows of held-out "
        "times; cosine of the embeddings about their mean."
    )
    data = {"speed": fast, "classifier": same, "masked": alike, "steps": args.steps}
    print(save("token_merging", caption, columns, rows, data))


if __name__ == "__main__":
    main()
