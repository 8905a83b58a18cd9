"""From a latent back to a clip: transposed 3-D convolutions, as many as the sides need.

Nothing but the latent is seen: no skip connection, no part of the clip.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ClipDecoder", "strides"]


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


#: How loud changes are made at the start when they are made apart: a clip is nearly still.
_QUIET = 0.1


class ClipDecoder(nn.Module):
    """Latent (B, L, t, h, w) -> clip (B, 3, T, H, W).

    ``apart``: one half of the last layer makes the picture that stays (its mean over time), the other the changes
    around it. Otherwise a picture that stays is made only by weights that are alike for all times; until they are,
    all that is made of the latent flickers, and an error of changes teaches the decoder not to look at it.
    """

    def __init__(
        self, latent: int, small: tuple[int, int, int], large: tuple[int, int, int], width: int, apart: bool = False
    ) -> None:
        super().__init__()
        self.large, self.apart = large, apart
        growing = strides(small, large) or [(1, 1, 1)]
        widths = [max(8, width // 2**index) for index in range(len(growing))]
        layers: list[nn.Module] = [nn.Conv3d(latent, widths[0], 3, padding=1)]
        for before, after, (t, h, w) in zip(widths, [*widths[1:], 6 if apart else 3], growing, strict=True):
            layers += [nn.GroupNorm(1, before), nn.GELU(),
                       nn.ConvTranspose3d(before, after, (t + 2, h + 2, w + 2), (t, h, w), 1)]  # fmt: skip
        self.layers = nn.Sequential(*layers)
        if apart:
            last = layers[-1]
            assert isinstance(last, nn.ConvTranspose3d)
            with torch.no_grad():
                last.weight[:, 3:] *= _QUIET

    def forward(self, latent_BLTHW: Tensor) -> Tensor:
        """Sides that are no power-of-two multiple are resized at the end."""
        clip: Tensor = self.layers(latent_BLTHW)
        if tuple(clip.shape[2:]) != self.large:
            clip = functional.interpolate(clip, self.large, mode="trilinear", align_corners=False)
        if not self.apart:
            return clip
        still, moving = clip[:, :3], clip[:, 3:]
        return still.mean(2, keepdim=True) + moving - moving.mean(2, keepdim=True)
