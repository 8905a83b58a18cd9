"""One set of weights, two forms: the clip form equals the step form run frame by frame."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.recipe import StudentConfig
from train.models.student import StreamStudent, build_student

FRAME = (3, 40, 56)


def _roll(model: StreamStudent, clip_BTCHW: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, K) of the step form, from zero state."""
    states = [torch.zeros(clip_BTCHW.shape[0], *spec.shape) for spec in model.contract().states]
    answers = []
    for frame in clip_BTCHW.unbind(1):
        logits, states = model.step(frame, states)
        answers.append(logits)
    return torch.stack(answers, 1)


def _awake(model: StreamStudent) -> StreamStudent:
    """Weights large enough that the temporal modules matter."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.2)
    return model.eval()


CONFIGS = [
    StudentConfig(width=0.25, temporal=temporal, activation=activation, readout=readout, blocks=blocks)
    for temporal in ("shift", "conv", "none")
    for activation, readout, blocks in (("relu6", "average", None), ("hardswish", "motion", 7))
] + [StudentConfig(width=0.25, temporal="none", look_back=True)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.temporal}-{c.activation}-{c.readout}-{c.look_back}")
def test_the_clip_form_equals_the_step_form(config: StudentConfig) -> None:
    model = _awake(build_student(config, 5, FRAME, 6))
    clip = torch.randn(2, 6, *FRAME)
    with torch.no_grad():
        worst = (model(clip) - _roll(model, clip)).abs().max().item()
    assert worst < 1e-4


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.temporal != "none" or c.readout == "motion" or c.look_back])
def test_the_past_changes_the_answer(config: StudentConfig) -> None:
    model = _awake(build_student(config, 5, FRAME, 6))
    clip = torch.randn(1, 6, *FRAME)
    other = clip.clone()
    other[:, :-1] = torch.randn(1, 5, *FRAME)
    with torch.no_grad():
        assert (model(clip)[:, -1] - model(other)[:, -1]).abs().max() > 1e-3


def test_the_single_frame_control_cannot_see_the_past() -> None:
    model = _awake(build_student(StudentConfig(width=0.25, temporal="none"), 5, FRAME, 6))
    clip = torch.randn(1, 6, *FRAME)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), model(clip.flip(1)).flip(1))


@pytest.mark.parametrize("config", CONFIGS[:5])
def test_the_future_never_changes_the_answer(config: StudentConfig) -> None:
    model = _awake(build_student(config, 5, FRAME, 6))
    clip = torch.randn(1, 6, *FRAME)
    other = clip.clone()
    other[:, 4:] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(clip)[:, :4], model(other)[:, :4])


@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(1, 3),
    frames=st.integers(1, 5),
    width=st.sampled_from([0.25, 0.35]),
    depth=st.sampled_from([0.5, 1.0]),
)
def test_a_batch_of_streams_equals_the_streams_alone(batch: int, frames: int, width: float, depth: float) -> None:
    model = _awake(build_student(StudentConfig(width=width, depth=depth), 3, (3, 32, 32), 4))
    clip = torch.randn(batch, frames, 3, 32, 32)
    with torch.no_grad():
        alone = torch.cat([model(single[None]) for single in clip])
        torch.testing.assert_close(model(clip), alone, atol=1e-4, rtol=1e-4)


def test_the_contract_names_the_states_that_step_returns() -> None:
    for config in CONFIGS:
        model = build_student(config, 5, FRAME, 6).eval()
        contract = model.contract()
        states = [torch.zeros(1, *spec.shape) for spec in contract.states]
        with torch.no_grad():
            _, following = model.step(torch.zeros(1, *FRAME), states)
        assert [tuple(state.shape[1:]) for state in following] == [spec.shape for spec in contract.states]


def test_width_and_depth_scale_the_student() -> None:
    def size(**scale: float) -> int:
        model = build_student(StudentConfig.model_validate(scale), 2, (3, 32, 32), 4)
        return sum(parameter.numel() for parameter in model.parameters())

    assert size(width=0.25) < size(width=0.5) < size(width=1.0)
    assert size(width=0.5, depth=0.5) < size(width=0.5)
