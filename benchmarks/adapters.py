"""What binding the tensors once is worth: each adapter's step before and after, on the same file, in one run.

    python benchmarks/adapters.py [--side 112] [--width 1.0] [--threads 1] [--bundles FOLDER]

Before: every step wraps the frame and the states anew (ONNX Runtime, OpenVINO) or asks the interpreter for a fresh view
of each tensor (LiteRT). After: the session as it is. Besides, forms that keep the states inside the runtime.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import save
from benchmarks.runtimes import bundle_of
from deploy.bench import bench_calls
from deploy.runtimes import Options, open_session
from toolkit.bundle import Bundle
from toolkit.contract import Array
from toolkit.errors import VidonError

Call = Callable[[], object]
FORMS = {"openvino-fp32": ("stateful",), "openvino-int8": ("stateful",), "litert-fp32": ("compiled",)}


def onnxruntime_before(bundle: Bundle, key: str, frame: Array, threads: int) -> Call:
    """A new value for the frame at every step; the states handed over by name."""
    import onnxruntime as ort

    contract, artefact = bundle.manifest.contract, bundle.artefact(key)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_free_dimension_override_by_name("batch", 1)
    path = str(bundle.root / artefact.folder / artefact.entry)
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    make = ort.OrtValue.ortvalue_from_numpy
    feed = {name: make(zero) for name, zero in contract.zeros().items()}

    def step() -> Any:
        feed["frame"] = make(contract.check_input(frame))
        logits, *following = session.run_with_ort_values(contract.output_names, feed)
        for state, value in zip(contract.states, following, strict=True):
            feed[state.name] = value
        return logits.numpy()

    return step


def openvino_before(bundle: Bundle, key: str, frame: Array, threads: int) -> Call:
    """Every tensor set at every step, and a dictionary of all outputs copied by infer()."""
    import openvino as ov

    contract, artefact = bundle.manifest.contract, bundle.artefact(key)
    model = ov.Core().read_model(bundle.root / artefact.folder / artefact.entry)
    shapes = [contract.input_shape, *(state.shape for state in contract.states)]
    model.reshape({name: [1, *shape] for name, shape in zip(contract.input_names, shapes, strict=True)})
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads}
    if key.endswith("fp32"):
        config["INFERENCE_PRECISION_HINT"] = "f32"
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    sets = [[ov.Tensor(zero.copy()) for zero in contract.zeros().values()] for _ in range(2)]

    def step() -> Any:
        request.set_tensor("frame", ov.Tensor(contract.check_input(frame), shared_memory=True))
        for state, held, free in zip(contract.states, *sets, strict=True):
            request.set_tensor(state.name, held)
            request.set_tensor(state.output, free)
        request.infer()
        sets.reverse()
        return np.array(request.get_tensor("logits").data, np.float32)

    return step


def litert_before(bundle: Bundle, key: str, frame: Array, threads: int) -> Call:
    """A fresh view of each tensor at every step."""
    from ai_edge_litert.interpreter import Interpreter

    from deploy.runtimes.litert_runtime import _in_order

    contract, artefact = bundle.manifest.contract, bundle.artefact(key)
    path = str(bundle.root / artefact.folder / artefact.entry)
    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner("serving_default")
    inputs = {name: detail["index"] for name, detail in runner.get_input_details().items()}
    outputs = {name: detail["index"] for name, detail in runner.get_output_details().items()}
    links = _in_order([(outputs[state.output], inputs[state.name]) for state in contract.states])

    def step() -> Any:
        np.copyto(interpreter.tensor(inputs["frame"])(), contract.check_input(frame).transpose(0, 2, 3, 1))
        interpreter.invoke()
        answer = np.array(interpreter.tensor(outputs["logits"])(), np.float32)
        for source, target in links:
            np.copyto(interpreter.tensor(target)(), interpreter.tensor(source)())
        return answer

    return step


BEFORE = {"onnxruntime": onnxruntime_before, "openvino": openvino_before, "litert": litert_before}


def calls_of(bundle: Bundle, frame: Array, threads: int) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls by (target, way), and the forms that do not work here with the reason."""
    calls: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    for artefact in bundle.manifest.artefacts:
        key = artefact.key
        if artefact.runtime in BEFORE:  # torch's session did not change
            calls[f"{key} before"] = BEFORE[artefact.runtime](bundle, key, frame, threads)
        for form in (None, *FORMS.get(key, ())) if artefact.runtime in BEFORE else ():
            try:
                session = open_session(bundle, key, options=Options(threads=threads, form=form))
            except VidonError as error:
                reasons[f"{key} {form}"] = str(error)
                continue
            calls[f"{key} {form or 'after'}"] = lambda session=session: session.step(frame)
    return calls, reasons


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--bundles", type=Path)
    args = parser.parse_args()
    frame = np.random.default_rng(1).standard_normal((1, 3, args.side, args.side)).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = bundle_of("student", args.side, args.width, args.bundles or Path(scratch))
        calls, reasons = calls_of(bundle, frame, args.threads)
        found = bench_calls(calls, args.steps, 10, "adapters", block=5, rest_s=0.003, clock=time.process_time_ns)
    quiet = {name: value.p50_ms for name, value in found.items()}
    rows = []
    for name, value in found.items():
        key, _, way = name.partition(" ")
        first = quiet.get(f"{key} before", quiet[f"{key} after"])
        rows.append([key, way, f"{value.p50_ms:.3f}", f"{value.p95_ms:.3f}", f"{first / quiet[name]:.2f}x"])
    columns = ["target", "way", "p50, CPU ms", "p95, CPU ms", "faster than before (p50)"]
    caption = (
        f"Student of width {args.width:g} at {args.side} px, {args.threads} thread(s), one interleaved run; "
        "milliseconds of processor time, since the machine was shared."
    )
    times = {name: value.as_dict(samples=True) for name, value in found.items()}
    data = {"cpu_ms": times, "not_here": reasons}
    print(save("adapters", caption, columns, rows, data))


if __name__ == "__main__":
    main()
