"""What is done to training clips beyond crops and mirrors: RandAugment, mixup, cutmix; the same for all frames.

RandAugment (Cubuk et al. 2020, arXiv:1909.13719) draws its operations and their statistics once a clip, so what
moves how is not changed. What would turn a direction into another one (rotation, shear) is drawn only if the data
say that a mirror image keeps its label. Mixup: Zhang et al. 2018, arXiv:1710.09412; cutmix: Yun et al. 2019,
arXiv:1905.04899. Shapes: B batch, T frames, C = 3 channels, H, W picture, K classes.
"""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from train.data.batch import sent
from train.data.clips import Augment

__all__ = ["OPERATIONS", "TURNING", "ClipAugment", "cutmix", "mixup", "rand_augment", "soft"]

#: An operation gets float pixels (T, 3, H, W) in [0, 255] and a signed strength in [-1, 1].
Operation = Callable[[Tensor, float], Tensor]


class Settings(Protocol):
    """The augmentation settings of a recipe section."""

    @property
    def rand_ops(self) -> int: ...
    @property
    def rand_strength(self) -> float: ...
    @property
    def mixup(self) -> float: ...
    @property
    def cutmix(self) -> float: ...


class ClipAugment:
    """RandAugment on the pictures, then crops and mirrors, then mixing. Labels come out soft where clips were mixed.

    ``turning`` allows rotation and shear.
    """

    def __init__(self, base: Augment, settings: Settings, classes: int, turning: bool) -> None:
        self._base, self._settings, self._classes = base, settings, classes
        self._pool = tuple(OPERATIONS.values()) + (tuple(TURNING.values()) if turning else ())

    def __call__(
        self, pictures_BTHWC: npt.NDArray[np.uint8] | Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """uint8 (B, T, H, W, 3), labels (B,) or (B, K) -> float32 (B, T, 3, H, W), labels (B,) or soft (B, K)."""
        settings = self._settings
        if settings.rand_ops:
            pictures = torch.as_tensor(pictures_BTHWC)
            pictures_BTHWC = rand_augment(pictures, settings.rand_ops, settings.rand_strength, self._pool, generator)
        clips, labels = self._base(pictures_BTHWC, labels, generator)
        if not (settings.mixup or settings.cutmix) or len(clips) < 2:
            return clips, labels
        both = settings.mixup > 0 and settings.cutmix > 0
        first = settings.mixup > 0 and (not both or bool(torch.rand((), generator=generator) < 0.5))
        mix, alpha = (mixup, settings.mixup) if first else (cutmix, settings.cutmix)
        return mix(clips, soft(labels, self._classes), alpha, generator)


def soft(labels: Tensor, classes: int) -> Tensor:
    """Labels (B,) as one-hot float32 (B, K); soft and multi-hot ones as they are."""
    return labels if labels.ndim == 2 else functional.one_hot(labels, classes).float()


def mixup(clips_BTCHW: Tensor, labels_BK: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend each clip with another one of the batch, and their labels alike."""
    share = _beta(alpha, generator)
    other = sent(torch.randperm(len(clips_BTCHW), generator=generator), clips_BTCHW.device)
    return (
        share * clips_BTCHW + (1 - share) * clips_BTCHW[other],
        share * labels_BK + (1 - share) * labels_BK[other],
    )


def cutmix(clips_BTCHW: Tensor, labels_BK: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put a window of another clip, at the same place in all frames, into each; labels go by the area that stays."""
    height, width = clips_BTCHW.shape[-2:]
    edge = math.sqrt(1 - _beta(alpha, generator))
    rows, cols = round(height * edge), round(width * edge)
    top = int(torch.randint(height - rows + 1, (), generator=generator))
    left = int(torch.randint(width - cols + 1, (), generator=generator))
    other = sent(torch.randperm(len(clips_BTCHW), generator=generator), clips_BTCHW.device)
    mixed = clips_BTCHW.clone()
    window = (..., slice(top, top + rows), slice(left, left + cols))
    mixed[window] = clips_BTCHW[other][window]
    share = 1 - rows * cols / (height * width)
    return mixed, share * labels_BK + (1 - share) * labels_BK[other]


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha)."""
    seed = int(torch.randint(2**31, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def rand_augment(
    pictures_BTHWC: Tensor, count: int, strength: float, pool: tuple[Operation, ...], generator: torch.Generator
) -> Tensor:
    """``count`` operations drawn for each clip, at ``strength`` in [0, 1] with a random sign: uint8 in, uint8 out."""
    clips = []
    for clip_THWC in pictures_BTHWC:
        x = clip_THWC.permute(0, 3, 1, 2).float()
        for index in torch.randint(len(pool), (count,), generator=generator).tolist():
            sign = 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
            x = pool[index](x, sign * strength).clamp(0, 255)
        clips.append(x.round().to(torch.uint8).permute(0, 2, 3, 1))
    return torch.stack(clips)


def _blend(x: Tensor, towards: Tensor, strength: float) -> Tensor:
    """Away from ``towards`` for a positive strength, up to 1.9 times; towards it for a negative one."""
    return towards + (1 + 0.9 * strength) * (x - towards)


def _brightness(x: Tensor, strength: float) -> Tensor:
    return _blend(x, torch.zeros_like(x), strength)


def _contrast(x: Tensor, strength: float) -> Tensor:
    return _blend(x, _grey(x).mean(), strength)  # the mean of the whole clip: frame by frame it would flicker


def _colour(x: Tensor, strength: float) -> Tensor:
    return _blend(x, _grey(x), strength)


def _sharpness(x: Tensor, strength: float) -> Tensor:
    around = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    return _blend(x, functional.avg_pool2d(around, 3, 1), strength)


def _posterise(x: Tensor, strength: float) -> Tensor:
    step = 2.0 ** round(4 * abs(strength))
    return torch.floor(x / step) * step


def _solarise(x: Tensor, strength: float) -> Tensor:
    return torch.where(x >= 256 * (1 - abs(strength)), 255 - x, x)


def _autocontrast(x: Tensor, strength: float) -> Tensor:
    low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
    return torch.where(high > low, (x - low) * 255 / (high - low).clamp(min=1), x)


def _gamma(x: Tensor, strength: float) -> Tensor:
    return 255 * (x / 255).pow(2.0**strength)


def _warp(x: Tensor, matrix: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Tensor:
    theta = torch.tensor(matrix, device=x.device)[None].expand(len(x), 2, 3)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    # A reflected edge would show everything moving the other way.
    return functional.grid_sample(x, grid, align_corners=False, padding_mode="border")


def _shift_x(x: Tensor, strength: float) -> Tensor:
    return _warp(x, ((1, 0, 0.6 * strength), (0, 1, 0)))


def _shift_y(x: Tensor, strength: float) -> Tensor:
    return _warp(x, ((1, 0, 0), (0, 1, 0.6 * strength)))


def _shear_x(x: Tensor, strength: float) -> Tensor:
    return _warp(x, ((1, 0.3 * strength, 0), (0, 1, 0)))


def _shear_y(x: Tensor, strength: float) -> Tensor:
    return _warp(x, ((1, 0, 0), (0.3 * strength, 1, 0)))


def _rotate(x: Tensor, strength: float) -> Tensor:
    """Up to 30 degrees in pixels, whatever the picture's aspect."""
    angle = math.radians(30 * strength)
    aspect = x.shape[3] / x.shape[2]
    sine, cosine = math.sin(angle), math.cos(angle)
    return _warp(x, ((cosine, -sine / aspect, 0), (sine * aspect, cosine, 0)))


def _grey(x: Tensor) -> Tensor:
    """Luma (T, 1, H, W)."""
    return (x * torch.tensor([0.299, 0.587, 0.114], device=x.device)[:, None, None]).sum(1, keepdim=True)


#: Operations that keep every direction of motion.
OPERATIONS: dict[str, Operation] = {
    "brightness": _brightness, "contrast": _contrast, "colour": _colour, "sharpness": _sharpness,
    "posterise": _posterise, "solarise": _solarise, "autocontrast": _autocontrast, "gamma": _gamma,
    "shift_x": _shift_x, "shift_y": _shift_y,
}  # fmt: skip
#: Operations that turn directions.
TURNING: dict[str, Operation] = {"shear_x": _shear_x, "shear_y": _shear_y, "rotate": _rotate}
