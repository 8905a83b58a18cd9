"""LiteRT (``ai-edge-litert``), falling back to its old name ``tflite-runtime``; XNNPACK on the CPU.

Inside the file everything is NHWC; the adapter owns the layout. Forms: ``interpreter`` (state goes from output to
input by one copy inside the interpreter's own memory) and ``compiled`` (LiteRT's newer API over tensor buffers, which
is also the way to its GPU accelerator). An external delegate is a library given by path.

A file has a fixed batch. B streams run through ``model-bB.tflite`` where the exporter made one, else one after the
other through the file of batch 1, each with its own states.
"""

import contextlib
import ctypes
import importlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.chatter import without_news
from deploy.runtimes.base import Availability, Options, StepSession, check_form, choose_device
from deploy.runtimes.litert_compiled import CompiledSession, gpu_trouble
from deploy.runtimes.tflite_file import check_whole
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingDependency, UnavailableDevice

__all__ = ["RUNTIME", "batch_file"]

FORMS = ("interpreter", "compiled")
_PACKAGES = (("ai_edge_litert", "ai_edge_litert.interpreter"), ("tflite_runtime", "tflite_runtime.interpreter"))


def batch_file(path: Path, batch: int) -> Path:
    """The file for ``batch`` streams beside the plain one."""
    return path if batch == 1 else path.with_name(f"{path.stem}-b{batch}{path.suffix}")


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
            with without_news():
                module.Interpreter(model_content=b"\0" * 16)
        except (ValueError, RuntimeError):
            return package, module  # it looked at the bytes and refused them: the library works
        except (ImportError, AttributeError, SystemError):
            continue
    raise MissingDependency("ai-edge-litert", "litert")


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise BundleError(f"litert cannot read {path}: the file is missing")
    try:
        yield
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise BundleError(f"litert cannot read {path}: {lines[0]}") from error


def _interpreter(module: Any, file: Path, options: Options) -> tuple[Any, dict[str, str]]:
    """A ready interpreter, and what runs the graph.

    Raises:
        UnavailableDevice: the external delegate takes no operator, and falling back was not allowed.
    """
    with without_news():
        extra = _delegation(module, options)
        with _translated(file):
            check_whole(file)
            interpreter = module.Interpreter(model_path=str(file), num_threads=options.threads, **extra)
            interpreter.allocate_tensors()
    placed = _partitions(interpreter, options.delegate)
    if options.delegate is None or not placed["delegated"].startswith("0 "):
        return interpreter, placed
    reason = f"litert: the delegate {options.delegate} took no operator of {file}"
    if not options.allow_fallback:
        raise UnavailableDevice(reason)
    interpreter, placed = _interpreter(module, file, replace(options, delegate=None))
    return interpreter, {**placed, "asked": str(options.delegate), "fallback": reason}


class _Session(StepSession):
    """The interpreter's own memory, seen through arrays that are made once."""

    def __init__(
        self, module: Any, path: Path, artefact: Artefact, contract: Contract, options: Options, detail: dict[str, str]
    ) -> None:
        own = batch_file(path, options.batch)
        file = own if own.is_file() else path
        self._interpreter, placed = _interpreter(module, file, options)
        super().__init__(
            contract,
            Placement(runtime="litert", device="cpu", precision=artefact.precision, threads=options.threads,
                      detail={**detail, "file": file.name, **placed}),
            options.batch,
        )  # fmt: skip
        with _translated(file):
            runner = self._interpreter.get_signature_runner("serving_default")
            inputs = {name: detail["index"] for name, detail in runner.get_input_details().items()}
            outputs = {name: detail["index"] for name, detail in runner.get_output_details().items()}
            self._frame = self._memory(inputs[contract.input_names[0]])
            self._logits = self._memory(outputs["logits"])
            links = _in_order([(outputs[state.output], inputs[state.name]) for state in contract.states])
            self._links = [(self._memory(source), self._memory(target)) for source, target in links]
        self._turns = options.batch // len(self._frame)
        # With one file run for several streams in turn, their states wait here.
        shapes = [(self._turns, *target.shape) for _, target in self._links] if self._turns > 1 else []
        self._waiting = [np.zeros(shape, np.float32) for shape in shapes]
        self._forget()

    def _memory(self, index: int) -> Array:
        """A lasting array over one tensor. ``Interpreter.tensor`` would make a new one at every step.

        The interpreter refuses to run while an array of its own making is held, so this one is made from the address;
        it does not move, since nothing is resized after allocate_tensors().
        """
        view = self._interpreter.tensor(index)()
        if view.dtype != np.float32:
            raise ValueError(f"a tensor is {view.dtype}, float32 is expected; export the model again")
        shape, address = view.shape, view.__array_interface__["data"][0]
        memory = (ctypes.c_float * view.size).from_address(address)
        return np.ctypeslib.as_array(memory).reshape(shape)

    def _run(self, frame_BCHW: Array) -> Array:
        if self._turns == 1:
            self._put(frame_BCHW)
            self._interpreter.invoke()
            for source, target in self._links:
                np.copyto(target, source)
            return self._logits.copy()
        answers = [self._turn(stream, frame_BCHW[stream : stream + 1]) for stream in range(self._turns)]
        return np.concatenate(answers)

    def _put(self, frame_BCHW: Array) -> None:
        """Channels to the end, one by one: three times as fast as copying from a transposed view."""
        for channel in range(frame_BCHW.shape[1]):
            self._frame[..., channel] = frame_BCHW[:, channel]

    def _turn(self, stream: int, frame_1CHW: Array) -> Array:
        """One stream of several through the file of batch 1."""
        self._put(frame_1CHW)
        for waiting, (_, target) in zip(self._waiting, self._links, strict=True):
            np.copyto(target, waiting[stream])
        self._interpreter.invoke()
        for waiting, (source, _) in zip(self._waiting, self._links, strict=True):
            np.copyto(waiting[stream], source)
        return self._logits.copy()

    def _forget(self) -> None:
        for _, target in self._links:
            target[...] = 0
        for waiting in self._waiting:
            waiting[...] = 0

    def _forget_one(self, stream: int) -> None:
        for waiting in self._waiting:
            waiting[stream] = 0
        for _, target in self._links if self._turns == 1 else ():
            target[stream] = 0

    def _free(self) -> None:
        # The arrays first: they look into the interpreter's memory.
        del self._frame, self._logits, self._links
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


def _delegation(module: Any, options: Options) -> dict[str, Any]:
    """The interpreter's arguments for an external delegate, loaded by path.

    XNNPACK stays out then, so that what the delegate did not take is seen and not hidden.

    Raises:
        UnavailableDevice: the library is not there or does not load.
    """
    if options.delegate is None:
        return {}
    if not options.delegate.is_file():
        raise UnavailableDevice(f"litert: the delegate {options.delegate} does not exist: check the path")
    try:
        # Looked at first: when it cannot be loaded, LiteRT's own object is left half made and complains when it goes.
        ctypes.CDLL(str(options.delegate)).tflite_plugin_create_delegate  # noqa: B018
        delegate = module.load_delegate(str(options.delegate), dict(options.delegate_options))
    except (ValueError, OSError, AttributeError) as error:
        line = (str(error).splitlines() or ["unknown reason"])[0]
        raise UnavailableDevice(f"litert cannot load the delegate {options.delegate}: {line}") from error
    resolver = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return {"experimental_delegates": [delegate], "experimental_op_resolver_type": resolver}


def _partitions(interpreter: Any, delegate: Path | None) -> dict[str, str]:
    """How many parts of the graph a delegate runs, and which operators are left to the plain kernels.

    The interpreter lists the operators a delegate took beside the delegate's own, so the graph is walked back from
    its outputs to see which of them still run.
    """
    nodes = interpreter._get_ops_details()
    makers = {int(out): node for node in nodes for out in node["outputs"]}
    makers |= {int(out): node for node in nodes if node["op_name"] == "DELEGATE" for out in node["outputs"]}
    todo, seen = [int(detail["index"]) for detail in interpreter.get_output_details()], dict[int, str]()
    while todo:
        node = makers.get(todo.pop())
        if node is not None and node["index"] not in seen:
            seen[node["index"]] = str(node["op_name"])
            todo += [int(index) for index in node["inputs"]]
    rest = Counter(name for name in seen.values() if name != "DELEGATE")
    parts = f"{len(seen) - rest.total()} parts"
    left = ", ".join(f"{count} {name}" if count > 1 else name for name, count in sorted(rest.items()))
    return {"delegate": str(delegate or "XNNPACK"), "delegated": parts, "left": left or "none"}


class _LiteRt:
    name = "litert"
    extra = "litert"

    def available(self) -> Availability:
        try:
            package, module = _library()
        except MissingDependency as error:
            return Availability(False, str(error))
        version = getattr(importlib.import_module(package), "__version__", None) or getattr(module, "__version__", None)
        trouble = gpu_trouble(package)
        devices = ("cpu",) if trouble else ("cpu", "gpu")
        missing = (trouble,) if trouble else ()
        slow = ("int8",) if package == "tflite_runtime" else ()  # its XNNPACK leaves signed int8 to slow kernels
        return Availability(True, "", str(version) if version else None, devices, missing, slow)

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> StepSession:
        path = folder / artefact.entry
        package, module = _library()
        device, detail = choose_device(self, options)
        form = check_form("litert", options.form, FORMS if device == "cpu" else FORMS[1:])
        if form == "interpreter":
            return _Session(module, path, artefact, contract, options, {"library": package, "form": form, **detail})
        file = batch_file(path, options.batch)
        placement = Placement(runtime="litert", device=device, precision=artefact.precision, threads=options.threads,
                              detail={"library": package, "form": form, "file": file.name, **detail})  # fmt: skip
        return CompiledSession(file, contract, placement, options.batch)


RUNTIME = _LiteRt()
