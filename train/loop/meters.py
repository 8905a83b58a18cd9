"""What a run leaves to read: metrics as JSON lines, a tracker by choice, run.json, summary.json, curves.png.

``metrics.jsonl`` has one line per step and one per epoch. A checkpoint remembers the length of the file, a resumed
run cuts it back to that: after a kill no step is missing and none is there twice.
"""

import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from devices.machine import describe_machine
from toolkit.errors import MissingDependency
from toolkit.files import write_json, writing
from train.loop.plan import Fit

__all__ = ["Metrics", "Spent", "write_facts", "write_summary"]

_PACKAGES = ("vidon", "torch", "accelerate", "safetensors", "numpy", "av", "transformers")


class _Tracker(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Metrics:
    """Lines to ``folder/metrics.jsonl`` from byte ``length`` on; does nothing where not ``active``.

    Raises:
        MissingDependency: the tracker asked for is not installed.
    """

    def __init__(self, folder: Path, length: int, step: int, tracker: str, active: bool) -> None:
        self._active = active
        self._tracker: _Tracker | None = None
        if not active:
            return
        file = folder / "metrics.jsonl"
        with writing(file):
            self._file = file.open("ab")
            self._file.truncate(min(length, file.stat().st_size))
        if tracker == "tensorboard":
            self._tracker = _tensorboard(folder / "tensorboard", step)

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; numbers go to the tracker under their names at the record's step."""
        if not self._active:
            return
        with writing(Path(self._file.name)):
            self._file.write((json.dumps(record) + "\n").encode())
        if self._tracker is not None:
            kind = "step" if "lr" in record else "epoch"
            for name, value in record.items():
                if name not in ("step", "epoch") and isinstance(value, int | float):
                    self._tracker.add_scalar(f"{kind}/{name}", value, record["step"])

    def settle(self) -> int:
        """Bring everything to the disk and return the file's length."""
        if not self._active:
            return 0
        with writing(Path(self._file.name)):
            self._file.flush()
            os.fsync(self._file.fileno())
            length = os.fstat(self._file.fileno()).st_size
        if self._tracker is not None:
            self._tracker.flush()
        return length

    def close(self) -> None:
        """Flush and close."""
        if self._active:
            self._file.close()
            if self._tracker is not None:
                self._tracker.close()


class Spent:
    """Where the time went: speed since this process began, and seconds by kind since the last epoch.

    On a GPU the kinds other than ``data`` say when work was handed over, not when it was done.
    """

    def __init__(self, step: int) -> None:
        self._started_s = self._mark_s = self._lap_s = time.perf_counter()
        self._first = self._mark_step = step
        self._laps: dict[str, float] = {}

    def lap(self, kind: str) -> None:
        """What passed since the last call was spent on ``kind``."""
        now_s = time.perf_counter()
        self._laps[kind] = self._laps.get(kind, 0.0) + now_s - self._lap_s
        self._lap_s = now_s

    def clips_per_s(self, step: int, batch: int) -> float:
        """Mean over this process's life."""
        return (step - self._first) * batch / max(1e-9, time.perf_counter() - self._started_s)

    def epoch(self, step: int, batch: int) -> dict[str, Any]:
        """Throughput, the share of waiting for data, and seconds by kind since the last call."""
        self.lap("other")
        passed_s = max(1e-9, self._lap_s - self._mark_s)
        found = {
            "clips_per_s": (step - self._mark_step) * batch / passed_s,
            "waiting": self._laps.get("data", 0.0) / passed_s,
            "seconds": {kind: round(value, 6) for kind, value in self._laps.items()},
        }
        self._mark_s, self._mark_step, self._laps = self._lap_s, step, {}
        return found


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """``run.json``: versions, machine and whatever else decided the run."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    machine = describe_machine().model_dump(mode="json")
    write_json(folder / "run.json", {**facts, "versions": versions, "machine": machine})


def write_summary(folder: Path, steps: int, fit: Fit, clips_per_s: float) -> None:
    """``summary.json``: where the run ended."""
    last = fit.validation[-1] if fit.validation else None
    found = {"steps": steps, "loss": fit.losses[-1], "validation": last, "best": fit.best, "clips_per_s": clips_per_s}
    write_json(folder / "summary.json", found)


def _tensorboard(folder: Path, step: int) -> _Tracker:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependency("tensorboard", "tensorboard") from error
    writer: _Tracker = SummaryWriter(str(folder), purge_step=step)  # a new run hides what an older one left here
    return writer
