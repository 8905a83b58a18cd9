"""PyTorch itself: runs the exported program (``torch.export``), the float reference on any machine with torch.

Forms: ``eager``; ``compiled`` (``torch.compile``, needs a C++ compiler on the processor); ``graphs``, the whole step
captured once as a CUDA graph and replayed, so that the step costs one launch. fp32 means fp32: on a GPU cuDNN would
round convolutions to TF32 (10 bits of mantissa), and is told not to.
"""

import contextlib
import logging
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deploy.runtimes.base import Availability, Missing, Options, StepSession, check_form, choose_device, present
from deploy.runtimes.pt2_file import check_plain
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingDependency, UnavailableDevice

__all__ = ["RUNTIME"]

FORMS = ("eager", "compiled", "graphs")


def _library() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", "torch") from error
    return torch


class _Session(StepSession):
    """States stay on the device, as the step's own outputs."""

    def __init__(self, path: Path, artefact: Artefact, contract: Contract, options: Options) -> None:
        torch = _library()
        device, detail = choose_device(RUNTIME, options)
        form = _form(options.form, device)
        program = _load(torch, path, device)
        self._torch, self._device, self._threads = torch, device, options.threads
        self._states: list[Any] = []
        super().__init__(
            contract,
            Placement(runtime="torch", device=device, precision=artefact.precision, threads=options.threads,
                      detail={"version": torch.__version__, "form": form, **detail}),
            options.batch,
        )  # fmt: skip
        self._program: Callable[..., Any] = program
        self._forget()
        if form != "eager":
            self._prepare(program, form)

    def _prepare(self, program: Any, form: str) -> None:
        """Compile or capture now, so that no frame waits.

        Raises:
            UnavailableDevice: the compiler or the GPU refuses.
        """
        import numpy as np

        torch, contract = self._torch, self.contract
        try:
            if form == "graphs":
                with _full_precision(torch, self._device):
                    self._program = _Captured(torch, program, contract, self.batch)
            else:
                self._program = torch.compile(program, dynamic=False)
            for _ in range(3):  # the second step meets the states as the first one lays them out
                self._run(np.zeros((self.batch, *contract.input_shape), np.float32))
        except Exception as error:  # the compiler's own kinds are many
            line = (str(error).splitlines() or [type(error).__name__])[0]
            what = "compile this model" if form == "compiled" else "capture this model as a CUDA graph"
            raise UnavailableDevice(f"torch cannot {what} here ({line}): use the form eager") from error
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        torch = self._torch
        # The number of threads is one setting for the whole process: another session may have changed it.
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode(), _full_precision(torch, self._device):
            frame = torch.from_numpy(frame_BCHW)
            if not isinstance(self._program, _Captured):
                frame = frame.to(self._device)
            logits, *self._states = self._program(frame, *self._states)
            answer: Array = logits.cpu().numpy()  # waits for the device
        return answer

    def _forget(self) -> None:
        torch, zeros = self._torch, self.contract.zeros(self.batch).values()
        # As a step makes them: a compiled program would be compiled again for ordinary tensors.
        with torch.inference_mode():
            self._states = [torch.from_numpy(zero).to(self._device) for zero in zeros]

    def _forget_one(self, stream: int) -> None:
        torch = self._torch
        with torch.inference_mode():
            # A state may be a view of an activation, or the same tensor as another state: copy before writing. Laid out
            # like fresh ones, so that a compiled program meets nothing new.
            self._states = [state.clone(memory_format=torch.contiguous_format) for state in self._states]
            for state in self._states:
                state[stream] = 0

    def _free(self) -> None:
        del self._program
        self._states = []


def advance(program: Any, frame: Any, states: Sequence[Any]) -> Any:
    """One step that writes the next states where the old ones stand; the logits are returned."""
    logits, *following = program(frame, *states)
    # A next state may be a view of an old one: read all of them before any is overwritten.
    for state, value in zip(states, [value.clone() for value in following], strict=True):
        state.copy_(value)
    return logits


class _Captured:
    """The step as one CUDA graph over fixed buffers: the frame, the states, the logits.

    The frame comes in from pinned memory, so that its copy is queued like the graph itself; only the answer is waited
    for, which is also what makes the pinned memory free for the next frame.
    """

    _capturing = threading.Lock()  # torch allows one capture at a time in a process

    def __init__(self, torch: Any, program: Any, contract: Contract, batch: int) -> None:
        shapes = [contract.input_shape, *(state.shape for state in contract.states)]
        self._host = torch.zeros((batch, *contract.input_shape), pin_memory=True)
        self._frame, *self._states = [torch.zeros((batch, *shape), device="cuda") for shape in shapes]
        self._graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        with self._capturing, torch.inference_mode():
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # libraries choose their kernels and take their workspaces before the capture
                    advance(program, self._frame, self._states)
            torch.cuda.current_stream().wait_stream(side)
            # Other sessions may work in their own threads meanwhile: only this one's calls are forbidden to allocate.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._logits = advance(program, self._frame, self._states)

    def __call__(self, frame: Any, *states: Any) -> Any:
        """One step of a frame in ordinary memory; states that are not the graph's own (after a reset) come in first."""
        self._host.copy_(frame)
        self._frame.copy_(self._host, non_blocking=True)
        for buffer, state in zip(self._states, states, strict=True):
            if state is not buffer:
                buffer.copy_(state)
        self._graph.replay()
        return (self._logits, *self._states)


@contextlib.contextmanager
def _full_precision(torch: Any, device: str) -> Iterator[None]:
    """No TF32 in cuDNN meanwhile; the setting is one for the whole process, which may be training."""
    if device != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _form(form: str | None, device: str) -> str:
    chosen = check_form("torch", form, FORMS)
    if chosen == "graphs" and device != "cuda":
        raise UnavailableDevice(f"torch: CUDA graphs run on the device cuda, not on {device}: use eager or compiled")
    if chosen == "compiled" and device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UnavailableDevice("torch cannot compile here: there is no C++ compiler; run  apt-get install g++")
    return chosen


def _load(torch: Any, path: Path, device: str = "cpu") -> Any:
    """The exported program as a callable module, with the tensors that it makes itself on the device too."""
    if not path.is_file():
        raise BundleError(f"torch cannot read {path}: the file is missing")
    check_plain(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.export").setLevel(logging.ERROR)
            program = torch.export.load(str(path))
            if device != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
            return program.module()
    except Exception as error:  # torch.export raises many kinds for a damaged archive
        raise BundleError(f"torch cannot read {path}: {(str(error).splitlines() or ['damaged'])[0]}") from error


def _missing(torch: Any) -> list[Missing]:
    """The devices torch could have elsewhere."""
    gaps = []
    if not torch.cuda.is_available():
        version = torch.__version__.split("+")[0]
        if not present("NVIDIA"):
            gaps.append(Missing("cuda", "this machine has no NVIDIA GPU"))
        elif torch.version.cuda is None:
            gaps.append(Missing("cuda", "this torch was built without CUDA",
                                f"pip install --force-reinstall torch=={version}"))  # fmt: skip
        else:
            gaps.append(Missing("cuda", "the NVIDIA driver does not answer", "nvidia-smi"))
    if not torch.backends.mps.is_available():
        gaps.append(Missing("mps", "this is not a Mac with Apple silicon"))
    return gaps


class _Torch:
    name = "torch"
    extra = "torch"

    def available(self) -> Availability:
        try:
            torch = _library()
        except MissingDependency as error:
            return Availability(False, str(error))
        devices = ["cpu"]
        if torch.cuda.is_available():
            devices.append("cuda")
        if torch.backends.mps.is_available():
            devices.append("mps")
        return Availability(True, "", torch.__version__, tuple(devices), tuple(_missing(torch)))

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> _Session:
        return _Session(folder / artefact.entry, artefact, contract, options)


RUNTIME = _Torch()
