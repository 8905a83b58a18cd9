"""The camera loop: frame in, answer out, with every stage timed.

    capture -> preprocess -> infer (session.step) -> postprocess (smoothing) -> draw -> output

Preprocessing is the bundle's own :class:`toolkit.preprocess.Preprocess` and the same sampler as in training
decides which frames are stepped, so the model sees on the board exactly what it saw in training.
"""

import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploy.capture import Grabbed, Source, open_source
from deploy.detect import found_in
from deploy.overlay import Overlay, Scene
from deploy.sinks import Look, Sink, VideoSink
from toolkit.bundle import Bundle, Manifest
from toolkit.contract import Answer, Array, Contract, Session, chosen, probabilities
from toolkit.detection import Found, to_frame
from toolkit.errors import BundleError, UnavailableDevice, UserError
from toolkit.preprocess import FrameSampler

__all__ = ["STAGES", "CameraOptions", "CameraSummary", "StageTiming", "run_camera"]

STAGES = ("capture", "preprocess", "infer", "postprocess", "draw", "output")
Ended = Literal["end", "frames", "duration", "quit", "interrupt"]
_MAKE_UP_S = 1.0  # of a live source's silence so much is answered for
_KEEP = 20_000  # newest samples per stage that the percentiles are taken from: a loop may run for weeks


@dataclass(frozen=True, slots=True)
class CameraOptions:
    """How the loop runs.

    ``realtime`` plays a file at its own speed; ``window`` is the number of last steps whose logits are averaged;
    ``frames`` and ``duration_s`` (on the source's clock) end the loop; the timeouts hold for live sources.
    """

    realtime: bool = False
    window: int = 8
    frames: int | None = None
    duration_s: float | None = None
    open_timeout_s: float = 10.0
    stall_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class StageTiming:
    """Milliseconds of one stage over ``count`` runs."""

    p50_ms: float
    p95_ms: float
    mean_ms: float
    count: int


@dataclass(frozen=True, slots=True)
class CameraSummary:
    """What one run of the loop did.

    ``frames`` were handled and ``dropped`` skipped by the newest-frame policy; ``steps`` the model took and
    ``skipped_steps`` it owed but could not afford (a device too slow for the model's frame rate). ``stages`` maps
    each stage, and for live sources ``latency`` (frame arrived -> answer out), to its timing. ``shares`` is the
    share of the answered steps per label (of a detector: those that show one; with many labels they add up to any sum).
    """

    source: str
    artefact: str
    live: bool
    seconds: float
    frames: int
    dropped: int
    steps: int
    skipped_steps: int
    fps: float
    stages: dict[str, StageTiming]
    shares: dict[str, float]
    ended: Ended
    out: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self)


def run_camera(
    source: str,
    bundle: Bundle,
    session: Session,
    sinks: Sequence[Sink] = (),
    options: CameraOptions | None = None,
) -> CameraSummary:
    """Run ``session`` on ``source`` (camera index, file or URL) until it ends, a limit, a sink's wish or Ctrl-C.

    Ctrl-C is an orderly end: outputs are finished and the summary says ``ended == "interrupt"``. The session starts
    from zero state and stays open.

    Raises:
        UserError: the source does not open, or a sink cannot work.
        UnavailableDevice: a live source stopped; outputs are finished first.
        BundleError: the bundle's labels or preprocessing do not fit its model.
    """
    options = options or CameraOptions()
    _check(bundle, session, source, sinks, options)
    loop = _Loop(bundle, session, sinks, options)
    with contextlib.ExitStack() as stack:
        stream = open_source(
            source,
            realtime=options.realtime,
            open_timeout_s=options.open_timeout_s,
            stall_timeout_s=options.stall_timeout_s,
        )
        stack.callback(stream.close)
        for sink in sinks:
            sink.start(stream.fps)
            stack.callback(sink.close)
        try:
            ended = loop.run(stream)
        except KeyboardInterrupt:
            ended = "interrupt"
        except UnavailableDevice as error:
            kept = loop.outs()
            raise UnavailableDevice(f"{error} ({kept[0]} holds the video so far)" if kept else str(error)) from error
    return loop.summary(stream, ended)


def _check(bundle: Bundle, session: Session, source: str, sinks: Sequence[Sink], options: CameraOptions) -> None:
    manifest, contract = bundle.manifest, session.contract
    if len(manifest.labels) != contract.classes:
        raise BundleError(
            f"bundle {bundle.root} has {len(manifest.labels)} labels for {contract.classes} classes; export it again"
        )
    if tuple(manifest.preprocess.size) != tuple(contract.frame[1:]):
        raise BundleError(
            f"bundle {bundle.root} makes pictures of {manifest.preprocess.size} for a model of {contract.frame[1:]}; "
            "export it again"
        )
    if options.window < 1:
        raise UserError(f"window is {options.window}: averaging needs at least 1 step")
    if options.duration_s is not None and not options.duration_s > 0:
        raise UserError(f"duration is {options.duration_s:g}: give seconds above 0, or leave it out to run to the end")
    for sink in sinks:
        if isinstance(sink, VideoSink) and sink.path.resolve() == Path(source).resolve():
            raise UserError(f"cannot write {sink.path}: it is the video being played; choose another name")


class _Clock:
    """Samples of every stage, in milliseconds."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[float]] = {}

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(stage, (time.perf_counter() - start) * 1000)

    def add(self, stage: str, sample_ms: float) -> None:
        self._samples.setdefault(stage, deque(maxlen=_KEEP)).append(sample_ms)

    def recent(self) -> dict[str, float]:
        """Mean of the last few samples of each stage: what the overlay shows."""
        return {stage: float(np.mean(list(islice(reversed(samples), 15)))) for stage, samples in self._samples.items()}

    def last(self, stage: str) -> float:
        samples = self._samples.get(stage)
        return samples[-1] if samples else 0.0

    def table(self) -> dict[str, StageTiming]:
        found = {}
        for stage in (*STAGES, "latency"):
            samples = np.asarray(self._samples.get(stage, ()))
            if samples.size:
                p50, p95 = np.percentile(samples, (50, 95))
                found[stage] = StageTiming(
                    round(float(p50), 3), round(float(p95), 3), round(float(samples.mean()), 3), int(samples.size)
                )
        return found


class _Answer:
    """The smoothed answer: probabilities of the mean of the last logits, warm-up left out."""

    def __init__(self, window: int, warmup: int, answer: Answer = "one") -> None:
        self._kind: Answer = answer
        self._recent: deque[Array] = deque(maxlen=window)
        self._ignore = warmup
        self.probabilities: Array | None = None
        self.history: deque[tuple[int, float]] = deque(maxlen=240)
        self.counts: Counter[int] = Counter()
        self.answered = 0

    def on_frame(self, manifest: Manifest, rows: int, cols: int) -> Found | None:
        """A detector's boxes; a classifier has none."""
        return None

    def add(self, logits_K: Array) -> None:
        if self._ignore:
            self._ignore -= 1
            return
        self._recent.append(logits_K)
        self.probabilities = probabilities(np.asarray(np.mean(self._recent, axis=0), np.float32), self._kind)
        best = int(self.probabilities.argmax())
        self.history.append((best, float(self.probabilities[best])))
        self.counts.update(chosen(self.probabilities, self._kind))
        self.answered += 1


class _Boxes(_Answer):
    """A detector's answer: the boxes of the last step; as probabilities the best score of each class."""

    def __init__(self, contract: Contract) -> None:
        super().__init__(1, contract.warmup)
        self._contract = contract
        self.found: Found | None = None

    def add(self, logits_K: Array) -> None:
        if self._ignore:
            self._ignore -= 1
            return
        self.found = found_in(logits_K, self._contract)
        self.probabilities = np.zeros(self._contract.classes, np.float32)
        np.maximum.at(self.probabilities, self.found.labels, self.found.scores)
        best = int(self.probabilities.argmax())
        self.history.append((best, float(self.probabilities[best])))
        self.counts.update(set(self.found.labels.tolist()))
        self.answered += 1

    def on_frame(self, manifest: Manifest, rows: int, cols: int) -> Found | None:
        """The boxes in pixels of a frame of ``rows`` x ``cols``."""
        if self.found is None:
            return None
        boxes = to_frame(self.found.boxes, manifest.preprocess, rows, cols)
        return Found(boxes, self.found.scores, self.found.labels)


class _Loop:
    """State of one run."""

    def __init__(self, bundle: Bundle, session: Session, sinks: Sequence[Sink], options: CameraOptions) -> None:
        self.manifest, self.session, self.sinks, self.options = bundle.manifest, session, sinks, options
        contract = session.contract
        plain = contract.detection is None
        self.answer = _Answer(options.window, contract.warmup, contract.answer) if plain else _Boxes(contract)
        self.clock = _Clock()
        placement = session.placement()
        self.artefact = f"{placement.runtime}-{placement.precision}"
        self.draws = any(sink.wants_picture for sink in sinks)
        title = f"{self.manifest.name}  {placement.runtime} {placement.precision} on {placement.device}"
        self.overlay = Overlay(self.manifest.labels, title, contract.answer)
        self.sampler = FrameSampler(self.manifest.preprocess.fps)
        self.frames = self.dropped = self.steps = self.skipped = 0
        self.beats: deque[float] = deque(maxlen=30)
        self.last_s = 0.0  # when the frame before came
        self.began = self.finished = time.perf_counter()

    def run(self, stream: Source) -> Ended:
        options, first_s = self.options, None
        self.session.reset()
        self.began = self.finished = time.perf_counter()
        if options.frames is not None and options.frames <= 0:
            return "frames"
        for grabbed in stream:
            first_s = grabbed.stamp_s if first_s is None else first_s
            if options.duration_s is not None and grabbed.stamp_s - first_s >= options.duration_s:
                return "duration"
            if not self._handle(grabbed, self._affordable(grabbed, stream.fps) if stream.live else None, stream.live):
                return "quit"
            if options.frames is not None and self.frames >= options.frames:
                return "frames"
        return "end"

    def _affordable(self, grabbed: Grabbed, nominal_fps: float) -> int:
        """How many steps a live frame may cause: as many as fit between two frames of the camera.

        A slow camera (many are, in the dark) repeats frames as training did, but a slow *device*, which is told by the
        frames it missed, must not owe ever more steps.
        """
        before_s, self.last_s = self.last_s, grabbed.stamp_s
        period_s = (grabbed.stamp_s - before_s) / (grabbed.dropped + 1)
        return math.ceil(self.manifest.preprocess.fps * max(1 / nominal_fps, min(period_s, _MAKE_UP_S)))

    def _handle(self, grabbed: Grabbed, limit: int | None, live: bool) -> bool:
        self.clock.add("capture", grabbed.capture_ms)
        due = self.sampler.due(grabbed.stamp_s)
        count = due if limit is None else min(due, limit)
        if count:
            self._step(grabbed, count)
        self.dropped += grabbed.dropped
        self.skipped += due - count
        on = self._put(grabbed, count, live)
        self.finished = time.perf_counter()
        self.beats.append(self.finished)
        self.frames += 1
        if live:
            self.clock.add("latency", (self.finished - grabbed.arrived_s) * 1000)
        return on

    def _step(self, grabbed: Grabbed, count: int) -> None:
        with self.clock.time("preprocess"):
            frame_BCHW = self.manifest.preprocess(grabbed.frame)[None]
        for _ in range(count):
            with self.clock.time("infer"):
                logits_BK = self.session.step(frame_BCHW)
            with self.clock.time("postprocess"):
                self.answer.add(logits_BK[0])
        self.steps += count

    def _put(self, grabbed: Grabbed, count: int, live: bool) -> bool:
        if not self.sinks:
            return True
        picture = None
        if self.draws:
            with self.clock.time("draw"):
                picture = self.overlay.draw(grabbed.frame, self._scene(grabbed, live))
        look = Look(
            frame=self.frames,
            stamp_s=grabbed.stamp_s,
            steps=count,
            labels=self.manifest.labels,
            probabilities=self.answer.probabilities,
            infer_ms=self.clock.last("infer"),
            answer=self.session.contract.answer,
            boxes=self.answer.on_frame(self.manifest, *grabbed.frame.shape[:2]),
        )
        with self.clock.time("output"):
            # Every sink gets the frame, even when an earlier one asks to stop.
            wishes = [sink.put(picture if sink.wants_picture else None, look) for sink in self.sinks]
        return all(wishes)

    def _scene(self, grabbed: Grabbed, live: bool) -> Scene:
        beats = self.beats
        fps = (len(beats) - 1) / (beats[-1] - beats[0]) if len(beats) > 1 and beats[-1] > beats[0] else 0.0
        return Scene(
            probabilities=self.answer.probabilities,
            history=tuple(self.answer.history),
            stages_ms=self.clock.recent(),
            fps=fps,
            stamp_s=grabbed.stamp_s,
            live=live,
            dropped=self.dropped,
            boxes=self.answer.on_frame(self.manifest, *grabbed.frame.shape[:2]),
        )

    def outs(self) -> list[str]:
        """Video files that this run has begun."""
        return [str(sink.path) for sink in self.sinks if isinstance(sink, VideoSink) and self.frames]

    def summary(self, stream: Source, ended: Ended) -> CameraSummary:
        seconds = self.finished - self.began
        answered = self.answer.answered
        labels = self.manifest.labels
        outs = self.outs()
        return CameraSummary(
            source=stream.name,
            artefact=self.artefact,
            live=stream.live,
            seconds=round(seconds, 3),
            frames=self.frames,
            dropped=self.dropped,
            steps=self.steps,
            skipped_steps=self.skipped,
            fps=round(self.frames / seconds, 2) if seconds > 0 else 0.0,
            stages=self.clock.table(),
            shares={labels[index]: round(n / answered, 4) for index, n in self.answer.counts.most_common()},
            ended=ended,
            out=outs[0] if outs else None,
        )
