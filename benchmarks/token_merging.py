"""Token merging (ToMe): speed of a ViT-S, and agreement of a small trained ViT, against the same model unmerged.

    python benchmarks/token_merging.py [--calls 4] [--epochs 12]

Speed: ViT-S at 16x224x224 (1568 tokens), fresh weights, one clip, one thread, interleaved rounds. Agreement: a ViT of
64 tokens is trained here on the demo's clips (real footage, five directions of motion) and answers its validation
clips with and without merging; both merge the same share of their tokens.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import save
from deploy.bench import bench_calls
from toolkit.cli.demo import RECIPE
from toolkit.cli.footage import build_clips
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig, load_recipe
from train.data.clips import Pictures, normalise
from train.macs import measure
from train.models import load_model
from train.models.registry import make_encoder
from train.models.vit import TubeletViT
from train.stages import finetune, open_data

#: Share of the tokens that is merged away by the end.
SHARES = (0.0, 0.25, 0.5, 0.75)


def merging(model: TubeletViT, share: float) -> TubeletViT:
    """The same weights, merging so many tokens in every block that ``share`` of them is gone at the end."""
    tokens = model.grid[0] * model.grid[1] * model.grid[2]
    config = model.config.model_copy(update={"merge": round(share * tokens / model.config.depth)})
    twin = TubeletViT(config, model.classes, model.frame, model.frames).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def speed(calls: int) -> list[dict[str, Any]]:
    """Latency of ViT-S for every share."""
    model = make_encoder(TeacherConfig(encoder="vit-s"), 400, Preprocess(size=(224, 224)), 16).eval()
    assert isinstance(model, TubeletViT)
    clip = torch.randn(1, 3, 16, 224, 224)
    twins = {share: merging(model, share) for share in SHARES}
    run: dict[str, Callable[[], object]] = {
        str(share): torch.inference_mode()(lambda twin=twin: twin(clip)) for share, twin in twins.items()
    }
    times = bench_calls(run, calls, 0, "ViT-S", block=1)
    return [
        {"share": share, "merge": twin.config.merge, "macs": measure(twin).macs, **times[str(share)].as_dict(True)}
        for share, twin in twins.items()
    ]


def agreement(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """Accuracy, agreement and cosine of a small trained ViT for every share, on validation clips."""
    overrides = (
        f"data.root={folder / 'data'}", "teacher.tubelet=[8, 6, 6]", f"finetune.epochs={epochs}",
    )  # fmt: skip
    recipe = load_recipe(RECIPE, overrides)
    build_clips(folder / "data")
    loaded = load_model(finetune(recipe, folder / "teacher")).model
    assert isinstance(loaded, TubeletViT)
    val = open_data(recipe, folder / "cache").val
    assert val is not None
    whole = _answers(loaded, val, recipe.preprocess)
    found = []
    for share in SHARES:
        logits, embedding = _answers(merging(loaded, share), val, recipe.preprocess)
        found.append({
            "share": share,
            "accuracy": (logits.argmax(1) == torch.from_numpy(val.labels)).float().mean().item(),
            "agreement": (logits.argmax(1) == whole[0].argmax(1)).float().mean().item(),
            "cosine": functional.cosine_similarity(embedding, whole[1]).mean().item(),
            "clips": len(val),
        })  # fmt: skip
    return found


@torch.no_grad()
def _answers(model: TubeletViT, data: Pictures, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and embeddings (N, D)."""
    clips = [normalise(data.pictures[at : at + 32], preprocess).transpose(1, 2) for at in range(0, len(data), 32)]
    embedding = torch.cat([model.embed(clip) for clip in clips])
    return model.head(embedding), embedding


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fast = speed(args.calls)
    with tempfile.TemporaryDirectory() as folder:
        same = agreement(Path(folder), args.epochs)
    rows = [
        [
            f"{f['share']:.0%}", f["merge"], f"{f['macs'] / 1e9:.1f}", f"{f['p50_ms'] / 1e3:.2f}",
            f"{fast[0]['p50_ms'] / f['p50_ms']:.2f}x", f"{s['accuracy']:.3f}", f"{s['agreement']:.3f}",
            f"{s['cosine']:.4f}",
        ]
        for f, s in zip(fast, same, strict=True)
    ]  # fmt: skip
    columns = ["tokens gone at the end", "`merge` of ViT-S", "GMACs", "s a clip", "speed", "accuracy, small ViT",
               "answers as unmerged", "cosine of embeddings"]  # fmt: skip
    caption = (
        "Speed: ViT-S at 16x224x224, fresh weights, one thread, median, interleaved with the unmerged model. "
        f"Agreement: a 4-block ViT of 64 tokens trained on the demo's clips, {same[0]['clips']} validation clips."
    )
    print(save("token_merging", caption, columns, rows, {"speed": fast, "agreement": same, "epochs": args.epochs}))


if __name__ == "__main__":
    main()
