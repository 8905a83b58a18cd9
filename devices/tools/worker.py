"""The other end of the pipe: runs in a tool's environment, with the standard library, numpy and the tool alone.

    python -I worker.py TOOL      then one JSON request per line on standard input (see client.py)

What the tools themselves print, even from C, goes to standard error: the pipe of the answers is set aside first.
A handler takes (params, arrays) and gives (result, arrays); what it raises becomes the answer's ``error``.
"""

import contextlib
import csv
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PROTOCOL = 1
Arrays = dict[str, Any]
Answer = tuple[dict[str, Any], Arrays]
Handler = Callable[[dict[str, Any], Arrays], Answer]


class Vela:
    """Arm's compiler, run as it is run by hand."""

    package = "ethos-u-vela"

    def start(self) -> None:
        """Import it."""
        import ethosu.vela  # noqa: F401

    def compile(self, params: dict[str, Any], arrays: Arrays) -> Answer:
        """int8 LiteRT file -> file for the NPU, the summary and one row per layer."""
        source, out = Path(params["source"]), Path(params["out"])
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-I", "-m", "ethosu.vela", str(source), "--output-dir", folder,
                       "--accelerator-config", params["accelerator"], "--config", params["config"],
                       "--system-config", params["system"], "--memory-mode", params["memory"],
                       "--verbose-performance", "--show-cpu-operations"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            made = Path(folder) / f"{source.stem}_vela.tflite"
            if done.returncode != 0 or not made.is_file():
                lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
                raise RuntimeError(
                    next((line for line in lines if "rror" in line), lines[-1] if lines else "no output")
                )
            out.write_bytes(made.read_bytes())
            (summary,) = _table(Path(folder).glob("*_summary_*.csv"))
            layers = _table(Path(folder).glob("*_per-layer.csv"))
        # Operators left to the processor are only named in the text, never in the tables.
        left = re.findall(r"^Warning: (.+? (?:operation|operator).*)$|^(?:Info|Warning): (.*CPU.*)$", done.stdout, re.M)
        return {"summary": summary, "layers": layers, "notes": [a or b for a, b in left]}, {}


class Rockchip:
    """rknn-toolkit2: builds for a chip, and runs what it built in its simulator."""

    package = "rknn-toolkit2"

    def start(self) -> None:
        """Import it."""
        from rknn.api import RKNN

        self._make = RKNN

    def compile(self, params: dict[str, Any], arrays: Arrays) -> Answer:
        """QDQ ONNX -> .rknn, and one row per layer of what the compiler placed where."""
        with tempfile.TemporaryFile() as text:
            with _printed_into(text):
                rknn = self._build(params, verbose=True)
                code = rknn.export_rknn(params["out"])
                rknn.release()
            text.seek(0)
            layers = placed_layers(text.read().decode(errors="replace"))
        if code != 0:
            raise RuntimeError(f"export_rknn gave {code}")
        return {"layers": layers}, {}

    def open(self, params: dict[str, Any], arrays: Arrays) -> Answer:
        """Build again and start the simulator: it only takes what was built in the same process."""
        self._rknn = self._build(params, verbose=False)
        if self._rknn.init_runtime() != 0:
            raise RuntimeError("the simulator does not start")
        return {}, {}

    def step(self, params: dict[str, Any], arrays: Arrays) -> Answer:
        """Inputs and outputs in the graph's order, NCHW, float32."""
        values = [arrays[name] for name in params["inputs"]]
        found = self._rknn.inference(inputs=values, data_format=["nchw"] * len(values))
        if found is None:
            raise RuntimeError("the simulator gave no answer")
        return {}, dict(zip(params["outputs"], found, strict=True))

    def _build(self, params: dict[str, Any], verbose: bool) -> Any:
        rknn = self._make(verbose=verbose)
        rknn.config(target_platform=params["platform"])
        for what, code in (("load_onnx", rknn.load_onnx(model=params["source"])),
                           ("build", rknn.build(do_quantization=False))):  # fmt: skip
            if code != 0:
                raise RuntimeError(f"{what} gave {code}")
        return rknn


class Qualcomm:
    """ONNX Runtime's QNN plugin: context binaries for a chip, and the emulation of its NPU."""

    package = "onnxruntime-qnn"

    def start(self) -> None:
        """Register the provider."""
        import onnxruntime
        import onnxruntime_qnn

        onnxruntime.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
        self._devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == "QNNExecutionProvider"]
        self._ort, self._backend = onnxruntime, onnxruntime_qnn.get_qnn_htp_path()

    def compile(self, params: dict[str, Any], arrays: Arrays) -> Answer:
        """QDQ ONNX -> ONNX file that holds the context binary for one chip."""
        Path(params["out"]).unlink(missing_ok=True)
        self._session(params["source"], params["options"], params["out"])
        return {}, {}

    def open(self, params: dict[str, Any], arrays: Arrays) -> Answer:
        """Load a context binary on the emulation; nothing may run on the processor."""
        self._opened = self._session(params["source"], {})
        return {"providers": self._opened.get_providers()}, {}

    def step(self, params: dict[str, Any], arrays: Arrays) -> Answer:
        """One run, by name."""
        found = self._opened.run(params["outputs"], {name: arrays[name] for name in params["inputs"]})
        return {}, dict(zip(params["outputs"], found, strict=True))

    def _session(self, source: str, options: dict[str, str], context: str | None = None) -> Any:
        settings = self._ort.SessionOptions()
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if context is not None:
            settings.add_session_config_entry("ep.context_enable", "1")
            settings.add_session_config_entry("ep.context_file_path", context)
            settings.add_session_config_entry("ep.context_embed_mode", "1")
        settings.add_provider_for_devices(self._devices, {"backend_path": self._backend, **options})
        return self._ort.InferenceSession(source, settings)


class TensorRtRtx:
    """TensorRT for RTX: compiles for a GPU generation on a machine that has none."""

    package = "tensorrt-rtx-cu13"

    def start(self) -> None:
        """Import it."""
        self._trt = importlib.import_module("tensorrt_rtx")

    def compile(self, params: dict[str, Any], arrays: Arrays) -> Answer:
        """ONNX -> engine."""
        trt = self._trt
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
        if not parser.parse(Path(params["source"]).read_bytes()):
            raise RuntimeError(str(parser.get_error(0)))
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, params["capability"]), 0)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise RuntimeError("the engine was not built")
        Path(params["out"]).write_bytes(bytes(engine))
        return {"layers": network.num_layers}, {}


class OldTflite:
    """The first name of LiteRT's interpreter, for boards that have nothing newer."""

    package = "tflite-runtime"

    def start(self) -> None:
        """Import it."""
        from tflite_runtime.interpreter import Interpreter

        self._make = Interpreter

    def open(self, params: dict[str, Any], arrays: Arrays) -> Answer:
        """Load a float file."""
        self._runner = self._make(model_path=params["source"], num_threads=1).get_signature_runner("serving_default")
        return {}, {}

    def step(self, params: dict[str, Any], arrays: Arrays) -> Answer:
        """One run, by name."""
        found = self._runner(**{name: arrays[name] for name in params["inputs"]})
        return {}, {name: found[name] for name in params["outputs"]}


TOOLS = {"ethos-u": Vela, "rockchip": Rockchip, "qualcomm": Qualcomm, "tensorrt-rtx": TensorRtRtx,
         "old-tflite": OldTflite}  # fmt: skip


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    tool = TOOLS[sys.argv[1]]()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(answer(tool, json.loads(line))).encode() + b"\n")
        answers.flush()


def answer(tool: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Do what one request asks."""
    reply: dict[str, Any] = {"protocol": PROTOCOL, "id": request["id"], "ok": False, "arrays": None}
    if request["protocol"] != PROTOCOL:
        return {**reply, "error": f"asked in protocol {request['protocol']}, it speaks {PROTOCOL}"}
    try:
        if request["op"] == "hello":
            tool.start()
            version = importlib.metadata.version(tool.package)
            return {**reply, "ok": True, "result": {"package": tool.package, "version": version}}
        given: Arrays = {}
        if request["arrays"]:
            with np.load(request["arrays"], allow_pickle=False) as data:
                given = {name: data[name] for name in data.files}
        result, found = handler(tool, request["op"])(request["params"], given)
        if found:
            reply["arrays"] = str(Path.cwd() / f"{request['id']}-answer.npz")
            np.savez(reply["arrays"], **found)
        return {**reply, "ok": True, "result": result}
    except Exception as error:
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        # Some tools hand on a whole traceback as the message: its last line says what is wrong.
        return {**reply, "error": f"{type(error).__name__}: {lines[-1] if 'Traceback' in lines[0] else lines[0]}"}


def handler(tool: Any, op: str) -> Handler:
    """The tool's method for ``op``."""
    if op not in ("compile", "open", "step") or not hasattr(tool, op):
        raise ValueError(f"{tool.package} has no operation {op!r}")
    found: Handler = getattr(tool, op)
    return found


def _table(files: Any) -> list[dict[str, str]]:
    with next(iter(files)).open(newline="") as file:
        return list(csv.DictReader(file))


def placed_layers(text: str) -> list[dict[str, str]]:
    """Rows of the table that rknn-toolkit2's verbose build prints: what is placed where, with estimated cycles."""
    row = re.compile(
        r"^D RKNN: \[[^]]*\] (?P<id>\d+)\s+(?P<op>\w+)\s+(?P<type>\w+)\s+(?P<target>[A-Z]+)\s+\S.*?"
        r"(?P<ddr>\d+)/(?P<npu>\d+)/(?P<total>\d+)\s+\S+ *(?P<name>.*?)\s*$",
        re.M,
    )
    return list({found["id"]: found.groupdict() for found in row.finditer(text)}.values())


@contextlib.contextmanager
def _printed_into(file: Any) -> Iterator[None]:
    """Everything printed meanwhile, even from C, goes to ``file``; if it fails, to standard error too."""
    saved = [os.dup(1), os.dup(2)]
    try:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        yield
    except BaseException:
        file.seek(0)
        os.write(saved[1], file.read())
        raise
    finally:
        for handle, back in zip(saved, (1, 2), strict=True):
            os.dup2(handle, back)
            os.close(handle)


if __name__ == "__main__":
    main()
