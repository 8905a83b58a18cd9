"""What was made faster in a step, in one run: each target before, with its tensors bound once, and now.

    python benchmarks/adapters.py [--side 112] [--width 1.0] [--threads 1] [--bundles FOLDER]

Before: every step wraps the frame and the states anew (ONNX Runtime, OpenVINO) or asks the interpreter for a fresh view
of each tensor (LiteRT); the int8 file is as its quantiser makes it. Bound: the same file, all tensors bound once,
states as they are in the float model. Now: the session as it is, on the file as it is exported. Besides, forms that
keep the states inside the runtime.
"""

import argparse
import tempfile
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


def openvino_compiled(bundle: Bundle, key: str, threads: int) -> Any:
    """The file for one stream, fp32 as fp32; an int8 file's rest in the precision that OpenVINO chooses."""
    import openvino as ov

    contract, artefact = bundle.manifest.contract, bundle.artefact(key)
    model = ov.Core().read_model(bundle.root / artefact.folder / artefact.entry)
    shapes = [contract.input_shape, *(state.shape for state in contract.states)]
    model.reshape({name: [1, *shape] for name, shape in zip(contract.input_names, shapes, strict=True)})
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads}
    if key.endswith("fp32"):
        config["INFERENCE_PRECISION_HINT"] = "f32"
    return ov.Core().compile_model(model, "CPU", config)


def openvino_before(bundle: Bundle, key: str, frame: Array, threads: int) -> Call:
    """Every tensor set at every step, and a dictionary of all outputs copied by infer()."""
    import openvino as ov

    contract = bundle.manifest.contract
    request = openvino_compiled(bundle, key, threads).create_infer_request()
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


def openvino_bound(bundle: Bundle, key: str, frame: Array, threads: int) -> Call:
    """Two requests over two sets of states (B, C, H, W); OpenVINO chooses the precision of an int8 file's rest."""
    import openvino as ov

    contract, compiled = bundle.manifest.contract, openvino_compiled(bundle, key, threads)
    sets, requests = [list(contract.zeros().values()) for _ in range(2)], []
    own, logits = np.zeros_like(frame), np.zeros((1, contract.answer_width), np.float32)
    for reads, writes in (sets, sets[::-1]):
        request = compiled.create_infer_request()
        request.set_tensor("frame", ov.Tensor(own, shared_memory=True))
        request.set_tensor("logits", ov.Tensor(logits, shared_memory=True))
        for state, source, target in zip(contract.states, reads, writes, strict=True):
            request.set_tensor(state.name, ov.Tensor(source, shared_memory=True))
            request.set_tensor(state.output, ov.Tensor(target, shared_memory=True))
        requests.append(request)

    def step() -> Any:
        np.copyto(own, contract.check_input(frame))
        requests[0].start_async()
        requests[0].wait()
        requests.reverse()
        sets.reverse()  # also keeps the memory that the requests borrow
        return logits.copy()

    return step


def session_bound(bundle: Bundle, key: str, frame: Array, threads: int) -> Call:
    """Where the adapter did not change."""
    session = open_session(bundle, key, options=Options(threads=threads))
    return lambda: session.step(frame)


BOUND = {"onnxruntime": session_bound, "openvino": openvino_bound, "litert": session_bound}
BEFORE = {"onnxruntime": onnxruntime_before, "openvino": openvino_before, "litert": litert_before}


def calls_of(bundle: Bundle, plain: Bundle, frame: Array, threads: int) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls by (target, way), and the forms that do not work here with the reason."""
    calls: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    for artefact in bundle.manifest.artefacts:
        key = artefact.key
        if artefact.runtime not in BEFORE:  # torch's session did not change
            continue
        calls[f"{key} before"] = BEFORE[artefact.runtime](plain, key, frame, threads)
        calls[f"{key} bound"] = BOUND[artefact.runtime](plain, key, frame, threads)
        for form in (None, *FORMS.get(key, ())):
            try:
                session = open_session(bundle, key, options=Options(threads=threads, form=form))
            except VidonError as error:
                reasons[f"{key} {form}"] = str(error).replace(f"{bundle.root.parent}/", "")
                continue
            calls[f"{key} {form or 'now'}"] = lambda session=session: session.step(frame)
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
        folder = args.bundles or Path(scratch)
        plain, bundle = (bundle_of("student", args.side, args.width, folder, plain=plain) for plain in (True, False))
        calls, reasons = calls_of(bundle, plain, frame, args.threads)
        found = bench_calls(calls, args.steps, 10, "adapters", block=20, rest_s=0.003)
    quiet = {name: value.p50_ms for name, value in found.items()}
    rows = []
    for name, value in found.items():
        key, _, way = name.partition(" ")
        rows.append([key, way, f"{value.p50_ms:.3f}", f"{value.p95_ms:.3f}",
                     *(f"{quiet[f'{key} {other}'] / quiet[name]:.2f}x" for other in ("before", "bound"))])  # fmt: skip
    columns = ["target", "way", "p50, ms", "p95, ms", "faster than before (p50)", "than bound"]
    caption = (
        f"Student of width {args.width:g} at {args.side} px, {args.threads} thread(s), one interleaved run, "
        "nothing else running."
    )
    times = {name: value.as_dict(samples=True) for name, value in found.items()}
    data = {"ms": times, "not_here": reasons}
    print(save("adapters", caption, columns, rows, data))


if __name__ == "__main__":
    main()
