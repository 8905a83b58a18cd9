"""Transformer blocks: joint or divided space-time attention, all through the fused kernel.

Joint: every token sees every other (ViT). Divided: first the same place at all times, then all places of the same
time (TimeSformer, Bertasius et al. 2021, arXiv:2102.05095). Shapes: B batch, N tokens (time-major), D width.
"""

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Block", "DividedBlock", "attention"]


def attention(qkv_BNE: Tensor, heads: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fused multi-head attention: (B, N, 3 * D) -> mixed values (B, N, D) and keys (B, heads, N, D / heads)."""
    batch, tokens, dim = qkv_BNE.shape[0], qkv_BNE.shape[1], qkv_BNE.shape[2] // 3
    q, k, v = qkv_BNE.reshape(batch, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return mixed.transpose(1, 2).reshape(batch, tokens, dim), k


class Block(nn.Module):
    """Pre-norm transformer block: attention (fused kernel) and MLP, each with a residual."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))

    def attend(self, x_BND: Tensor) -> Tensor:
        """Multi-head self-attention (B, N, D) -> (B, N, D)."""
        mixed, _ = attention(self.qkv(x_BND), self.heads)
        out: Tensor = self.proj(mixed)
        return out

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x_BND = x_BND + self.attend(self.norm1(x_BND))
        out: Tensor = x_BND + self.mlp(self.norm2(x_BND))
        return out


class DividedBlock(Block):
    """A block with temporal attention before the spatial one; any tokens that have the same places at all times."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, times: int, dropout: float = 0.0, eps: float = 1e-5
    ) -> None:
        super().__init__(dim, heads, mlp_ratio, dropout, eps)
        self.times = times
        self.time_norm = nn.LayerNorm(dim, eps)
        self.time_qkv, self.time_proj, self.time_out = (nn.Linear(dim, n * dim) for n in (3, 1, 1))
        nn.init.zeros_(self.time_out.weight)  # at the start time does nothing, as in TimeSformer
        nn.init.zeros_(self.time_out.bias)

    def attend_time(self, x_BND: Tensor) -> Tensor:
        """Each place over all times (B, N, D) -> (B, N, D)."""
        batch, tokens, dim = x_BND.shape
        lines = x_BND.reshape(batch, self.times, -1, dim).transpose(1, 2).reshape(-1, self.times, dim)
        mixed, _ = attention(self.time_qkv(lines), self.heads)
        moved = self.time_out(self.time_proj(mixed)).reshape(batch, -1, self.times, dim)
        out: Tensor = moved.transpose(1, 2).reshape(batch, tokens, dim)
        return out

    def attend(self, x_BND: Tensor) -> Tensor:
        """Each time over all places (B, N, D) -> (B, N, D)."""
        batch, tokens, dim = x_BND.shape
        return super().attend(x_BND.reshape(batch * self.times, -1, dim)).reshape(batch, tokens, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return super().forward(x_BND + self.attend_time(self.time_norm(x_BND)))
