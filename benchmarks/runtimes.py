"""Every runtime and precision on a student, an R(2+1)D and a ViT-S; beside each the runtime's own loop on its file.

    python benchmarks/runtimes.py [--side 112] [--width 1.0] [--threads 1] [--bundles FOLDER] [--only student]

One interleaved run per model. The runtime's own loop is the tightest there is: inputs stay as they are, nothing is fed
back or read out. What a session adds is a check of the frame, the frame's way in, the states' way round and the
answer's way out. Weights are fresh (latency does not depend on them); parity is against the float model all the same.
Memory and load time (imports included) come from a process per target; OpenVINO's benchmark_app runs besides (its
wall-clock median is among the raw figures).
"""

import argparse
import datetime
import gc
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import RESULTS, save
from deploy.bench import bench_calls
from deploy.export import export_bundle
from deploy.runtimes import Options, load
from deploy.trial import try_alone
from toolkit.bundle import Artefact, Bundle, open_bundle
from toolkit.preprocess import Preprocess
from toolkit.recipe import StudentConfig, TeacherConfig
from train.models.registry import make_encoder
from train.models.student import build_student

RUNTIMES = ("torch", "onnxruntime", "openvino", "litert")
FRAMES = 8


def build(name: str, side: int, width: float) -> nn.Module:
    """One of the three models, with weights of a trained one's scale (fresh ones answer almost nothing)."""
    torch.manual_seed(0)
    model: nn.Module
    if name == "student":
        model = build_student(StudentConfig(width=width), 5, (3, side, side), 16)
    else:
        model = make_encoder(TeacherConfig(encoder=name), 5, Preprocess(size=(side, side)), FRAMES)
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.3)
    nn.init.normal_(next(module for module in reversed(modules) if isinstance(module, nn.Linear)).weight, std=0.5)
    return model.eval()


def bundle_of(
    name: str, side: int, width: float, folder: Path, targets: Sequence[str] = (), plain: bool = False
) -> Bundle:
    """The model exported everywhere, and for the targets; one that is already in ``folder`` is taken as it is.

    ``plain`` int8 files are as their quantisers make them.
    """
    path = folder / f"{name}-{side}-{width}{'-plain' if plain else ''}.vidon"
    if path.exists():
        return open_bundle(path)
    rng = np.random.default_rng(0)
    flows = [rng.standard_normal((FRAMES, 3, side, side)).astype(np.float32) * (0.5 + i / 4) for i in range(4)]
    return export_bundle(
        build(name, side, width), path=path, name=name, labels=tuple("abcde"), preprocess=Preprocess(size=(side, side)),
        rollouts=flows, golden_frames=flows[0], runtimes=RUNTIMES, precisions=("fp32", "int8"), lineage={},
        targets=targets, plain=plain,
    )  # fmt: skip


def own_loop(bundle: Bundle, artefact: Artefact, threads: int) -> Callable[[], object]:
    """The runtime's own tightest loop over the file, without vidon."""
    contract, path = bundle.manifest.contract, bundle.root / artefact.folder / artefact.entry
    rng = np.random.default_rng(1)
    shapes = [contract.input_shape, *(state.shape for state in contract.states)]
    values = [rng.standard_normal((1, *shape)).astype(np.float32) for shape in shapes]
    feed: dict[str, Any] = dict(zip(contract.input_names, values, strict=True))
    if artefact.runtime == "torch":
        module = torch.export.load(str(path)).module()
        tensors = [torch.from_numpy(value) for value in values]

        def step() -> object:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                return module(*tensors)

        return step
    if artefact.runtime == "onnxruntime":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.add_free_dimension_override_by_name("batch", 1)
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        for value in session.get_inputs():
            if value.type == "tensor(uint8)":  # a state that stays an integer
                feed[value.name] = rng.integers(0, 256, (1, *value.shape[1:])).astype(np.uint8)
        return lambda: session.run(None, feed)
    if artefact.runtime == "openvino":
        return _openvino_loop(path, feed, threads, artefact.precision)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    return lambda: interpreter.invoke()


def _openvino_loop(path: Path, feed: dict[str, Any], threads: int, precision: str) -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({name: list(value.shape) for name, value in feed.items()})
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads}
    if precision == "fp32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    request = core.compile_model(model, "CPU", config).create_infer_request()
    for name, value in feed.items():
        request.set_tensor(name, openvino.Tensor(value))

    def step() -> None:
        request.start_async()
        request.wait()

    return step


def benchmark_app(bundle: Bundle, artefact: Artefact, threads: int) -> float | None:
    """Median ms of OpenVINO's own tool on the same file."""
    tool = shutil.which("benchmark_app", path=str(Path(sys.executable).parent))
    if tool is None or artefact.runtime != "openvino":
        return None
    contract = bundle.manifest.contract
    shapes = {contract.input_names[0]: contract.input_shape, **{s.name: s.shape for s in contract.states}}
    text = ",".join(f"{name}[1,{','.join(map(str, shape))}]" for name, shape in shapes.items())
    command = [tool, "-m", str(bundle.root / artefact.folder / artefact.entry), "-hint", "none", "-nstreams", "1",
               "-nthreads", str(threads), "-api", "sync", "-t", "4", "-shape", text]  # fmt: skip
    command += ["-infer_precision", "f32"] if artefact.precision == "fp32" else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
    return float(found.group(1)) if found else None


def measure(
    name: str, bundle: Bundle, threads: int, steps: int, known: dict[str, Any]
) -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows of the table and the raw figures for one model; memory and load time are taken again only if not known."""
    contract = bundle.manifest.contract
    frame = np.random.default_rng(2).standard_normal((1, *contract.input_shape)).astype(np.float32)
    calls: dict[str, Callable[[], object]] = {}
    for artefact in bundle.manifest.artefacts:
        options = Options(threads=threads)
        # Clip models are timed by the clip: the sliding window is the same for all.
        session = load(artefact.runtime).open(bundle.root / artefact.folder, artefact, contract, options)
        calls[f"{artefact.key} session"] = lambda session=session: session.step(frame)
        calls[f"{artefact.key} own"] = own_loop(bundle, artefact, threads)
    count = steps if contract.kind == "stream" else max(10, steps // 3)
    times = bench_calls(calls, count, 3, f"{name}, {threads} threads", block=5, rest_s=0.003)
    rows, data = [], {}
    for artefact in bundle.manifest.artefacts:
        key = artefact.key
        mine, own = times[f"{key} session"], times[f"{key} own"]
        alone = known.get(key, {}).get("alone") or try_alone(bundle, key, Options(threads=threads))
        tool = benchmark_app(bundle, artefact, threads)
        data[key] = {"session": mine.as_dict(samples=True), "own_loop": own.as_dict(samples=True), "alone": alone,
                     "benchmark_app_median_ms": tool}  # fmt: skip
        parity = f"{alone['max_diff']:.0e}" if artefact.precision == "fp32" else f"{alone['decibels']:.0f} dB"
        rows.append([
            name, artefact.runtime, artefact.precision, threads, f"{mine.p50_ms:.2f} / {mine.p95_ms:.2f}",
            f"{own.p50_ms:.2f}", f"{mine.p10_ms - own.p10_ms:+.2f} ({mine.p10_ms / own.p10_ms - 1:+.0%})",
            f"{alone['peak_rss_mib']:.0f}",
            f"{artefact.metrics['size_bytes'] / 2**20:.1f}", f"{alone['load_ms']:.0f}", parity,
            f"{alone['agreement']:.0%}",
        ])  # fmt: skip
    gc.collect()
    return rows, data


def today() -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows and figures of this day's result, if there is one: each model is one run of its own."""
    found = sorted(RESULTS.glob(f"runtimes_*_{datetime.date.today().isoformat()}.json"))
    if not found:
        return [], {}
    kept = json.loads(found[-1].read_text())
    return kept["table"]["rows"], kept["data"]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", nargs="+", default=["student", "r2plus1d", "vit-s"])
    parser.add_argument("--add", action="store_true", help="Add to today's result instead of replacing it.")
    parser.add_argument("--bundles", type=Path, help="Keep the exported bundles here and use those there are.")
    args = parser.parse_args()
    rows, data = today() if args.add else ([], {})
    data |= {"side": args.side, "width": args.width}
    rows = [row for row in rows if row[0] not in args.only]
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only:
            bundle = bundle_of(name, args.side, args.width, args.bundles or Path(scratch))
            for threads in args.threads:
                place = f"{name} x{threads}"
                found, data[place] = measure(name, bundle, threads, args.steps, data.get(place, {}))
                rows += found
    columns = ["model", "runtime", "precision", "threads", "step p50 / p95, ms", "own loop p50", "session adds",
               "peak MiB", "file MiB", "load ms", "parity", "agreement"]  # fmt: skip
    caption = (
        f"{args.side} px; student of width {args.width:g}, clips of {FRAMES} frames. A step or clip in one interleaved "
        "run a model; what the session adds is by the least disturbed tenth of the calls (p10), since the machine is "
        "shared; load time includes the imports."
    )
    print(save("runtimes", caption, columns, rows, data))


if __name__ == "__main__":
    main()
