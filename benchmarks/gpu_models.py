"""What :mod:`benchmarks.gpu_training` compares: one ViT-B of this project and of ``transformers``, and its clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.preprocess import Preprocess
from toolkit.recipe import Recipe, TeacherConfig
from train.data.batch import Batch, sent
from train.data.clips import normalise
from train.loop.blocks import blocks_of, compile_in_place
from train.models.registry import make_encoder
from train.objectives.masked import MaskedAutoencoder, tube_mask
from train.outlook import outlook

__all__ = [
    "FULL",
    "TASKS",
    "TINY",
    "Contender",
    "Shown",
    "Size",
    "batches",
    "contender",
    "mask_of",
    "operations",
    "ours",
]

TASKS = ("pretrain", "finetune")
MASKED = 0.9  # share of hidden tubelets

#: Of bytes on the device (B, T, H, W, 3), labels on the device (B,) and the mask in host memory (B, N).
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """One model and its clips."""

    encoder: dict[str, Any]
    side: int
    frames: int
    classes: int
    decoder: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubelets in time, height and width."""
        return self.frames // 2, self.side // 16, self.side // 16

    @property
    def heads(self) -> int:
        """Heads of the decoder."""
        return max(1, self.decoder[0] // 64)

    @property
    def preprocess(self) -> Preprocess:
        """The pictures, normalised as VideoMAE's."""
        return Preprocess(size=(self.side, self.side), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


FULL = Size({"encoder": "vit-b"}, 224, 16, 400, (384, 4))
TINY = Size({"encoder": "vit-s", "dim": 32, "depth": 2, "heads": 2}, 32, 4, 5, (32, 1))


def ours(task: str, size: Size) -> tuple[nn.Module, Loss]:
    """The model and loss of this project."""
    preprocess = size.preprocess
    encoder: Any = make_encoder(TeacherConfig.model_validate(size.encoder), size.classes, preprocess, size.frames)
    if task == "finetune":
        return encoder, lambda x, y, _: nn.functional.cross_entropy(
            encoder(normalise(x, preprocess).transpose(1, 2)), y
        )
    model = MaskedAutoencoder(encoder, *size.decoder, size.heads, target="channel")
    return model, lambda x, _, mask: model(normalise(x, preprocess).transpose(1, 2), mask)


def theirs(task: str, size: Size) -> tuple[nn.Module, Loss]:
    """The same model of ``transformers``, with its own loss."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

    teacher, preprocess = TeacherConfig.model_validate(size.encoder), size.preprocess
    config = VideoMAEConfig(
        image_size=size.side, num_frames=size.frames, hidden_size=teacher.dim, num_hidden_layers=teacher.depth,
        num_attention_heads=teacher.heads, intermediate_size=4 * teacher.dim, num_labels=size.classes,
        decoder_hidden_size=size.decoder[0], decoder_num_hidden_layers=size.decoder[1],
        decoder_num_attention_heads=size.heads, decoder_intermediate_size=4 * size.decoder[0],
        attn_implementation="sdpa",
    )  # fmt: skip
    if task == "finetune":
        classifier: Any = VideoMAEForVideoClassification(config)
        return classifier, lambda x, y, _: classifier(normalise(x, preprocess), labels=y).loss
    model: Any = VideoMAEForPreTraining(config)
    return model, lambda x, _, mask: model(normalise(x, preprocess), bool_masked_pos=sent(mask, x.device)).loss


@dataclass
class Contender:
    """A model in training; ``seconds`` of each measured step, as means of turns."""

    name: str
    model: nn.Module
    loss: Loss
    device: torch.device
    seconds: list[float] = field(default_factory=list)
    peak_gib: float = 0.0

    def __post_init__(self) -> None:
        self.model.to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=self.device.type == "cuda")

    def step(self, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        """One training step from pinned host memory."""
        pictures, labels, mask = batch
        pictures, labels = (tensor.to(self.device, non_blocking=True) for tensor in (pictures, labels))
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss(pictures, labels, mask)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def own_bytes(self) -> int:
        """Weights, buffers and the optimiser's state: what stays between steps."""
        kept = [*self.model.parameters(), *self.model.buffers()]
        kept += [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept if tensor.device.type != "cpu")


def contender(name: str, task: str, size: Size, device: torch.device, compiled: bool) -> Contender:
    """``vidon``, compiled by block as ``run.compile`` does, or ``transformers``, compiled whole."""
    torch.manual_seed(0)
    model, loss = (ours if name == "vidon" else theirs)(task, size)
    if compiled and name == "vidon":
        compile_in_place(blocks_of(model))
    elif compiled:
        model.compile()
    return Contender(f"{name}, compiled" if compiled else name, model, loss, device)


def batches(size: Size, batch: int, count: int, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Random bytes in pinned memory: speed does not depend on what is seen."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        shape = (batch, size.frames, size.side, size.side, 3)
        tensors = (
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
            torch.randint(0, size.classes, (batch,), generator=generator),
            mask_of(size, batch, generator),
        )
        found.append(tuple(tensor.pin_memory() if device.type == "cuda" else tensor for tensor in tensors))
    return found  # type: ignore[return-value]


def mask_of(size: Size, batch: int, generator: torch.Generator) -> Tensor:
    """Tubes in host memory (B, N)."""
    return tube_mask(batch, size.grid, MASKED, generator)


class Shown:
    """A source for the whole loop whose decoding costs nothing but the copy: a few random clips, again and again."""

    workers = True

    def __init__(self, size: Size, clips: int) -> None:
        self._size, self._clips = size, clips
        self._pool: Tensor | None = None  # each worker makes its own

    def __len__(self) -> int:
        return self._clips

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        """One view."""
        size = self._size
        if self._pool is None:
            self._pool = torch.randint(0, 256, (8, 1, size.frames, size.side, size.side, 3), dtype=torch.uint8)
        places = torch.tensor(list(indices))
        return Batch(self._pool[places % 8], places % size.classes, places)


def operations(task: str, size: Size) -> float:
    """FLOPs that one clip's training step needs: three forward passes, a multiply-add as two.

    The encoder sees visible tokens only; embedding the hidden ones, or a gradient for the pixels, is no need.
    """
    recipe = Recipe.model_validate({
        "data": {"frames": size.frames}, "preprocess": {"size": (size.side, size.side)}, "teacher": size.encoder,
        "pretrain": {"settings": {"masked": {
            "mask_ratio": MASKED, "decoder_dim": size.decoder[0], "decoder_depth": size.decoder[1]
        }}},
    })  # fmt: skip
    labels = tuple(str(number) for number in range(size.classes))
    times, rows, cols = size.grid
    embedding = 2.0 * times * rows * cols * (3 * 2 * 16 * 16) * recipe.teacher.dim
    seen = 1 - MASKED if task == "pretrain" else 1.0
    forward = 1e9 * outlook(recipe, task, labels, None).forward_gflops
    return 3 * (forward - embedding) + 2 * seen * embedding
