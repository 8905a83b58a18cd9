"""Augmentation never changes what moves how: one draw a clip, labels that follow, no direction turned by accident."""

import numpy as np
import pytest
import torch

from tests.train.synthetic import SIDE
from toolkit.preprocess import Preprocess
from toolkit.recipe import FinetuneConfig
from train.data.augment import OPERATIONS, TURNING, ClipAugment, cutmix, mixup, rand_augment, soft
from train.data.clips import Augment

ALL = {**OPERATIONS, **TURNING}
PRE = Preprocess(size=(SIDE, SIDE))


def _clip(frames: int = 4, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (1, frames, SIDE, SIDE, 3), dtype=np.uint8))


def _bar(step: int, frames: int = 4) -> torch.Tensor:
    """A bright square that moves by ``step`` pixels a frame along x."""
    clip = torch.full((1, frames, SIDE, SIDE, 3), 40, dtype=torch.uint8)
    for index in range(frames):
        left = 12 + step * index
        clip[0, index, 12:20, left : left + 4] = 200
    return clip


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ALL)
def test_an_operation_treats_all_frames_alike(name: str) -> None:
    operation = ALL[name]
    x = _clip()[0].permute(0, 3, 1, 2).float()
    order = torch.tensor([2, 0, 3, 1])
    for strength in (-0.8, 0.7):
        assert torch.allclose(operation(x[order], strength), operation(x, strength)[order], atol=1e-3)
        still = operation(x[:1].expand(4, -1, -1, -1), strength)
        assert torch.equal(still, still[:1].expand(4, -1, -1, -1))


@pytest.mark.parametrize("name", ALL)
def test_what_stands_still_does_not_flicker_when_something_else_moves(name: str) -> None:
    x = _clip()[0].permute(0, 3, 1, 2).float()
    x[:, :, : SIDE // 2] = x[:1, :, : SIDE // 2]  # the upper half stands still, below every frame is another
    x[1:, :, SIDE // 2 :] *= 0.3
    for strength in (-0.3, 0.3):
        upper = ALL[name](x, strength)[:, :, : SIDE // 4, SIDE // 3 : -SIDE // 3]
        assert torch.allclose(upper, upper[:1].expand_as(upper), atol=1e-3)


@pytest.mark.parametrize("name", ["shift_x", "shift_y", *TURNING])
def test_an_edge_that_is_filled_in_shows_no_motion_the_other_way(name: str) -> None:
    x = torch.zeros(3, 3, SIDE, SIDE)
    for index in range(3):
        x[index, :, :, 1 + 2 * index : 3 + 2 * index] = 200  # a stripe that moves to the right, near the left edge
    for strength in (-0.7, 0.7):
        seen = ALL[name](x, strength)[:, 0, SIDE // 2]
        for row in torch.nn.functional.pad(seen > 60, (1, 0)):
            assert (row[1:] & ~row[:-1]).sum() <= 1  # no second stripe


@pytest.mark.parametrize("name", ALL)
def test_an_operation_changes_the_picture_and_keeps_its_type(name: str) -> None:
    clip = _clip().clamp(30, 200)
    out = rand_augment(clip, 1, 0.8, (ALL[name],), _generator())
    assert out.dtype == torch.uint8
    assert out.shape == clip.shape
    assert not torch.equal(out, clip)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_moves_right_still_moves_right(name: str) -> None:
    for strength in (-0.5, 0.5):
        x = OPERATIONS[name](_bar(3)[0].permute(0, 3, 1, 2).float(), strength).mean(1)
        change = (x - x[:, :1, :1]).abs()  # against the background in the corner
        centres = (change.sum(1) * torch.arange(SIDE)).sum(1) / change.sum((1, 2)).clamp(min=1e-6)
        assert (centres.diff() > 0.5).all(), centres


def test_rotation_and_shear_are_drawn_only_if_allowed() -> None:
    settings = FinetuneConfig(rand_ops=1, rand_strength=1.0)
    base = Augment(PRE, ("left", "right"), True, {"left": "right", "right": "left"})
    tame, free = ClipAugment(base, settings, 2, turning=False), ClipAugment(base, settings, 2, turning=True)
    assert set(tame._pool) == set(OPERATIONS.values())
    assert set(free._pool) == set(ALL.values())


def test_the_same_seed_gives_the_same_clips() -> None:
    settings = FinetuneConfig(rand_ops=2, mixup=0.2, cutmix=1.0)
    augment = ClipAugment(Augment(PRE, ("a", "b"), True, {}), settings, 2, turning=True)
    clips = _clip().expand(6, -1, -1, -1, -1)
    one, other = (augment(clips, torch.tensor([0, 1] * 3), _generator(7)) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], augment(clips, torch.tensor([0, 1] * 3), _generator(8))[0])


def test_without_settings_it_is_the_plain_augmentation() -> None:
    base = Augment(PRE, ("a", "b"), True, {})
    clips, labels = _clip().expand(2, -1, -1, -1, -1), torch.tensor([0, 1])
    plain, ours = (
        base(clips, labels, _generator()),
        ClipAugment(base, FinetuneConfig(), 2, True)(clips, labels, _generator()),
    )
    assert torch.equal(plain[0], ours[0])
    assert torch.equal(plain[1], ours[1])


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_mixing_keeps_the_sum_of_labels_and_mixes_all_frames_alike(mix: object) -> None:
    values = torch.arange(1.0, 7.0)
    clips = values[:, None, None, None, None].expand(6, 4, 3, 20, 30)  # each clip is one number
    labels = torch.eye(6)
    for seed in range(20):
        mixed, targets = mix(clips, labels, 1.0, _generator(seed))  # type: ignore[operator]
        assert torch.allclose(targets.sum(1), torch.ones(6))
        assert torch.equal(mixed, mixed[:, :1, :1].expand(6, 4, 3, 20, 30))  # the same in every frame and channel
        # The mean pixel is the mean of the two clips by their shares: labels tell the truth about the area.
        assert torch.allclose(mixed.mean((1, 2, 3, 4)), targets @ values, atol=1e-4)


def test_labels_become_soft_only_where_needed() -> None:
    assert torch.equal(soft(torch.tensor([1, 0]), 3), torch.tensor([[0.0, 1, 0], [1, 0, 0]]))
    many = torch.tensor([[1.0, 1.0, 0.0]])
    assert soft(many, 3) is many


def test_a_mirror_swaps_left_and_right_among_many_labels() -> None:
    augment = Augment(PRE, ("cat", "left", "right"), True, {"left": "right", "right": "left"})
    labels = torch.tensor([[1.0, 1.0, 0.0]] * 40)
    _, seen = augment(_clip(1).expand(40, -1, -1, -1, -1), labels, _generator())
    rows = {tuple(row.tolist()) for row in seen}
    assert rows == {(1.0, 1.0, 0.0), (1.0, 0.0, 1.0)}
