"""Adversarial autoencoding: the reconstruction must also look real to a discriminator.

VAE/GAN without the prior (Larsen et al. 2016, arXiv:1512.09300): hinge loss (Lim & Ye 2017, arXiv:1705.02894),
spectral normalisation (Miyato et al. 2018, arXiv:1802.05957), matching of the discriminator's features (Salimans et
al. 2016, arXiv:1606.03498), R1 gradient penalty as an option (Mescheder et al. 2018, arXiv:1801.04406).

One optimiser trains both sides, because each term reaches its own side only: the generator's term goes through a
discriminator whose weights are detached, the discriminator's term sees detached reconstructions.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from train.data.batch import Batch
from train.objectives import autoencoder
from train.objectives.autoencoder import Reconstruction, errors
from train.objectives.features import Encoder

__all__ = ["Adversarial", "Config", "Discriminator", "build", "unfit"]


class Config(autoencoder.Config):
    """The autoencoder's settings, and the weights of the terms beside its own: ``fool``, ``match``, ``r1`` (0: off)."""

    critic_width: int = Field(default=16, ge=4)
    fool: float = Field(default=0.05, ge=0)
    match: float = Field(default=0.5, ge=0)
    r1: float = Field(default=0.0, ge=0)


class Discriminator(nn.Module):
    """Clip and its changes over time -> one score a region (B, 1, t, h, w), and the features of each layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (6, width, 2 * width, 4 * width)
        shapes = (
            ((2, 4, 4), (2, 2, 2), (0, 1, 1)),
            ((4, 4, 4), (2, 2, 2), (1, 1, 1)),
            ((3, 4, 4), (1, 2, 2), (1, 1, 1)),
        )
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv3d(before, after, *shape))
            for before, after, shape in zip(widths, widths[1:], shapes, strict=False)
        )
        self.score = spectral_norm(nn.Conv3d(widths[-1], 1, 1))

    def forward(self, clip_BCTHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The changes make a flickering or frozen clip easy to tell from a real one."""
        change = functional.pad(torch.diff(clip_BCTHW, dim=2), (0, 0, 0, 0, 0, 1))
        x, found = torch.cat([clip_BCTHW, change], 1), []
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), 0.2)
            found.append(x)
        return self.score(x), found


class Adversarial(nn.Module):
    """Clips (B, V, C, T, H, W) -> loss of both sides, and its terms."""

    views = 1

    def __init__(self, encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.config = config
        self.reconstruction = Reconstruction(encoder, config, clip)
        self.critic = Discriminator(config.critic_width)

    def forward(self, clips_BVCTHW: Tensor, generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
        """The first clip of each video."""
        clip, config = clips_BVCTHW[:, 0], self.config
        made = self.reconstruction(clip)
        pixels, change = errors(made, clip, config.coarse, config.since, config.floor)
        terms = {"pixels": pixels, "change": change} | self.generator_terms(made, clip) | self.critic_terms(made, clip)
        own = pixels + config.change * change + config.fool * terms["fool"] + config.match * terms["match"]
        return {"loss": own + terms["critic"] + config.r1 * terms["r1"], **terms}

    def generator_terms(self, made_BCTHW: Tensor, clip_BCTHW: Tensor) -> dict[str, Tensor]:
        """What the encoder and decoder learn from the discriminator; its own weights get no gradient."""
        # Not from state_dict, which under FSDP2 holds shards. Buffers are copied: spectral norm writes into its own.
        frozen = {name: weight.detach() for name, weight in self.critic.named_parameters()}
        frozen |= {name: buffer.clone() for name, buffer in self.critic.named_buffers()}

        def judge(clip: Tensor) -> Any:
            return functional_call(self.critic, frozen, (clip,))

        with torch.no_grad():
            _, wanted = judge(clip_BCTHW)
        score, found = judge(made_BCTHW)
        match = torch.stack([functional.l1_loss(a, b) for a, b in zip(found, wanted, strict=True)]).mean()
        return {"fool": -score.mean(), "match": match}

    def critic_terms(self, made_BCTHW: Tensor, clip_BCTHW: Tensor) -> dict[str, Tensor]:
        """What the discriminator learns; the encoder and decoder get no gradient."""
        real = clip_BCTHW.detach().requires_grad_(self.config.r1 > 0)
        real_score, _ = self.critic(real)
        made_score, _ = self.critic(made_BCTHW.detach())
        hinge = functional.relu(1 - real_score).mean() + functional.relu(1 + made_score).mean()
        right = ((real_score.detach() > 0).float().mean() + (made_score.detach() < 0).float().mean()) / 2
        return {"critic": hinge, "critic_right": right, "r1": self._penalty(real, real_score)}

    def _penalty(self, real_BCTHW: Tensor, score: Tensor) -> Tensor:
        """Half the squared slope of the score at real clips, per clip (0 where it is not asked for)."""
        if not self.config.r1 or not torch.is_grad_enabled():
            return score.new_zeros(())
        (slope,) = torch.autograd.grad(score.mean((1, 2, 3, 4)).sum(), real_BCTHW, create_graph=True)
        return 0.5 * slope.square().sum((1, 2, 3, 4)).mean()


def unfit(encoder: Encoder) -> str | None:
    """Every encoder has a latent."""
    return None


def build(encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> Adversarial:
    """The objective over clips of shape (C, T, H, W)."""
    return Adversarial(encoder, config, clip)
