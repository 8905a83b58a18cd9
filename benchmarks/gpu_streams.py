"""Step latency and streams per GPU at 30 frames/s: torch eager, compiled, CUDA graphs, ONNX Runtime CUDA, TensorRT.

    python benchmarks/gpu_streams.py [--side 224] [--width 1.0]

Every path that works on this machine is measured in one interleaved run, for 1 to 256 streams stepped together; those
that do not are named with the reason. TensorRT steps one stream at a time, from the integer source that the tool
tensorrt-rtx leaves beside its engine (vidon devices setup tensorrt-rtx). A step ends with its answer on the host, so
none of the GPU's work is left out of the time. Without a GPU it says so and ends with exit code 0, writing nothing.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import save
from deploy.bench import bench_calls
from deploy.runtimes import RUNTIMES, Options, Streams, available, open_session
from devices.tools import is_ready, tool_called
from toolkit.bundle import Bundle
from toolkit.errors import VidonError

TARGET = "rtx-sm89"
#: What is tried: artefact, options.
PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch eager": ("torch-fp32", {"device": "cuda"}),
    "torch compiled": ("torch-fp32", {"device": "cuda", "form": "compiled"}),
    "torch CUDA graphs": ("torch-fp32", {"device": "cuda", "form": "graphs"}),
    "ONNX Runtime CUDA": ("onnxruntime-fp32", {"device": "cuda"}),
    "ONNX Runtime TensorRT": ("onnxruntime-fp32", {"device": "tensorrt"}),
    "TensorRT int8": (f"tensorrt-int8-{TARGET}", {"device": "gpu"}),
}
BATCHES = (1, 4, 16, 64, 256)
FPS = 30


def gpu() -> str | None:
    """The GPU's name, or None."""
    if not any("cuda" in available(name).devices for name in RUNTIMES):
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "NVIDIA GPU"


def opened(bundle: Bundle, batch: int) -> tuple[dict[str, Streams], dict[str, str]]:
    """Sessions by path, and why the others do not work."""
    sessions, reasons = {}, {}
    for name, (key, options) in PATHS.items():
        try:
            sessions[name] = open_session(bundle, key, options=Options(batch=batch, **options))
        except VidonError as error:
            reasons[name] = str(error)
        except Exception as error:  # out of memory, for example: the other paths go on
            reasons[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return sessions, reasons


def main() -> int:
    """Measure and write the result, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--bundles", type=Path)
    args = parser.parse_args()
    name = gpu()
    if name is None:
        why = {gap.device: gap.why for gap in available("torch").missing}.get("cuda", "torch is not installed")
        print(f"no GPU was measured: {why}", file=sys.stderr)
        return 0
    from benchmarks.runtimes import bundle_of

    rng = np.random.default_rng(0)
    missing: dict[str, dict[str, str]] = {}
    data: dict[str, Any] = {"gpu": name, "side": args.side, "width": args.width, "missing": missing}
    best: dict[str, tuple[float, int]] = {}
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        targets = (TARGET,) if is_ready(tool_called("tensorrt-rtx")) else ()
        bundle = bundle_of("student", args.side, args.width, args.bundles or Path(scratch), targets)
        for batch in BATCHES:
            sessions, reasons = opened(bundle, batch)
            frames = rng.standard_normal((batch, 3, args.side, args.side)).astype(np.float32)
            calls = {path: partial(session.step, frames) for path, session in sessions.items()}
            found = bench_calls(calls, 100, 10, f"{batch} streams")
            data[str(batch)] = {path: value.as_dict(samples=True) for path, value in found.items()}
            missing[str(batch)] = reasons
            for path, value in found.items():
                first.setdefault(path, value.p50_ms)
                # Every stream's frame must be answered before its next one comes, at the 99th percentile: so many
                # steps fit between two frames, each of a whole batch.
                streams = batch * int(1000 / FPS / value.p99_ms)
                best[path] = max(best.get(path, (0.0, 0)), (float(streams), batch))
            for session in sessions.values():
                session.close()
    rows = [[path, f"{first[path]:.3f}", f"{streams:.0f}", batch] for path, (streams, batch) in best.items()]
    columns = ["path", "step p50 ms, 1 stream", f"streams at {FPS} frames/s", "stepped together"]
    print(save("gpu_streams", f"Student of width {args.width:g} at {args.side} px on {name}.", columns, rows, data))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
