"""Save and load models: ``model.safetensors`` and ``model.json`` in one folder, no pickle.

A pruned model is rebuilt from its configuration and then takes the shapes of the saved weights.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from toolkit.contract import Contract
from toolkit.errors import UserError
from toolkit.files import sha256, write_bytes, write_text
from toolkit.preprocess import Preprocess
from toolkit.progress import note
from toolkit.recipe import BoxesConfig, StudentConfig, TeacherConfig
from train.detect.clip import ClipDetector
from train.models.c3d import C3D
from train.models.hf import HubClassifier, open_classifier
from train.models.hub import locate
from train.models.i3d import I3D
from train.models.r2plus1d import R2Plus1D
from train.models.registry import make_encoder
from train.models.student import OnlineShift, StreamStudent, build_student
from train.models.vit import TubeletViT
from train.models.x3d import X3D

__all__ = [
    "Card",
    "ClipModel",
    "Loaded",
    "Model",
    "build",
    "fingerprint",
    "load_model",
    "load_teacher",
    "same_labels",
    "save_model",
]

ClipModel = C3D | HubClassifier | I3D | R2Plus1D | TubeletViT | X3D
Model = StreamStudent | ClipModel | ClipDetector


class Card(BaseModel):
    """What is known of a saved model besides its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["student", "teacher", "detector"]
    config: dict[str, Any]
    labels: tuple[str, ...]
    preprocess: Preprocess
    frames: int
    lineage: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in eval mode and its card."""

    model: Model
    card: Card

    @property
    def contract(self) -> Contract:
        """The model's contract."""
        return self.model.contract()


def build(card: Card) -> Model:
    """Make the card's model with fresh weights."""
    if card.kind == "detector":
        encoder = build(card.model_copy(update={"kind": "teacher", "config": card.config["encoder"]}))
        return ClipDetector(encoder, len(card.labels), BoxesConfig.model_validate(card.config["boxes"]))
    if card.kind == "teacher":
        config = TeacherConfig.model_validate(card.config)
        return make_encoder(config, len(card.labels), card.preprocess, card.frames)
    frame = (3, *card.preprocess.size)
    return build_student(StudentConfig.model_validate(card.config), len(card.labels), frame, card.frames)


def save_model(folder: Path, model: Model, card: Card) -> None:
    """Write weights, then the card; both atomically. An encoder's card holds the encoder's own configuration."""
    if card.kind == "teacher":
        assert not isinstance(model, ClipDetector)
        card = card.model_copy(update={"config": model.config.model_dump(mode="json")})
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(folder / "model.safetensors", save(state))
    write_text(folder / "model.json", card.model_dump_json(indent=2) + "\n")


def load_model(folder: Path) -> Loaded:
    """Rebuild a saved model, pruned or not, in eval mode.

    Raises:
        UserError: missing, damaged or foreign files; each is named.
    """
    if not (folder / "model.json").is_file():
        raise UserError(f"{folder} holds no model (model.json): give the --out folder of a finished training stage")
    try:
        card = Card.model_validate(json.loads((folder / "model.json").read_bytes()))
        state = load_file(folder / "model.safetensors")
    except (ValueError, ValidationError, OSError, SafetensorError) as error:
        raise UserError(f"model {folder} is damaged ({str(error).splitlines()[0]}): train it again") from error
    model = build(card)
    if _classes(state) != len(card.labels):
        raise UserError(f"model {folder}: the weights do not fit model.json; train it again")
    _take_shapes(model, state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"model {folder}: the weights do not fit model.json; train it again") from error
    return Loaded(model.eval(), card)


def load_teacher(source: Path, labels: tuple[str, ...], preprocess: Preprocess, frames: int) -> Model:
    """A saved model, or ``hf:<folder or hub id>``: a classifier of ``transformers`` that knows the same labels.

    Raises:
        UserError: missing, damaged or foreign files, or other labels.
    """
    if str(source).startswith("hf:"):
        return open_classifier(str(source), labels, preprocess, frames)
    loaded = load_model(source)
    same_labels(source, loaded.card, labels)
    before, now = loaded.card.preprocess.model_dump(), preprocess.model_dump()
    if changed := [f"{key} {before[key]}, now {now[key]}" for key in now if before[key] != now[key]]:
        note(f"teacher {source} saw clips otherwise ({'; '.join(changed)}): its answers may be worse than they were")
    return loaded.model


def same_labels(source: Path, card: Card, labels: tuple[str, ...]) -> None:
    """Refuse a model whose answers mean something else than these labels, in this order.

    Raises:
        UserError: it knows others.
    """
    if card.labels != labels:
        raise UserError(
            f"model {source} knows {', '.join(card.labels)}, the data have {', '.join(labels)}: train it again on these"
        )


def fingerprint(source: str | Path) -> str:
    """Hash of the weights in a file, in a folder, or of a hub name, with ``hf:`` before it or not.

    Raises:
        UserError: there are none.
    """
    folder = locate(str(source).removeprefix("hf:"))
    if folder.is_file():
        return sha256(folder)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"{folder} holds no model: give the --out folder of a finished training stage")
    return "-".join(sha256(file) for file in files)


def _classes(state: dict[str, Tensor]) -> int:
    """Number of classes the saved output layer has."""
    names = ("head.weight", "readout.head.weight", "readout.heads.0.weight", "readout.head.scores.weight",
             "heads.0.scores.weight")  # fmt: skip
    return next((state[name].shape[0] for name in names if name in state), 0)


def _take_shapes(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give every layer the shape of its saved weights."""
    for name, module in model.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None or not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            continue
        if weight.shape == module.weight.shape:
            continue
        if isinstance(module, nn.BatchNorm2d):
            module.num_features = weight.shape[0]
            module.running_mean, module.running_var = torch.empty(weight.shape[0]), torch.empty(weight.shape[0])
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        else:
            depthwise = module.groups > 1
            module.out_channels = weight.shape[0]
            module.in_channels = weight.shape[0] if depthwise else weight.shape[1]
            module.groups = weight.shape[0] if depthwise else 1
        module.weight = nn.Parameter(torch.empty(weight.shape))
        if module.bias is not None:
            module.bias = nn.Parameter(torch.empty(weight.shape[0]))
    follow_shapes(model)


def follow_shapes(model: nn.Module) -> None:
    """After layers changed width: every online shift takes its fraction of the channels that remain."""
    for block in getattr(model, "blocks", []):
        shift = getattr(block, "temporal", None)
        if isinstance(shift, OnlineShift):
            expand = block.branch[0][0]
            assert isinstance(expand, nn.Conv2d)
            shift.resize(expand.in_channels)
