"""From a latent back to a clip: transposed 3-D convolutions, as many as the sides need, or one linear layer.

Nothing but the latent is seen: no skip connection, no part of the clip.
"""

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ClipDecoder", "LinearDecoder", "strides"]


def strides(small: tuple[int, int, int], large: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Factors (t, h, w) of the growing steps, largest last, whose products reach ``large`` / ``small`` or just more.

    >>> strides((1, 6, 6), (8, 48, 48))
    [(2, 2, 2), (2, 2, 2), (2, 2, 2)]
    >>> strides((4, 3, 3), (8, 48, 48))
    [(1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2)]
    """
    steps = [max(0, -(-big // little) - 1).bit_length() for little, big in zip(small, large, strict=True)]
    t, h, w = ([2 if left > index else 1 for index in reversed(range(max(steps)))] for left in steps)
    return list(zip(t, h, w, strict=True))


class ClipDecoder(nn.Module):
    """Latent (B, L, t, h, w) -> clip (B, 3, T, H, W) by several transposed convolutions.

    Its neighbours help each place, but what it makes flickers at first (its times have different weights), and where
    the latent is narrow an error of changes then teaches it not to look at the latent for long.
    """

    def __init__(self, latent: int, small: tuple[int, int, int], large: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.large = large
        growing = strides(small, large) or [(1, 1, 1)]
        widths = [max(8, width // 2**index) for index in range(len(growing))]
        layers: list[nn.Module] = [nn.Conv3d(latent, widths[0], 3, padding=1)]
        for before, after, (t, h, w) in zip(widths, [*widths[1:], 3], growing, strict=True):
            layers += [nn.GroupNorm(1, before), nn.GELU(),
                       nn.ConvTranspose3d(before, after, (t + 2, h + 2, w + 2), (t, h, w), 1)]  # fmt: skip
        self.layers = nn.Sequential(*layers)

    def forward(self, latent_BLTHW: Tensor) -> Tensor:
        """Sides that are no power-of-two multiple are resized at the end."""
        return _sized(self.layers(latent_BLTHW), self.large)


class LinearDecoder(nn.Module):
    """Latent (B, L, t, h, w) -> clip (B, 3, T, H, W): each place makes its own part by one linear layer.

    As SimMIM predicts pixels (Xie et al. 2022, arXiv:2111.09886). Nothing stands between the encoder and the error.
    """

    def __init__(self, latent: int, small: tuple[int, int, int], large: tuple[int, int, int]) -> None:
        super().__init__()
        self.large = large
        t, h, w = (-(-big // little) for little, big in zip(small, large, strict=True))
        self.parts = nn.ConvTranspose3d(latent, 3, (t, h, w), (t, h, w))

    def forward(self, latent_BLTHW: Tensor) -> Tensor:
        """Sides that are no multiple are resized at the end."""
        return _sized(self.parts(latent_BLTHW), self.large)


def _sized(clip_BCTHW: Tensor, large: tuple[int, int, int]) -> Tensor:
    if tuple(clip_BCTHW.shape[2:]) == large:
        return clip_BCTHW
    return functional.interpolate(clip_BCTHW, large, mode="trilinear", align_corners=False)
