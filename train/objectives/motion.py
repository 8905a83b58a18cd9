"""How fast and which way a clip moves, computed from its pixels: block matching between neighbouring frames.

Exhaustive search with the sum of absolute differences (Jain & Jain 1981, IEEE Trans. Commun. 29:1799), all blocks
and shifts at once as tensors. A block counts as moving when a shift explains most of its change; noise and changes
of light do not. Directions are those of the picture: 0 is right, a quarter turn clockwise is down.
Shapes: B batch, C channels, T frames, H, W picture, h, w blocks.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Motion", "block_flow", "direction_class", "motion_of"]

#: Share of a block's change that its best shift must explain, and the least change (of a range of 2) to look at.
_EXPLAINED, _LEAST = 0.3, 0.02


@dataclass(frozen=True, slots=True)
class Motion:
    """Of each clip (B,), in pixels a frame.

    ``x``, ``y``: mean velocity of the moving blocks; ``speed``: mean of their speeds; ``share`` of blocks that move.
    """

    x: Tensor
    y: Tensor
    speed: Tensor
    share: Tensor


@torch.no_grad()
def block_flow(clip_BCTHW: Tensor, radius: int = 3, block: int = 8) -> tuple[Tensor, Tensor]:
    """Flow (B, 2, T - 1, h, w) as x, y in pixels a frame, and which blocks move (B, T - 1, h, w)."""
    grey = clip_BCTHW.mean(1)
    batch, frames, height, width = grey.shape
    before = grey[:, :-1].reshape(-1, 1, height, width)
    after = functional.pad(grey[:, 1:].reshape(-1, 1, height, width), (radius,) * 4, mode="replicate")
    shifts = sorted(((x, y) for y in range(-radius, radius + 1) for x in range(-radius, radius + 1)),
                    key=lambda shift: shift[0] ** 2 + shift[1] ** 2)  # fmt: skip  # standing still wins a draw
    costs = []
    for x, y in shifts:
        moved = after[..., radius + y : radius + y + height, radius + x : radius + x + width]
        costs.append(functional.avg_pool2d((before - moved).abs(), block))
    cost = torch.stack(costs)
    least, which = cost.min(0)
    table = torch.tensor(shifts, dtype=clip_BCTHW.dtype, device=clip_BCTHW.device)
    flow = table[which].reshape(batch, frames - 1, *which.shape[2:], 2).permute(0, 4, 1, 2, 3)
    moving = (cost[0] - least > _EXPLAINED * cost[0]) & (cost[0] > _LEAST)
    return flow, moving.reshape(batch, frames - 1, *which.shape[2:])


def motion_of(clip_BCTHW: Tensor, radius: int = 3, block: int = 8) -> Motion:
    """Motion of each clip; a clip in which nothing moves has speed 0."""
    flow, moving = block_flow(clip_BCTHW, radius, block)
    weight = moving.flatten(1).to(flow.dtype)
    total = weight.sum(1).clamp(min=1)
    x, y = ((flow[:, axis].flatten(1) * weight).sum(1) / total for axis in (0, 1))
    speed = (flow.norm(dim=1).flatten(1) * weight).sum(1) / total
    return Motion(x, y, speed, weight.mean(1))


def direction_class(motion: Motion, sectors: int, least_share: float, least_unity: float = 0.5) -> Tensor:
    """Sector 0 .. ``sectors`` - 1 of the mean velocity (B,); -1 where too little moves, or not one way."""
    turn = torch.atan2(motion.y, motion.x) * (sectors / (2 * math.pi))
    sector = turn.round().long() % sectors
    mean = torch.hypot(motion.x, motion.y)
    known = (motion.share >= least_share) & (mean >= least_unity * motion.speed) & (mean > 0)
    return torch.where(known, sector, -1)
