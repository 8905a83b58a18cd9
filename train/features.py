"""Embeddings of clips in one file: extract them from any trained model, and find the clips most like another.

The embedding is what the model's last linear layer sees, so no training is needed: a clip model's pooled features,
or a streaming student's mean over its frames after the warm-up. The file is safetensors: ``features`` float32
(N, D), ``labels`` int64 (N,) (-1 without) or multi-hot float32 (N, K), and in its header the clips' names, the label
names and the model's hash.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.files import sha256, writable_file, write_bytes
from toolkit.progress import note, track
from toolkit.recipe import DataConfig
from toolkit.video import VIDEO_SUFFIXES
from train.compress.distill import clip_logits
from train.data.clip import Clip
from train.data.clips import normalise
from train.data.formats.reading import is_url
from train.data.index import Dataset, index_data
from train.data.targets import Targets
from train.data.views import cut_views
from train.detect.clip import ClipDetector
from train.detect.head import BoxReadout
from train.models.readout import AverageReadout
from train.models.store import Loaded, Model, load_model
from train.models.student import StreamStudent
from train.tasks.retrieval import neighbours

__all__ = ["Features", "Hit", "clips_by_name", "embed", "extract", "read_features", "search"]

_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Features:
    """features (N, D); labels (N,) indices into ``label_names``, or multi-hot (N, K); ``data``: where they lay."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[Any]
    names: tuple[str, ...]
    splits: tuple[str, ...]
    label_names: tuple[str, ...]
    data: DataConfig
    model: Path
    model_sha256: str

    @property
    def root(self) -> Path:
        """The path of the data."""
        return self.data.root

    def take(self, split: str) -> "Features":
        """The clips of one split only."""
        kept = [index for index, own in enumerate(self.splits) if own == split]
        return replace(
            self, features=self.features[kept], labels=self.labels[kept], names=tuple(self.names[i] for i in kept),
            splits=(split,) * len(kept),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hit:
    """One found clip; several labels are joined by ``;``; ``cosine`` is 1 for the very same embedding."""

    rank: int
    name: str
    label: str
    cosine: float


def embed(model: Model, clips_BTCHW: Tensor) -> Tensor:
    """Embeddings (B, D): the input of the last linear layer; its output is then the model's answer."""
    with torch.no_grad():
        if isinstance(model, StreamStudent):
            return _embed_stream(model, clips_BTCHW)
        if isinstance(model, ClipDetector):
            raise UserError("a detector answers with boxes, not with an embedding of the clip: give a classifier")
        seen: Tensor = model.embed(clips_BTCHW.transpose(1, 2))
        return seen


def _embed_stream(student: StreamStudent, clips_BTCHW: Tensor) -> Tensor:
    """Mean over the frames after the warm-up of what the readout's linear layers see, joined."""
    readout = student.readout
    if isinstance(readout, BoxReadout):
        raise UserError("a detector answers with boxes, not with an embedding of the clip: give a classifier")
    layers: list[nn.Module] = [readout.head] if isinstance(readout, AverageReadout) else list(readout.heads)
    caught: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: caught.append(given[0])) for layer in layers]
    try:
        student(clips_BTCHW)
    finally:
        for hook in hooks:
            hook.remove()
    seen = torch.cat(caught, 1)
    return clip_logits(seen.reshape(*clips_BTCHW.shape[:2], seen.shape[1]), student.contract().warmup)


def extract(folder: Path, data: Path | DataConfig, out: Path, batch: int = 16) -> Features:
    """Embed every clip of ``data`` with the model in ``folder`` and write ``out``; broken videos are left out.

    ``data`` is labelled (as for training) or a plain folder of videos; a whole ``[data]`` section may say its format.
    An interrupted run goes on where it stopped.

    Raises:
        UserError: missing model or data, or no video can be read.
    """
    writable_file(out)
    loaded = load_model(folder)
    config = data if isinstance(data, DataConfig) else DataConfig(root=data)
    index = _index(config)
    named = _named(index, config)
    partial = out.with_name(f".{out.name}.partial")
    header = {
        "model": str(folder.resolve()), "model_sha256": sha256(folder / "model.safetensors"),
        **_place(config), "label_names": list(index.labels),
    }  # fmt: skip
    done = _resume(partial, header)
    broken: list[str] = []
    saved_s = time.monotonic()
    waiting = [name for name in named if name not in done]
    for start in track(range(0, len(waiting), batch), "embed", -(-len(waiting) // batch)):
        chunk = {name: named[name] for name in waiting[start : start + batch]}
        done |= _embed_chunk(loaded, chunk, broken)
        if done and time.monotonic() - saved_s > _EVERY_S:
            _write(partial, header, done, index, named)
            saved_s = time.monotonic()
    if not done:
        raise UserError(f"none of the {len(named)} videos of {config.root} can be read; the first: {broken[0]}")
    if broken:
        note(f"left out {len(broken)} broken of {len(named)} videos: " + "; ".join(broken[:5]))
    _write(out, header, done, index, named)
    partial.unlink(missing_ok=True)
    return read_features(out)


def _place(data: DataConfig) -> dict[str, Any]:
    """What finds the clips again, from any folder."""
    videos = None if data.videos is None else str(data.videos.resolve())
    root = str(data.root) if is_url(data.root) else str(data.root.resolve())
    return {"root": root, "format": data.format, "videos": videos, "fold": data.fold}


def clips_by_name(data: DataConfig) -> dict[str, Clip]:
    """The clips of ``data`` by the names that stand in its features."""
    return _named(_index(data), data)


def _index(data: DataConfig) -> Dataset:
    """Data of any format, or a folder that holds videos and no classes."""
    plain = data.format == "auto" and data.root.is_dir()
    loose = sorted(p for p in data.root.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES) if plain else []
    if loose:
        return Dataset(data.root, (), tuple(Clip(path, "", "", path.stem) for path in loose))
    return index_data(data, splits="given", labelled=False)


def _named(index: Dataset, data: DataConfig) -> dict[str, Clip]:
    """Names relative to the data, or to the folder of the videos, where clips lie under it."""
    base = data.videos or (index.root if index.root.is_dir() else index.root.parent)
    return {clip.name.removeprefix(f"{base}/"): clip for clip in index.clips}


def _embed_chunk(loaded: Loaded, chunk: Mapping[str, Clip], broken: list[str]) -> dict[str, npt.NDArray[np.float32]]:
    names, pictures = [], []
    for name, clip in chunk.items():
        try:
            pictures.append(cut_views(clip, loaded.card.preprocess, loaded.card.frames)[0])
            names.append(name)
        except UserError as error:
            broken.append(str(error))
    if not names:
        return {}
    features = embed(loaded.model, normalise(np.stack(pictures), loaded.card.preprocess)).numpy()
    return dict(zip(names, features, strict=True))


def _write(
    path: Path, header: dict[str, Any], done: dict[str, npt.NDArray[np.float32]], index: Dataset,
    named: dict[str, Clip],
) -> None:  # fmt: skip
    names = [name for name in named if name in done]
    clips = [named[name] for name in names]
    labels = Targets.of(index, clips).labels if index.labels else np.full(len(clips), -1, np.int64)
    tensors = {
        "features": torch.from_numpy(np.stack([done[name] for name in names])),
        "labels": torch.from_numpy(labels),
    }
    about = {**header, "names": names, "splits": [clip.split for clip in clips]}
    write_bytes(path, save(tensors, metadata={"vidon": json.dumps(about)}))


def _resume(partial: Path, header: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    """What an interrupted run of the same model on the same data has done; anything else starts afresh."""
    try:
        before = read_features(partial)
    except UserError:
        return {}
    same = {"model_sha256": before.model_sha256, **_place(before.data), "label_names": list(before.label_names)}
    if any(header[key] != value for key, value in same.items()):
        return {}
    note(f"  embed: going on after {len(before.names)} clips")
    return dict(zip(before.names, before.features, strict=True))


def read_features(path: Path) -> Features:
    """Open a features file.

    Raises:
        UserError: missing, damaged or foreign file.
    """
    if not path.is_file():
        raise UserError(f"features {path} do not exist: make them with  vidon embed MODEL --data DATA --out {path}")
    try:
        with safe_open(path, framework="np") as file:
            raw = json.loads(file.metadata()["vidon"])
            features, labels = file.get_tensor("features"), file.get_tensor("labels")
        return Features(
            features, labels, tuple(raw["names"]), tuple(raw["splits"]), tuple(raw["label_names"]),
            _data(raw), Path(raw["model"]), raw["model_sha256"],
        )  # fmt: skip
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"features {path} are damaged or of another program: make them again with  vidon embed"
        ) from error


def _data(raw: dict[str, Any]) -> DataConfig:
    """Where the clips were read; older files name the root alone."""
    return DataConfig.model_validate({key: raw[key] for key in ("root", "format", "videos", "fold") if key in raw})


def search(features: Features, clip: Path, top: int = 5, model: Path | None = None) -> list[Hit]:
    """The ``top`` clips most like the video ``clip``, best first. The features' own model embeds it.

    Raises:
        UserError: the model is gone or has been trained again since, or the video cannot be read.
    """
    folder = model or features.model
    loaded = load_model(folder)
    if sha256(folder / "model.safetensors") != features.model_sha256:
        raise UserError(f"model {folder} is not the one that made the features: run vidon embed again, or give --model")
    pictures_1THWC = cut_views(Clip(clip, "", "", ""), loaded.card.preprocess, loaded.card.frames)
    query_1D = embed(loaded.model, normalise(pictures_1THWC, loaded.card.preprocess)).numpy()
    order, cosines = neighbours(query_1D, features.features)
    return [
        Hit(rank, features.names[place], _label(features, place), round(float(cosine), 6))
        for rank, (place, cosine) in enumerate(zip(order[0, :top].tolist(), cosines[0, :top], strict=True), 1)
    ]


def _label(features: Features, place: int) -> str:
    row = features.labels[place]
    if features.labels.ndim == 2:
        return ";".join(name for name, is_true in zip(features.label_names, row > 0.5, strict=True) if is_true)
    return features.label_names[int(row)] if row >= 0 else ""
