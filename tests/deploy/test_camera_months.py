"""What a camera that runs for months meets: long memories, slow light, silences, passwords, hours on the clock."""

import io
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from deploy.camera import CameraOptions, CameraSummary, _Loop, run_camera
from deploy.capture import Grabbed, _without_password
from deploy.overlay import clock_text
from deploy.sinks import EventSink
from deploy.stages import KEPT, StageClock
from tests.deploy.cameras import BrightnessSession, make_bundle, picture, write_video
from toolkit.contract import Array
from toolkit.errors import ParityError


class _Scripted:
    """A live source whose frames come at given times: (stamp, frames skipped before it)."""

    name, live, fps = "scripted", True, 30.0

    def __init__(self, script: Sequence[tuple[float, int]]) -> None:
        self._script = script

    def __iter__(self) -> Iterator[Grabbed]:
        for index, (stamp_s, dropped) in enumerate(self._script):
            yield Grabbed(picture(index, 200), stamp_s, 0.0, 0.1, dropped)

    def close(self) -> None: ...


def _run(script: Sequence[tuple[float, int]], fps: float = 10.0) -> CameraSummary:
    source = _Scripted(script)
    loop = _Loop(make_bundle(fps), BrightnessSession(), (), CameraOptions())
    return loop.summary(source, loop.run(source))


def test_a_camera_that_slows_down_in_the_dark_repeats_frames_as_training_did() -> None:
    summary = _run([(0.2 * index, 0) for index in range(11)])  # 5 frames/s of the 30 that it promised
    assert (summary.steps, summary.skipped_steps) == (21, 0)


def test_a_slow_device_owes_no_more_than_a_step_a_frame() -> None:
    summary = _run([(0.2 * index, 5 * (index > 0)) for index in range(11)])
    assert (summary.steps, summary.skipped_steps) == (11, 10)


def test_after_a_silence_one_second_is_made_up_for() -> None:
    summary = _run([(0.0, 0), (4.0, 0)])
    assert (summary.steps, summary.skipped_steps) == (11, 30)


def test_showing_the_stage_times_costs_the_same_after_a_week() -> None:
    clock = StageClock()
    for index in range(KEPT + 7):
        clock.add("infer", float(index % 100))
    tracemalloc.start()
    try:
        shown = clock.recent()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert shown["infer"] == pytest.approx(np.mean([index % 100 for index in range(KEPT + 7)][-15:]))
    assert peak < 20_000


def test_a_recording_with_seconds_between_its_frames_plays_to_its_end(tmp_path: Path) -> None:
    video = write_video(tmp_path / "lapse.avi", frames=4, fps=2.0)
    options = CameraOptions(realtime=True, stall_timeout_s=0.2)
    summary = run_camera(str(video), make_bundle(), BrightnessSession(), options=options)
    assert (summary.ended, summary.frames) == ("end", 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "00:00.0"), (59.96, "01:00.0"), (59.94, "00:59.9"), (3599.97, "1:00:00"), (90_061.5, "25:01:01")],
)
def test_the_clock_never_shows_sixty_seconds(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://user:secret@cam/1", "rtsp://***@cam/1"),
        ("rtsp://user:sec@ret@cam/1@2", "rtsp://***@cam/1@2"),
        ("http://cam/v.cgi?user=admin&pwd=secret&q=5", "http://cam/v.cgi?user=admin&pwd=***&q=5"),
        ("http://cam/v?Token=secret", "http://cam/v?Token=***"),
        ("rtsp://cam/1", "rtsp://cam/1"),
    ],
)
def test_no_password_of_an_address_is_shown(url: str, shown: str) -> None:
    assert _without_password(url) == shown


class _Spoilt(BrightnessSession):
    """Answers from the fifth step on are no numbers, as of a device that has lost its mind."""

    def step(self, frame_BCHW: Array) -> Array:
        answer = super().step(frame_BCHW)
        return answer if len(self.seen) < 5 else np.full_like(answer, np.nan)


def test_answers_that_are_no_numbers_end_the_loop_and_are_never_written(tmp_path: Path) -> None:
    stream = io.StringIO()
    with pytest.raises(ParityError, match="double-fp32 answers with no numbers"):
        run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), _Spoilt(), [EventSink(stream)])
    assert len(stream.getvalue().splitlines()) == 4
    assert "NaN" not in stream.getvalue()
