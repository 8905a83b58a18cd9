"""What every benchmark writes: raw samples, versions, machine, commit, and the table for the docs."""

import datetime
import importlib.metadata
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices.machine import describe_machine
from toolkit.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "ai-edge-litert",
    "litert-torch",
    "numpy",
    "torch-pruning",
)


def versions() -> dict[str, str]:
    """Installed versions of the libraries that decide the figures."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of every call, taken in turn: fair on a machine that does other work too."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            samples[name].append(time.process_time() - begin)
    return samples


def save(name: str, caption: str, columns: list[str], rows: list[list[Any]], data: dict[str, Any],
         evidence: str = "measured") -> Path:  # fmt: skip
    """Write ``benchmarks/results/<name>_<device>_<date>.json`` and return its path."""
    machine = describe_machine()
    today = datetime.date.today().isoformat()
    device = f"{machine.architecture}-{machine.cores}core".lower().replace("_", "")
    return write_json(
        RESULTS / f"{name}_{device}_{today}.json",
        {
            "benchmark": name,
            "date": today,
            "commit": _commit(),
            "machine": machine.model_dump(),
            "versions": versions(),
            "evidence": evidence,
            "caption": caption,
            "table": {"columns": columns, "rows": rows},
            "data": _portable(data),
        },
    )


def _commit() -> str:
    """The commit that was measured; empty where there is no git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return found.stdout.strip()


def _portable(data: dict[str, Any]) -> dict[str, Any]:
    """The data without the paths of this machine."""
    text = json.dumps(data)
    for folder in (ROOT, Path.cwd()):
        text = text.replace(f"{folder}/", "")
    found: dict[str, Any] = json.loads(text)
    return found
