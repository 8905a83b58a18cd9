"""Every GPU measurement of training in one command: ViT-B at 16x224x224 against transformers' own, in one run.

    python benchmarks/gpu_training.py [--minutes 8] [--save]
    python benchmarks/gpu_training.py --smoke      a tiny size on any machine: shows that all of it runs, no figures

Masked pretraining (90 % hidden, 4 decoder blocks) and fine-tuning (400 classes), bf16 autocast, fused attention on both
sides, fused AdamW, clips as bytes from pinned memory, normalised on the device. The contenders take turns, a few steps
each, so that drift of the machine cancels; then vidon's whole loop runs by itself. Model FLOPs utilisation is three
forward passes' operations (a multiply-add is two), only the visible tokens in the encoder, over the card's dense bf16
peak; the peak that a plain matrix product reaches is measured too.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import save
from toolkit.preprocess import Preprocess
from toolkit.recipe import FinetuneConfig, PretrainConfig, Recipe, RunConfig, TeacherConfig
from train.data.clips import Pictures, normalise
from train.loop import Plan, fit
from train.loop.blocks import blocks_of, compile_in_place
from train.models.registry import make_encoder
from train.objectives.masked import MaskedAutoencoder, tube_mask
from train.outlook import outlook

#: Dense bf16 TFLOP/s by the makers' data sheets; the first name that the card's holds.
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362, "L4": 121}
MASKED, SHARE = 0.9, 0.8  # hidden tubelets; share of the time for the turns, the rest for the whole loop


@dataclass(frozen=True)
class Size:
    """One model and its clips; batch by task."""

    encoder: dict[str, Any]
    side: int
    frames: int
    classes: int
    decoder: tuple[int, int]
    batch: dict[str, int]
    steps: int


FULL = Size({"encoder": "vit-b"}, 224, 16, 400, (384, 4), {"pretrain": 64, "finetune": 32}, 5)
TINY = Size(
    {"encoder": "vit-s", "dim": 32, "depth": 2, "heads": 2}, 32, 4, 5, (32, 1), {"pretrain": 4, "finetune": 2}, 1
)


@dataclass
class Contender:
    """``loss`` of device bytes (B, T, H, W, 3), labels and mask; what was measured of it."""

    name: str
    model: nn.Module
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    seconds: list[float] = field(default_factory=list)
    peak_gib: float = 0.0

    def start(self, device: torch.device) -> None:
        """Optimiser and device."""
        self.model.to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=device.type == "cuda")
        self.own = sum(parameter.numel() for parameter in self.model.parameters()) * 12  # weights and two moments

    def step(self, batch: tuple[Tensor, Tensor, Tensor], device: torch.device) -> None:
        """One training step from host memory."""
        pictures, labels, mask = (tensor.to(device, non_blocking=True) for tensor in batch)
        with torch.autocast(device.type, torch.bfloat16):
            loss = self.loss(pictures, labels, mask)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def ours(task: str, size: Size, preprocess: Preprocess) -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The model and loss of this project."""
    encoder: Any = make_encoder(TeacherConfig.model_validate(size.encoder), size.classes, preprocess, size.frames)
    if task == "finetune":
        return encoder, lambda x, y, _: nn.functional.cross_entropy(
            encoder(normalise(x, preprocess).transpose(1, 2)), y
        )
    model = MaskedAutoencoder(encoder, *size.decoder, _heads(size), target="channel")
    return model, lambda x, _, mask: model(normalise(x, preprocess).transpose(1, 2), mask)


def _heads(size: Size) -> int:
    return max(1, size.decoder[0] // 64)


def theirs(
    task: str, size: Size, preprocess: Preprocess
) -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The same model of ``transformers``, with its own loss."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

    teacher = TeacherConfig.model_validate(size.encoder)
    config = VideoMAEConfig(
        image_size=size.side, num_frames=size.frames, hidden_size=teacher.dim, num_hidden_layers=teacher.depth,
        num_attention_heads=teacher.heads, intermediate_size=4 * teacher.dim, num_labels=size.classes,
        decoder_hidden_size=size.decoder[0], decoder_num_hidden_layers=size.decoder[1],
        decoder_num_attention_heads=_heads(size), decoder_intermediate_size=4 * size.decoder[0],
        attn_implementation="sdpa",
    )  # fmt: skip
    if task == "finetune":
        classifier: Any = VideoMAEForVideoClassification(config)
        return classifier, lambda x, y, _: classifier(normalise(x, preprocess), labels=y).loss
    model: Any = VideoMAEForPreTraining(config)
    return model, lambda x, _, mask: model(normalise(x, preprocess), bool_masked_pos=mask).loss


def contenders(task: str, size: Size, preprocess: Preprocess, device: torch.device, compiled: bool) -> list[Contender]:
    """Both sides, plain and compiled: vidon by block, transformers whole."""
    found = []
    for compile_ in (False, True) if compiled else (False,):
        for name, make in (("vidon", ours), ("transformers", theirs)):
            torch.manual_seed(0)
            model, loss = make(task, size, preprocess)
            if compile_ and name == "vidon":
                for block in blocks_of(model):
                    compile_in_place(block)
            elif compile_:
                model.compile()
            found.append(Contender(f"{name}, compiled" if compile_ else name, model, loss))
    for contender in found:
        contender.start(device)
    return found


def batches(task: str, size: Size, count: int, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Random bytes: speed does not depend on what is seen."""
    batch, grid = size.batch[task], (size.frames // 2, size.side // 16, size.side // 16)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        shape = (batch, size.frames, size.side, size.side, 3)
        tensors = (
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
            torch.randint(0, size.classes, (batch,), generator=generator),
            tube_mask(batch, grid, MASKED, generator),
        )
        found.append(tuple(tensor.pin_memory() if device.type == "cuda" else tensor for tensor in tensors))
    return found  # type: ignore[return-value]


def turns(found: list[Contender], data: list[tuple[Tensor, Tensor, Tensor]], device: torch.device, until_s: float,
          steps: int, rounds: int) -> None:  # fmt: skip
    """Warm up, then rounds in which each contender runs ``steps`` steps."""
    for contender in found:
        for index in range(3 if device.type == "cuda" else 1):
            contender.step(data[index % len(data)], device)
    for _ in range(rounds):
        for contender in found:
            _settle(device)
            before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
            started_s = time.perf_counter()
            for index in range(steps):
                contender.step(data[index % len(data)], device)
            _settle(device)
            contender.seconds.append((time.perf_counter() - started_s) / steps)
            if device.type == "cuda":
                contender.peak_gib = (torch.cuda.max_memory_allocated() - before + contender.own) / 2**30
                torch.cuda.reset_peak_memory_stats()
        if time.perf_counter() > until_s:
            return


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def fitting(task: str, size: Size, preprocess: Preprocess, device: torch.device, until_s: float) -> list[Contender]:
    """The turns at the largest batch, halved from the wished one, that fits every contender."""
    cuda = device.type == "cuda"
    while True:
        found = contenders(task, size, preprocess, device, compiled=cuda)
        try:
            turns(found, batches(task, size, 2, device), device, until_s, size.steps, 1000 if cuda else 1)
        except torch.cuda.OutOfMemoryError:
            size.batch[task] //= 2
            del found
            torch.cuda.empty_cache()
        else:
            return found


def whole_loop(task: str, size: Size, preprocess: Preprocess, run: RunConfig, steps: int) -> float:
    """Clips a second of ``fit`` itself, from the second epoch on."""
    torch.manual_seed(0)
    model, loss = ours(task, size, preprocess)
    clips = 4 * size.batch[task]
    pictures = np.random.default_rng(0).integers(0, 256, (clips, size.frames, size.side, size.side, 3), dtype=np.uint8)
    source = Pictures(pictures, np.arange(clips) % size.classes, ("",) * clips)
    grid = (size.frames // 2, size.side // 16, size.side // 16)
    kind: Any = PretrainConfig if task == "pretrain" else FinetuneConfig
    optim = kind(epochs=max(2, steps // 4), batch=size.batch[task], lr=1e-5)
    plan = Plan(
        f"{task} through the loop", model,
        lambda batch, generator: loss(batch.first, batch.labels, tube_mask(len(batch.labels), grid, MASKED, generator)
                                      .to(batch.labels.device)),
        optim, run=run.model_copy(update={"save_every_s": 1e9}),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit(plan, source, Path(folder))
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["clips_per_s"] for line in [line for line in lines if "lr" not in line][1:])


def operations(task: str, size: Size) -> float:
    """FLOPs of one clip's training step: three forward passes."""
    recipe = Recipe.model_validate({
        "data": {"frames": size.frames}, "preprocess": {"size": (size.side, size.side)}, "teacher": size.encoder,
        "pretrain": {"settings": {"masked": {
            "mask_ratio": MASKED, "decoder_dim": size.decoder[0], "decoder_depth": size.decoder[1]
        }}},
    })  # fmt: skip
    labels = tuple(str(number) for number in range(size.classes))
    return 3e9 * outlook(recipe, task, labels, None).forward_gflops


def product_tflops(device: torch.device, side: int) -> float:
    """What a plain bf16 matrix product reaches."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(3):
        _settle(device)
        started_s = time.perf_counter()
        for _ in range(10):
            a @ b
        _settle(device)
        best = max(best, 20 * side**3 / (time.perf_counter() - started_s) / 1e12)
    return best


def measure(size: Size, device: torch.device, minutes: float) -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows and raw data of both tasks."""
    cuda = device.type == "cuda"
    card = torch.cuda.get_device_name() if cuda else "none"
    peak = next((value for name, value in PEAKS.items() if name in card), None)
    product = product_tflops(device, 8192 if cuda else 256)
    preprocess = Preprocess(size=(size.side, size.side), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    rows: list[list[Any]] = []
    data: dict[str, Any] = {"card": card, "peak_tflops": peak, "product_tflops": product, "batch": size.batch}
    started_s = time.perf_counter()
    for number, task in enumerate(("pretrain", "finetune")):
        until_s = started_s + 60 * minutes * (number + SHARE) / 2
        found = fitting(task, size, preprocess, device, until_s)
        batch, flops = size.batch[task], operations(task, size)
        base = statistics.median(found[1].seconds)
        results = {c.name: (batch / statistics.median(c.seconds), c.peak_gib, c.seconds) for c in found}
        del found
        if cuda:
            torch.cuda.empty_cache()
        run = RunConfig(device=device.type, precision="bf16", compile=cuda, workers=0)
        speed = whole_loop(task, size, preprocess, run, 40 if cuda else 8)
        results["vidon, whole loop"] = (speed, 0.0, [batch / speed])
        for name, (clips_per_s, gib, _) in results.items():
            share = f"{100 * clips_per_s * flops / peak / 1e12:.1f} %" if peak else "-"
            rows.append([task, name, batch, f"{clips_per_s:.1f}", f"{gib:.1f}" if gib else "-", share,
                         f"{clips_per_s * base / batch:.2f}x"])  # fmt: skip
        data[task] = {"flops_per_clip": flops, **{name: seconds for name, (_, _, seconds) in results.items()}}
    return rows, data


def main() -> None:
    """Measure on the GPU, or show on a tiny size that everything here runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.smoke:
        raise SystemExit("nothing was measured: torch sees no GPU here (--smoke runs a tiny size on the CPU instead)")
    smoke = args.smoke
    device = torch.device("cpu" if smoke else "cuda")
    rows, data = measure(TINY if smoke else FULL, device, 0.1 if smoke else args.minutes)
    columns = ["task", "contender", "batch", "clips/s", "peak GiB", "MFU", "against transformers"]
    for row in [columns, *rows]:
        print(" | ".join(str(cell) for cell in row))
    print(
        f"card {data['card']}, data sheet {data['peak_tflops']} TFLOP/s, product {data['product_tflops']:.1f} TFLOP/s"
    )
    if smoke:
        print("smoke run on the CPU with a tiny size: these figures say nothing about a GPU")
    elif args.save:
        print(save("gpu_training", f"ViT-B, 16x224x224, bf16, {data['card']}.", columns, rows, data))


if __name__ == "__main__":
    main()
