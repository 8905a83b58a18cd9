"""Strong augmentation of clips for contrastive learning: one draw per clip, the same for all of its frames.

Crop, colour, grey and blur as in SimCLR (Chen et al. 2020, arXiv:2002.05709); held over time as in CVRL (Qian et
al. 2021, arXiv:2008.03800), because an augmentation that flickers destroys the motion that is to be learnt. No
mirror by default: it would turn left into right.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from train.data.batch import sent

__all__ = ["Strength", "strong"]

_SUM = sum(math.exp(-0.5 * x * x) for x in range(-2, 3))
_TAPS = tuple(math.exp(-0.5 * x * x) / _SUM for x in range(-2, 3))


class Strength(BaseModel):
    """How far a view is from its clip.

    ``area``: least share of the picture that a crop keeps; ``colour``: range of brightness, contrast and saturation;
    ``grey``, ``blur``, ``mirror``: shares of clips.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    area: float = Field(default=0.4, gt=0, le=1)
    colour: float = Field(default=0.4, ge=0, lt=1)
    grey: float = Field(default=0.2, ge=0, le=1)
    blur: float = Field(default=0.5, ge=0, le=1)
    mirror: float = Field(default=0.0, ge=0, le=1)


def strong(clip_BCTHW: Tensor, strength: Strength, generator: torch.Generator) -> Tensor:
    """Normalised clips -> normalised clips of the same shape (float32)."""
    batch = len(clip_BCTHW)

    def draw(low: float, high: float) -> Tensor:
        return sent(torch.empty(batch, 1, 1, 1, 1).uniform_(low, high, generator=generator), clip_BCTHW.device)

    aspect = min(0.3, -math.log(strength.area))
    clip = _crop(clip_BCTHW, draw(strength.area, 1.0), draw(-aspect, aspect), draw(-1, 1), draw(-1, 1),
                 draw(0, 1) < strength.mirror)  # fmt: skip
    mean = clip.mean((1, 2, 3, 4), keepdim=True)
    clip = (clip - mean) * (1 + strength.colour * draw(-1, 1)) + mean + 0.5 * strength.colour * draw(-1, 1)
    light = clip.mean(1, keepdim=True)
    saturation = torch.where(draw(0, 1) < strength.grey, 0.0, 1 + strength.colour * draw(-1, 1))
    clip = light + (clip - light) * saturation
    return torch.where(draw(0, 1) < strength.blur, _blurred(clip), clip)


def _crop(clip_BCTHW: Tensor, area: Tensor, bend: Tensor, x: Tensor, y: Tensor, mirror: Tensor) -> Tensor:
    """A window of ``area`` of the picture, aspect exp(bend), at (x, y) of its freedom, scaled to the whole."""
    batch, channels, frames, height, width = clip_BCTHW.shape
    wide = ((area * bend.exp()).sqrt()).clamp(max=1).flatten()
    high = ((area / bend.exp()).sqrt()).clamp(max=1).flatten()
    sign, zero = 1 - 2 * mirror.flatten().float(), torch.zeros_like(wide)
    rows = [torch.stack([wide * sign, zero, (1 - wide) * x.flatten()], 1),
            torch.stack([zero, high, (1 - high) * y.flatten()], 1)]  # fmt: skip
    grid = functional.affine_grid(torch.stack(rows, 1), [batch, 1, height, width], align_corners=False)
    folded = clip_BCTHW.reshape(batch, channels * frames, height, width)
    cut = functional.grid_sample(folded, grid, align_corners=False, padding_mode="reflection")
    return cut.reshape(clip_BCTHW.shape)


def _blurred(clip_BCTHW: Tensor) -> Tensor:
    """Gaussian of sigma 1 pixel in every frame."""
    x = clip_BCTHW.flatten(0, 1)
    for dim, pad in ((2, (0, 0, 2, 2)), (3, (2, 2, 0, 0))):
        wide = functional.pad(x, pad, mode="replicate")
        size = x.shape[dim]
        x = torch.stack([tap * wide.narrow(dim, index, size) for index, tap in enumerate(_TAPS)]).sum(0)
    return x.reshape(clip_BCTHW.shape)
