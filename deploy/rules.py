"""The rules that every runtime keeps for every bundle, each a function that checks a subject: one artefact on a device.

A rule's function returns what it saw, or raises: ``Broken`` says how the rule does not hold, ``Inapplicable`` why there
is nothing to check. Nothing here needs more than numpy and the artefact's runtime. K: numbers of one answer.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes import Options, Streams, load, open_session
from deploy.verify import FLOAT_TOLERANCE, compare, objection, replay
from toolkit.bundle import Artefact, Bundle
from toolkit.contract import Array
from toolkit.errors import BundleError, UnavailableDevice, UserError
from toolkit.progress import bar

__all__ = ["RULES", "Broken", "Inapplicable", "Subject"]

#: Answers of one int8 file that ought to be the same may still round differently (kernels change with the batch).
DECIBELS = 25.0
GROWTH_MIB = 8.0
_DRIFT_STEPS = 1000
_LEAST_FRAMES = 4


class Broken(Exception):
    """A rule does not hold; the text says how."""


class Inapplicable(Exception):
    """There is nothing to check; the text says why."""


@dataclass(frozen=True)
class Subject:
    """One artefact on one device; ``steps`` is how long the check of memory goes on."""

    bundle: Bundle
    artefact: Artefact
    options: Options
    steps: int = 10_000

    @cached_property
    def frames(self) -> Array:
        """The golden frames (T, 3, H, W), or those again if they are very few."""
        frames = self.bundle.golden().frames
        return frames if len(frames) >= _LEAST_FRAMES else np.concatenate([frames] * _LEAST_FRAMES)

    def open(self, **changes: Any) -> Streams:
        """A session of its own."""
        return open_session(self.bundle, self.artefact.key, options=replace(self.options, **changes))

    def open_batch(self, batch: int) -> Streams:
        """A session of several streams.

        Raises:
            Inapplicable: the runtime steps one at a time.
        """
        try:
            return self.open(batch=batch)
        except UserError as error:
            raise Inapplicable(str(error)) from error

    def alike(self, got: Array, want: Array, what: str) -> str:
        """How close (T, K) is to (T, K), which ought to be the same.

        Raises:
            Broken: it is not.
        """
        result = compare(self.artefact.key, got, want)
        same = result.max_diff <= FLOAT_TOLERANCE if self.artefact.precision == "fp32" else result.decibels >= DECIBELS
        if not (same and np.isfinite(got).all()):
            raise Broken(f"{what}: difference {result.max_diff:.1e}, {result.decibels:.0f} dB")
        return f"difference {result.max_diff:.1e}"


def _parity(subject: Subject) -> str:
    golden = subject.bundle.golden()
    with closing(subject.open()) as session:
        got = replay(session, golden.frames)
    result = compare(subject.artefact.key, got, golden.logits, subject.bundle.manifest.contract)
    complaint = objection(subject.artefact, result) if np.isfinite(got).all() else "the answers are not finite"
    if complaint is not None:
        raise Broken(complaint)
    return result.summary


def _placement(subject: Subject) -> str:
    with closing(subject.open()) as session:
        told = session.placement()
    asked = (subject.artefact.runtime, subject.artefact.precision, subject.options.device)
    if (told.runtime, told.precision, told.device) != asked or "fallback" in told.detail:
        raise Broken(f"asked for {asked}, it ran as {told.runtime}, {told.precision}, {told.device}: {told.detail}")
    return ", ".join(f"{name} {value}" for name, value in told.detail.items() if name not in ("evidence", "form"))


def _reset(subject: Subject) -> str:
    with closing(subject.open()) as session:
        want = replay(session, subject.frames)
        replay(session, subject.frames[::-1])
        return subject.alike(replay(session, subject.frames), want, "after a reset the same stream answers otherwise")


def _past(subject: Subject) -> str:
    contract = subject.bundle.manifest.contract
    if not (contract.states if contract.kind == "stream" else contract.frames > 1):
        raise Inapplicable("this model remembers nothing")
    with closing(subject.open()) as session:
        fresh = replay(session, subject.frames)[:1]
        later = session.step(subject.frames[:1])
    change = float(np.abs(later - fresh).max())
    if change == 0:
        raise Broken("an answer does not depend on the frames before: the stream state is not carried on")
    return f"the past changes an answer by {change:.1e}"


def _interleaved(subject: Subject) -> str:
    flows = subject.frames, subject.frames[::-1]
    with closing(subject.open()) as first, closing(subject.open()) as second:
        alone = replay(first, flows[0]), replay(second, flows[1])
        first.reset()
        second.reset()
        mixed = [(first.step(a[None]), second.step(b[None])) for a, b in zip(*flows, strict=True)]
    for index, want in enumerate(alone):
        got = np.concatenate([pair[index] for pair in mixed])
        detail = subject.alike(got, want, "two sessions stepped in turn disturb each other")
    return detail


def _own_answers(subject: Subject) -> str:
    with closing(subject.open()) as session:
        answer = session.step(subject.frames[:1])
        kept = answer.copy()
        session.step(subject.frames[-1:])
    if not np.array_equal(answer, kept):
        raise Broken("the next step overwrites an answer that was given out")
    return ""


def _batch(subject: Subject) -> str:
    flows = [subject.frames, subject.frames[::-1], subject.frames]
    with closing(subject.open_batch(3)) as many, closing(subject.open()) as one:
        got = np.stack([many.step(np.stack(frames)) for frames in zip(*flows, strict=True)])
        for index, flow in enumerate(flows):
            detail = subject.alike(got[:, index], replay(one, flow), f"stream {index} of a batch answers otherwise")
    return detail


def _forget_one(subject: Subject) -> str:
    first, second = subject.frames, subject.frames[::-1]
    half = len(first) // 2
    with closing(subject.open_batch(2)) as many, closing(subject.open()) as one:
        for a, b in zip(first[:half], second[:half], strict=True):
            many.step(np.stack([a, b]))
        many.reset(1)
        got = np.stack([many.step(np.stack([a, b])) for a, b in zip(first[half:], second[half:], strict=True)])
        subject.alike(got[:, 0], replay(one, first)[half:], "the stream that was not reset forgot")
        return subject.alike(got[:, 1], replay(one, second[half:]), "the stream that was reset remembers")


def _bad_input(subject: Subject) -> str:
    good = subject.frames[:1]
    wrong = {
        "another size": np.zeros((1, 3, good.shape[2] + 8, good.shape[3]), np.float32),
        "two frames": np.concatenate([good, good]),
        "float64": good.astype(np.float64),
        "NaN": np.full_like(good, np.nan),
        "infinity": np.full_like(good, np.inf),
    }
    half = len(subject.frames) // 2
    with closing(subject.open()) as session:
        want = replay(session, subject.frames)
        session.reset()
        got = [session.step(frame[None]) for frame in subject.frames[:half]]
        for name, frame in wrong.items():
            try:
                session.step(frame)
            except UserError:
                continue
            raise Broken(f"a frame with {name} was taken")
        got += [session.step(frame[None]) for frame in subject.frames[half:]]
    return subject.alike(np.concatenate(got), want, "a refused frame changed the stream")


def _closed(subject: Subject) -> str:
    session = subject.open()
    session.close()
    session.close()
    for name, call in (("step", lambda: session.step(subject.frames[:1])), ("reset", session.reset)):
        try:
            call()
        except UserError:
            continue
        raise Broken(f"{name} works after close")
    return ""


def _damaged(subject: Subject) -> str:
    bundle, artefact = subject.bundle, subject.artefact
    damages: dict[str, Callable[[Path], object]] = {
        "cut off": lambda file: file.write_bytes(file.read_bytes()[:200]),
        "garbage": lambda file: file.write_bytes(b"\x07nonsense" * 50),
        "missing": lambda file: file.unlink(),
    }
    for name, damage in damages.items():
        with tempfile.TemporaryDirectory(prefix="vidon-damaged-") as scratch:
            folder = Path(scratch) / "model"
            shutil.copytree(bundle.root / artefact.folder, folder)
            for file in [path for path in folder.rglob("*") if path.is_file()]:
                damage(file)
            try:
                load(artefact.runtime).open(folder, artefact, bundle.manifest.contract, subject.options).close()
            except BundleError as error:
                if "\n" in str(error):
                    raise Broken(f"the error about a file {name} is not one line") from error
                continue
            raise Broken(f"a file that is {name} was opened")
    return ", ".join(damages)


def _no_device(subject: Subject) -> str:
    try:
        subject.open(device="npu9").close()
    except UnavailableDevice as error:
        return str(error)
    raise Broken("a device that does not exist was opened")


def _threads(subject: Subject) -> str:
    flows = subject.frames, subject.frames[::-1]
    with closing(subject.open()) as first, closing(subject.open()) as second:
        sessions = first, second
        want = [replay(session, flow) for session, flow in zip(sessions, flows, strict=True)]
        got: list[list[Array]] = [[], []]
        errors: list[Exception] = []

        def work(index: int) -> None:
            try:
                got[index] = [replay(sessions[index], flows[index]) for _ in range(3)]
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise Broken(f"a session in a thread of its own failed ({errors[0]})") from errors[0]
    for answers, alone in zip(got, want, strict=True):
        for answer in answers:
            detail = subject.alike(answer, alone, "sessions in threads of their own disturb each other")
    return detail


def _drift(subject: Subject) -> str:
    """The golden stream over and over: what it answers late in the run is what it answered early, once settled."""
    length = len(subject.frames)
    rounds = max(4, -(-min(_DRIFT_STEPS, subject.steps) // length))
    early, late = rounds // 4, rounds - 1
    kept: dict[int, Array] = {}
    with closing(subject.open()) as session:
        for turn in range(rounds):
            answers = np.concatenate([session.step(frame[None]) for frame in subject.frames])
            if turn in (early, late):
                kept[turn] = answers
    detail = subject.alike(kept[late], kept[early], f"the answers drift over {rounds * length} steps")
    return f"{detail} over {rounds * length} steps"


def _growth(subject: Subject) -> str:
    if not Path("/proc/self/statm").is_file():
        raise Inapplicable("this system does not tell a process's memory")
    frame = subject.frames[:1]
    with closing(subject.open()) as session, bar("steps", subject.steps) as progress:
        for _ in range(max(30, min(300, subject.steps // 10))):
            session.step(frame)
        before = _resident_mib()
        for index in range(subject.steps):
            session.step(frame)
            if index % 100 == 99:
                progress.advance(100)
        grown = _resident_mib() - before
    if grown >= GROWTH_MIB:
        raise Broken(f"memory grew by {grown:.1f} MiB over {subject.steps} steps")
    return f"{grown:+.1f} MiB over {subject.steps} steps"


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


#: What is checked, in this order.
RULES: dict[str, Callable[[Subject], str]] = {
    "parity with the float model": _parity,
    "it ran where it was asked to": _placement,
    "reset makes a session forget": _reset,
    "without reset the past counts": _past,
    "two interleaved sessions": _interleaved,
    "answers stay as they were given": _own_answers,
    "a batch equals single streams": _batch,
    "one stream of a batch forgets": _forget_one,
    "wrong frames are refused": _bad_input,
    "closing twice, use after close": _closed,
    "damaged files are refused": _damaged,
    "a missing device is refused": _no_device,
    "sessions in threads of their own": _threads,
    "no drift": _drift,
    "no growth of memory": _growth,
}
