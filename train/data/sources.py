"""Choose where a split's clips come from: decoded once into memory, or on demand."""

from pathlib import Path

from toolkit.preprocess import Preprocess
from toolkit.progress import note
from toolkit.recipe import DataConfig
from train.data.batch import Source
from train.data.clips import load_pictures
from train.data.index import Dataset
from train.data.videos import VideoSource

__all__ = ["fits_memory", "open_source"]

_MEMORY_BYTES = 2 << 30
#: Of a training clip in memory so many times its frames are held, so that different windows can be cut from it.
_HOLD = 4


def fits_memory(data: Dataset, split: str, preprocess: Preprocess, frames: int) -> bool:
    """Whether a split's clips of ``frames`` pictures take at most 2 GiB."""
    return len(data.split(split)) * frames * preprocess.size[0] * preprocess.size[1] * 3 <= _MEMORY_BYTES


def open_source(
    config: DataConfig, data: Dataset, split: str, preprocess: Preprocess, *, random: bool, cache: Path | None = None
) -> Source:
    """A source of one split as ``[data]`` asks; ``random`` cuts windows by seed, otherwise the central one.

    Raises:
        UserError: the split is empty, or too much of it is broken.
    """
    memory = config.source == "memory" or (
        config.source == "auto" and config.device == "cpu" and fits_memory(data, split, preprocess, config.frames)
    )
    if memory:
        room = random and fits_memory(data, split, preprocess, _HOLD * config.frames)
        hold = _HOLD * config.frames if room else None
        return load_pictures(data, split, preprocess, config.frames, cache, hold=hold, broken_share=config.broken_share)
    note(f"  {split}: {len(data.split(split))} clips are decoded on demand")
    return VideoSource(
        data, split, preprocess, config.frames, random=random, broken_share=config.broken_share, device=config.device
    )
