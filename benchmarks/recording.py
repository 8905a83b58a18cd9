"""What writing the camera's annotated video costs a picture, on one core: PyAV's encoders beside OpenCV's.

    taskset -c 0 python -m benchmarks.recording

Real footage scaled to 640x480, with sensor noise, under the overlay (640x580): every writer gets the same picture in
turn. Afterwards each file is decoded and compared with what went in.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from benchmarks.common import save
from deploy.overlay import Overlay, Scene
from deploy.recorder import Recorder, _OpenCV, open_recorder
from toolkit.cv import opencv
from toolkit.video import read_frames

FOOTAGE = Path(__file__).resolve().parents[1] / "toolkit" / "assets" / "footage"
FPS, COUNT = 25.0, 75
Picture = npt.NDArray[np.uint8]
COLUMNS = ["file", "written by", "format", "ms a picture, mean", "slowest", "times OpenCV's .mp4", "Mbit/s", "PSNR, dB",
           "browsers"]  # fmt: skip


def pictures() -> list[Picture]:
    """Annotated pictures (580, 640, 3) of real footage."""
    cv2, rng = opencv(), np.random.default_rng(0)
    overlay = Overlay(["still", "towards", "away"], "demo litert fp32 on cpu")
    history: list[tuple[int, float]] = []
    made: list[Picture] = []
    clips = (read_frames(path) for path in sorted(FOOTAGE.glob("test-*.mp4")))
    for stamp_s, frame in itertools.islice(itertools.chain.from_iterable(clips), COUNT):
        wide = cv2.resize(frame, (640, 480))
        noisy = np.clip(wide + rng.normal(0, 3, wide.shape), 0, 255).astype(np.uint8)
        share = rng.dirichlet([3, 1, 1]).astype(np.float32)
        history.append((int(share.argmax()), float(share.max())))
        scene = Scene(share, tuple(history[-240:]), {"infer": 3.2}, fps=FPS, stamp_s=stamp_s, live=True)
        made.append(overlay.draw(noisy, scene))
    return made


def written(shown: list[Picture], folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Processor seconds of each write, and the files."""
    size = (shown[0].shape[1], shown[0].shape[0])
    kinds: dict[str, Callable[[Path, float, tuple[int, int]], Recorder]] = {"OpenCV": _OpenCV, "PyAV": open_recorder}
    writers: dict[tuple[str, str], Recorder] = {}
    for by, suffixes in (("OpenCV", (".mp4", ".avi", ".webm")), ("PyAV", (".mp4", ".webm"))):
        for suffix in suffixes:
            writers[suffix, by] = kinds[by](folder / f"{by}{suffix}", FPS, size)
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in writers}
    for picture in shown:
        for key, writer in writers.items():
            begin = time.process_time()
            writer.write(picture)
            samples[key].append(1000 * (time.process_time() - begin))
    for key, writer in writers.items():  # what an encoder has put off is done now
        begin = time.process_time()
        writer.close()
        samples[key].append(1000 * (time.process_time() - begin))
    return {
        (suffix, by): {"ms": samples[suffix, by], "codec": writer.codec, **_judged(folder / f"{by}{suffix}", shown)}
        for (suffix, by), writer in writers.items()
    }


def _judged(path: Path, shown: list[Picture]) -> dict[str, Any]:
    seen = [frame for _, frame in read_frames(path)]
    assert len(seen) == len(shown), path
    error = np.mean([np.square(a.astype(np.float32) - b).mean() for a, b in zip(shown, seen, strict=True)])
    bits = 8 * path.stat().st_size / len(shown) * FPS
    return {"mbit_s": bits / 1e6, "psnr_db": float(10 * np.log10(255**2 / error))}


def main() -> None:
    """Measure and save."""
    opencv().setNumThreads(1)
    shown = pictures()
    with tempfile.TemporaryDirectory() as folder:
        found = written(shown, Path(folder))
    base = sum(found[".mp4", "OpenCV"]["ms"])
    rows = []
    for (suffix, by), row in found.items():
        spent = sum(row["ms"])
        played = "yes" if row["codec"] in ("h264", "vp9") else "no"
        slowest = max(row["ms"][:-1])
        rows.append([suffix, by, row["codec"], f"{spent / len(shown):.1f}", f"{slowest:.0f}", f"{spent / base:.1f}",
                     f"{row['mbit_s']:.1f}",
                     f"{row['psnr_db']:.1f}", played])  # fmt: skip
    caption = (
        f"{len(shown)} annotated pictures of {shown[0].shape[1]}x{shown[0].shape[0]} at {FPS:g} frames/s, one thread, "
        f"processor time with the share of finishing the file, interleaved; PyAV {av.__version__}, "
        f"OpenCV {opencv().__version__}."
    )
    data = {f"{by} {suffix}": row for (suffix, by), row in found.items()}
    print(save("recording", caption, COLUMNS, rows, data))


if __name__ == "__main__":
    main()
