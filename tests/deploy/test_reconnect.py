"""A stream that is lost comes back by itself: real servers on the loopback that end, return, or stay away."""

import functools
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from deploy import capture, reconnect
from deploy.camera import CameraOptions, run_camera
from deploy.newest import Feed
from deploy.reconnect import Patience, Reconnecting
from deploy.sinks import EventSink, Look, VideoSink
from deploy.source import Grabbed, Lost
from tests.deploy.cameras import BrightnessSession, make_bundle, mjpeg_camera, network_camera, picture, write_video
from toolkit.errors import UnavailableDevice, UserError
from toolkit.video import read_frames

ROOT = Path(__file__).parents[2]


@pytest.fixture
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempt comes after 0.1 to 0.2 s instead of 1 to 2."""
    monkeypatch.setattr(capture, "Patience", functools.partial(Patience, first_s=0.2))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def _camera_that(port: int, away_s: float | None, frames: int = 20) -> Iterator[str]:
    """Gives ``frames``, ends, and is back ``away_s`` later for as long as it is watched (None: never)."""
    over, listening = threading.Event(), threading.Event()

    def serve() -> None:
        with network_camera(frames, port=port) as (_, served):
            listening.set()
            assert served.wait(10)
        if away_s is not None and not over.wait(away_s):
            with mjpeg_camera(5_000, port=port):
                over.wait()

    thread = threading.Thread(target=serve)
    thread.start()
    assert listening.wait(5)
    try:
        yield f"http://user:secret@127.0.0.1:{port}/video"
    finally:
        over.set()
        thread.join()


@contextmanager
def _mute_server(port: int) -> Iterator[None]:
    """Takes every connection and says nothing."""
    with socket.create_server(("127.0.0.1", port)):
        yield


def _options(**changes: float | int | None) -> CameraOptions:
    return CameraOptions(**{"open_timeout_s": 2, "stall_timeout_s": 0.5, "reconnect_s": 20, **changes})  # type: ignore[arg-type]


@pytest.mark.usefixtures("_eager")
def test_a_stream_that_returns_goes_on_and_warms_up_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session, stream, out = BrightnessSession(warmup=3), io.StringIO(), tmp_path / "out.mp4"
    with _camera_that(_free_port(), away_s=1.5) as url:
        summary = run_camera(url, make_bundle(), session, [EventSink(stream), VideoSink(out)], _options(frames=60))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (summary.ended, summary.frames, summary.losses) == ("frames", 60, 1)
    assert session.resets == 2
    assert len({event["frame"] for event in events}) <= summary.steps - 2 * 3  # both times three answers are kept back
    assert summary.skipped_steps < 10 * summary.lost_s / 2  # what could not be seen is not owed (10 steps a second)
    assert 1.5 < summary.lost_s < summary.seconds
    stamps = [event["t_s"] for event in events]
    assert stamps == sorted(stamps)  # one clock through the gap
    assert max(np.diff(stamps)) > summary.lost_s
    seconds = len(list(read_frames(out))) / 25
    assert seconds == pytest.approx(summary.seconds - summary.lost_s, abs=0.7)  # the gap is left out of the file
    said = capfd.readouterr().err
    assert "secret" not in said
    lines = [line for line in said.splitlines() if line.startswith("http://***@")]  # FFmpeg may say something too
    assert len(lines) == 2, lines
    assert lines[0].endswith(" frames; trying to reach it again for 20 s")
    assert "/video is lost: it ended after " in lines[0]
    assert "/video is back after " in lines[1]


@pytest.mark.usefixtures("_eager")
def test_a_stream_that_stays_away_ends_the_loop_after_the_video_was_finished(tmp_path: Path) -> None:
    out, began = tmp_path / "out.avi", time.monotonic()
    with (
        _camera_that(_free_port(), away_s=None) as url,
        pytest.raises(UnavailableDevice, match=r"ended after \d+ frames and did not come back within 1.5 s") as caught,
    ):
        run_camera(url, make_bundle(), BrightnessSession(), [VideoSink(out)], _options(reconnect_s=1.5))
    assert time.monotonic() - began < 6
    assert str(out) in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(list(read_frames(out))) > 0


@pytest.mark.usefixtures("_eager")
def test_the_time_limit_holds_while_a_stream_is_away() -> None:
    with _camera_that(_free_port(), away_s=None) as url:
        summary = run_camera(url, make_bundle(), BrightnessSession(), options=_options(duration_s=1.5))
    assert (summary.ended, summary.losses) == ("duration", 1)
    assert summary.lost_s == pytest.approx(1.5 - 20 * 0.02, abs=0.5)
    assert summary.seconds == pytest.approx(1.5, abs=0.5)


_WATCH = """
import json, signal, sys
signal.signal(signal.SIGTERM, signal.default_int_handler)
from deploy.camera import CameraOptions, run_camera
from tests.deploy.cameras import BrightnessSession, make_bundle
options = CameraOptions(open_timeout_s=20, stall_timeout_s=0.5, reconnect_s=float("inf"))
print(json.dumps(run_camera(sys.argv[1], make_bundle(), BrightnessSession(), options=options).as_dict()))
"""


@pytest.mark.parametrize(("sent", "mute"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_ctrl_c_and_sigterm_end_the_waiting_at_once(sent: signal.Signals, mute: bool) -> None:
    """With a mute server an attempt is held up inside FFmpeg, for up to 20 s."""
    port = _free_port()
    hearing = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # a suite in the background is deaf
    with network_camera(20, port=port) as (url, _):
        command = [sys.executable, "-P", "-c", _WATCH, url]
        child = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hearing,
                                 env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        assert child.stderr is not None
        lost = child.stderr.readline()
    try:
        with _mute_server(port) if mute else contextmanager(lambda: iter([None]))():
            time.sleep(2.5)  # the first attempt comes after 1 to 2 s
            child.send_signal(sent)
            told_s = time.monotonic()
            output, errors = child.communicate(timeout=30)
    finally:
        child.kill()
    assert time.monotonic() - told_s < 3
    assert (child.returncode, errors) == (0, "")
    assert "is lost" in lost
    assert "until it is back" in lost
    assert "secret" not in lost
    summary = json.loads(output)
    assert (summary["ended"], summary["frames"] + summary["dropped"], summary["losses"]) == ("interrupt", 20, 1)


@pytest.mark.usefixtures("_eager")
def test_a_sink_may_stop_the_loop_while_a_stream_is_away() -> None:
    class Closed(EventSink):
        def rest(self) -> bool:
            return False

    with _camera_that(_free_port(), away_s=None) as url:
        summary = run_camera(url, make_bundle(), BrightnessSession(), [Closed(io.StringIO())], _options())
    assert (summary.ended, summary.losses) == ("quit", 1)


def test_a_recording_that_ends_is_not_looked_for(tmp_path: Path) -> None:
    source = str(write_video(tmp_path / "v.avi", frames=6))
    for realtime in (False, True):
        options = CameraOptions(realtime=realtime, reconnect_s=float("inf"))
        summary = run_camera(source, make_bundle(), BrightnessSession(), options=options)
        assert (summary.ended, summary.losses, summary.lost_s) == ("end", 0, 0.0)


def test_patience_is_given_in_seconds(tmp_path: Path) -> None:
    source = str(write_video(tmp_path / "v.avi", frames=6))
    for nonsense in (-1.0, float("nan")):
        with pytest.raises(UserError, match="give seconds, 0 for no second attempt, or inf"):
            run_camera(source, make_bundle(), BrightnessSession(), options=CameraOptions(reconnect_s=nonsense))


def test_attempts_come_at_growing_bounded_and_unequal_distances() -> None:
    waits = [[Patience(600).wait_s(attempt) for _ in range(200)] for attempt in (0, 1, 2, 3, 4, 9, 5_000)]
    for row, (low, high) in zip(waits, [(1, 2), (2, 4), (4, 8), (8, 16), (15, 30), (15, 30), (15, 30)], strict=True):
        assert low <= min(row) < max(row) <= high
        assert max(row) - min(row) > 0.2 * low


class _Device:
    """A device that can vanish: each opening gives so many frames and ends (0: does not open), then ``after``."""

    def __init__(self, *openings: int, hang_s: float = 0) -> None:
        self.openings, self.hang_s, self.opened = list(openings), hang_s, 0

    def frames(self) -> Iterator[Grabbed]:
        self.opened += 1
        if self.opened > len(self.openings):
            time.sleep(self.hang_s)
            return
        for index in range(self.openings[self.opened - 1]):
            time.sleep(0.002)
            yield Grabbed(picture(index, 200), 0.0, time.perf_counter(), 0.1)

    def watched(self, patience: Patience, stall_s: float = 0.5) -> Reconnecting:
        return Reconnecting(Feed("camera 0", 30.0, self.frames()), self.frames, patience, 0.1, stall_s)


def test_a_device_that_flaps_is_not_asked_ever_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def wait_s(self: Patience, attempt: int) -> float:
        asked.append(attempt)
        return 0.01

    monkeypatch.setattr(Patience, "wait_s", wait_s)
    device = _Device(3, 0, 0, 2, 2, 0, 4)
    seen = []
    with pytest.raises(UnavailableDevice, match=r"camera 0 stopped: it ended after \d+ frames and did not"):
        for grabbed in device.watched(Patience(0.5)):
            seen.append(grabbed)
    assert asked[:6] == [0, 1, 2, 3, 4, 5]
    frames = [grabbed for grabbed in seen if isinstance(grabbed, Grabbed)]
    assert len(frames) + sum(grabbed.dropped for grabbed in frames) == 11
    stamps = [grabbed.stamp_s for grabbed in seen]
    assert stamps == sorted(stamps)
    monkeypatch.setattr(reconnect, "_STEADY_S", 0.0)  # every connection counts as one that held
    asked.clear()
    with pytest.raises(UnavailableDevice):
        list(_Device(3, 0, 2, 2).watched(Patience(0.3)))
    assert asked[:4] == [0, 1, 0, 0]


def test_a_device_whose_driver_hangs_ends_the_loop_instead_of_gathering_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconnect, "_STUCK_S", 0.3)
    before = threading.active_count()
    with pytest.raises(UnavailableDevice, match="its driver hangs; start again"):
        list(_Device(3, hang_s=3).watched(Patience(float("inf"), first_s=0.01), stall_s=0.1))
    assert threading.active_count() <= before + 1


def test_a_source_that_never_gave_a_frame_is_told_at_once() -> None:
    device = _Device(0, 5)
    with pytest.raises(UnavailableDevice, match="ended after 0 frames"):
        list(device.watched(Patience(60)))
    assert device.opened == 1


def test_many_losses_leave_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "_WORD_EVERY_S", 0.005)
    before = threading.active_count()
    device = _Device(*[1] * 30)
    words = list(_until_given_up(device.watched(Patience(0.4, first_s=0.001, most_s=0.002))))
    assert sum(isinstance(word, Lost) for word in words) >= 29
    assert threading.active_count() <= before


def _until_given_up(source: Reconnecting) -> Iterator[Grabbed | Lost]:
    try:
        yield from source
    except UnavailableDevice:
        source.close()


def test_an_error_of_ours_in_the_reader_is_not_taken_for_a_lost_stream() -> None:
    def broken() -> Iterator[Grabbed]:
        yield Grabbed(picture(0, 200), 0.0, time.perf_counter(), 0.1)
        raise ZeroDivisionError

    source = Reconnecting(Feed("camera 0", 30.0, broken()), broken, Patience(60), 0.1, 0.5)
    with pytest.raises(ZeroDivisionError):
        list(source)


def test_after_a_gap_the_same_label_is_news_again() -> None:
    stream = io.StringIO()
    sink = EventSink(stream, changes=True)
    share = np.asarray([0.1, 0.9], np.float32)
    look = Look(frame=0, stamp_s=0.0, steps=1, labels=("a", "b"), probabilities=share, infer_ms=1.0)
    for _ in range(2):
        sink.put(None, look)
    sink.rest()
    sink.put(None, look)
    assert len(stream.getvalue().splitlines()) == 2


def test_time_in_which_this_process_stood_still_is_a_gap_but_a_slow_model_is_none() -> None:
    def frames() -> Iterator[Grabbed]:
        for arrived_s in (0.0, 0.1, 3600.1, 3600.2):
            time.sleep(0.02)
            yield Grabbed(picture(0, 200), 0.0, arrived_s, 0.1)

    source = Reconnecting(Feed("camera 0", 30.0, frames()), frames, Patience(0.1), 0.1, 0.5)
    seen = list(itertools.islice(source, 5))
    source.close()
    assert [type(grabbed) for grabbed in seen] == [Grabbed, Grabbed, Lost, Grabbed, Grabbed]
    assert isinstance(seen[2], Lost)
    assert (seen[2].stamp_s, seen[2].since_s) == pytest.approx((3600.1, 3600.0))
    late = Grabbed(picture(0, 200), 0.0, 3600.2 + 6.0, 0.1, dropped=179)  # six seconds a step, 30 frames/s
    assert source._silence_s(late) == pytest.approx(6 / 180)


def test_a_link_to_a_camera_is_followed_anew_at_each_opening(tmp_path: Path) -> None:
    link = tmp_path / "usb-door-camera"
    link.symlink_to("/dev/video97")
    assert capture._index(str(link)) == 97
    with pytest.raises(UserError, match=r"camera .*usb-door-camera does not open"):
        capture.open_source(str(link))
    link.unlink()
    assert not capture._camera(str(link)).isOpened()
    link.symlink_to("/dev/video98")
    assert capture._index(str(link)) == 98
