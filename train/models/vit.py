"""The tubelet ViT: joint space-time attention over space-time patches (ViViT model 1; VideoMAE's encoder).

Arnab et al. 2021, arXiv:2103.15691; Tong et al. 2022, arXiv:2203.12602.
Shapes: B batch, T frames, H, W picture, N tokens, D width, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.contract import Contract
from toolkit.errors import UserError
from toolkit.recipe import TeacherConfig

__all__ = ["Block", "TubeletViT", "sincos_positions"]


def sincos_positions(tokens: int, dim: int) -> Tensor:
    """Fixed sine-cosine position table (1, N, D) (Vaswani et al. 2017), as in VideoMAE."""
    place = torch.arange(tokens, dtype=torch.float64)[:, None]
    power = torch.arange(dim, dtype=torch.float64)[None, :].div(2, rounding_mode="floor") * 2 / dim
    angle = place / 10000**power
    table = torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())
    return table.float()[None]


class Block(nn.Module):
    """Pre-norm transformer block: attention (fused kernel) and MLP, each with a residual."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))

    def attend(self, x_BND: Tensor) -> Tensor:
        """Multi-head self-attention (B, N, D) -> (B, N, D)."""
        batch, tokens, dim = x_BND.shape
        qkv = self.qkv(x_BND).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return out

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x_BND = x_BND + self.attend(self.norm1(x_BND))
        out: Tensor = x_BND + self.mlp(self.norm2(x_BND))
        return out


class TubeletViT(nn.Module):
    """Clip model: (B, 3, T, H, W) -> logits (B, K) from the mean of the tokens.

    Raises:
        UserError: the clip is not a whole number of tubelets, or ``dim`` of heads.
    """

    def __init__(self, config: TeacherConfig, classes: int, frame: tuple[int, int, int], frames: int) -> None:
        super().__init__()
        self.config, self.classes, self.frame, self.frames = config, classes, frame, frames
        sides = (frames, *frame[1:])
        if any(side % patch for side, patch in zip(sides, config.tubelet, strict=True)):
            raise UserError(
                f"a clip of {sides} (frames, height, width) is not a whole number of tubelets {config.tubelet}: "
                "change data.frames, preprocess.size or teacher.tubelet"
            )
        if config.dim % config.heads:
            raise UserError(f"teacher.dim {config.dim} is not a multiple of teacher.heads {config.heads}")
        self.grid = tuple(side // patch for side, patch in zip(sides, config.tubelet, strict=True))
        self.embed = nn.Conv3d(3, config.dim, config.tubelet, config.tubelet)
        self.register_buffer(
            "positions", sincos_positions(self.grid[0] * self.grid[1] * self.grid[2], config.dim), False
        )
        blocks = (Block(config.dim, config.heads, config.mlp_ratio, config.dropout) for _ in range(config.depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def contract(self) -> Contract:
        """A clip model's contract."""
        return Contract(kind="clip", frame=self.frame, classes=self.classes, frames=self.frames)

    def tokens(self, clip_BCTHW: Tensor) -> Tensor:
        """Embedded tubelets with their positions (B, N, D)."""
        positions = self.positions
        assert isinstance(positions, Tensor)
        tokens: Tensor = self.embed(clip_BCTHW).flatten(2).transpose(1, 2)
        return tokens + positions

    def encode(self, tokens_BND: Tensor) -> Tensor:
        """Run the blocks over any subset of the tokens."""
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        out: Tensor = self.norm(tokens_BND)
        return out

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """All tokens after the last norm (B, N, D)."""
        return self.encode(self.tokens(clip_BCTHW))

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.head(self.dropout(self.forward_features(clip_BCTHW).mean(1)))
        return logits
