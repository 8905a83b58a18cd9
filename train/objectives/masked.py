"""Masked video modelling (VideoMAE): see few tubelets, predict the normalised pixels of the others.

Tube masking hides the same places in all times, so that nothing can be copied from a neighbouring frame. The
encoder sees visible tokens only. Tong et al. 2022, arXiv:2203.12602. Whole times can be hidden instead (time-only
masks of Feichtenhofer et al. 2022, arXiv:2205.09113; the future from the past, as in SiamMAE, arXiv:2305.14344): what
comes next can only be told from how things move.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import UserError
from train.data.batch import Batch, sent
from train.models.vit import Block, TubeletViT, sincos_positions
from train.objectives.features import Encoder, borrow

__all__ = ["Config", "Masked", "MaskedAutoencoder", "build", "parted", "picked", "time_mask", "tube_mask", "unfit"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tube_mask(batch: int, grid: tuple[int, ...], ratio: float, generator: torch.Generator) -> Tensor:
    """True where hidden: (B, N), the same places at every time; every clip hides the same number of tokens."""
    times, places = grid[0], grid[1] * grid[2]
    hidden = min(places - 1, max(1, round(places * ratio)))
    order = torch.rand(batch, places, generator=generator).argsort(1)
    mask = torch.zeros(batch, places, dtype=torch.bool).scatter_(1, order[:, :hidden], True)
    return mask[:, None].expand(batch, times, places).reshape(batch, times * places)


def time_mask(batch: int, grid: tuple[int, ...], ratio: float, generator: torch.Generator) -> Tensor:
    """True where hidden: (B, N), all places of the last or of the first times, drawn for each clip."""
    times, places = grid[0], grid[1] * grid[2]
    hidden = min(times - 1, max(1, round(times * ratio)))
    late = (torch.arange(times) >= times - hidden).expand(batch, times)
    future = torch.rand(batch, 1, generator=generator) < 0.5
    return torch.where(future, late, late.flip(1)).repeat_interleave(places, 1)


def parted(mask_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (B, S) of the seen and (B, M) of the hidden tokens, in order; every clip hides equally many.

    They are for a mask on the CPU: there the count is known without waiting for a GPU, as boolean indexing would.
    """
    counts = mask_BN.sum(1)
    assert bool((counts == counts[0]).all()), "every clip hides the same number of tokens"
    order = mask_BN.to(torch.uint8).argsort(dim=1, stable=True)
    seen = mask_BN.shape[1] - int(counts[0])
    return order[:, :seen], order[:, seen:]


def picked(x_BND: Tensor, places_BM: Tensor) -> Tensor:
    """The tokens at these places (B, M, D)."""
    return x_BND.gather(1, places_BM[:, :, None].expand(-1, -1, x_BND.shape[-1]))


class MaskedAutoencoder(nn.Module):
    """An encoder to pretrain, with a small decoder that is thrown away afterwards.

    ``target``: pixels normalised over the whole ``tubelet``, over each ``channel`` of it (VideoMAE's own), or plain
    ``pixels`` in [0, 1]. The last two take clips normalised by ImageNet's mean and deviation, as VideoMAE does.
    ``coarse`` and ``floor`` as in :class:`Config`.
    """

    def __init__(
        self,
        encoder: TubeletViT,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int | None = None,
        decoder_mlp_ratio: float = 4.0,
        eps: float = 1e-5,
        last_eps: float = 1e-5,
        target: Literal["tubelet", "channel", "pixels"] = "tubelet",
        coarse: int = 1,
        floor: float = 1e-6,
    ) -> None:
        super().__init__()
        self.encoder, self.target, self.coarse, self.floor = encoder, target, coarse, floor
        time, height, width = encoder.config.tubelet
        self.bridge = nn.Linear(encoder.config.dim, decoder_dim)
        self.hidden_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        heads = decoder_heads or max(1, decoder_dim // 32)
        blocks = (Block(decoder_dim, heads, decoder_mlp_ratio, eps=eps) for _ in range(decoder_depth))
        self.decoder = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(decoder_dim, last_eps)
        self.predict = nn.Linear(decoder_dim, 3 * time * (height // coarse) * (width // coarse))
        tokens = encoder.grid[0] * encoder.grid[1] * encoder.grid[2]
        self.register_buffer("positions", sincos_positions(tokens, decoder_dim), False)

    def targets(self, clip_BCTHW: Tensor) -> Tensor:
        """What is to be predicted of every tubelet: (B, N, 3 * t * h * w / coarse ** 2), channels last."""
        (t, h, w), (nt, nh, nw) = self.encoder.config.tubelet, self.encoder.grid
        if self.coarse > 1:
            h, w = h // self.coarse, w // self.coarse
            clip_BCTHW = functional.avg_pool3d(clip_BCTHW, (1, self.coarse, self.coarse))
        x = clip_BCTHW.reshape(-1, 3, nt, t, nh, h, nw, w).permute(0, 2, 4, 6, 3, 5, 7, 1)
        if self.target == "tubelet":
            pixels = x.reshape(x.shape[0], nt * nh * nw, -1)
            return (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + self.floor).sqrt()
        colours = x.reshape(x.shape[0], nt * nh * nw, -1, 3) * x.new_tensor(_STD) + x.new_tensor(_MEAN)
        if self.target == "channel":
            colours = (colours - colours.mean(-2, keepdim=True)) / (colours.var(-2, keepdim=True).sqrt() + 1e-6)
        return colours.flatten(2)

    def forward(self, clip_BCTHW: Tensor, mask_BN: Tensor) -> Tensor:
        """Mean squared error over the hidden tubelets (scalar)."""
        made, wanted = self.answers(clip_BCTHW, mask_BN)
        return (made - wanted).square().mean()

    def answers(self, clip_BCTHW: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        """What is predicted of the hidden tubelets, and what they hold: (B, M, pixels of a target) both.

        ``mask_BN`` is best on the CPU, where :func:`tube_mask` makes it: then nothing waits for a GPU.
        """
        seen_BS, hidden_BM = (sent(places, clip_BCTHW.device) for places in parted(mask_BN.cpu()))
        seen = self.encoder.encode(picked(self.encoder.tokens(clip_BCTHW), seen_BS))
        positions = self.positions
        assert isinstance(positions, Tensor)
        places = positions.expand(len(clip_BCTHW), -1, -1)
        shown = self.bridge(seen) + picked(places, seen_BS)
        asked = self.hidden_token + picked(places, hidden_BM)
        decoded = self.decoder(torch.cat([shown, asked], 1))[:, shown.shape[1] :]
        return self.predict(self.norm(decoded)), picked(self.targets(clip_BCTHW), hidden_BM)


class Config(BaseModel):
    """``mask_ratio`` of the tubes is hidden, or of the times at either end, or one or the other (``hide``).

    ``change`` weighs the error of the changes from frame to frame within the hidden tubelets, in units of what
    changes (after MotionMAE, Yang et al. 2022, arXiv:2210.04154): most pixels stand still, and they outweigh motion.
    ``coarse``: the target is the mean of squares of so many pixels (low frequencies as in PixMIM, Liu et al. 2023,
    arXiv:2303.02416). ``floor`` is added to a tubelet's variance: without it the noise of flat places, which nothing
    foretells, counts as much as a moving edge. ``decoder_*`` shape the decoder that is thrown away afterwards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    hide: Literal["tubes", "times", "either"] = "tubes"
    decoder_dim: int = Field(default=96, ge=2)
    decoder_depth: int = Field(default=2, ge=1)
    change: float = Field(default=0.0, ge=0)
    coarse: int = Field(default=1, ge=1)
    floor: float = Field(default=1e-6, gt=0)


class Masked(nn.Module):
    """Clips (B, V, C, T, H, W) -> loss over the first clip of each video."""

    views = 1

    def __init__(self, encoder: TubeletViT, config: Config) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = MaskedAutoencoder(
            encoder, config.decoder_dim, config.decoder_depth, coarse=config.coarse, floor=config.floor
        )
        borrow(self.autoencoder, encoder)

    def forward(self, clips_BVCTHW: Tensor, generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
        """New tubes are drawn for every clip."""
        clip = clips_BVCTHW[:, 0]
        mask = self.mask(len(clip), generator)
        made, wanted = self.autoencoder.answers(clip, mask)
        pixels = (made - wanted).square().mean()
        if not self.config.change:
            return {"loss": pixels}
        frames = (*made.shape[:2], self.autoencoder.encoder.config.tubelet[0], -1)
        made_change, change = made.reshape(frames).diff(dim=2), wanted.reshape(frames).diff(dim=2)
        missed = (made_change - change).square().mean() / change.square().mean().clamp(min=1e-6)
        return {"loss": pixels + self.config.change * missed, "pixels": pixels, "change": missed}

    def mask(self, batch: int, generator: torch.Generator) -> Tensor:
        """True where hidden (B, N); the kind is drawn for the whole batch, so that its clips hide equally many."""
        hide = self.config.hide
        if hide == "either":
            hide = "times" if torch.rand((), generator=generator) < 0.5 else "tubes"
        draw = time_mask if hide == "times" else tube_mask
        return draw(batch, self.autoencoder.encoder.grid, self.config.mask_ratio, generator)


def unfit(encoder: Encoder) -> str | None:
    """Only a transformer can leave tokens out."""
    if not all(hasattr(encoder, part) for part in ("tokens", "encode", "grid")):
        return "tubes can only be hidden from an encoder of tokens (a tubelet ViT)"
    return None


def build(encoder: TubeletViT, config: Config, clip: tuple[int, int, int, int]) -> Masked:
    """The objective over clips of shape (C, T, H, W).

    Raises:
        UserError: a setting asks for more than the encoder's tubelets hold.
    """
    time, height, width = encoder.config.tubelet
    where = "pretrain.settings.masked"
    if config.change and time == 1:
        raise UserError(f"{where}.change = {config.change} sees no change in tubelets of one frame: set it to 0")
    if config.hide != "tubes" and encoder.grid[0] == 1:
        raise UserError(
            f"{where}.hide = {config.hide!r} hides times, and this encoder has one step in time: use 'tubes'"
        )
    if height % config.coarse or width % config.coarse:
        raise UserError(f"{where}.coarse = {config.coarse} does not divide tubelets of {height}x{width} pixels")
    return Masked(encoder, config)
