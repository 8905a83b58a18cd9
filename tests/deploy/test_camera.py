"""The camera loop over real files and a real network stream; only the model is a double."""

import io
import json
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploy.camera import CameraOptions, CameraSummary, run_camera
from deploy.capture import open_source
from deploy.sinks import EventSink, VideoSink, WindowSink
from tests.deploy.cameras import BrightnessSession, make_bundle, mjpeg_camera, write_video
from toolkit.errors import BundleError, UnavailableDevice, UserError
from toolkit.video import read_pictures

QUICK = CameraOptions(open_timeout_s=2, stall_timeout_s=0.5, reconnect_s=0)


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def _frames(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.read()[0]:
        count += 1
    return count


@pytest.mark.parametrize("fps", [5.0, 10.0, 15.0, 40.0])
def test_the_model_sees_exactly_the_pictures_of_training(tmp_path: Path, fps: float) -> None:
    video, bundle, session = write_video(tmp_path / "v.avi"), make_bundle(fps), BrightnessSession()
    summary = run_camera(str(video), bundle, session)
    preprocess = bundle.manifest.preprocess
    expected = preprocess.normalise(read_pictures(video, preprocess))
    assert np.array_equal(np.stack(session.seen), expected)
    assert summary.steps == len(expected)


def test_a_run_begins_from_zero_state(tmp_path: Path) -> None:
    session = BrightnessSession()
    run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), session)
    assert session.resets == 1


def test_every_stage_is_timed_and_the_summary_is_json(tmp_path: Path) -> None:
    summary = run_camera(
        str(write_video(tmp_path / "v.avi")), make_bundle(), BrightnessSession(), [VideoSink(tmp_path / "out.avi")]
    )
    assert set(summary.stages) == {"capture", "preprocess", "infer", "postprocess", "draw", "output"}
    assert all(0 <= timing.p50_ms <= timing.p95_ms for timing in summary.stages.values())
    assert summary.stages["infer"].count == summary.steps == 20
    assert json.loads(json.dumps(summary.as_dict()))["frames"] == 30
    assert (summary.ended, summary.live, summary.dropped) == ("end", False, 0)


def test_events_follow_the_light(tmp_path: Path) -> None:
    stream = io.StringIO()
    run_camera(
        str(write_video(tmp_path / "v.avi")),
        make_bundle(),
        BrightnessSession(),
        [EventSink(stream)],
        CameraOptions(window=1),
    )
    labels = [event["label"] for event in _lines(stream)]
    assert labels == ["dark"] * 10 + ["bright"] * 10
    assert _lines(stream)[0].keys() == {"frame", "t_s", "label", "confidence", "probabilities", "infer_ms"}


def test_a_window_smooths_the_answer_and_only_changes_can_be_asked_for(tmp_path: Path) -> None:
    changes = {}
    for window in (1, 6):
        stream = io.StringIO()
        options = CameraOptions(window=window)
        session = BrightnessSession()
        source = str(write_video(tmp_path / "v.avi"))
        run_camera(source, make_bundle(), session, [EventSink(stream, changes=True)], options)
        first, second = _lines(stream)
        assert (first["label"], second["label"]) == ("dark", "bright")
        changes[window] = float(str(second["t_s"]))
    assert changes[6] > changes[1]


def test_answers_during_warm_up_are_not_reported(tmp_path: Path) -> None:
    stream = io.StringIO()
    session = BrightnessSession(warmup=4)
    summary = run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), session, [EventSink(stream)])
    assert len(_lines(stream)) == summary.steps - 4


@pytest.mark.parametrize("name", ["out.mp4", "out.avi", "out.mkv", "out.webm"])
def test_the_annotated_video_has_every_frame_and_nothing_is_left_beside_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "results"
    out = folder / name
    summary = run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), BrightnessSession(), [VideoSink(out)])
    assert summary.out == str(out)
    assert [file.name for file in folder.iterdir()] == [name]
    assert _frames(out) == 30


def test_frame_and_time_limits_end_the_loop(tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "v.avi"))
    by_frames = run_camera(video, make_bundle(), BrightnessSession(), options=CameraOptions(frames=7))
    by_time = run_camera(video, make_bundle(), BrightnessSession(), options=CameraOptions(duration_s=1.0))
    assert (by_frames.frames, by_frames.ended) == (7, "frames")
    assert (by_time.frames, by_time.ended) == (15, "duration")
    for nonsense in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="give seconds above 0"):
            run_camera(video, make_bundle(), BrightnessSession(), options=CameraOptions(duration_s=nonsense))


def test_ctrl_c_finishes_the_video_and_returns_a_summary(tmp_path: Path) -> None:
    out = tmp_path / "out.avi"
    session = BrightnessSession(interrupt_at=5)
    summary = run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), session, [VideoSink(out)])
    assert summary.ended == "interrupt"
    assert _frames(out) == summary.frames > 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.avi", "v.avi"]


def test_a_reader_that_went_away_ends_the_loop(tmp_path: Path) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    summary = run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), BrightnessSession(), [EventSink(Gone())])
    assert (summary.ended, summary.frames) == ("quit", 1)


def test_a_file_in_real_time_drops_what_the_model_cannot_follow(tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "v.avi", frames=30, fps=60))
    session = BrightnessSession(delay_s=0.05)
    summary = run_camera(video, make_bundle(fps=60), session, options=CameraOptions(realtime=True))
    assert summary.ended == "end"
    assert summary.live
    assert summary.dropped > 0
    assert summary.frames + summary.dropped == 30
    assert "latency" in summary.stages


def test_a_network_camera_that_stops_is_an_error_after_the_video_was_finished(tmp_path: Path) -> None:
    out = tmp_path / "out.avi"
    session = BrightnessSession()
    with mjpeg_camera(frames=20) as url, pytest.raises(UnavailableDevice, match="stopped") as caught:
        run_camera(url, make_bundle(), session, [VideoSink(out)], QUICK)
    assert "secret" not in str(caught.value)
    assert str(out) in str(caught.value)
    assert session.seen
    assert _frames(out) > 0


def test_a_network_camera_that_falls_silent_is_an_error_too(tmp_path: Path) -> None:
    with mjpeg_camera(frames=20, hold=True) as url, pytest.raises(UnavailableDevice, match="stopped"):
        run_camera(url, make_bundle(), BrightnessSession(), options=QUICK)


def test_a_live_source_gives_the_newest_frame_and_counts_the_rest() -> None:
    with mjpeg_camera(frames=40, pause_s=0.01) as url:
        session = BrightnessSession(delay_s=0.06)
        options = CameraOptions(frames=4, open_timeout_s=2, stall_timeout_s=0.5)
        summary = run_camera(url, make_bundle(fps=30), session, options=options)
    assert summary.ended == "frames"
    assert summary.dropped > 0
    assert "secret" not in summary.source


def test_an_unreachable_stream_times_out_with_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"rtsp://user:secret@127.0.0.1:{silent.getsockname()[1]}/cam"
        with pytest.raises(UserError, match=r"rtsp://\*\*\*@127.*does not open within 0.5 s: check") as caught:
            run_camera(url, make_bundle(), BrightnessSession(), options=CameraOptions(open_timeout_s=0.5))
    assert "secret" not in str(caught.value)


def test_a_camera_that_is_not_there_is_named_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"camera 97 does not open: .*camera"):
        open_source("97")


@pytest.mark.parametrize("source", ["nothing.mp4", "", "."])
def test_a_source_that_is_nothing_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no camera index, no URL and no file"):
        open_source(source)


def test_a_file_that_is_no_video_leaves_no_output(tmp_path: Path) -> None:
    (tmp_path / "v.avi").write_bytes(b"not a video" * 50)
    with pytest.raises(UserError, match=r"v\.avi cannot be read"):
        run_camera(str(tmp_path / "v.avi"), make_bundle(), BrightnessSession(), [VideoSink(tmp_path / "out.mp4")])
    assert [file.name for file in tmp_path.iterdir()] == ["v.avi"]


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.avi")
    with pytest.raises(UserError, match="it is the video being played"):
        run_camera(str(video), make_bundle(), BrightnessSession(), [VideoSink(tmp_path / "." / "v.avi")])
    assert _frames(video) == 30


def test_an_older_result_survives_a_run_that_fails(tmp_path: Path) -> None:
    out = tmp_path / "out.avi"
    out.write_text("older")
    (tmp_path / "v.avi").write_bytes(b"not a video")
    with pytest.raises(UserError):
        run_camera(str(tmp_path / "v.avi"), make_bundle(), BrightnessSession(), [VideoSink(out)])
    assert out.read_text() == "older"


@pytest.mark.parametrize(("name", "words"), [("out.gif", "unknown kind of video"), ("folder.mp4", "it is a folder")])
def test_a_bad_output_name_is_refused_before_anything_runs(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    session = BrightnessSession()
    with pytest.raises(UserError, match=words):
        run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), session, [VideoSink(tmp_path / name)])
    assert not session.seen


def test_a_video_that_lost_frames_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VideoSink, "_complete", lambda self, path: False)  # as after a full disk
    with pytest.raises(UserError, match="free some disk space"):
        run_camera(
            str(write_video(tmp_path / "v.avi")), make_bundle(), BrightnessSession(), [VideoSink(tmp_path / "o.avi")]
        )
    assert [file.name for file in tmp_path.iterdir()] == ["v.avi"]


def test_a_truncated_output_is_noticed(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "o.mp4")
    whole = write_video(tmp_path / "v.avi")
    sink._written = 30
    assert sink._complete(whole)
    whole.write_bytes(whole.read_bytes()[:2000])
    assert not sink._complete(whole)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="screens are announced by DISPLAY on Linux only")
def test_a_window_without_a_screen_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UserError, match=r"no screen.*--out FILE.mp4 or --headless"):
        run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), BrightnessSession(), [WindowSink()])


def test_a_window_with_the_headless_opencv_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", refuse)
    with pytest.raises(UserError, match=r"opencv-python.*--headless"):
        WindowSink().start(30)


def test_a_bundle_whose_labels_do_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="3 labels for 2 classes"):
        run_camera("0", make_bundle(labels=("a", "b", "c")), BrightnessSession())


def test_a_summary_is_frozen(tmp_path: Path) -> None:
    summary = run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), BrightnessSession())
    assert isinstance(summary, CameraSummary)
    with pytest.raises(AttributeError):
        summary.frames = 0  # type: ignore[misc]
