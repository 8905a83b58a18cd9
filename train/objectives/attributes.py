"""Video attribute prediction: what can be known of a clip without labels.

- ``direction``, ``magnitude``: which way and how much the clip moves, as classes computed from its own pixels
  (statistics of motion as in Wang et al. 2019, arXiv:1904.03597; here by block matching).
- ``arrow``: played forwards or backwards (Wei et al. 2018, CVPR: Learning and using the arrow of time).
- ``speed``: played at single or double speed (SpeedNet, Benaim et al. 2020, arXiv:2004.06130).
- ``columns``: any metadata column, with its number of classes, for example the scene; rows without it are skipped.

Speed is asked of clips played there and back over half of the frames, at both speeds, so that no repeated frame
and no still end gives the answer away. A clip is played in one way only, so one pass of the encoder serves all.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import UserError
from train.data.batch import Batch, sent
from train.objectives.features import Encoder, borrow, pooled, shape_of
from train.objectives.motion import direction_class, motion_of

__all__ = ["Attributes", "Config", "build", "played", "unfit"]

Way = Literal["forwards", "backwards", "slow", "fast"]


class Config(BaseModel):
    """What is asked, and how finely.

    ``sectors``: classes of direction; ``bounds`` between the classes of magnitude, which is speed (pixels a frame)
    times the share of the picture that moves; ``radius``, ``block``: of the block matching, in pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: tuple[Literal["direction", "magnitude", "arrow", "speed"], ...] = ("direction", "magnitude", "arrow", "speed")
    columns: dict[str, int] = {}
    sectors: int = Field(default=8, ge=2)
    bounds: tuple[float, ...] = (0.02, 0.1, 0.3, 0.8)
    least_share: float = Field(default=0.01, ge=0, le=1)
    radius: int = Field(default=3, ge=1)
    block: int = Field(default=8, ge=2)

    @model_validator(mode="after")
    def _asks_something(self) -> "Config":
        if not self.asks and not self.columns:
            raise ValueError("nothing is asked: name attributes in asks or columns")
        if list(self.bounds) != sorted(self.bounds):
            raise ValueError(f"bounds {self.bounds} must rise")
        return self


def played(clip_CTHW: Tensor, way: Way) -> Tensor:
    """A clip of the same length, played in another way.

    >>> clip = torch.arange(8.0).reshape(1, 8, 1, 1)
    >>> played(clip, "slow").flatten().tolist(), played(clip, "fast").flatten().tolist()
    ([0.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 0.0], [0.0, 2.0, 4.0, 6.0, 6.0, 4.0, 2.0, 0.0])
    """
    if way == "forwards":
        return clip_CTHW
    if way == "backwards":
        return clip_CTHW.flip(1)
    frames = clip_CTHW.shape[1]
    there = torch.arange(-(-frames // 2)) * (2 if way == "fast" else 1)
    order = torch.cat([there, there.flip(0)])[:frames].clamp(max=frames - 1)
    return clip_CTHW[:, sent(order, clip_CTHW.device)]


class Attributes(nn.Module):
    """Clips (B, V, C, T, H, W) -> loss, and loss and accuracy of each attribute."""

    views = 1
    encoder: Encoder

    def __init__(self, encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> None:
        super().__init__()
        borrow(self, encoder)
        self.config = config
        classes = {"direction": config.sectors, "magnitude": len(config.bounds) + 1, "arrow": 2, "speed": 2}
        asked: dict[str, int] = {name: classes[name] for name in config.asks}
        asked |= {f"column_{name}": count for name, count in config.columns.items()}
        (width,) = shape_of(pooled, encoder, clip)
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in asked.items()})

    def forward(self, clips_BVCTHW: Tensor, generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
        """The mean of the attributes' losses; an attribute that no clip of the batch has is left out."""
        clip, labels = self.pose(clips_BVCTHW[:, 0], generator)
        labels |= self._columns(batch, clip.device)
        features = pooled(self.encoder, clip)
        found: dict[str, Tensor] = {}
        losses = [features.sum() * 0]
        for name, head in self.heads.items():
            known = labels[name] >= 0
            logits = head(features)
            # A sum over the known ones: an attribute unknown in the whole batch still gives its head a zero gradient.
            loss = functional.cross_entropy(logits, labels[name].clamp(min=0), reduction="none")
            losses.append((loss * known).sum() / known.sum().clamp(min=1))
            found[name] = losses[-1]
            right = (logits.argmax(1) == labels[name]) & known
            found[f"{name}_accuracy"] = right.sum() / known.sum().clamp(min=1)
        return {"loss": torch.stack(losses).sum() / len(self.heads), **found}

    @torch.no_grad()
    def pose(self, clip_BCTHW: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Play each clip in some way; the labels (B,) of what was made, -1 where a question makes no sense."""
        ways: list[Way] = ["forwards"]
        if "arrow" in self.config.asks:
            ways = ["forwards", "backwards"]
        if "speed" in self.config.asks:
            ways += ["slow", "fast"]
        drawn = torch.randint(len(ways), (len(clip_BCTHW),), generator=generator)
        clip = torch.stack([played(c, ways[int(way)]) for c, way in zip(clip_BCTHW, drawn, strict=True)])
        table = {"arrow": {"forwards": 0, "backwards": 1}, "speed": {"slow": 0, "fast": 1}}
        labels = {
            name: torch.tensor([classes.get(ways[int(way)], -1) for way in drawn], device=clip.device)
            for name, classes in table.items()
        }
        if "direction" in self.config.asks or "magnitude" in self.config.asks:
            motion = motion_of(clip, self.config.radius, self.config.block)
            labels["direction"] = direction_class(motion, self.config.sectors, self.config.least_share)
            bounds = torch.tensor(self.config.bounds, device=clip.device)
            labels["magnitude"] = torch.bucketize(motion.speed * motion.share, bounds)
        return clip, labels

    def _columns(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        labels = {}
        for name, count in self.config.columns.items():
            if name not in batch.meta:
                raise UserError(
                    f"pretrain.settings.attributes.columns: the data have no column {name!r}; "
                    f"there are: {', '.join(batch.meta) or 'none'}"
                )
            column = batch.meta[name].to(device)
            most = int(column.max())
            if most >= count:
                raise UserError(
                    f"pretrain.settings.attributes.columns.{name} = {count}, but the data hold class {most}: raise it"
                )
            labels[f"column_{name}"] = column
        return labels


def unfit(encoder: Encoder) -> str | None:
    """Every encoder can be asked."""
    return None


def build(encoder: Encoder, config: Config, clip: tuple[int, int, int, int]) -> Attributes:
    """The objective over clips of shape (C, T, H, W)."""
    return Attributes(encoder, config, clip)
