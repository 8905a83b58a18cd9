"""The tubelet ViT: space-time attention over space-time patches.

With joint attention it is ViViT's model 1 (Arnab et al. 2021, arXiv:2103.15691) and VideoMAE's encoder (Tong et al.
2022, arXiv:2203.12602), with divided attention close to TimeSformer (arXiv:2102.05095; no class token).
Shapes: B batch, T frames, H, W picture, N tokens (time-major), D width, K classes.
"""

import torch
from torch import Tensor, nn

from toolkit.contract import Contract
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from train.models.attention import Block, DividedBlock
from train.models.merge import encode_merged

__all__ = ["Block", "DividedBlock", "TubeletViT", "make", "sincos_positions"]


def make(config: TeacherConfig, classes: int, preprocess: Preprocess, frames: int) -> "TubeletViT":
    """The registry's constructor."""
    return TubeletViT(config, classes, (3, *preprocess.size), frames)


def sincos_positions(tokens: int, dim: int) -> Tensor:
    """Fixed sine-cosine position table (1, N, D) (Vaswani et al. 2017), as in VideoMAE."""
    place = torch.arange(tokens, dtype=torch.float64)[:, None]
    power = torch.arange(dim, dtype=torch.float64)[None, :].div(2, rounding_mode="floor") * 2 / dim
    angle = place / 10000**power
    table = torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())
    return table.float()[None]


class TubeletViT(nn.Module):
    """Clip model: (B, 3, T, H, W) -> logits (B, K) from the mean of the tokens.

    Raises:
        UserError: the clip is not a whole number of tubelets, or ``dim`` of heads.
    """

    def __init__(self, config: TeacherConfig, classes: int, frame: tuple[int, int, int], frames: int) -> None:
        super().__init__()
        self.config, self.classes, self.frame, self.frames = config, classes, frame, frames
        self.width = self.channels = config.dim
        self.grid = _grid(config, (frames, *frame[1:]))
        tokens = self.grid[0] * self.grid[1] * self.grid[2]
        self.patch_embed = nn.Conv3d(3, config.dim, config.tubelet, config.tubelet)
        self.register_buffer("positions", sincos_positions(tokens, config.dim), False)
        self.blocks = nn.ModuleList(_block(config, self.grid[0]) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, config.last_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def contract(self) -> Contract:
        """A clip model's contract."""
        return Contract(kind="clip", frame=self.frame, classes=self.classes, frames=self.frames)

    def layers(self) -> list[str]:
        """Embedding, blocks, norm, head."""
        return ["patch_embed", *(f"blocks.{index}" for index in range(len(self.blocks))), "norm", "head"]

    def tokens(self, clip_BCTHW: Tensor) -> Tensor:
        """Embedded tubelets with their positions (B, N, D)."""
        positions = self.positions
        assert isinstance(positions, Tensor)
        tokens: Tensor = self.patch_embed(clip_BCTHW).flatten(2).transpose(1, 2)
        return tokens + positions

    def encode(self, tokens_BND: Tensor) -> Tensor:
        """Run the blocks over any subset of the tokens; no merging."""
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        return self._last(tokens_BND)

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """All tokens after the last norm (B, N, D); fewer at inference with ``merge``."""
        return self._features(clip_BCTHW)[0]

    def embed(self, clip_BCTHW: Tensor) -> Tensor:
        """Mean of the tokens (B, D); a merged token counts as often as it has parts."""
        tokens_BND, size_BN = self._features(clip_BCTHW)
        if size_BN is None:
            mean_BD = tokens_BND.mean(1)
        else:
            mean_BD = (tokens_BND * size_BN[:, :, None]).sum(1) / size_BN.sum(1, keepdim=True)
        if self.config.norm == "pooled":
            mean_BD = self.norm(mean_BD)
        return mean_BD

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.head(self.dropout(self.embed(clip_BCTHW)))
        return logits

    def _features(self, clip_BCTHW: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens_BND = self.tokens(clip_BCTHW)
        if self.training or self.config.merge == 0:
            return self.encode(tokens_BND), None
        merged_BND, size_BN = encode_merged(self.blocks, tokens_BND, self.config.merge)
        return self._last(merged_BND), size_BN

    def _last(self, tokens_BND: Tensor) -> Tensor:
        out: Tensor = self.norm(tokens_BND) if self.config.norm == "tokens" else tokens_BND
        return out


def _grid(config: TeacherConfig, sides: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tubelets along (time, height, width)."""
    if any(side % patch for side, patch in zip(sides, config.tubelet, strict=True)):
        raise UserError(
            f"a clip of {sides} (frames, height, width) is not a whole number of tubelets {config.tubelet}: "
            "change data.frames, preprocess.size or teacher.tubelet"
        )
    if config.dim % config.heads:
        raise UserError(f"teacher.dim {config.dim} is not a multiple of teacher.heads {config.heads}")
    if config.merge and config.attention == "divided":
        raise UserError("teacher.merge needs the same tokens at all times no more: set teacher.attention to 'joint'")
    time, height, width = (side // patch for side, patch in zip(sides, config.tubelet, strict=True))
    return time, height, width


def _block(config: TeacherConfig, times: int) -> Block:
    if config.attention == "divided":
        return DividedBlock(config.dim, config.heads, config.mlp_ratio, times, config.dropout, config.eps)
    return Block(config.dim, config.heads, config.mlp_ratio, config.dropout, config.eps)
