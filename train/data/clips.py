"""Clips as tensors: decoded once through the toolkit's own preprocessing, augmented in batches.

All pictures of a split are held as one uint8 array, so that an epoch costs no decoding. Shapes: N clips,
B batch, T frames, H, W picture, C = 3 channels (RGB).
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.errors import UserError
from toolkit.files import write_bytes
from toolkit.preprocess import Preprocess
from toolkit.progress import note, track
from toolkit.video import read_pictures
from train.data.batch import Batch
from train.data.index import Clip, Dataset

__all__ = ["Augment", "Pictures", "load_pictures", "normalise", "normalise_on_device"]

_MOST_BROKEN = 0.2


@dataclass(frozen=True, slots=True)
class Pictures:
    """pictures: uint8 (N, T, H, W, 3) RGB; labels: int64 (N,), indices into the data set's labels."""

    pictures: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        """The clips at ``indices``; each view is the same clip, since one clip is all that is held."""
        chosen = np.asarray(indices)
        pictures = torch.from_numpy(self.pictures[chosen])[:, None]
        return Batch(
            pictures.expand(-1, views, -1, -1, -1, -1), torch.from_numpy(self.labels[chosen]), torch.from_numpy(chosen)
        )


def load_pictures(
    data: Dataset, split: str, preprocess: Preprocess, frames: int, cache: Path | None = None
) -> Pictures:
    """Decode a split: each clip's central ``frames`` pictures; a shorter clip repeats its last one.

    Broken videos are left out, counted and named. ``cache`` keeps the decoded array for the next run.

    Raises:
        UserError: more than a fifth of the videos are broken, or none is left.
    """
    clips = data.split(split)
    file = cache / f"{split}-{_key(clips, preprocess, frames)}.npy" if cache else None
    if file is not None and file.is_file():
        with file.open("rb") as stream:
            pictures, good = np.load(stream, allow_pickle=False), np.load(stream, allow_pickle=False)
        return _labelled(data, [clips[index] for index in good], pictures)
    decoded: list[npt.NDArray[np.uint8]] = []
    good_indices: list[int] = []
    broken: list[str] = []
    with ThreadPoolExecutor(2) as pool:  # OpenCV releases the GIL while it decodes
        answers = pool.map(lambda clip: _decode(clip, preprocess, frames), clips)
        for index, answer in enumerate(track(answers, f"decode {split}", len(clips))):
            if isinstance(answer, str):
                broken.append(answer)
            else:
                good_indices.append(index)
                decoded.append(answer)
    _report(broken, len(clips), data.root)
    pictures = np.stack(decoded)
    if file is not None:
        _save(file, pictures, np.asarray(good_indices))
    return _labelled(data, [clips[index] for index in good_indices], pictures)


def _decode(clip: Clip, preprocess: Preprocess, frames: int) -> npt.NDArray[np.uint8] | str:
    try:
        pictures = read_pictures(clip.path, preprocess)
    except UserError as error:
        return str(error)
    start = max(0, (len(pictures) - frames) // 2)
    window = pictures[start : start + frames]
    missing = frames - len(window)
    return np.concatenate([window, np.repeat(window[-1:], missing, axis=0)]) if missing else window


def _report(broken: list[str], total: int, root: Path) -> None:
    if not broken:
        return
    if len(broken) > _MOST_BROKEN * total:
        raise UserError(f"data {root}: {len(broken)} of {total} videos are broken; the first: {broken[0]}")
    note(f"left out {len(broken)} broken of {total} videos: " + "; ".join(broken[:5]))


def _labelled(data: Dataset, clips: Sequence[Clip], pictures: npt.NDArray[np.uint8]) -> Pictures:
    labels = np.asarray([data.labels.index(clip.label) for clip in clips], np.int64)
    return Pictures(pictures, labels, tuple(str(clip.path) for clip in clips))


def _key(clips: Sequence[Clip], preprocess: Preprocess, frames: int) -> str:
    """Changes with any file's name, size or time, and with the preprocessing."""
    text = [preprocess.model_dump_json(), str(frames)]
    for clip in clips:
        stat = clip.path.stat() if clip.path.is_file() else None
        text.append(f"{clip.path}|{clip.label}|{stat.st_size if stat else 0}|{stat.st_mtime_ns if stat else 0}")
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


def _save(file: Path, pictures: npt.NDArray[np.uint8], good: npt.NDArray[np.int64]) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, pictures, allow_pickle=False)
    np.save(buffer, good, allow_pickle=False)
    write_bytes(file, buffer.getvalue())


def normalise(pictures: npt.NDArray[np.uint8] | Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W) on the same device, bit-equal to ``Preprocess.normalise``."""
    if isinstance(pictures, Tensor) and pictures.device.type != "cpu":
        return normalise_on_device(pictures, preprocess)
    array = pictures.numpy() if isinstance(pictures, Tensor) else pictures
    return torch.from_numpy(preprocess.normalise(array))


def normalise_on_device(pictures: Tensor, preprocess: Preprocess) -> Tensor:
    """The same values by the same table, looked up where the pictures are."""
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)  # every byte as a 1x1 picture
    table = torch.from_numpy(preprocess.normalise(levels[:, None])).reshape(256, 3).to(pictures.device)
    return torch.stack([table[:, channel][pictures[..., channel].int()] for channel in range(3)], -3)


class Augment:
    """Random crops, mirror images (labels follow ``flips``), brightness and contrast; one draw per clip.

    Geometry and light are constant within a clip, so what moves how is not changed.
    """

    def __init__(self, preprocess: Preprocess, labels: tuple[str, ...], mirror: bool, flips: dict[str, str]) -> None:
        for label in flips:
            if label not in labels or flips[label] not in labels:
                raise UserError(f"data.flips names {label!r} -> {flips[label]!r}; labels are: {', '.join(labels)}")
        self._preprocess = preprocess
        self._mirror = mirror
        self._partner = torch.tensor([labels.index(flips.get(label, label)) for label in labels])

    def __call__(
        self, pictures_BTHWC: npt.NDArray[np.uint8] | Tensor, labels_B: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """uint8 (B, T, H, W, 3), (B,) -> normalised float32 (B, T, 3, H, W) and labels (B,)."""
        clips = normalise(pictures_BTHWC, self._preprocess)
        batch, frames, channels, height, width = clips.shape
        device = clips.device  # draws are made on the CPU, the same on every device
        if self._mirror:
            flip = (torch.rand(batch, generator=generator) < 0.5).to(device)
            clips = torch.where(flip[:, None, None, None, None], clips.flip(-1), clips)
            labels_B = self._mirrored(labels_B, flip)
        scale = torch.empty(batch).uniform_(0.8, 1.0, generator=generator)
        shift = torch.empty(2, batch).uniform_(-1, 1, generator=generator) * (1 - scale)
        zero = torch.zeros(batch)
        theta = torch.stack([torch.stack([scale, zero, shift[0]], 1), torch.stack([zero, scale, shift[1]], 1)], 1)
        grid = functional.affine_grid(theta.to(device), [batch, 1, height, width], align_corners=False)
        folded = clips.reshape(batch, frames * channels, height, width)
        clips = functional.grid_sample(folded, grid, align_corners=False, padding_mode="reflection")
        gain = torch.empty(batch, 1, 1, 1).uniform_(0.8, 1.2, generator=generator).to(device)
        lift = torch.empty(batch, 1, 1, 1).uniform_(-0.2, 0.2, generator=generator).to(device)
        return (clips * gain + lift).reshape(batch, frames, channels, height, width), labels_B

    def _mirrored(self, labels: Tensor, flip_B: Tensor) -> Tensor:
        """Labels (B,), or multi-hot ones (B, K), of clips of which some were mirrored."""
        partner = self._partner.to(labels.device)
        if labels.ndim == 1:
            return torch.where(flip_B, partner[labels], labels)
        swapped = labels @ functional.one_hot(partner, len(partner)).to(labels.dtype)
        return torch.where(flip_B[:, None], swapped.clamp(max=1), labels)
