"""Masked modelling beyond VideoMAE's own form: hidden times, coarse targets, a floor under the contrast."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.test_objectives import CLIP, batch_of, some_clips, vit
from toolkit.errors import UserError
from toolkit.recipe import TeacherConfig
from train.models.vit import TubeletViT
from train.objectives import masked
from train.objectives.masked import MaskedAutoencoder, time_mask


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 4), times=st.integers(2, 6), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_time_masks_hide_whole_times_at_the_end_or_at_the_beginning(
    batch: int, times: int, ratio: float, seed: int
) -> None:
    mask = time_mask(batch, (times, 2, 3), ratio, torch.Generator().manual_seed(seed)).reshape(batch, times, 6)
    assert (mask == mask[:, :, :1]).all(), "a time is hidden in all places or in none"
    hidden = mask[:, :, 0].sum(1)
    assert (hidden == hidden[0]).all()
    assert 0 < int(hidden[0]) < times
    for row in mask[:, :, 0].int():
        assert int(row.diff().abs().sum()) == 1, "one part of the clip is hidden, one is seen"


def test_past_and_future_are_hidden_equally_often() -> None:
    mask = time_mask(400, (2, 2, 2), 0.5, torch.Generator().manual_seed(0))
    assert 160 < int(mask[:, 0].sum()) < 240
    assert (mask[:, 0] != mask[:, -1]).all()


@pytest.mark.parametrize(
    ("hide", "kinds"), [("tubes", ["tubes"]), ("times", ["times"]), ("either", ["times", "tubes"])]
)
def test_hide_says_what_is_hidden(hide: str, kinds: list[str]) -> None:
    model = masked.build(vit(), masked.Config.model_validate({"hide": hide, "mask_ratio": 0.5}), CLIP)
    draws, found = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        first, last = model.mask(3, draws).reshape(3, 2, 16).unbind(1)
        found.add("tubes" if torch.equal(first, last) else "times")
        assert torch.equal(first, last) or torch.equal(first, ~last)
    assert sorted(found) == kinds


def test_coarse_targets_equal_numpy() -> None:
    model = MaskedAutoencoder(vit(), 16, 1, coarse=2, floor=0.3)
    clip = some_clips(2)[:, 0]
    small = clip.double().numpy().reshape(2, 3, 4, 8, 2, 8, 2).mean((4, 6))
    tubelet = small[1, :, 2:4, 2:4, 6:8].transpose(1, 2, 3, 0).reshape(-1)  # the second time, row 1, column 3
    want = (tubelet - tubelet.mean()) / np.sqrt(tubelet.var(ddof=1) + 0.3)
    np.testing.assert_allclose(model.targets(clip)[1, 16 + 4 + 3].numpy(), want, atol=1e-5)
    made, wanted = model.answers(clip, torch.arange(32).expand(2, 32) >= 16)
    assert made.shape == wanted.shape == (2, 16, 3 * 2 * 2 * 2)


def test_the_floor_keeps_the_noise_of_flat_places_small() -> None:
    noise = 0.01 * torch.randn(1, *CLIP, generator=torch.Generator().manual_seed(0))
    loud, quiet = (MaskedAutoencoder(vit(), 16, 1, floor=floor).targets(noise).std() for floor in (1e-6, 0.05))
    assert loud > 0.9
    assert quiet < 0.06


@pytest.mark.parametrize(
    ("tubelet", "config", "message"),
    [
        ((1, 4, 4), {"change": 2.0}, r"masked.change = 2.0 .* tubelets of one frame"),
        ((4, 4, 4), {"hide": "times"}, r"masked.hide = 'times' .* one step in time"),
        ((4, 4, 4), {"hide": "either"}, r"masked.hide = 'either' .* one step in time"),
        ((2, 4, 4), {"coarse": 3}, r"masked.coarse = 3 .* 4x4"),
    ],
)
def test_settings_that_do_not_fit_the_tubelets_are_named(
    tubelet: tuple[int, int, int], config: dict[str, object], message: str
) -> None:
    encoder = TubeletViT(TeacherConfig(dim=16, depth=1, heads=2, tubelet=tubelet), 2, (3, 16, 16), 4)
    with pytest.raises(UserError, match=message):
        masked.build(encoder, masked.Config.model_validate(config), CLIP)


@pytest.mark.parametrize("hide", ["tubes", "times"])
def test_every_way_of_hiding_teaches_the_encoder(hide: str) -> None:
    torch.manual_seed(0)
    config = masked.Config.model_validate({"hide": hide, "mask_ratio": 0.5, "change": 1.0, "coarse": 2, "floor": 0.05})
    encoder = vit()
    model = masked.build(encoder, config, CLIP)
    clips = some_clips()
    before = [p.detach().clone() for p in encoder.blocks.parameters()]
    optimizer = torch.optim.AdamW([*encoder.parameters(), *model.parameters()], 3e-3)
    losses = []
    for step in range(40):
        loss = model(clips, torch.Generator().manual_seed(step % 4), batch_of(clips))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert all(not torch.equal(a, b) for a, b in zip(before, encoder.blocks.parameters(), strict=True))
