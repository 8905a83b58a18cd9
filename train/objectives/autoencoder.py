"""Autoencoder: reconstruct the whole clip through a narrow latent (Hinton & Salakhutdinov 2006, Science 313:504).

For video: Srivastava et al. 2015, arXiv:1502.04681. A mean squared error over pixels is nearly all background, so
the error of the frame-to-frame changes, in units of each clip's own changes, is added with a weight: without it a
static average is a good answer.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from train.data.batch import Batch
from train.objectives.decoder import ClipDecoder
from train.objectives.features import Encoder, borrow, feature_map, pooled, shape_of

__all__ = ["Autoencoder", "Config", "Reconstruction", "build", "errors", "unfit"]


class Config(BaseModel):
    """``latent``: channels of the latent, at every place of the feature map or, if ``whole``, for the whole clip.

    ``apart``: the decoder makes the picture that stays and the changes apart (``ClipDecoder``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent: int = Field(default=32, ge=1)
    whole: bool = False
    apart: bool = False
    width: int = Field(default=64, ge=8)
    change: float = Field(default=1.0, ge=0)
    coarse: int = Field(default=1, ge=1)


def errors(made_BCTHW: Tensor, clip_BCTHW: Tensor, coarse: int = 1) -> tuple[Tensor, Tensor]:
    """Mean squared error of the pixels, and that of their changes over time as a share of each clip's changes.

    With ``coarse`` > 1 both are means over squares of so many pixels.
    """
    if coarse > 1:
        made_BCTHW, clip_BCTHW = (functional.avg_pool3d(x, (1, coarse, coarse)) for x in (made_BCTHW, clip_BCTHW))
    pixels = (made_BCTHW - clip_BCTHW).square().mean()
    wanted = torch.diff(clip_BCTHW, dim=2)
    missed = (torch.diff(made_BCTHW, dim=2) - wanted).square().mean((1, 2, 3, 4))
    return pixels, (missed / (wanted.square().mean((1, 2, 3, 4)) + 1e-3)).mean()


class Reconstruction(nn.Module):
    """Encoder, latent, decoder: clip (B, C, T, H, W) -> its reconstruction."""

    encoder: Encoder

    def __init__(self, encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> None:
        super().__init__()
        borrow(self, encoder)
        self.whole = config.whole
        depth, *places = shape_of(pooled if config.whole else feature_map, encoder, clip)
        t, h, w = places or (1, 1, 1)
        self.squeeze = nn.Conv3d(depth, config.latent, 1)
        self.decoder = ClipDecoder(config.latent, (t, h, w), (clip[1], clip[2], clip[3]), config.width, config.apart)

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
        self.change, self.coarse = config.change, config.coarse
        self.reconstruction = Reconstruction(encoder, config, clip)

    def forward(self, clips_BVCTHW: Tensor, generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
        """The first clip of each video."""
        clip = clips_BVCTHW[:, 0]
        pixels, change = errors(self.reconstruction(clip), clip, self.coarse)
        return {"loss": pixels + self.change * change, "pixels": pixels, "change": change}


def unfit(encoder: Encoder) -> str | None:
    """Every encoder has a latent."""
    return None


def build(encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> Autoencoder:
    """The objective over clips of shape (C, T, H, W)."""
    return Autoencoder(encoder, config, clip)
