"""B cameras: one session that steps B streams together, the same shared among lanes, and a process for each.

    python benchmarks/batching.py [--side 112] [--width 1.0] [--seconds 2] [--keys KEY ...] [--add] [--bundles FOLDER]

The processes have one thread each; the batched session and the lanes (hint ``throughput``) as many as there are
cores: the same machine, used in three ways, by turns. It must do nothing else meanwhile: frames a second
are those of the clock. (Frames per second of processor time, which are among the raw figures, would charge a library
for threads that only wait, spinning, for work.)
"""

import argparse
import datetime
import json
import multiprocessing
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, save
from deploy.bench import peak_rss_mib
from deploy.runtimes import Options, open_session
from devices.machine import describe_machine
from toolkit.bundle import Bundle, open_bundle

BATCHES = (1, 2, 4, 8)


def run(root: Path, key: str, options: Options, seconds: float, start: Barrier, out: "Queue[Any]") -> None:
    """One process: open, warm up, wait for the others, step for ``seconds``."""
    bundle, batch = open_bundle(root, check=False), options.batch
    session = open_session(bundle, key, options=options)
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


def together(bundle: Bundle, key: str, processes: int, options: Options, seconds: float) -> dict[str, float]:
    """Frames a second, frames a second of processor time, and MiB of ``processes`` that start at once."""
    context = multiprocessing.get_context("spawn")
    start, out = context.Barrier(processes), context.Queue()
    children = [
        context.Process(target=run, args=(bundle.root, key, options, seconds, start, out)) for _ in range(processes)
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


def ways_of(streams: int, cores: int) -> dict[str, tuple[int, Options]]:
    """Name -> (processes, how each opens its session)."""
    return {
        "batched": (1, Options(batch=streams, threads=cores)),
        "lanes": (1, Options(batch=streams, threads=cores, hint="throughput", lanes=cores)),
        "processes": (streams, Options(threads=1)),
    }


def today() -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """Rows and runs of this day's result, if there is one."""
    found = sorted(RESULTS.glob(f"batching_*_{datetime.date.today().isoformat()}.json"))
    kept = json.loads(found[-1].read_text()) if found else {"table": {"rows": []}, "data": {"runs": []}}
    return kept["table"]["rows"], kept["data"]["runs"]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keys", nargs="+", default=[f"{runtime}-{precision}" for runtime in
                        ("onnxruntime", "openvino", "litert") for precision in ("fp32", "int8")])  # fmt: skip
    parser.add_argument("--add", action="store_true", help="Add to today's result instead of replacing it.")
    parser.add_argument("--bundles", type=Path)
    args = parser.parse_args()
    from benchmarks.runtimes import bundle_of  # brings torch, which the measured processes should not carry

    cores = describe_machine().cores
    rows, runs = today() if args.add else ([], [])
    rows, runs = [row for row in rows if row[0] not in args.keys], [run for run in runs if run["key"] not in args.keys]
    with tempfile.TemporaryDirectory() as scratch:
        bundle = bundle_of("student", args.side, args.width, args.bundles or Path(scratch))
        for key in args.keys:
            for streams in BATCHES:
                ways = ways_of(streams, cores)
                found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
                for _ in range(args.rounds):
                    for way, (processes, options) in ways.items():
                        found[way].append(together(bundle, key, processes, options, args.seconds))
                runs.append({"key": key, "streams": streams, **found})
                fps = {way: max(run["fps"] for run in found[way]) for way in ways}
                mib = {way: max(run["mib"] for run in found[way]) for way in ways}
                rows.append([key, streams, *(f"{fps[way]:.0f}" for way in ways),
                             f"{fps['batched'] / fps['processes']:.2f}x", f"{fps['lanes'] / fps['processes']:.2f}x",
                             *(f"{mib[way]:.0f}" for way in ways)])  # fmt: skip
    columns = ["target", "streams", "one batched session, frames/s", "lanes, frames/s", "a process each, frames/s",
               "batched / processes", "lanes / processes", "MiB, batched", "MiB, lanes", "MiB, processes"]  # fmt: skip
    caption = (
        f"Student of width {args.width:g} at {args.side} px on {cores} cores, nothing else running; best of "
        f"{args.rounds} alternating rounds of {args.seconds:g} s."
    )
    data = {"cores": cores, "side": args.side, "width": args.width, "runs": runs}
    print(save("batching", caption, columns, rows, data))


if __name__ == "__main__":
    main()
