"""Motion computed from pixels, and the attributes asked of it, on squares whose motion is known."""

import math

import pytest
import torch
from torch import Tensor

from tests.train.test_objectives import batch_of, vit
from toolkit.errors import UserError
from train.objectives import attributes
from train.objectives.motion import direction_class, motion_of

VELOCITIES = [(2, 0), (2, 2), (0, 2), (-2, 2), (-2, 0), (-2, -2), (0, -2), (2, -2)]


def square(dx: int, dy: int, side: int = 48, frames: int = 8) -> Tensor:
    """(1, 3, T, side, side): a textured square on a textured ground, moving by (dx, dy) pixels a frame."""
    generator = torch.Generator().manual_seed(0)
    ground = torch.rand(3, side, side, generator=generator) * 0.4 - 0.8
    thing = torch.rand(3, 14, 14, generator=generator) * 0.4 + 0.4
    clip = ground[:, None].repeat(1, frames, 1, 1)
    for t in range(frames):
        y, x = ((side - 14) // 2 + int(d * (t - frames / 2)) for d in (dy, dx))
        clip[:, t, y : y + 14, x : x + 14] = thing
    return clip[None]


@pytest.mark.parametrize(("sector", "velocity"), enumerate(VELOCITIES))
def test_a_square_moves_the_way_it_was_moved(sector: int, velocity: tuple[int, int]) -> None:
    motion = motion_of(square(*velocity))
    assert int(direction_class(motion, 8, 0.01)) == sector
    assert motion.speed.item() == pytest.approx(math.hypot(*velocity), abs=0.35)
    assert 0.05 < motion.share.item() < 0.35


def test_played_backwards_it_moves_the_other_way_and_turned_it_turns() -> None:
    clip = square(2, 0)
    sectors = [direction_class(motion_of(c), 4, 0.01).item() for c in (clip, clip.flip(2), clip.rot90(-1, (3, 4)))]
    assert sectors == [0, 2, 1]


def test_noise_and_changes_of_light_are_no_motion() -> None:
    still = square(0, 0)
    noisy = still + 0.02 * torch.randn(still.shape, generator=torch.Generator().manual_seed(0))
    light = still + torch.linspace(0, 0.3, 8)[:, None, None]
    for clip in (still, noisy, light):
        motion = motion_of(clip)
        assert motion.share.item() == 0
        assert motion.speed.item() == 0
        assert int(direction_class(motion, 8, 0.0)) == -1


def test_two_squares_apart_have_no_common_direction() -> None:
    both = torch.cat([square(2, 0), square(-2, 0)], 4)
    assert int(direction_class(motion_of(both), 8, 0.01)) == -1


def _ask(*asks: str, **settings: object) -> attributes.Attributes:
    config = attributes.Config.model_validate({"asks": asks, **settings})
    return attributes.build(vit(), config, (3, 4, 16, 16))


def test_the_labels_describe_the_clip_as_it_is_played() -> None:
    model = _ask("direction", "magnitude", "arrow", "speed")
    clips = square(3, 0).expand(64, -1, -1, -1, -1)
    shown, labels = model.pose(clips, torch.Generator().manual_seed(0))
    for index in range(64):
        way = ("forwards", "backwards")[labels["arrow"][index]] if labels["arrow"][index] >= 0 else (
            ("slow", "fast")[labels["speed"][index]])  # fmt: skip
        assert torch.equal(shown[index], attributes.played(clips[index], way))  # type: ignore[arg-type]
    assert ((labels["arrow"] >= 0) ^ (labels["speed"] >= 0)).all(), "a clip there and back has no arrow of time"
    assert set(labels["direction"][labels["arrow"] == 0].tolist()) == {0}
    assert set(labels["direction"][labels["arrow"] == 1].tolist()) == {4}
    assert set(labels["direction"][labels["arrow"] < 0].tolist()) == {-1}
    assert len(set(labels["arrow"].tolist())) == len(set(labels["speed"].tolist())) == 3


def test_more_motion_is_a_higher_class_of_magnitude() -> None:
    model = _ask("magnitude")
    clips = torch.cat([square(0, 0), square(1, 0), square(3, 0)])
    _, labels = model.pose(clips, torch.Generator())
    none, little, much = labels["magnitude"].tolist()
    assert none == 0
    assert none < little < much


def test_a_metadata_column_is_learnt_and_rows_without_it_do_not_count() -> None:
    torch.manual_seed(0)
    model = _ask(columns={"scene": 3})
    clips = torch.rand(4, 1, 3, 4, 16, 16)
    generator = torch.Generator()
    some, all_same = (
        model(clips, generator, batch_of(clips, scene=torch.tensor(column)))["loss"]
        for column in ([2, -1, 0, -1], [2, 2, 0, 0])
    )
    alone = model(clips[[0, 2]], generator, batch_of(clips[[0, 2]], scene=torch.tensor([2, 0])))["loss"]
    assert some.item() == pytest.approx(alone.item(), rel=1e-5)
    assert some.item() != pytest.approx(all_same.item(), rel=1e-5)
    nothing = model(clips, generator, batch_of(clips, scene=torch.tensor([-1] * 4)))["loss"]
    nothing.backward()
    assert nothing.item() == 0
    assert all(p.grad is not None for p in model.heads.parameters()), "every process has gradients to share"


def test_a_column_that_is_not_there_or_has_more_classes_is_a_clear_error() -> None:
    clips = torch.rand(2, 1, 3, 4, 16, 16)
    with pytest.raises(UserError, match="the data have no column 'scene'; there are: weather"):
        _ask(columns={"scene": 3})(clips, torch.Generator(), batch_of(clips, weather=torch.tensor([0, 1])))
    with pytest.raises(UserError, match="but the data hold class 3: raise it"):
        _ask(columns={"scene": 3})(clips, torch.Generator(), batch_of(clips, scene=torch.tensor([0, 3])))
