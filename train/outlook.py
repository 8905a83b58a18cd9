"""What a training stage will cost, said beforehand: parameters, operations, memory and steps; nothing is trained.

The model is built on torch's ``meta`` device, where tensors have shapes but no content, and its loss is computed once
there for one clip. Operations are counted by torch's own counter (a multiply-add is two), attention by its formula;
a training step costs three forward passes, four with recomputed activations. Memory is an estimate of the peak in one
process: weights, gradients and optimiser state by their sizes, activations as all that autograd keeps of that one
clip (with recomputation: the blocks' inputs and the largest block), times the clips that a process takes at once.
Left out are the framework itself, temporary buffers and fragmentation.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from toolkit.errors import UserError, nearest
from toolkit.recipe import Recipe
from train.loop.blocks import blocks_of
from train.loop.feed import Order
from train.models.store import build
from train.models.student import StreamStudent
from train.models.vit import TubeletViT
from train.objectives import resolve
from train.objectives.masked import MaskedAutoencoder, tube_mask
from train.stages.common import card_of
from train.stages.detect import only_head, rates_of

__all__ = ["STAGES", "Outlook", "check_stage", "outlook"]

STAGES = ("pretrain", "finetune", "distill")
#: A model, its loss on clips (B, T, C, H, W), and a loss that runs the whole model if that one does not.
_Work = tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
_FLOAT = 4  # bytes: weights, gradients and optimiser state stay in float32 whatever the precision
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Outlook:
    """One stage. FLOPs of one clip forward and of one step; MiB in each process; steps None without data."""

    stage: str
    parameters: int
    forward_gflops: float
    step_gflops: float
    weights_mib: float
    gradients_mib: float
    optimizer_mib: float
    average_mib: float
    activations_mib: float
    batch_mib: float
    clips_at_once: int
    steps: int | None
    per_epoch: int | None

    @property
    def memory_mib(self) -> float:
        """The estimated peak in one process."""
        return (self.weights_mib + self.gradients_mib + self.optimizer_mib + self.average_mib + self.activations_mib
                + self.batch_mib)  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "memory_mib": self.memory_mib}


def check_stage(stage: str) -> None:
    """Refuse a stage that cannot be looked ahead at.

    Raises:
        UserError: unknown; the nearest is named.
    """
    if stage not in STAGES:
        raise UserError(f"unknown stage {stage!r}{nearest(stage, STAGES)}; stages: {', '.join(STAGES)}")


def outlook(recipe: Recipe, stage: str, labels: tuple[str, ...], clips: int | None, processes: int = 1) -> Outlook:
    """Look ahead at one stage of a recipe on ``clips`` training clips (a detector: windows) in ``processes`` processes.

    Raises:
        UserError: unknown stage, or a model that the recipe's clips do not fit.
    """
    check_stage(stage)
    boxes, run = recipe.task == "detection" and stage != "pretrain", recipe.run
    optim = recipe.detection if boxes else getattr(recipe, stage)
    with torch.device("meta"):
        model, loss, whole_loss = _detector(recipe, stage, labels) if boxes else _stage(recipe, stage, labels)
        shape = (1, recipe.data.frames, 3, *recipe.preprocess.size)
        clip = torch.zeros(shape, dtype=torch.bfloat16 if run.precision == "bf16" else torch.float32)
    flops, kept = _measure(model.to(clip.dtype), lambda: loss(clip), run.checkpointing)
    forward = _measure(model, lambda: whole_loss(clip), False)[0]
    order = Order(clips or optim.batch, optim.batch, optim.epochs, 0, run.accumulate, processes, 0)
    batch = min(optim.batch, clips or optim.batch)
    at_once = -(-batch // (processes * run.accumulate))
    total = sum(parameter.numel() for parameter in model.parameters())
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    share = 1 / processes if run.strategy == "fsdp2" else 1.0
    moments = 2 if optim.optimizer == "adamw" else 1
    whole, trained = (count * _FLOAT / _MIB * share for count in (total, learned))
    operations = flops * batch * (4 if run.checkpointing else 3)
    pixels = clip.numel() * (1 + clip.element_size()) * at_once  # as bytes and as floats
    return Outlook(
        stage, total, forward / 1e9, operations / 1e9, whole, trained, trained * moments,
        whole if optim.ema > 0 else 0.0,
        kept * at_once / _MIB, pixels / _MIB, at_once,
        order.total if clips else None, order.per_epoch if clips else None,
    )  # fmt: skip


def _stage(recipe: Recipe, stage: str, labels: tuple[str, ...]) -> _Work:
    """The model that a stage trains, its loss on clips (B, T, C, H, W), and a loss that runs the whole model."""
    kind = "student" if stage == "distill" else "teacher"
    model: Any = build(card_of(recipe, kind, labels))
    if isinstance(model, StreamStudent):
        return _plain(model, lambda clip: model(clip).square().mean())
    if stage == "pretrain":
        return _plain(*_pretraining(recipe, model))
    truth = torch.zeros(1, dtype=torch.long)
    return _plain(model, lambda clip: functional.cross_entropy(model(clip.transpose(1, 2)), truth))


def _plain(model: nn.Module, loss: Callable[[Tensor], Tensor]) -> _Work:
    return model, loss, loss


def _detector(recipe: Recipe, stage: str, labels: tuple[str, ...]) -> _Work:
    """The same for boxes: ``finetune`` trains the head on the clip encoder, ``distill`` the streaming student.

    Frozen layers get no gradient. Where all but the head is frozen and features are computed once, a step is one of
    the head alone; otherwise frozen layers are counted as if they learned: at most so much.
    """
    student = stage == "distill"
    config = recipe.student.model_copy(update={"readout": "boxes"}).model_dump(mode="json")
    if not student:
        head = recipe.detection.head.model_dump(mode="json")
        config = {"encoder": recipe.teacher.model_dump(mode="json"), "boxes": head}
    model: Any = build(card_of(recipe, "student", labels).model_copy(
        update={"kind": "student" if student else "detector", "config": config}
    ))  # fmt: skip
    rate = rates_of(model, recipe.detection.freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rate(name) > 0)
    if not student:
        return _plain(model, lambda clip: model.frames_answer(clip.transpose(1, 2)).square().mean())

    def whole(clip: Tensor) -> Tensor:
        loss: Tensor = model(clip).square().mean()
        return loss

    if not only_head(model, recipe.detection.freeze):
        return _plain(model, whole)
    with torch.no_grad():
        maps_TCHW = model.backbone(torch.zeros(recipe.data.frames, 3, *recipe.preprocess.size))
    return model, lambda clip: model.readout.clip(maps_TCHW[None].to(clip.dtype)).square().mean(), whole


def _pretraining(recipe: Recipe, encoder: Any) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Masked modelling with its decoder; other objectives by their passes of the encoder, without their own heads."""
    configs: dict[str, Any] = resolve(recipe.pretrain.objectives, recipe.pretrain.settings)
    masked = configs.pop("masked", None)
    if masked is not None and not isinstance(encoder, TubeletViT):
        raise UserError(f"masked pretraining hides tubelets, and {recipe.teacher.encoder} has none: use a ViT")
    passes = sum(getattr(config, "passes", 1) for config in configs.values())

    def plain(clip: Tensor) -> Tensor:
        whole: Tensor = encoder.embed(clip.transpose(1, 2).repeat(passes, 1, 1, 1, 1)).square().mean()
        return whole

    if masked is None:
        return encoder, plain
    model = MaskedAutoencoder(encoder, masked.decoder_dim, masked.decoder_depth)
    with torch.device("cpu"):
        mask = tube_mask(1, encoder.grid, masked.mask_ratio, torch.Generator().manual_seed(0))
    return model, lambda clip: model(clip.transpose(1, 2), mask) + (plain(clip) if passes else 0)


def _measure(model: nn.Module, loss: Callable[[], Tensor], recompute: bool) -> tuple[float, float]:
    """(FLOPs, bytes that autograd keeps) of one forward pass on the meta device."""
    blocks = blocks_of(model) if recompute else []
    attention, kept = _Attention(), _Kept(model)
    with ExitStack() as stack:
        counter = stack.enter_context(FlopCounterMode(display=False))
        stack.enter_context(kept.watching(blocks))
        stack.enter_context(attention)
        stack.enter_context(torch.device("meta"))
        loss()
    return float(counter.get_total_flops() + attention.flops), kept.total()


class _Kept:
    """Sums what autograd keeps, by the block that it belongs to; parameters are not counted again."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._seen: dict[int, Tensor] = {}  # holds the tensors, so that no storage is used twice
        self._bytes: dict[int, float] = {}
        self._inputs = 0.0
        self._block = -1

    def total(self) -> float:
        """Bytes outside of blocks, the blocks' inputs, and the largest block."""
        inner = [size for block, size in self._bytes.items() if block >= 0]
        return self._bytes.get(-1, 0.0) + self._inputs + max(inner, default=0.0)

    @contextmanager
    def watching(self, blocks: list[nn.Module]) -> Iterator[None]:
        """Count inside."""
        handles = []
        for index, block in enumerate(blocks):
            handles.append(block.register_forward_pre_hook(self._enter(index)))
            handles.append(block.register_forward_hook(self._leave))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._block = index
            self._inputs += sum(value.numel() * value.element_size() for value in inputs if isinstance(value, Tensor))

        return enter

    def _leave(self, *_: Any) -> None:
        self._block = -1

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own and storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor
            self._bytes[self._block] = self._bytes.get(self._block, 0.0) + storage.nbytes()
        return tensor


class _Attention(TorchFunctionMode):
    """Attention as the fused kernels do it: the matrix of weights is never kept (on meta torch would keep it)."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        rows = query.numel() // query.shape[-1]  # batch * heads * tokens
        self.flops += 2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)  # as the kernels lay it out
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out
