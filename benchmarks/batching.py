"""B cameras: one session that steps B streams together, against B processes with one stream each.

    python benchmarks/batching.py [--side 112] [--width 1.0] [--seconds 4] [--bundles FOLDER]

The processes have one thread each, the batched session as many as there are cores: the same machine, used in two ways,
by turns. On a shared machine frames a second depend on who else is running, so frames per second of processor time,
all threads together, decide; times the number of cores they are what the machine could do.
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
from deploy.bench import peak_rss_mib
from deploy.runtimes import Options, open_session
from devices.machine import describe_machine
from toolkit.bundle import Bundle, open_bundle

BATCHES = (1, 2, 4, 8)
KEYS = ("onnxruntime-fp32", "openvino-int8", "litert-int8")


def run(root: Path, key: str, batch: int, threads: int, seconds: float, start: Barrier, out: "Queue[Any]") -> None:
    """One process: open, warm up, wait for the others, step for ``seconds``."""
    bundle = open_bundle(root, check=False)
    session = open_session(bundle, key, options=Options(batch=batch, threads=threads))
    shape = (batch, *bundle.manifest.contract.frame)
    frames = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for _ in range(5):
        session.step(frames)
    start.wait()
    begin, used, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        session.step(frames)
        steps += 1
    wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - used
    out.put({"frames": batch * steps, "wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": peak_rss_mib()})


def together(bundle: Bundle, key: str, processes: int, batch: int, threads: int, seconds: float) -> dict[str, float]:
    """Frames a second, frames a second of processor time, and MiB of ``processes`` that start at once."""
    context = multiprocessing.get_context("spawn")
    start, out = context.Barrier(processes), context.Queue()
    children = [
        context.Process(target=run, args=(bundle.root, key, batch, threads, seconds, start, out))
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    found = [out.get(timeout=500) for _ in children]
    for child in children:
        child.join()
    frames = sum(row["frames"] for row in found)
    return {"fps": sum(row["frames"] / row["wall_s"] for row in found),
            "frames_per_cpu_s": frames / sum(row["cpu_s"] for row in found),
            "mib": sum(row["peak_mib"] for row in found)}  # fmt: skip


def best(runs: list[dict[str, float]]) -> dict[str, float]:
    """The largest of each figure."""
    return {name: max(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--keys", nargs="+", default=["onnxruntime-fp32", "openvino-fp32", "openvino-int8", "litert-int8"]
    )
    parser.add_argument("--bundles", type=Path)
    args = parser.parse_args()
    from benchmarks.runtimes import bundle_of  # brings torch, which the measured processes should not carry

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
                one, many = (
                    {name: max(pair[side][name] for pair in pairs) for name in pairs[0][side]} for side in (0, 1)
                )
                rows.append([key, batch, f"{one['frames_per_cpu_s']:.0f}", f"{many['frames_per_cpu_s']:.0f}",
                             f"{one['frames_per_cpu_s'] / many['frames_per_cpu_s']:.2f}x", f"{one['mib']:.0f}",
                             f"{many['mib']:.0f}"])  # fmt: skip
    columns = ["target", "streams", "one batched session, frames per CPU second", "a process each", "ratio",
               "MiB, batched", "MiB, processes"]  # fmt: skip
    caption = (
        f"Student of width {args.width:g} at {args.side} px on {cores} cores; best of {args.rounds} alternating rounds "
        f"of {args.seconds:g} s; the machine was shared."
    )
    print(save("batching", caption, columns, rows, data))


if __name__ == "__main__":
    main()
