"""PyTorch itself: runs the exported program (``torch.export``), the float reference on any machine with torch."""

import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

from deploy.runtimes.base import Availability, Options, StepSession, check_device
from toolkit.bundle import Artefact
from toolkit.contract import Array, Contract, Placement
from toolkit.errors import BundleError, MissingDependency

__all__ = ["RUNTIME"]


def _library() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", "torch") from error
    return torch


class _Session(StepSession):
    def __init__(self, path: Path, artefact: Artefact, contract: Contract, options: Options) -> None:
        torch = _library()
        device = check_device("torch", options.device, RUNTIME.available().devices)
        if not path.is_file():
            raise BundleError(f"torch cannot read {path}: the file is missing")
        _check_archive(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logging.getLogger("torch.export").setLevel(logging.ERROR)
                self._program = torch.export.load(str(path)).module().to(device)
        except Exception as error:  # torch.export raises many kinds for a damaged archive
            raise BundleError(f"torch cannot read {path}: {(str(error).splitlines() or ['damaged'])[0]}") from error
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._torch, self._device = torch, device
        self._states: list[Any] = []
        super().__init__(
            contract,
            Placement(runtime="torch", device=device, precision=artefact.precision, threads=options.threads,
                      detail={"version": torch.__version__}),
        )  # fmt: skip
        self._forget()

    def _run(self, frame_BCHW: Array) -> Array:
        with self._torch.inference_mode():
            frame = self._torch.from_numpy(frame_BCHW).to(self._device)
            logits, *self._states = self._program(frame, *self._states)
            answer: Array = logits.cpu().numpy()
        return answer

    def _forget(self) -> None:
        zeros = self.contract.zeros().values()
        self._states = [self._torch.from_numpy(zero).to(self._device) for zero in zeros]

    def _free(self) -> None:
        del self._program
        self._states = []


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
        return Availability(True, "", torch.__version__, tuple(devices))

    def open(self, folder: Path, artefact: Artefact, contract: Contract, options: Options) -> _Session:
        return _Session(folder / artefact.entry, artefact, contract, options)


RUNTIME = _Torch()
