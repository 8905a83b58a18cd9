"""The camera loop: frame in, answer out, with every stage timed.

    capture -> preprocess -> infer (session.step) -> postprocess (smoothing) -> draw -> output

Preprocessing is the bundle's own :class:`toolkit.preprocess.Preprocess` and the same sampler as in training
decides which frames are stepped, so the model sees on the board exactly what it saw in training.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploy.answers import DetectedBoxes, SmoothedAnswer
from deploy.capture import Grabbed, Lost, Source, open_source
from deploy.overlay import Overlay, Scene
from deploy.sinks import Look, Sink, VideoSink
from deploy.stages import StageClock, StageTiming
from toolkit.bundle import Bundle
from toolkit.contract import Session
from toolkit.errors import BundleError, ParityError, UnavailableDevice, UserError
from toolkit.preprocess import FrameSampler

__all__ = ["CameraOptions", "CameraSummary", "run_camera"]

Ended = Literal["end", "frames", "duration", "quit", "interrupt"]
_MAKE_UP_S = 1.0  # of a live source's silence so much is answered for


@dataclass(frozen=True, slots=True)
class CameraOptions:
    """How the loop runs.

    ``realtime`` plays a file at its own speed; ``window`` is the number of last steps whose logits are averaged;
    ``frames`` and ``duration_s`` (on the source's clock) end the loop; the timeouts hold for live sources, and
    ``reconnect_s`` for how long one that was lost is looked for (0: not at all, ``inf``: for good).
    """

    realtime: bool = False
    window: int = 8
    frames: int | None = None
    duration_s: float | None = None
    open_timeout_s: float = 10.0
    stall_timeout_s: float = 5.0
    reconnect_s: float = 600.0


@dataclass(frozen=True, slots=True)
class CameraSummary:
    """What one run of the loop did.

    ``frames`` were handled and ``dropped`` skipped by the newest-frame policy; ``steps`` the model took and
    ``skipped_steps`` it owed but could not afford (a device too slow for the model's frame rate). ``stages`` maps
    each stage, and for live sources ``latency`` (frame arrived -> answer out), to its timing. ``shares`` is the
    share of the answered steps per label (of a detector: those that show one; with many labels they add up to any sum).
    A live source was lost ``losses`` times, for ``lost_s`` of the ``seconds`` in all, which ``fps`` leaves out.
    ``codec`` is the format of the video ``out``, by FFmpeg's name.
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
    codec: str | None = None
    losses: int = 0
    lost_s: float = 0.0

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
    from zero state and stays open. After a loss of the source it starts from zero state again, and warms up.

    Raises:
        UserError: the source does not open, or a sink cannot work.
        UnavailableDevice: a live source stopped and did not come back; outputs are finished first.
        BundleError: the bundle's labels or preprocessing do not fit its model.
        ParityError: the model answers with no numbers.
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
            reconnect_s=options.reconnect_s,
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
    if not options.reconnect_s >= 0:
        raise UserError(
            f"reconnect is {options.reconnect_s:g}: give seconds, 0 for no second attempt, or inf to try for good"
        )
    for sink in sinks:
        if isinstance(sink, VideoSink) and sink.path.resolve() == Path(source).resolve():
            raise UserError(f"cannot write {sink.path}: it is the video being played; choose another name")


class _Loop:
    """State of one run."""

    def __init__(self, bundle: Bundle, session: Session, sinks: Sequence[Sink], options: CameraOptions) -> None:
        self.manifest, self.session, self.sinks, self.options = bundle.manifest, session, sinks, options
        contract = session.contract
        smoothed = SmoothedAnswer(options.window, contract.warmup, contract.answer)
        self.answer = smoothed if contract.detection is None else DetectedBoxes(contract)
        self.clock = StageClock()
        placement = session.placement()
        self.artefact = f"{placement.runtime}-{placement.precision}"
        self.draws = any(sink.wants_picture for sink in sinks)
        title = f"{self.manifest.name}  {placement.runtime} {placement.precision} on {placement.device}"
        self.overlay = Overlay(self.manifest.labels, title, contract.answer)
        self.sampler = FrameSampler(self.manifest.preprocess.fps)
        self.frames = self.dropped = self.steps = self.skipped = 0
        self.beats: deque[float] = deque(maxlen=30)
        self.last_s = 0.0  # when the frame before came
        self.losses, self.lost_s, self.gap_s = 0, 0.0, 0.0  # gap: without a frame, now
        self.began = self.finished = time.perf_counter()

    def run(self, stream: Source) -> Ended:
        options, first_s = self.options, None
        self.session.reset()
        self.began = self.finished = time.perf_counter()
        if options.frames is not None and options.frames <= 0:
            return "frames"
        for grabbed in stream:
            first_s = grabbed.stamp_s if first_s is None else first_s
            if isinstance(grabbed, Lost) and not self._rest(grabbed):
                return "quit"
            if options.duration_s is not None and grabbed.stamp_s - first_s >= options.duration_s:
                return "duration"
            if isinstance(grabbed, Lost):
                continue
            if self.gap_s:
                self._begin_again(grabbed)
            if not self._handle(grabbed, self._affordable(grabbed, stream.fps) if stream.live else None, stream.live):
                return "quit"
            if options.frames is not None and self.frames >= options.frames:
                return "frames"
        return "end"

    def _rest(self, lost: Lost) -> bool:
        """The source is lost: count the time, and ask the sinks whether to wait on."""
        self.losses += not self.gap_s
        self.gap_s = lost.since_s
        self.finished = time.perf_counter()
        wishes = [sink.rest() for sink in self.sinks]
        return all(wishes)

    def _begin_again(self, grabbed: Grabbed) -> None:
        """What the model saw before the gap is not this frame's past, and what it missed is not owed."""
        self.lost_s += grabbed.stamp_s - self.last_s
        self.gap_s, self.last_s = 0.0, grabbed.stamp_s
        self.session.reset()
        self.answer.begin_again()
        self.sampler = FrameSampler(self.manifest.preprocess.fps)
        self.beats.clear()

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
                if not np.isfinite(logits_BK).all():  # the stream state is spoilt too: nothing after this is an answer
                    raise ParityError(f"{self.artefact} answers with no numbers (NaN): run  vidon verify  here")
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
            losses=self.losses,
            boxes=self.answer.on_frame(self.manifest, *grabbed.frame.shape[:2]),
        )

    def outs(self) -> list[str]:
        """Video files that this run has begun."""
        return [str(sink.path) for sink in self.sinks if isinstance(sink, VideoSink) and self.frames]

    def summary(self, stream: Source, ended: Ended) -> CameraSummary:
        seconds = self.finished - self.began
        lost_s = self.lost_s + self.gap_s
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
            fps=round(self.frames / (seconds - lost_s), 2) if seconds > lost_s else 0.0,
            stages=self.clock.table(),
            shares={labels[index]: round(n / answered, 4) for index, n in self.answer.counts.most_common()},
            ended=ended,
            out=outs[0] if outs else None,
            codec=next((sink.codec for sink in self.sinks if isinstance(sink, VideoSink)), None),
            losses=self.losses,
            lost_s=round(lost_s, 3),
        )
