"""Token merging (ToMe): in every block the r most similar pairs of tokens become one.

Tokens are dealt into two sets; each token of the first finds its most similar one in the second by the keys of the
attention, and the r best pairs are averaged, weighted by how many tokens they already stand for. Attention is
proportional: a token of size s counts s times. Bolya et al. 2023, arXiv:2210.09461.
Shapes: B batch, N tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.models.attention import Block, attention

__all__ = ["encode_merged", "merge_tokens"]


def encode_merged(blocks: nn.ModuleList, tokens_BND: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Run joint-attention blocks, merging ``count`` tokens in each: tokens (B, N', D) and their sizes (B, N')."""
    size_BN = torch.ones(tokens_BND.shape[:2], dtype=tokens_BND.dtype, device=tokens_BND.device)
    for index, block in enumerate(blocks):
        assert isinstance(block, Block)
        # all sizes are 1 in the first block: no bias, and the fastest kernel
        bias = size_BN.log()[:, None, None, :] if index else None
        mixed, key = attention(block.qkv(block.norm1(tokens_BND)), block.heads, bias)
        tokens_BND = tokens_BND + block.proj(mixed)
        tokens_BND, size_BN = merge_tokens(tokens_BND, key.mean(1), size_BN, count)
        tokens_BND = tokens_BND + block.mlp(block.norm2(tokens_BND))
    return tokens_BND, size_BN


def merge_tokens(x_BND: Tensor, key_BND: Tensor, size_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge ``count`` tokens (at most half) into their most similar ones: (B, N - count, D) and (B, N - count)."""
    count = min(count, x_BND.shape[1] // 2)
    if count == 0:
        return x_BND, size_BN
    key_BND = functional.normalize(key_BND, dim=-1)
    score, partner = (key_BND[:, ::2] @ key_BND[:, 1::2].transpose(1, 2)).max(-1)
    order = score.argsort(-1, descending=True)
    gone, kept = order[:, :count], order[:, count:]
    target = partner.gather(1, gone)
    mass_BND = torch.cat([x_BND * size_BN[:, :, None], size_BN[:, :, None]], -1)  # sums and sizes travel together
    first, second = mass_BND[:, ::2], mass_BND[:, 1::2]
    joined = second.scatter_add(1, _wide(target, first), first.gather(1, _wide(gone, first)))
    merged = torch.cat([first.gather(1, _wide(kept, first)), joined], 1)
    return merged[..., :-1] / merged[..., -1:], merged[..., -1]


def _wide(index_BN: Tensor, like_BND: Tensor) -> Tensor:
    return index_BN[:, :, None].expand(-1, -1, like_BND.shape[-1])
