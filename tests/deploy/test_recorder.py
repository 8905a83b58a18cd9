"""What the annotated video is made of, who can play it, and what is left of it when things go wrong."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.camera import run_camera
from deploy.recorder import codec_line, open_recorder
from deploy.sinks import VideoSink
from tests.deploy.cameras import BrightnessSession, make_bundle, write_video
from toolkit.errors import UserError
from toolkit.video import read_frames

av = pytest.importorskip("av")
ROOT = Path(__file__).parents[2]


def _codec(path: Path) -> str:
    """As FFmpeg names it."""
    with av.open(str(path)) as container:
        return str(container.streams.video[0].codec_context.name)


def _frames(path: Path) -> int:
    return sum(1 for _ in read_frames(path))


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mp4", "h264"), (".mov", "h264"), (".m4v", "h264"), (".mkv", "h264"), (".webm", "vp9"), (".avi", "mjpeg")],
)
def test_what_is_written_is_what_is_said(
    tmp_path: Path, suffix: str, codec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out{suffix}"
    summary = run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), BrightnessSession(), [VideoSink(out)])
    assert (summary.out, summary.codec, _codec(out)) == (str(out), codec, codec)
    assert _frames(out) == 30
    assert capfd.readouterr().err == ""


def test_a_finished_mp4_is_a_plain_one_that_knows_its_length(tmp_path: Path) -> None:
    """Browsers show the length of a fragmented one wrongly."""
    out = tmp_path / "out.mp4"
    run_camera(str(write_video(tmp_path / "v.avi")), make_bundle(), BrightnessSession(), [VideoSink(out)])
    data = out.read_bytes()
    assert b"moof" not in data[data.index(b"moov") :]
    with av.open(str(out)) as container:
        assert (container.streams.video[0].frames, container.duration) == (30, 2_000_000)


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "mpeg4"), (".mkv", "mpeg4"), (".webm", "vp9")])
def test_without_pyav_opencv_writes_and_the_line_says_so(
    tmp_path: Path, suffix: str, codec: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name == "av" or name.startswith("av.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)
    out = tmp_path / f"out{suffix}"
    source = str(write_video(tmp_path / "v.avi", frames=6))
    summary = run_camera(source, make_bundle(), BrightnessSession(), [VideoSink(out)])
    assert (summary.codec, _frames(out)) == (codec, 6)
    assert ("too long for a live camera" in capfd.readouterr().err) == (suffix == ".webm")
    assert ("browsers do not play" in codec_line(codec)) == (codec == "mpeg4")


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_survive_in_pictures_of_every_height(tmp_path: Path, suffix: str) -> None:
    for rows in (480, 720):
        picture = np.empty((rows, 1280, 3), np.uint8)
        picture[:, :640], picture[:, 640:] = (30, 60, 220), (200, 120, 40)
        path = tmp_path / f"{rows}{suffix}"
        recorder = open_recorder(path, 29.97, (1280, rows))
        for _ in range(3):
            recorder.write(picture)
        recorder.close()
        _, seen = next(read_frames(path))
        assert np.abs(seen[rows // 2, [100, 1000]].astype(int) - [(30, 60, 220), (200, 120, 40)]).max() <= 6
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.colorspace == 5  # BT.601, whatever the height


_KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from deploy.sinks import Look, VideoSink
sink = VideoSink(Path(sys.argv[1]))
sink.start(25.0)
for index in range(160):
    picture = np.full((96, 128, 3), 90, np.uint8)
    picture[:, index % 120 : index % 120 + 4] = 200
    sink.put(picture, Look(index, index / 25, 1, ("a",), None, 0.0))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_a_killed_process_leaves_all_but_the_last_two_seconds_to_be_played(tmp_path: Path, suffix: str) -> None:
    command = [sys.executable, "-P", "-c", _KILLED, str(tmp_path / f"door{suffix}")]
    done = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    (part,) = tmp_path.iterdir()
    assert part.name.startswith("door.partial-")
    assert part.stat().st_mode & 0o777 == 0o644
    assert _frames(part) >= 110


def test_a_full_disk_ends_the_loop_with_what_is_on_it_kept(tmp_path: Path) -> None:
    """No file may grow beyond a limit, which the system tells as it tells a full disk."""

    class Noisy(VideoSink):
        def put(self, picture: np.ndarray | None, look: object) -> bool:
            noise = np.random.default_rng(look.frame).integers(0, 255, (240, 320, 3), np.uint8)  # type: ignore[attr-defined]
            return super().put(noise, look)  # type: ignore[arg-type]

    out, session = tmp_path / "out" / "door.mp4", BrightnessSession()
    source = str(write_video(tmp_path / "v.avi", frames=300))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
    try:
        with pytest.raises(UserError, match=r"^cannot write .*door.*: the file is larger.* holds the video so far\)$"):
            run_camera(source, make_bundle(), session, [Noisy(out)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < len(session.seen) < 150  # told at once, not after hours
    (part,) = out.parent.iterdir()
    assert _frames(part) > 0
