"""Autoencoder: reconstruct the whole clip through a narrow latent (Hinton & Salakhutdinov 2006, Science 313:504).

For video: Srivastava et al. 2015, arXiv:1502.04681. A mean squared error over pixels is nearly all background, so
the error of the changes over time, in units of each clip's own changes, is added with a weight: without it a static
average is a good answer.
"""

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from train.data.batch import Batch
from train.objectives.decoder import ClipDecoder, LinearDecoder
from train.objectives.features import Encoder, borrow, feature_map, pooled, shape_of

__all__ = ["Autoencoder", "Config", "Reconstruction", "build", "errors", "unfit"]

Since = Literal["before", "mean"]

_WIDTH = 64


class Config(BaseModel):
    """``latent``: channels of the latent, at every place of the feature map or, if ``whole``, for the whole clip.

    ``decoder``: one linear layer, or several transposed convolutions, the first of ``width`` channels (64 unless said;
    better with ``whole``: one linear layer from a vector to a whole clip is very large).
    ``change``: weight of the changes' error. They are counted ``since`` the frame before, or since the clip's mean
    picture, of which the few features of a deep CNN can hold far more, because it is smoother in time.
    ``coarse``: both errors are of means over squares of so many pixels. ``floor``: under a clip's own changes (mean
    square, normalised pixels), so that the noise of a still clip counts little.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent: int = Field(default=32, ge=1)
    whole: bool = False
    decoder: Literal["linear", "convolutions"] = "linear"
    width: int | None = Field(default=None, ge=8)
    change: float = Field(default=1.0, ge=0)
    since: Since = "before"
    coarse: int = Field(default=1, ge=1)
    floor: float = Field(default=1e-3, gt=0)

    @model_validator(mode="after")
    def _width_needs_convolutions(self) -> Self:
        if self.width is not None and self.decoder == "linear":
            raise ValueError('width is that of convolutions: set decoder = "convolutions", or leave width out')
        return self


def errors(
    made_BCTHW: Tensor, clip_BCTHW: Tensor, coarse: int = 1, since: Since = "before", floor: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Mean squared error of the pixels, and that of their changes over time as a share of each clip's changes.

    The settings are ``Config``'s.
    """
    if coarse > 1:
        made_BCTHW, clip_BCTHW = (functional.avg_pool3d(x, (1, coarse, coarse)) for x in (made_BCTHW, clip_BCTHW))
    pixels = (made_BCTHW - clip_BCTHW).square().mean()
    wanted = _changes(clip_BCTHW, since)
    missed = (_changes(made_BCTHW, since) - wanted).square().mean((1, 2, 3, 4))
    return pixels, (missed / (wanted.square().mean((1, 2, 3, 4)) + floor)).mean()


def _changes(clip_BCTHW: Tensor, since: Since) -> Tensor:
    if since == "mean":
        return clip_BCTHW - clip_BCTHW.mean(2, keepdim=True)
    return torch.diff(clip_BCTHW, dim=2)


class Reconstruction(nn.Module):
    """Encoder, latent, decoder: clip (B, C, T, H, W) -> its reconstruction."""

    encoder: Encoder

    def __init__(self, encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> None:
        super().__init__()
        borrow(self, encoder)
        self.whole = config.whole
        depth, *places = shape_of(pooled if config.whole else feature_map, encoder, clip)
        t, h, w = places or (1, 1, 1)
        small, large = (t, h, w), (clip[1], clip[2], clip[3])
        self.squeeze = nn.Conv3d(depth, config.latent, 1)
        self.decoder = (
            LinearDecoder(config.latent, small, large)
            if config.decoder == "linear"
            else ClipDecoder(config.latent, small, large, config.width or _WIDTH)
        )

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Through the latent only."""
        if self.whole:
            features = pooled(self.encoder, clip_BCTHW)[:, :, None, None, None]
        else:
            features = feature_map(self.encoder, clip_BCTHW)
        made: Tensor = self.decoder(self.squeeze(features))
        return made


class Autoencoder(nn.Module):
    """Clips (B, V, C, T, H, W) -> loss and its two errors."""

    views = 1

    def __init__(self, encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.config = config
        self.reconstruction = Reconstruction(encoder, config, clip)

    def forward(self, clips_BVCTHW: Tensor, generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
        """The first clip of each video."""
        clip, config = clips_BVCTHW[:, 0], self.config
        pixels, change = errors(self.reconstruction(clip), clip, config.coarse, config.since, config.floor)
        return {"loss": pixels + config.change * change, "pixels": pixels, "change": change}


def unfit(encoder: Encoder) -> str | None:
    """Every encoder has a latent."""
    return None


def build(encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> Autoencoder:
    """The objective over clips of shape (C, T, H, W)."""
    return Autoencoder(encoder, config, clip)
