"""Contrastive learning: two clips of one video are alike, clips of other videos are not.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) between two augmented clips of each video, cut at different
times (CVRL, Qian et al. 2021, arXiv:2008.03800). Without momentum every other clip of the batch is a negative
(SimCLR, arXiv:2002.05709); with it the keys come from a slowly following copy of the encoder, and a queue may hold
keys of earlier batches (MoCo, He et al. 2020, arXiv:1911.05722). ``reversed`` adds each clip played backwards as a
negative, so that the features must hold motion and not only the scene (after SCVRL, Dorkenwald et al. 2022,
arXiv:2205.11710). Negatives come from all processes, with their gradients, and from one part of an accumulated batch.
Shapes: n videos of this process, N of all, V views and reversed views, D width, Q = 2n queries, K keys.
"""

import copy

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from train.data.batch import Batch
from train.loop.checkpoint import sharded
from train.loop.gather import of_all
from train.objectives.features import Encoder, borrow, pooled, shape_of
from train.objectives.views import Strength, strong

__all__ = ["Config", "Contrastive", "build", "info_nce", "unfit"]


class Config(BaseModel):
    """``dim``: width of the compared vectors; ``momentum`` 0 = none; ``queue``: keys of earlier batches kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.1, gt=0)
    dim: int = Field(default=64, ge=1)
    hidden: int = Field(default=256, ge=1)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    queue: int = Field(default=0, ge=0)
    reversed: bool = True
    augment: Strength = Strength()

    @property
    def passes(self) -> int:
        """How many clips of each video go through the encoder (or the follower)."""
        return 3 if self.reversed else 2

    @model_validator(mode="after")
    def _queue_needs_momentum(self) -> "Config":
        if self.queue and not self.momentum:
            raise ValueError("a queue holds the keys of a momentum encoder: set momentum (0.99) or queue = 0")
        return self


def info_nce(
    query_QD: Tensor, key_KD: Tensor, temperature: float, hidden_QK: Tensor, wanted_Q: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding the ``wanted`` key for each query among all; and how often it is found.

    Vectors have unit length. Where ``hidden`` is true, a key is no negative of that query. By default the q-th key
    is wanted for the q-th query.
    """
    with torch.autocast(query_QD.device.type, enabled=False):  # bf16 has too few digits for a small temperature
        logits = (query_QD.float() @ key_KD.float().T / temperature).masked_fill(hidden_QK, -torch.inf)
        wanted = torch.arange(len(query_QD), device=query_QD.device) if wanted_Q is None else wanted_Q
        return functional.cross_entropy(logits, wanted), (logits.argmax(1) == wanted).float().mean()


def _follower(module: nn.Module) -> nn.Module:
    """A copy whose weights are buffers: saved with the model, never given to an optimiser."""
    follower = copy.deepcopy(module)
    for part in follower.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                del part._parameters[name]
                part.register_buffer(name, weight.detach().clone())
    return follower


class Contrastive(nn.Module):
    """Clips (B, 2, C, T, H, W) -> loss, accuracy of finding the partner."""

    views = 2
    encoder: Encoder
    queue: Tensor
    cursor: Tensor

    def __init__(self, encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> None:
        super().__init__()
        borrow(self, encoder)
        self.config = config
        (width,) = shape_of(pooled, encoder, clip)
        self.projector = nn.Sequential(
            nn.Linear(width, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, config.dim)
        )
        assert isinstance(encoder, nn.Module)
        pair = nn.ModuleList([encoder, self.projector])
        self.follower = _follower(pair) if config.momentum else None
        self.register_buffer("queue", functional.normalize(torch.randn(config.queue, config.dim), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def forward(self, clips_BVCTHW: Tensor, generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
        """Symmetric in the two clips: each one's key is the other; its own key is no negative."""
        one, two = (strong(clips_BVCTHW[:, view], self.config.augment, generator) for view in (0, 1))
        clips = torch.cat([one, two])
        back = two.flip(2) if self.config.reversed else two[:0]
        if self.follower is None:
            # In one pass: a batch norm that saw the reversed clips alone would tell them by their statistics.
            keys = self._project(torch.cat([clips, back]))
            query = keys[: len(clips)]
        else:
            query = self._project(clips)
            with torch.no_grad():
                keys = self._keys(torch.cat([clips, back]))
        views_nVD = keys.reshape(-1, len(one), keys.shape[1]).transpose(0, 1)
        views_NVD, start = of_all(views_nVD, batch)
        every, own = len(views_NVD), torch.arange(start, start + len(one), device=keys.device)
        keys_KD = views_NVD.transpose(0, 1).flatten(0, 1)
        among = torch.cat([keys_KD, self.queue.clone()])
        hidden = torch.zeros(len(query), len(among), dtype=torch.bool, device=keys.device)
        hidden.scatter_(1, torch.cat([own, own + every])[:, None], True)
        loss, hits = info_nce(query, among, self.config.temperature, hidden, torch.cat([own + every, own]))
        self._remember(keys_KD[: 2 * every])
        return {"loss": loss, "accuracy": hits}

    def _project(self, clip_BCTHW: Tensor) -> Tensor:
        return functional.normalize(self.projector(pooled(self.encoder, clip_BCTHW)), dim=1)

    def _keys(self, clip_BCTHW: Tensor) -> Tensor:
        assert isinstance(self.follower, nn.ModuleList)
        encoder, projector = self.follower
        assert isinstance(encoder, Encoder)
        return functional.normalize(projector(pooled(encoder, clip_BCTHW)), dim=1)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the follower's weights a little towards the encoder's and the projector's."""
        if self.follower is None:
            return
        assert isinstance(self.encoder, nn.Module)
        slow = dict(self.follower.named_buffers())
        for name, weight in nn.ModuleList([self.encoder, self.projector]).named_parameters():
            full: Tensor = weight.full_tensor() if sharded(weight) else weight  # type: ignore[attr-defined]
            slow[name].lerp_(full, 1 - self.config.momentum)

    @torch.no_grad()
    def _remember(self, key_KD: Tensor) -> None:
        """Write the newest keys over the oldest of the queue; only while training."""
        size = len(self.queue)
        if not self.training or not size:
            return
        newest = key_KD.detach()[-size:]
        places = (self.cursor + torch.arange(len(newest), device=newest.device)) % size
        self.queue[places] = newest
        self.cursor.copy_((self.cursor + len(newest)) % size)


def unfit(encoder: Encoder) -> str | None:
    """Every encoder can be compared."""
    return None


def build(encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> Contrastive:
    """The objective over clips of shape (C, T, H, W)."""
    return Contrastive(encoder, config, clip)
