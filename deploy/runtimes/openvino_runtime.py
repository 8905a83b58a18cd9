"""OpenVINO: every tensor is bound once; a step reads one set of states and writes the other, by turns.

Forms: ``explicit`` (states are inputs and outputs, works everywhere; on the processor with the channels last) and
``stateful`` (OpenVINO keeps them inside the compiled model). Some int8 graphs do not compile as stateful, and OpenVINO
2026.4.1 can mix up the variables without a word, so a stateful model is held against the explicit form before it is
used. The file's batch is free and fixed when the session is made.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes.base import Availability, Missing, Options, StepSession, check_form, choose_device, present
from deploy.signals import kept_signal_stack
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingDependency, UnavailableDevice, UserError

__all__ = ["RUNTIME"]

FORMS = ("explicit", "stateful")


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency("openvino", "openvino") from error
    return openvino


def _compile(ov: Any, path: Path, artefact: Artefact, contract: Contract, options: Options, device: str) -> Any:
    """Read, fix the batch, make stateful if wanted, compile for the device."""
    config: dict[str, Any] = {"PERFORMANCE_HINT": options.hint.upper()}
    if device == "cpu" and options.hint == "latency":
        config["NUM_STREAMS"] = "1"
    if (artefact.precision == "fp32" or contract.states) and device in ("cpu", "auto"):
        # Some processors would silently compute in bfloat16 otherwise. What an int8 step leaves unquantised is so
        # little that converting it costs more than bfloat16 saves.
        config["INFERENCE_PRECISION_HINT"] = "f32"
    if options.threads is not None and device in ("cpu", "auto"):
        config["INFERENCE_NUM_THREADS"] = options.threads
    if options.cache is not None:
        config["CACHE_DIR"] = str(options.cache)
    core = ov.Core()
    try:
        model = core.read_model(path)
        shapes = [contract.input_shape, *(state.shape for state in contract.states)]
        named = zip(contract.input_names, shapes, strict=True)
        model.reshape({name: [options.batch, *shape] for name, shape in named})
    except RuntimeError as error:
        raise BundleError(f"openvino cannot read {path}: {_reason(error)}") from error
    if options.form == "stateful" and contract.states:
        _make_stateful(model, contract, path)
    elif device == "cpu":
        model = _channels_last(ov, model, contract)
    try:
        return core.compile_model(model, device.upper(), config)
    except RuntimeError as error:
        if options.form == "stateful":
            raise UserError(
                f"openvino cannot compile the stateful form of {path} ({_reason(error)}): use the form explicit"
            ) from error
        raise BundleError(f"openvino cannot compile {path} for {device}: {_reason(error)}") from error


def _channels_last(ov: Any, model: Any, contract: Contract) -> Any:
    """Let the states be (B, H, W, C) at both ends, as the processor's kernels compute: no reordering in and out.

    A state that is an input as it stands (the last frame, remembered) passes through as it is.
    """
    kept = {state.output for state in contract.states
            if model.output(state.output).get_node().input(0).get_source_output().get_node().get_type_name()
            in ("Parameter", "Identity")}  # fmt: skip
    steps = ov.preprocess.PrePostProcessor(model)
    for state in contract.states:
        if len(state.shape) == 3 and state.output not in kept:
            for end in (steps.input(state.name), steps.output(state.output)):
                end.model().set_layout(ov.Layout("NCHW"))
                end.tensor().set_layout(ov.Layout("NHWC"))
    return steps.build()


def _make_stateful(model: Any, contract: Contract, path: Path) -> None:
    """Turn the state inputs and outputs into variables of the model."""
    import openvino.opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    for result in model.get_results():
        source = result.input(0).get_source_output()
        maker = source.get_node()
        if maker.get_type_name() == "Slice":
            # 2026.4.1 does not compile variables that are quantised on their way in and on their way out.
            quantiser = maker.input(0).get_source_output().get_node()
            if quantiser.get_type_name() == "FakeQuantize":
                maker.input(0).replace_source_output(quantiser.input(0).get_source_output())
        if maker.get_type_name() in ("Parameter", "Identity"):
            # 2026.4.1 mixes up variables when the next state is an input as it stands: pass it through a limit that
            # limits nothing.
            copied = ops.clamp(source, -3e38, 3e38).output(0)
            names = {name for name in source.get_names() if name in contract.output_names}
            source.set_names(source.get_names() - names)
            copied.set_names(names)
            result.input(0).replace_source_output(copied)
    try:
        apply_make_stateful_transformation(model, {state.name: state.output for state in contract.states})
    except RuntimeError as error:
        raise UserError(f"openvino cannot make {path} stateful ({_reason(error)}): use the form explicit") from error


class _Request:
    """One infer request with its own frame and logits memory."""

    def __init__(self, ov: Any, compiled: Any, contract: Contract, batch: int) -> None:
        self._request = compiled.create_infer_request()
        # The tensors borrow the arrays' memory: they are kept here as long as the request.
        self.frame = np.zeros((batch, *contract.input_shape), np.float32)
        self.logits = np.zeros((batch, contract.answer_width), np.float32)
        self._request.set_tensor(contract.input_names[0], ov.Tensor(self.frame, shared_memory=True))
        self._request.set_tensor("logits", ov.Tensor(self.logits, shared_memory=True))
        # infer() would make a dictionary of all outputs, states too, at every step: a third of a millisecond.
        self._start, self._wait = self._request.start_async, self._request.wait
        self.set_tensor = self._request.set_tensor

    def run(self, frame_BCHW: Array) -> Array:
        np.copyto(self.frame, frame_BCHW)
        self._start()
        self._wait()
        return self.logits.copy()


class _Explicit(StepSession):
    """Two requests over two sets of states."""

    def __init__(self, ov: Any, compiled: Any, contract: Contract, placement: Placement, batch: int) -> None:
        super().__init__(contract, placement, batch)
        self._compiled = compiled
        shapes = [tuple(compiled.input(state.name).shape) for state in contract.states]
        self._sets = [[np.zeros(shape, np.float32) for shape in shapes] for _ in range(2)]
        self._requests = []
        for reads, writes in (self._sets, self._sets[::-1]) if contract.states else (([], []),):
            request = _Request(ov, compiled, contract, batch)
            for state, source, target in zip(contract.states, reads, writes, strict=True):
                request.set_tensor(state.name, ov.Tensor(source, shared_memory=True))
                request.set_tensor(state.output, ov.Tensor(target, shared_memory=True))
            self._requests.append(request)

    def _run(self, frame_BCHW: Array) -> Array:
        answer = self._requests[0].run(frame_BCHW)
        self._requests.reverse()
        self._sets.reverse()
        return answer

    def _forget(self) -> None:
        for state in self._sets[0]:
            state[...] = 0

    def _forget_one(self, stream: int) -> None:
        for state in self._sets[0]:
            state[stream] = 0

    def _free(self) -> None:
        self._requests, self._sets = [], []
        del self._compiled


class _Stateful(StepSession):
    """OpenVINO's own variables hold the states."""

    def __init__(self, ov: Any, compiled: Any, contract: Contract, placement: Placement, batch: int) -> None:
        super().__init__(contract, placement, batch)
        self._ov, self._compiled = ov, compiled
        self._request = _Request(ov, compiled, contract, batch)
        self._inner = self._request._request

    def _run(self, frame_BCHW: Array) -> Array:
        return self._request.run(frame_BCHW)

    def _forget(self) -> None:
        self._inner.reset_state()

    def _forget_one(self, stream: int) -> None:
        for variable in self._inner.query_state():
            kept = np.array(variable.state.data)
            kept[stream] = 0
            variable.state = self._ov.Tensor(kept)

    def _free(self) -> None:
        del self._request, self._inner, self._compiled


def _check_equal(session: StepSession, explicit: StepSession, path: Path, precision: str) -> None:
    """Hold a stateful session against the explicit form over a few frames of noise.

    Raises:
        UserError: the answers differ.
    """
    rng = np.random.default_rng(0)
    shape = (session.batch, *session.contract.input_shape)
    frames = [rng.standard_normal(shape).astype(np.float32) for _ in range(4)]
    want = np.stack([explicit.step(frame) for frame in frames])
    explicit.close()
    session.reset()
    worst = float(np.abs(np.stack([session.step(frame) for frame in frames]) - want).max())
    session.reset()
    worst /= max(1.0, float(np.abs(want).max()))
    if worst > (1e-4 if precision == "fp32" else 0.1):
        session.close()
        raise UserError(
            f"openvino answers differently for the stateful form of {path} (by {worst:.0e}): use the form explicit"
        )


def _reason(error: RuntimeError) -> str:
    """The telling line of OpenVINO's many-line messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[0] if lines else "unknown reason"


def _missing(core: Any, devices: tuple[str, ...]) -> tuple[Missing, ...]:
    """Why OpenVINO has no GPU or NPU here: no such hardware, or no driver for it."""
    gaps = []
    if "gpu" not in devices:
        if present("Intel GPU"):
            gaps.append(Missing("gpu", _trouble(core, "GPU"), "sudo apt-get install -y intel-opencl-icd"))
        else:
            gaps.append(Missing("gpu", "this machine has no Intel GPU"))
    if "npu" not in devices:
        if present("NPU (accel subsystem)"):
            gaps.append(Missing("npu", _trouble(core, "NPU"), "sudo snap install intel-npu-driver"))
        else:
            gaps.append(Missing("npu", "this machine has no Intel NPU"))
    return tuple(gaps)


def _trouble(core: Any, device: str) -> str:
    try:
        core.get_property(device, "AVAILABLE_DEVICES")
    except RuntimeError as error:
        return _reason(error)
    return "its plugin finds no device"


class _OpenVino:
    name = "openvino"
    extra = "openvino"

    def available(self) -> Availability:
        try:
            ov = _library()
        except MissingDependency as error:
            return Availability(False, str(error))
        core = ov.Core()
        with kept_signal_stack():
            devices = (*(name.lower() for name in core.available_devices), "auto")
            return Availability(True, "", ov.__version__.split("-")[0], devices, _missing(core, devices))

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> StepSession:
        ov = _library()
        form = check_form("openvino", options.form, FORMS)
        device, detail = choose_device(RUNTIME, options)
        path = folder / artefact.entry
        with kept_signal_stack():
            compiled = _compile(ov, path, artefact, contract, options, device)
        placed = [str(name).lower() for name in compiled.get_property("EXECUTION_DEVICES")]
        if device != "auto" and not any(name.startswith(device.partition(".")[0]) for name in placed):
            if not options.allow_fallback:
                raise UnavailableDevice(f"openvino was asked for {device} and runs on {', '.join(placed)}")
            detail |= {"asked": device, "fallback": f"it runs on {', '.join(placed)}"}
        detail |= {"execution_devices": ",".join(placed), "form": form, "hint": options.hint, "version": ov.__version__}
        if device != "auto":
            detail["computes"] = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        placement = Placement(runtime="openvino", device=device, precision=artefact.precision, threads=options.threads,
                              detail=detail)  # fmt: skip
        if form == "explicit" or not contract.states:
            return _Explicit(ov, compiled, contract, placement, options.batch)
        session = _Stateful(ov, compiled, contract, placement, options.batch)
        explicit = self.open(folder, artefact, contract, replace(options, form="explicit"))
        _check_equal(session, explicit, path, artefact.precision)
        return session


RUNTIME = _OpenVino()
