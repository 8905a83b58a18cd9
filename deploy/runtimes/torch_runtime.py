"""PyTorch itself: runs the exported program (``torch.export``), the float reference on any machine with torch.

Forms: ``eager``; ``compiled`` (``torch.compile``, needs a C++ compiler on the processor); ``graphs``, the whole step
captured once as a CUDA graph and replayed, so that the step costs one launch.
"""

import logging
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.runtimes.base import Availability, Missing, Options, StepSession, check_form, choose_device, present
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
        program = _load(torch, path).to(device)
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
        if form == "compiled":
            self._program = torch.compile(program, dynamic=False)
            self._warm_up()
        elif form == "graphs":
            self._program = _Captured(torch, program, contract, options.batch)

    def _warm_up(self) -> None:
        """Compile now, so that the first frame does not wait."""
        import numpy as np

        try:
            self._run(np.zeros((self.batch, *self.contract.input_shape), np.float32))
        except Exception as error:  # the compiler's own kinds are many
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UnavailableDevice(f"torch cannot compile this model here ({line}): use the form eager") from error
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        torch = self._torch
        # The number of threads is one setting for the whole process: another session may have changed it.
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            frame = torch.from_numpy(frame_BCHW).to(self._device)
            logits, *self._states = self._program(frame, *self._states)
            answer: Array = logits.cpu().numpy()
        return answer

    def _forget(self) -> None:
        zeros = self.contract.zeros(self.batch).values()
        self._states = [self._torch.from_numpy(zero).to(self._device) for zero in zeros]

    def _forget_one(self, stream: int) -> None:
        torch = self._torch
        with torch.inference_mode():
            # A state may be a view of an activation, or the same tensor as another state: copy before writing.
            self._states = [state.clone() for state in self._states]
            for state in self._states:
                state[stream] = 0

    def _free(self) -> None:
        del self._program
        self._states = []


class _Captured:
    """The step as one CUDA graph over fixed buffers; the next states are written where the old ones stood."""

    def __init__(self, torch: Any, program: Any, contract: Contract, batch: int) -> None:
        shapes = [contract.input_shape, *(state.shape for state in contract.states)]
        self._frame, *self._states = [torch.zeros((batch, *shape), device="cuda") for shape in shapes]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(3):  # libraries choose their kernels before the capture
                program(self._frame, *self._states)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph):
            self._logits, *following = program(self._frame, *self._states)
            # A next state may be a view of an old one: read all of them before any is overwritten.
            for state, value in zip(self._states, [value.clone() for value in following], strict=True):
                state.copy_(value)

    def __call__(self, frame: Any, *states: Any) -> Any:
        """One step; states that are not the graph's own (after a reset) are copied in first."""
        self._frame.copy_(frame)
        for buffer, state in zip(self._states, states, strict=True):
            if state is not buffer:
                buffer.copy_(state)
        self._graph.replay()
        return (self._logits, *self._states)


def _form(form: str | None, device: str) -> str:
    chosen = check_form("torch", form, FORMS)
    if chosen == "graphs" and device != "cuda":
        raise UnavailableDevice(f"torch: CUDA graphs run on the device cuda, not on {device}: use eager or compiled")
    if chosen == "compiled" and device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UnavailableDevice("torch cannot compile here: there is no C++ compiler; run  apt-get install g++")
    return chosen


def _load(torch: Any, path: Path) -> Any:
    """The exported program as a callable module."""
    if not path.is_file():
        raise BundleError(f"torch cannot read {path}: the file is missing")
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.export").setLevel(logging.ERROR)
            return torch.export.load(str(path)).module()
    except Exception as error:  # torch.export raises many kinds for a damaged archive
        raise BundleError(f"torch cannot read {path}: {(str(error).splitlines() or ['damaged'])[0]}") from error


def _check_archive(path: Path) -> None:
    """Refuse an archive with pickled data: what vidon writes has none (torch 2.13 leaves one empty entry)."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [
                info for info in archive.infolist() if info.filename.endswith((".pt", ".pkl")) and info.file_size
            ]
    except zipfile.BadZipFile as error:
        raise BundleError(f"torch cannot read {path}: it is damaged; copy the bundle again") from error
    if pickled:
        raise BundleError(f"torch does not read {path}: {pickled[0].filename} holds pickled data, which could run code")


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
