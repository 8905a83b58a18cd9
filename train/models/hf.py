"""Any video classifier of Hugging Face ``transformers`` as an encoder or a teacher: ``hf:<folder or hub id>``.

The wrapper takes clips as every encoder here does, and owns what that model wants: its picture size and number of
frames, its normalisation, its input layout.
Shapes: B batch, C channels, T frames, H, W picture, N tokens, D width, K classes.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from toolkit.contract import Contract
from toolkit.errors import MissingDependency, UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from train.models.hub import locate

__all__ = ["HubClassifier", "make", "open_classifier"]

_PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make(config: TeacherConfig, classes: int, preprocess: Preprocess, frames: int) -> "HubClassifier":
    """The registry's constructor: pretrained weights with a head for ``classes``, or the structure that was saved.

    On the ``meta`` device, where a model is only looked at, it is always the structure alone.
    """
    if not config.transformers and torch.get_default_device().type == "meta":
        config = _described(config)
    if config.transformers:
        return HubClassifier(config, _rebuilt(config, classes), classes, preprocess, frames)
    config, model = _fetched(config, classes)
    return HubClassifier(config, model, classes, preprocess, frames)


def open_classifier(encoder: str, labels: tuple[str, ...], preprocess: Preprocess, frames: int) -> "HubClassifier":
    """A classifier as it was trained, its answers put in the order of ``labels``.

    Raises:
        UserError: it knows other labels.
    """
    config, model = _fetched(TeacherConfig(encoder=encoder), None)
    own = [str(label) for _, label in sorted(model.config.id2label.items())]
    wrapper = HubClassifier(config, model, len(own), preprocess, frames).eval()
    if set(own) == set(labels):
        order = torch.tensor([own.index(label) for label in labels])
        wrapper.head.weight.data = wrapper.head.weight.data[order]
        if wrapper.head.bias is not None:
            wrapper.head.bias.data = wrapper.head.bias.data[order]
    elif len(own) != len(labels) or own != [f"LABEL_{index}" for index in range(len(own))]:
        raise UserError(
            f"{encoder} answers {len(own)} labels ({', '.join(own[:3])}...), the data have {len(labels)} "
            f"({', '.join(labels[:3])}...): fine-tune it first with teacher.encoder = {encoder!r}"
        )
    return wrapper


class HubClassifier(nn.Module):
    """Clip model: (B, 3, T, H, W), normalised by ``preprocess`` -> logits (B, K). ``embed`` is what its head sees."""

    def __init__(self, config: TeacherConfig, model: Any, classes: int, preprocess: Preprocess, frames: int) -> None:
        super().__init__()
        self.config, self.classes, self.frames = config, classes, frames
        self.frame = (3, *preprocess.size)
        settings: Any = model.config
        head = getattr(model, "classifier", None)
        if not isinstance(head, nn.Linear):
            raise UserError(f"{config.encoder} ends in no linear classifier: give another model")
        self.model, self.head = model, head
        model.classifier = nn.Identity()
        self.width = head.in_features
        self.channels = int(settings.hidden_size)
        self.size = _pair(getattr(settings, "image_size", None) or getattr(settings, "crop_size", preprocess.size))
        self.times = int(getattr(settings, "num_frames", 0) or getattr(settings, "frames_per_clip", frames))
        scale, shift = _affine(config.transformers.get("processor", {}), preprocess)
        self.register_buffer("scale", scale, False)
        self.register_buffer("shift", shift, False)

    def contract(self) -> Contract:
        """A clip model's contract."""
        return Contract(kind="clip", frame=self.frame, classes=self.classes, frames=self.frames)

    def layers(self) -> list[str]:
        """Embeddings, blocks, what follows them, head."""
        lists = [(f"{name}.", len(m)) for name, m in self.model.named_modules() if isinstance(m, nn.ModuleList)]
        blocks = max(lists, key=lambda item: item[1], default=("none", 0))[0]
        base = f"{self.model.base_model_prefix}."
        found: dict[str, None] = {}
        for name, _ in self.model.named_parameters():
            parts = name.split(".")
            depth = 2 if name.startswith(base) else 1
            while blocks.startswith(".".join(parts[:depth]) + "."):  # a parent of the blocks is no layer itself
                depth += 1
            found[".".join(["model", *parts[:depth]])] = None
        return [*found, "head"]

    def pixels(self, clip_BCTHW: Tensor) -> Tensor:
        """The clip as the model wants it: (B, T', C, H', W') with its own normalisation."""
        if clip_BCTHW.shape[2] != self.times:
            chosen = torch.linspace(0, clip_BCTHW.shape[2] - 1, self.times, device=clip_BCTHW.device).round().long()
            clip_BCTHW = clip_BCTHW[:, :, chosen]
        clip_BTCHW = clip_BCTHW.transpose(1, 2)
        if tuple(clip_BTCHW.shape[-2:]) != self.size:
            flat = functional.interpolate(
                clip_BTCHW.flatten(0, 1), self.size, mode="bilinear", align_corners=False, antialias=True
            )
            clip_BTCHW = flat.reshape(*clip_BTCHW.shape[:3], *self.size)
        assert isinstance(self.scale, Tensor)
        assert isinstance(self.shift, Tensor)
        return clip_BTCHW * self.scale + self.shift

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """The last hidden state (B, N, D), a class token included where the model has one."""
        given = {self.model.main_input_name: self.pixels(clip_BCTHW)}
        out: Tensor = self.model.base_model(**given).last_hidden_state
        return out

    def embed(self, clip_BCTHW: Tensor) -> Tensor:
        """Pooled as the model does it (B, D)."""
        given = {self.model.main_input_name: self.pixels(clip_BCTHW)}
        out: Tensor = self.model(**given).logits  # its classifier was taken out: these are the head's inputs
        return out

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.head(self.embed(clip_BCTHW))
        return logits


def _fetched(config: TeacherConfig, classes: int | None) -> tuple[TeacherConfig, Any]:
    """The pretrained model, with a fresh head if it has other classes, and a configuration that can rebuild it."""
    with _clear_errors(config.encoder):
        auto = _transformers()
        folder = locate(config.encoder.partition(":")[2])
        heads = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
        model = auto.AutoModelForVideoClassification.from_pretrained(folder, **heads)
        structure = json.loads(model.config.to_json_string())
    known = {"model": structure, "processor": _processor(folder)}
    return config.model_copy(update={"transformers": known}), model


def _described(config: TeacherConfig) -> TeacherConfig:
    """The configuration that can rebuild the model, without its weights."""
    with _clear_errors(config.encoder):
        folder = locate(config.encoder.partition(":")[2])
        structure = json.loads(_transformers().AutoConfig.from_pretrained(folder).to_json_string())
    return config.model_copy(update={"transformers": {"model": structure, "processor": _processor(folder)}})


def _rebuilt(config: TeacherConfig, classes: int) -> Any:
    """The structure alone, with fresh weights."""
    with _clear_errors(config.encoder):
        auto = _transformers()
        structure = auto.AutoConfig.for_model(**config.transformers["model"])
        structure.num_labels = classes
        return auto.AutoModelForVideoClassification.from_config(structure)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency("transformers", "transformers") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


@contextlib.contextmanager
def _clear_errors(encoder: str) -> Iterator[None]:
    """The library's errors as one line."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{encoder} is no video classifier that transformers can load ({reason}): give another"
        ) from error


def _processor(folder: Path) -> dict[str, Any]:
    """What the model's own preprocessing file says; empty without one."""
    for name in _PROCESSORS:
        if (folder / name).is_file():
            found = json.loads((folder / name).read_bytes())
            return dict(found.get("video_processor", found))
    return {}


def _affine(processor: dict[str, Any], preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (3, 1, 1), from clips normalised by ``preprocess`` to the model's own normalisation."""
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    factor = 255 * float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 255.0
    offset = 1.0 if processor.get("offset", False) else 0.0
    own_mean, own_std = torch.zeros(3), torch.ones(3)
    if processor.get("do_normalize", True):
        own_mean = torch.tensor(processor.get("image_mean", _IMAGENET[0]))
        own_std = torch.tensor(processor.get("image_std", _IMAGENET[1]))
    scale = std * factor / own_std
    shift = (mean * factor - offset - own_mean) / own_std
    return scale[:, None, None], shift[:, None, None]


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)
