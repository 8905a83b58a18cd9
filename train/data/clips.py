"""Clips as tensors: decoded once through the toolkit's own preprocessing, augmented in batches.

All pictures of a split are held as one uint8 array, so that an epoch costs no decoding. Shapes: N clips,
B batch, T frames, H, W picture, C = 3 channels (RGB).
"""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from train.data.batch import Batch, sent
from train.data.decode import Decoded
from train.data.index import Clip, Dataset
from train.data.opening import open_clip
from train.data.targets import Targets, boxes_of, pad_boxes
from train.data.videos import window_starts

__all__ = ["Augment", "Pictures", "load_pictures", "normalise", "normalise_on_device"]


@dataclass(frozen=True, slots=True)
class Pictures:
    """N clips of L pictures each: uint8 (N, L, H, W, 3) RGB, and their labels, int64 (N,) or float32 multi-hot (N, K).

    With ``frames`` < L a view is a window of that many pictures, cut anew for each seed from the first ``lengths``
    (N,) pictures of its clip (what follows repeats the last one); otherwise it is the clip. ``meta``, ``boxes``
    (N, L, M, 4) and ``box_labels`` (N, L, M) as in :class:`Batch`.
    """

    pictures: npt.NDArray[np.uint8]
    labels: npt.NDArray[Any]
    names: tuple[str, ...]
    frames: int | None = None
    lengths: npt.NDArray[np.int64] | None = None
    meta: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    boxes: Tensor | None = None
    box_labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        """The clips at ``indices``; views are different windows where clips are longer than ``frames``."""
        chosen = np.asarray(indices, np.int64)
        starts = self._starts(chosen, seed, views)
        length = self.frames or self.pictures.shape[1]
        ticks = starts[:, :, None] + np.arange(length)  # (B, V, T)
        whole = length == self.pictures.shape[1]
        if whole:
            pictures = torch.from_numpy(self.pictures[chosen])[:, None].expand(-1, views, -1, -1, -1, -1)
        else:
            pictures = torch.from_numpy(self.pictures[chosen[:, None, None], ticks])
        first = torch.from_numpy(ticks[:, 0])
        rows = torch.from_numpy(chosen)
        return Batch(
            pictures, torch.from_numpy(self.labels[chosen]), rows,
            {column: torch.from_numpy(values[chosen]) for column, values in self.meta.items()},
            None if self.boxes is None else self.boxes[rows[:, None], first],
            None if self.box_labels is None else self.box_labels[rows[:, None], first],
        )  # fmt: skip

    def _starts(self, chosen: npt.NDArray[np.int64], seed: int, views: int) -> npt.NDArray[np.int64]:
        """Where each view begins (B, V): by seed and clip alone, whatever else is in the batch."""
        if self.frames is None or self.lengths is None:
            return np.zeros((len(chosen), views), np.int64)
        return np.asarray(
            [
                window_starts(int(self.lengths[index]), self.frames, views, np.random.default_rng([seed, int(index)]))
                for index in chosen
            ],
            np.int64,
        ).reshape(len(chosen), views)


@dataclass(frozen=True, slots=True)
class _Held:
    """What is decoded of a split, and cached: the pictures of the good clips, and where each picture comes from.

    good: int64 (N,), places in the split; frames: int64 (N, L), frame numbers; sizes: int64 (N, 2), H and W of the
    videos; lengths: int64 (N,).
    """

    pictures: npt.NDArray[np.uint8]
    good: npt.NDArray[np.int64]
    frames: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def read(cls, file: Path) -> "_Held":
        with file.open("rb") as stream:
            return cls(*(np.load(stream, allow_pickle=False) for _ in range(5)))

    def cut(self, least: int) -> "_Held":
        """Without what is only repeats in every clip, but of at least ``least`` pictures."""
        longest = max(least, int(self.lengths.max()))
        return _Held(self.pictures[:, :longest], self.good, self.frames[:, :longest], self.sizes, self.lengths)

    def write(self, file: Path) -> None:
        buffer = io.BytesIO()
        for array in (self.pictures, self.good, self.frames, self.sizes, self.lengths):
            np.save(buffer, array, allow_pickle=False)
        write_bytes(file, buffer.getvalue())


def load_pictures(
    data: Dataset,
    split: str,
    preprocess: Preprocess,
    frames: int,
    cache: Path | None = None,
    *,
    hold: int | None = None,
    broken_share: float = 0.2,
) -> Pictures:
    """Decode a split: each clip's central ``frames`` pictures; a shorter clip repeats its last one.

    With ``hold`` > ``frames`` so many central pictures are held, and each view is a window of them. Broken videos are
    left out, counted and named. ``cache`` keeps the decoded array for the next run.

    Raises:
        UserError: more than ``broken_share`` of the videos are broken, or none is left.
    """
    clips = data.split(split)
    length = max(frames, hold or frames)
    file = cache / f"{split}-{_key(clips, preprocess, length, frames)}.npy" if cache else None
    held = _cached(file)
    if held is None:
        held = _decode_all(data, clips, preprocess, length, split, broken_share).cut(frames)
        if file is not None:
            held.write(file)
    return _labelled(data, [clips[index] for index in held.good], held, preprocess, frames)


def _cached(file: Path | None) -> _Held | None:
    """What an earlier run has left; a damaged file is as good as none."""
    if file is None or not file.is_file():
        return None
    try:
        return _Held.read(file)
    except (OSError, ValueError, EOFError):
        note(f"cache {file} is damaged: decoding again")
        return None


def _decode_all(
    data: Dataset, clips: Sequence[Clip], preprocess: Preprocess, length: int, split: str, broken_share: float
) -> _Held:
    rows: list[tuple[Decoded, int]] = []
    good: list[int] = []
    broken: list[str] = []
    with ThreadPoolExecutor(2) as pool:  # OpenCV releases the GIL while it decodes
        answers = pool.map(lambda clip: _decode(clip, preprocess, length), clips)
        for index, answer in enumerate(track(answers, f"decode {split}", len(clips))):
            if isinstance(answer, str):
                broken.append(answer)
            else:
                good.append(index)
                rows.append(answer)
    _report(broken, len(clips), data.root, broken_share)
    return _Held(
        np.stack([np.stack(row.pictures) for row, _ in rows]), np.asarray(good, np.int64),
        np.stack([row.frames for row, _ in rows]), np.asarray([row.size for row, _ in rows], np.int64),
        np.asarray([count for _, count in rows], np.int64),
    )  # fmt: skip


def _decode(clip: Clip, preprocess: Preprocess, length: int) -> tuple[Decoded, int] | str:
    """The central ``length`` pictures, and how many of them are not repeats at the end; or what is wrong."""
    try:
        decoded = _board(clip, preprocess)
        if decoded is None:
            with open_clip(clip) as video:
                decoded = video.pictures(range(video.ticks(preprocess.fps, clip.span)), preprocess, clip.span)
    except UserError as error:
        return str(error)
    total = len(decoded.pictures)
    start = max(0, (total - length) // 2)
    ticks = np.minimum(np.arange(start, start + length), total - 1)
    numbers = decoded.frames[ticks] if len(decoded.frames) else np.zeros(length, np.int64)
    return Decoded([decoded.pictures[tick] for tick in ticks], numbers, decoded.size), min(total, length)


def _board(clip: Clip, preprocess: Preprocess) -> Decoded | None:
    """By the board's decoder; None where PyAV must do it: inside tars, with boxes, or a codec that OpenCV lacks."""
    if not clip.plain or clip.annotated:
        return None
    try:
        return Decoded(list(read_pictures(clip.path, preprocess, span=clip.span)), np.zeros(0, np.int64), (0, 0))
    except UserError:
        return None


def _report(broken: list[str], total: int, root: Path, share: float) -> None:
    if not broken:
        return
    if len(broken) > share * total or len(broken) == total:
        raise UserError(f"data {root}: {len(broken)} of {total} videos are broken; the first: {broken[0]}")
    note(f"left out {len(broken)} broken of {total} videos: " + "; ".join(broken[:5]))


def _labelled(data: Dataset, clips: Sequence[Clip], held: _Held, preprocess: Preprocess, frames: int) -> Pictures:
    targets = Targets.of(data, clips)
    boxes: tuple[Tensor | None, Tensor | None] = None, None
    if any(clip.annotated for clip in clips):
        rows = [
            boxes_of(clip, data.labels, numbers.tolist(), (int(size[0]), int(size[1])), preprocess)
            for clip, numbers, size in zip(clips, held.frames, held.sizes, strict=True)
        ]
        boxes = pad_boxes(rows)
    names, windowed = tuple(clip.name for clip in clips), held.pictures.shape[1] > frames
    return Pictures(
        held.pictures, targets.labels, names, frames if windowed else None, held.lengths if windowed else None,
        targets.meta, *boxes,
    )  # fmt: skip


def _key(clips: Sequence[Clip], preprocess: Preprocess, length: int, frames: int) -> str:
    """Changes with any file's name, size or time, with the part taken of it, and with the preprocessing."""
    text = ["2", preprocess.model_dump_json(), str(length), str(frames)]
    for clip in clips:
        for path in clip.images or (clip.path,):
            stat = path.stat() if path.is_file() else None
            text.append(f"{path}|{stat.st_size if stat else 0}|{stat.st_mtime_ns if stat else 0}")
        text.append(f"{clip.span}|{clip.member or clip.members[:1] or None}|{bool(clip.annotated)}")
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


def normalise(pictures: npt.NDArray[np.uint8] | Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W) on the same device, bit-equal to ``Preprocess.normalise``."""
    if isinstance(pictures, Tensor) and pictures.device.type != "cpu":
        return normalise_on_device(pictures, preprocess)
    array = pictures.numpy() if isinstance(pictures, Tensor) else pictures
    return torch.from_numpy(preprocess.normalise(array))


def normalise_on_device(pictures: Tensor, preprocess: Preprocess) -> Tensor:
    """The same values by the same table, looked up where the pictures are."""
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)  # every byte as a 1x1 picture
    table = sent(torch.from_numpy(preprocess.normalise(levels[:, None])).reshape(256, 3), pictures.device)
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
            flip = sent(torch.rand(batch, generator=generator) < 0.5, device)
            clips = torch.where(flip[:, None, None, None, None], clips.flip(-1), clips)
            labels_B = self._mirrored(labels_B, flip)
        scale = torch.empty(batch).uniform_(0.8, 1.0, generator=generator)
        shift = torch.empty(2, batch).uniform_(-1, 1, generator=generator) * (1 - scale)
        zero = torch.zeros(batch)
        theta = torch.stack([torch.stack([scale, zero, shift[0]], 1), torch.stack([zero, scale, shift[1]], 1)], 1)
        grid = functional.affine_grid(sent(theta, device), [batch, 1, height, width], align_corners=False)
        folded = clips.reshape(batch, frames * channels, height, width)
        clips = functional.grid_sample(folded, grid, align_corners=False, padding_mode="reflection")
        gain = sent(torch.empty(batch, 1, 1, 1).uniform_(0.8, 1.2, generator=generator), device)
        lift = sent(torch.empty(batch, 1, 1, 1).uniform_(-0.2, 0.2, generator=generator), device)
        return (clips * gain + lift).reshape(batch, frames, channels, height, width), labels_B

    def _mirrored(self, labels: Tensor, flip_B: Tensor) -> Tensor:
        """Labels (B,), or multi-hot ones (B, K), of clips of which some were mirrored."""
        partner = sent(self._partner, labels.device)
        if labels.ndim == 1:
            return torch.where(flip_B, partner[labels], labels)
        swapped = labels @ functional.one_hot(partner, len(partner)).to(labels.dtype)
        return torch.where(flip_B[:, None], swapped.clamp(max=1), labels)
