"""B cameras: one session that steps B streams together, against B processes with one stream each.

    python benchmarks/batching.py [--side 112] [--width 1.0] [--seconds 4] [--bundles FOLDER]

Frames a second in all. The processes have one thread each, the batched session as many as there are cores: the same
machine, used in two ways. Rounds alternate between the two.
"""

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import save
from benchmarks.runtimes import bundle_of
from deploy.bench import peak_rss_mib
from deploy.runtimes import Options, open_session
from devices.machine import describe_machine
from toolkit.bundle import Bundle, open_bundle

BATCHES = (1, 2, 4, 8)
KEYS = ("onnxruntime-fp32", "openvino-fp32", "openvino-int8", "litert-int8")


def run(root: Path, key: str, batch: int, threads: int, seconds: float, start: Barrier, out: "Queue[Any]") -> None:
    """One process: open, warm up, wait for the others, step for ``seconds``."""
    bundle = open_bundle(root, check=False)
    session = open_session(bundle, key, options=Options(batch=batch, threads=threads))
    shape = (batch, *bundle.manifest.contract.frame)
    frames = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for _ in range(5):
        session.step(frames)
    start.wait()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        session.step(frames)
        steps += 1
    out.put((batch * steps / (time.perf_counter() - begin), peak_rss_mib()))


def together(bundle: Bundle, key: str, processes: int, batch: int, threads: int, seconds: float) -> tuple[float, float]:
    """(frames a second, MiB) of ``processes`` that start at once."""
    context = multiprocessing.get_context("spawn")
    start, out = context.Barrier(processes), context.Queue()
    children = [
        context.Process(target=run, args=(bundle.root, key, batch, threads, seconds, start, out))
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    found = [out.get(timeout=300) for _ in children]
    for child in children:
        child.join()
    return sum(rate for rate, _ in found), sum(memory for _, memory in found)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--keys", nargs="+", default=["onnxruntime-fp32", "openvino-fp32", "openvino-int8", "litert-int8"]
    )
    parser.add_argument("--bundles", type=Path)
    args = parser.parse_args()
    cores = describe_machine().cores
    rows: list[list[Any]] = []
    data: dict[str, Any] = {"cores": cores, "side": args.side, "width": args.width, "runs": []}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = bundle_of("student", args.side, args.width, args.bundles or Path(scratch))
        for key in args.keys:
            for batch in BATCHES:
                pairs = []
                for _ in range(args.rounds):
                    one = together(bundle, key, 1, batch, cores, args.seconds)
                    many = together(bundle, key, batch, 1, 1, args.seconds)
                    pairs.append((one, many))
                    data["runs"].append({"key": key, "streams": batch, "batched": one, "processes": many})
                one_fps, many_fps = (max(pair[side][0] for pair in pairs) for side in (0, 1))
                one_mib, many_mib = (max(pair[side][1] for pair in pairs) for side in (0, 1))
                rows.append([key, batch, f"{one_fps:.0f}", f"{many_fps:.0f}", f"{one_fps / many_fps:.2f}x",
                             f"{one_mib:.0f}", f"{many_mib:.0f}"])  # fmt: skip
    columns = ["target", "streams", "one batched session, frames/s", "a process each, frames/s", "ratio",
               "MiB, batched", "MiB, processes"]  # fmt: skip
    caption = (
        f"Student of width {args.width:g} at {args.side} px on {cores} cores; best of {args.rounds} alternating rounds "
        f"of {args.seconds:g} s; the machine was shared."
    )
    print(save("batching", caption, columns, rows, data))


if __name__ == "__main__":
    main()
