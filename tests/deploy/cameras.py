"""Doubles for the camera's tests: a deterministic session, real video files, an MJPEG camera on the loopback."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from toolkit.bundle import Bundle, Manifest
from toolkit.contract import Array, Contract, Placement
from toolkit.preprocess import Preprocess

SIZE = (24, 32)


class BrightnessSession:
    """Answers ``bright`` for frames brighter than the mean of all pixels; remembers what it saw."""

    def __init__(self, warmup: int = 0, interrupt_at: int | None = None, delay_s: float = 0) -> None:
        self.contract = Contract(frame=(3, *SIZE), classes=2, warmup=warmup)
        self.seen: list[Array] = []
        self.resets = 0
        self._interrupt_at, self._delay_s = interrupt_at, delay_s

    def step(self, frame_BCHW: Array) -> Array:
        if self._interrupt_at is not None and len(self.seen) >= self._interrupt_at:
            raise KeyboardInterrupt
        time.sleep(self._delay_s)
        self.seen.append(self.contract.check_input(frame_BCHW)[0].copy())
        level = float(frame_BCHW.mean())
        return np.asarray([[-4 * level, 4 * level]], np.float32)

    def reset(self) -> None:
        self.seen.clear()
        self.resets += 1

    def close(self) -> None:
        pass

    def placement(self) -> Placement:
        return Placement(runtime="double", device="cpu", precision="fp32")


def make_bundle(fps: float = 10.0, labels: tuple[str, ...] = ("dark", "bright")) -> Bundle:
    """A bundle in memory for :class:`BrightnessSession`."""
    contract = Contract(frame=(3, *SIZE), classes=2)
    manifest = Manifest(name="light", labels=labels, preprocess=Preprocess(size=SIZE, fps=fps), contract=contract)
    return Bundle(root=Path("light.vidon"), manifest=manifest)


def picture(index: int, level: int) -> np.ndarray:
    """A 64 x 48 BGR picture of this brightness with a moving bar, so that no two neighbours are equal."""
    image = np.full((48, 64, 3), level, np.uint8)
    image[:, (3 * index) % 60 : (3 * index) % 60 + 4] = (30, 200, 120)
    return image


def write_video(path: Path, frames: int = 30, fps: float = 15.0) -> Path:
    """A real file: the first half is dark, the second bright."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
    assert writer.isOpened()
    for index in range(frames):
        writer.write(picture(index, 30 if index < frames // 2 else 220))
    writer.release()
    return path


@contextmanager
def mjpeg_camera(frames: int, pause_s: float = 0.02, hold: bool = False, port: int = 0) -> Iterator[str]:
    """Serve ``frames`` JPEGs as a network camera does, then hang up, or say nothing more (``hold``)."""
    with network_camera(frames, pause_s, hold, port) as (url, _):
        yield url


@contextmanager
def network_camera(
    frames: int, pause_s: float = 0.02, hold: bool = False, port: int = 0
) -> Iterator[tuple[str, threading.Event]]:
    """As :func:`mjpeg_camera`, with an event that tells when a viewer has got all frames."""
    done, served = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for index in range(frames):
                data = cv2.imencode(".jpg", picture(index, 200))[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                try:
                    self.wfile.write(head + data + b"\r\n")
                except OSError:
                    return
                time.sleep(pause_s)
            served.set()
            if hold:
                done.wait(30)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{server.server_port}/video", served
    finally:
        done.set()
        server.shutdown()
        server.server_close()
        thread.join()
