"""LiteRT (``ai-edge-litert``), falling back to its old name ``tflite-runtime``; XNNPACK on the CPU.

Inside the file everything is NHWC; the adapter owns the layout. State goes from output to input by one copy
between views of the interpreter's own memory.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes.base import Availability, Options, StepSession, check_device
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingDependency

__all__ = ["RUNTIME"]

_PACKAGES = (("ai_edge_litert", "ai_edge_litert.interpreter"), ("tflite_runtime", "tflite_runtime.interpreter"))
# The smallest valid model: a flatbuffer header is enough to see whether an Interpreter can be built at all.
_BROKEN = ("_ARRAY_API", "multiarray", "numpy.core")


def _library() -> tuple[str, Any]:
    """(package, interpreter module), the first that imports and can build an Interpreter.

    ``tflite_runtime`` 2.14 imports beside numpy 2 but fails when an Interpreter is built (``_ARRAY_API not found``).
    """
    for package, name in _PACKAGES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        try:
            module.Interpreter(model_content=b"\0" * 16)
        except (ValueError, RuntimeError):
            return package, module  # it looked at the bytes and refused them: the library works
        except (ImportError, AttributeError, SystemError):
            continue
    raise MissingDependency("ai-edge-litert", "litert")


class _Session(StepSession):
    def __init__(self, path: Path, artefact: Artefact, contract: Contract, options: Options) -> None:
        package, module = _library()
        device = check_device("litert", options.device, ("cpu",))
        if not path.is_file():
            raise BundleError(f"litert cannot read {path}: the file is missing")
        try:
            self._interpreter = module.Interpreter(model_path=str(path), num_threads=options.threads)
            self._interpreter.allocate_tensors()
            signature = self._interpreter.get_signature_list()["serving_default"]
            runner = self._interpreter.get_signature_runner("serving_default")
        except (ValueError, RuntimeError, KeyError) as error:
            raise BundleError(f"litert cannot read {path}: {str(error).splitlines()[0]}") from error
        del signature
        inputs = {name: detail["index"] for name, detail in runner.get_input_details().items()}
        outputs = {name: detail["index"] for name, detail in runner.get_output_details().items()}
        self._frame = inputs[contract.input_names[0]]
        self._logits = outputs["logits"]
        self._links = _in_order([(outputs[state.output], inputs[state.name]) for state in contract.states])
        self._order = (0, 2, 3, 1) if contract.kind == "stream" else (0, 2, 3, 4, 1)
        super().__init__(
            contract,
            Placement(runtime="litert", device=device, precision=artefact.precision, threads=options.threads,
                      detail={"library": package, "delegate": "XNNPACK"}),
        )  # fmt: skip
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        interpreter = self._interpreter
        np.copyto(interpreter.tensor(self._frame)(), frame_BCHW.transpose(self._order))
        interpreter.invoke()
        answer = np.array(interpreter.tensor(self._logits)(), np.float32)
        for source, target in self._links:
            np.copyto(interpreter.tensor(target)(), interpreter.tensor(source)())
        return answer

    def _forget(self) -> None:
        for _, target in self._links:
            self._interpreter.tensor(target)()[...] = 0

    def _free(self) -> None:
        del self._interpreter


def _in_order(links: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Order the copies so that none overwrites what a later one reads.

    A state that only moves on (``state_01_next`` is ``state_00``) may be one and the same tensor in the file: then
    the oldest must be copied first.
    """
    rest, ordered = list(links), []
    while rest:
        free = [link for link in rest if all(link[1] != other[0] for other in rest if other is not link)]
        if not free:
            raise BundleError("litert: the stream states form a circle without a copy; export the model again")
        ordered.append(free[0])
        rest.remove(free[0])
    return ordered


class _LiteRt:
    name = "litert"
    extra = "litert"

    def available(self) -> Availability:
        try:
            package, module = _library()
        except MissingDependency as error:
            return Availability(False, str(error))
        version = getattr(importlib.import_module(package), "__version__", None) or getattr(module, "__version__", None)
        return Availability(True, "", str(version) if version else None, ("cpu",))

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> _Session:
        return _Session(folder / artefact.entry, artefact, contract, options)


RUNTIME = _LiteRt()
